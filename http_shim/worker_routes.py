"""Shows all daemons at the broker: who is there, what each does and how fast, and all together."""

from aiohttp import web

from daemon.jobs import dump_json
from http_shim.callers import authorize
from http_shim.keys import WORKERS


def add_worker_routes(app: web.Application) -> None:
    """Add the route of the daemons."""
    app.router.add_get("/workers", show_workers)


async def show_workers(request: web.Request) -> web.Response:
    """Answer what is known of each daemon; needs a token, as the queue does."""
    authorize(request)
    return web.json_response(request.app[WORKERS].to_wire(), dumps=dump_json)
