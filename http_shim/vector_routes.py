"""Has the embedded vectors copied for a backup, and the copy removed; for admins."""

from http import HTTPStatus

from aiohttp import web

from daemon.errors import NotFoundError
from daemon.jobs import dump_json
from http_shim.auth import ForbiddenError
from http_shim.callers import authorize
from http_shim.keys import SNAPSHOTS
from http_shim.snapshots import Snapshots


def add_vector_routes(app: web.Application) -> None:
    """Add the routes of copies of the vectors."""
    app.router.add_post("/vectors/snapshots", make_snapshot)
    app.router.add_delete("/vectors/snapshots/{snapshot_id}", remove_snapshot)


async def make_snapshot(request: web.Request) -> web.Response:
    """Copy the vectors on this machine; answer where they are."""
    body = await _snapshots(request).make_snapshot()
    return web.json_response(body, status=HTTPStatus.CREATED, dumps=dump_json)


async def remove_snapshot(request: web.Request) -> web.Response:
    """Remove a copy; answer whether there was one."""
    snapshot_id = request.match_info["snapshot_id"]
    is_removed = await _snapshots(request).remove_snapshot(snapshot_id)
    return web.json_response({"removed": is_removed}, dumps=dump_json)


def _snapshots(request: web.Request) -> Snapshots:
    caller = authorize(request)
    if not caller.is_admin:
        raise ForbiddenError("only an admin may have all vectors copied")
    snapshots = request.app[SNAPSHOTS]
    if snapshots is None:
        raise NotFoundError("this daemon keeps no vectors", code="vectors_not_embedded")
    return snapshots
