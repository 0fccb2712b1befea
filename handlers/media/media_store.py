"""Pictures in, face results out: the media store, over media_store_http.

Only a number goes from a request into the URL, so no client can make the daemon fetch from
anywhere but the configured media store.
"""

import logging
from dataclasses import dataclass, replace
from typing import Self

from daemon.errors import DependencyDownError, PermanentError, RetryableError
from daemon.jobs import JsonObject, dump_json
from daemon.settings import MediaStoreSettings
from handlers.blame import Blame
from handlers.media.media_store_answers import AnswerError, error_of, read_file, read_head
from handlers.media.media_store_http import MediaStoreHttp
from handlers.media.origin import NO_PREVIEW, ORIGINAL, Origin, preview_origin
from handlers.media.turns import Turns
from handlers.media.upload_form import FIELDS, TAKEN, WRONG_FIELD, form, id_in

log = logging.getLogger(__name__)

_NO_FILE = frozenset(("media_not_found", "empty"))
"""Codes of a picture that is not there."""
_WEB_PAGE = "text/html"
_HEAD_BYTES = 64
_ENTITY_BYTES = 65_536
"""Of what is said of an uploaded picture."""


@dataclass(frozen=True, slots=True)
class Media:
    """One file as the media store gave it."""

    data: bytes
    """Never empty, never more than `max_bytes`."""
    content_type: str | None
    """What the media store calls it, such as image/jpeg; a claim, not a fact."""
    origin: Origin = ORIGINAL
    """Whether it is the original or a preview."""


class MediaStoreClient:
    """Speaks to one media store; at most `concurrency` transfers at a time, others wait.

    Use it as an async context manager; it holds its connections for as long as it is open.

    Raises:
        ConfigError: on construction, where both the URL and the token name a user.
    """

    def __init__(self, settings: MediaStoreSettings) -> None:
        self._settings = settings
        self._http = MediaStoreHttp(settings)
        self._slots = Turns(settings.concurrency)
        self._blame = Blame()
        self._told_of_no_preview = False

    async def __aenter__(self) -> Self:
        self._http.open()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def close(self) -> None:
        """Close the connections. Safe twice and before opening."""
        await self._http.close()

    @property
    def address(self) -> str:
        """Where it is, without the user and password that the URL may hold."""
        return self._http.address

    async def fetch(self, media_store_id: int) -> Media:
        """Return the bytes of one picture file: its preview where the settings say so.

        A picture without a preview (404, 410, 204, or no bytes) comes as its original.

        Raises:
            PermanentError: code `media_not_found`, `media_store_refused`,
                `media_store_redirected`, `too_large` or `empty`.
            DependencyDownError: code `media_store_unreachable`; or, where the store fails
                whatever it is asked for, `media_store_refused` (it does not know us) or a code of
                RetryableError.
            RetryableError: code `media_store_error` or `media_store_timeout`. Both bring the
                store's Retry-After, at most 300 s.
        """
        try:
            media = await self._fetch(media_store_id)
        except DependencyDownError:
            raise
        except RetryableError as error:
            raise await self._judged(error, media_store_id) from error
        except PermanentError:
            self._blame.worked()
            raise
        self._blame.worked()
        return media

    async def _judged(self, error: RetryableError, media_store_id: int) -> RetryableError:
        """Return who is at fault: this picture, or a store that serves none for now."""
        if self._blame.failed(media_store_id):
            return _away(f"{error.message}; so it did for every other picture before", error)
        if not isinstance(error, AnswerError):
            # It broke off or fell silent: perhaps it is gone, and this picture was in transit.
            try:
                await self.check()
            except DependencyDownError as down:
                return down
            except RetryableError as silent:
                return _away(silent.message, silent)
        return error

    async def _fetch(self, media_store_id: int) -> Media:
        if self._settings.variant == "original":
            return await self._fetch_file(self._settings.file_path, media_store_id)
        try:
            return await self._fetch_file(
                self._settings.preview_path, media_store_id, is_preview=True
            )
        except PermanentError as error:
            if error.code not in _NO_FILE:
                raise
        media = await self._fetch_file(self._settings.file_path, media_store_id)
        # Once: the results themselves tell each such picture.
        if not self._told_of_no_preview:
            self._told_of_no_preview = True
            log.warning(
                "the media store has no preview of picture %d: its original is used, and so is"
                " that of every other without one; check INFERD_MEDIA_STORE__PREVIEW_PATH",
                media_store_id,
            )
        return replace(media, origin=NO_PREVIEW)

    async def _fetch_file(
        self, template: str, media_store_id: int, *, is_preview: bool = False
    ) -> Media:
        path = _path(template, media_store_id)
        async with self._slots, self._http.answer("GET", path) as response:
            if response.status != 200:  # noqa: PLR2004 - OK
                what = f"picture {media_store_id}"
                raise await error_of(response, what, self._http.redact)
            data = await read_file(response, media_store_id, max_bytes=self._settings.max_bytes)
            said = response.headers.get("Content-Type", "")
            origin = preview_origin(response.headers) if is_preview else ORIGINAL
        if not data:
            raise PermanentError(f"the media store's file {media_store_id} is empty", code="empty")
        kind = said.partition(";")[0].strip().lower()[:100] or None
        if kind == _WEB_PAGE and data[:_HEAD_BYTES].lstrip(b"\xef\xbb\xbf \t\r\n")[:1] == b"<":
            raise AnswerError(
                f"the media store answers picture {media_store_id} with a web page (text/html);"
                " check INFERD_MEDIA_STORE__URL, and whether it is under maintenance",
                code="media_store_error",
            )
        return Media(data, kind, origin)

    async def upload(self, data: bytes, filename: str, content_type: str) -> int:
        """Put a picture into the store; return its media_store_id there.

        A store that has it already and says so with its id is as good as one that takes it.

        Args:
            data: the file.
            filename: its name, which also becomes its label.
            content_type: such as image/jpeg.

        Raises:
            PermanentError: code `media_store_refused` or `media_store_redirected`.
            DependencyDownError: as `post_face_results`.
            RetryableError: code `media_store_error` or `media_store_timeout`.
        """
        path = self._settings.upload_path
        for field in FIELDS:
            body, kind = form(field, data, filename, content_type)
            headers = {"Content-Type": kind}
            async with self._slots, self._http.answer("POST", path, body, headers) as response:
                if response.status in WRONG_FIELD and field != FIELDS[-1]:
                    continue
                if response.status not in TAKEN:
                    raise await error_of(response, "an upload", self._http.redact)
                media_store_id = id_in(await read_head(response, _ENTITY_BYTES))
            if media_store_id is None:
                break
            return media_store_id
        raise PermanentError(
            "the media store took an upload and named no usable id; check"
            " INFERD_MEDIA_STORE__UPLOAD_PATH",
            code="media_store_refused",
        )

    async def post_face_results(
        self, media_store_id: int, job_id: str, results: JsonObject
    ) -> None:
        """Deliver the face results of one job; the job_id makes a repeat harmless.

        Raises:
            PermanentError: code `media_not_found`, `media_store_refused` or
                `media_store_redirected`.
            DependencyDownError: code `media_store_unreachable`, `media_store_refused` (it does
                not know us) or `media_store_error` (it asks for patience).
            RetryableError: code `media_store_error` or `media_store_timeout`.
        """
        path = _path(self._settings.results_path, media_store_id)
        body = dump_json({"job_id": job_id, **results}).encode()
        headers = {"Content-Type": "application/json", "Idempotency-Key": job_id}
        async with self._slots, self._http.answer("POST", path, body, headers) as response:
            if not 200 <= response.status < 300:  # noqa: PLR2004 - any success
                what = f"face results of {media_store_id}"
                raise await error_of(response, what, self._http.redact)

    async def check(self) -> None:
        """Return if the media store answers at all, whatever it says; for health.

        Raises:
            DependencyDownError: code `media_store_unreachable`.
            RetryableError: code `media_store_timeout` or `media_store_error`; it is there, but
                does not speak HTTP within twice the connect timeout.
        """
        await self._http.check()


def _away(message: str, error: RetryableError) -> DependencyDownError:
    return DependencyDownError(
        message, code=error.code, retry_after_seconds=error.retry_after_seconds
    )


def _path(template: str, media_store_id: int) -> str:
    return template.replace("{id}", f"{media_store_id:d}")
