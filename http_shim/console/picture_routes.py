"""Small pictures out of the media store, and new pictures into it."""

from typing import Literal

from aiohttp import web
from pydantic import BaseModel, ConfigDict, Field

from daemon.errors import NotFoundError, PermanentError
from daemon.jobs import MAX_MEDIA_STORE_ID
from http_shim.auth import WRITE_PERMISSION
from http_shim.bodies import read_body
from http_shim.callers import authorize
from http_shim.console.parts import console_of
from http_shim.deadlines import within
from http_shim.errors import DrainingError, error_response
from http_shim.keys import HEALTH
from http_shim.media_routes import MAX_DIGITS
from http_shim.queries import parse_query
from http_shim.search_door import BusyError

SHOW_PATH = "/console/picture/{media_store_id}"
ADD_PATH = "/console/upload"
KEEP_SECONDS = 300
"""How long a browser may show a picture without asking again."""
WORK_SECONDS = 45.0
MOST_UPLOADS = 4
"""At a time: each holds a whole file in memory."""

_UPLOADS: web.AppKey[list[int]] = web.AppKey("uploads")


class ShowQuery(BaseModel):
    """The query of GET /console/picture; sides are few, so that what is kept is of use."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    side: Literal["480", "1280"] = "480"


class AddQuery(BaseModel):
    """The query of POST /console/upload."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str = Field("picture", max_length=200)


def add_picture_routes(app: web.Application) -> None:
    """Add the routes of pictures."""
    app[_UPLOADS] = [0]
    app.router.add_get(SHOW_PATH, show_picture)
    app.router.add_post(ADD_PATH, add_picture)


async def show_picture(request: web.Request) -> web.Response:
    """Answer a small JPEG of a picture, with the size of the whole one; needs a token."""
    authorize(request)
    console = console_of(request)
    asked = parse_query(request, ShowQuery)
    found = request.match_info["media_store_id"]
    is_plain = found.isascii() and found.isdigit() and len(found) <= MAX_DIGITS
    if not is_plain or int(found) > MAX_MEDIA_STORE_ID:
        raise NotFoundError("a picture is named by its media_store_id in decimal digits")
    try:
        picture = await within(console.pictures.show(int(found), int(asked.side)), WORK_SECONDS)
    except PermanentError as error:
        return error_response(error, 404 if error.code == "media_not_found" else 422)
    return web.Response(
        body=picture.data,
        content_type="image/jpeg",
        headers={
            "Cache-Control": f"private, max-age={KEEP_SECONDS}",
            "Vary": "Authorization",
            "X-Picture-Width": str(picture.width),
            "X-Picture-Height": str(picture.height),
            # Nothing in it runs, wherever it is opened.
            "Content-Security-Policy": "default-src 'none'; sandbox",
        },
    )


async def add_picture(request: web.Request) -> web.Response:
    """Put the picture in the body into the media store; answer its id."""
    authorize(request, WRITE_PERMISSION)
    console = console_of(request)
    if request.app[HEALTH].is_draining:
        raise DrainingError("the daemon is stopping and takes no more pictures")
    asked = parse_query(request, AddQuery)
    # No form of another site can send these: a browser asks us first, and we do not answer.
    if not request.content_type.startswith("image/"):
        raise web.HTTPUnsupportedMediaType(reason="Send the picture's bytes as image/...")
    under_way = request.app[_UPLOADS]
    if under_way[0] >= MOST_UPLOADS:
        raise BusyError("too many uploads are under way")
    under_way[0] += 1
    try:
        data = await read_body(request, console.max_picture_bytes)
        added = console.pictures.add(data, asked.name, request.content_type)
        media_store_id = await within(added, WORK_SECONDS)
    except PermanentError as error:
        return error_response(error, 422)
    finally:
        under_way[0] -= 1
    return web.json_response({"media_store_id": media_store_id}, status=201)
