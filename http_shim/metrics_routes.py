"""Shows what is counted, and counts what REST refuses; open to everybody, as health is."""

from aiohttp import web
from aiohttp.typedefs import Handler

from daemon.metrics import CONTENT_TYPE
from http_shim.errors import ErrorResponse
from http_shim.keys import METRICS
from http_shim.search_routes import PATH as SEARCHING
from http_shim.search_routes import kind_of

ASKING = "/job/{task_type}"
"""The route that takes requests."""


def add_metrics_routes(app: web.Application) -> None:
    """Add the route of metrics."""
    app.router.add_get("/metrics", show_metrics)


async def show_metrics(request: web.Request) -> web.Response:
    """Answer everything that is counted, as Prometheus' text; what is away is left out."""
    text = await request.app[METRICS].render()
    return web.Response(body=text, headers={"Content-Type": CONTENT_TYPE})


@web.middleware
async def count_refusals(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Count the requests for jobs that are answered with an error, and searches by outcome."""
    response = await handler(request)
    resource = request.match_info.route.resource
    path = None if resource is None else resource.canonical
    code = response.code if isinstance(response, ErrorResponse) else None
    if path == ASKING and code is not None:
        request.app[METRICS].request_rejected("rest", code)
    elif path == SEARCHING:
        request.app[METRICS].search_ended(kind_of(request), code or "ok")
    return response
