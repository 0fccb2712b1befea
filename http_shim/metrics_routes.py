"""Shows what is counted, and counts what REST refuses; open to everybody, as health is."""

from aiohttp import web
from aiohttp.typedefs import Handler

from daemon.metrics import CONTENT_TYPE
from http_shim.errors import ErrorResponse
from http_shim.keys import METRICS
from http_shim.search_routes import KIND

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
    is_asking = resource is not None and resource.canonical == ASKING
    if is_asking and isinstance(response, ErrorResponse):
        request.app[METRICS].request_rejected("rest", response.code)
    if KIND in request:
        outcome = response.code if isinstance(response, ErrorResponse) else "ok"
        request.app[METRICS].search_ended(request[KIND], outcome)
    return response
