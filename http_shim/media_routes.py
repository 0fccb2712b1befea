"""The route that deletes all that is known of a picture."""

from aiohttp import web

from daemon.errors import ConflictError, InvalidRequestError
from daemon.jobs import MAX_MEDIA_STORE_ID, dump_json
from http_shim.auth import WRITE_PERMISSION
from http_shim.callers import authorize
from http_shim.keys import REMOVAL

MAX_DIGITS = 19
"""2**63 has so many."""


def add_media_routes(app: web.Application) -> None:
    """Add the routes of pictures."""
    app.router.add_delete("/media/{media_store_id}", delete_media)


async def delete_media(request: web.Request) -> web.Response:
    """Remove a picture's vectors and jobs; answer what was removed, which may be nothing."""
    authorize(request, WRITE_PERMISSION)
    removal = request.app[REMOVAL]
    if removal is None:
        raise web.HTTPNotFound
    removed = await removal.remove(media_store_id_of(request))
    if removed.left:
        # What could be removed is; the daemon that runs it hears of a delete over MQTT only.
        raise ConflictError(
            "a job of it runs in another daemon: all else is removed; ask again once it has ended,"
            f" or over MQTT (inference/delete/{removed.media_store_id}), which reaches all daemons",
            existing_job_id=removed.left[0],
        )
    return web.json_response(removed.to_wire(), dumps=dump_json)


def media_store_id_of(request: web.Request) -> int:
    """Return the id in the path.

    Raises:
        InvalidRequestError: it is not a media_store_id.
    """
    word = request.match_info["media_store_id"]
    is_plain = word.isascii() and word.isdigit() and len(word) <= MAX_DIGITS
    if not is_plain or int(word) > MAX_MEDIA_STORE_ID:
        raise InvalidRequestError(
            "media_store_id must be an id in decimal digits", field="media_store_id"
        )
    return int(word)
