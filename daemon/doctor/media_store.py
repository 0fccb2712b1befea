"""The media store: reachable, what it says of a picture that cannot be there, its results path."""

import asyncio
from collections.abc import Iterator

from daemon.doctor.facts import Facts, without_user
from daemon.doctor.findings import Finding, fail, ok, warn
from daemon.doctor.web import AwayError, ask
from daemon.errors import HandlerError
from daemon.jobs import MAX_MEDIA_STORE_ID, TaskType
from daemon.settings import MediaStoreSettings
from handlers.media.media_store import MediaStoreClient

PART = "media store"
ABSENT = MAX_MEDIA_STORE_ID
"""No store has counted so far: a picture that is not there."""
_MENDS = {
    "media_store_unreachable": "start it (make demo has a small one: python -m demos.media_store),"
    " or set INFERD_MEDIA_STORE__URL to where this machine reaches it",
    "media_store_timeout": "it hangs: restart it, or set INFERD_MEDIA_STORE__URL to the right port",
    "media_store_refused": "set INFERD_MEDIA_STORE__TOKEN to a token that may read pictures and"
    " write results",
    "media_store_redirected": "set INFERD_MEDIA_STORE__URL to where it really is",
}
_ELSE = "see the media store's log; check INFERD_MEDIA_STORE__URL and INFERD_MEDIA_STORE__FILE_PATH"


def look(facts: Facts) -> Iterator[Finding]:
    """Look at the media store as the daemon would; nothing is written to it."""
    settings = facts.settings.media_store
    yield asyncio.run(_fetch_absent(settings))
    if TaskType.FACE_DETECTION in facts.task_types:
        yield from _results(settings)


async def _fetch_absent(settings: MediaStoreSettings) -> Finding:
    async with MediaStoreClient(settings) as client:
        try:
            await client.check()
            await client.fetch(ABSENT)
        except HandlerError as error:
            if error.code == "media_not_found":
                return ok(PART, f"{client.address}: answers, and knows no picture {ABSENT}")
            return fail(PART, error.code, error.message, _MENDS.get(error.code, _ELSE))
        return warn(
            PART,
            "media_store_odd",
            f"{client.address} has a file for the id {ABSENT}: it seems to answer anything",
            "check INFERD_MEDIA_STORE__FILE_PATH",
        )


def _results(settings: MediaStoreSettings) -> Iterator[Finding]:
    """Ask for the results path without writing: GET, where the daemon would POST."""
    path = settings.results_path.replace("{id}", str(ABSENT))
    token = settings.token
    headers = {"Authorization": f"Bearer {token.get_secret_value()}"} if token else {}
    try:
        status = ask(
            settings.url + path, seconds=settings.connect_timeout_seconds, headers=headers
        ).status
    except AwayError:
        return  # told already
    where = f"{without_user(settings.url)}{settings.results_path}"
    if status in (401, 403):
        found = f"it refuses us at {where} ({status})"
        yield fail(PART, "media_store_refused", found, _MENDS["media_store_refused"])
    elif status == 405:  # noqa: PLR2004 - method not allowed: only POST is
        yield ok(PART, f"face results go to {where}")
    elif status >= 500:  # noqa: PLR2004 - its own fault
        yield fail(PART, "media_store_error", f"it answers {status} at {where}", _ELSE)
    else:
        # A store that does not know the picture and one that does not know the path say the same.
        yield ok(PART, f"face results go to {where}; only a job can tell whether it takes them")
