"""Says whether the daemon lives, may be sent work, and what it depends on; open to everybody."""

import asyncio

from aiohttp import web

from daemon.errors import StorageError
from daemon.health import CHECK_SECONDS
from daemon.jobs import JsonObject, dump_json
from http_shim.console.page_routes import page
from http_shim.keys import HEALTH, QUEUE

READY = ("ok", "degraded")


def add_health_routes(app: web.Application) -> None:
    """Add the routes of health."""
    app.router.add_get("/", greet)
    app.router.add_get("/health", report_health)
    app.router.add_get("/health/live", report_live)
    app.router.add_get("/health/ready", report_ready)


async def greet(request: web.Request) -> web.Response:
    """Say who answers here: to a browser the console, where there is one."""
    if (found := page(request)) is not None:
        return found
    return web.json_response({"message": "inferd is running", "jobs": "/job", "health": "/health"})


async def report_live(request: web.Request) -> web.Response:
    """Answer 200 as long as the loop answers, and 503 where only a new start helps."""
    message = request.app[HEALTH].hangs()
    if message is None:
        return web.json_response({"status": "ok"})
    body: JsonObject = {"status": "stalled", "code": "model_stalled", "message": message}
    return web.json_response(body, status=503)


async def report_ready(request: web.Request) -> web.Response:
    """Answer 200 where work may be sent, else 503; the body says what is away."""
    report = await request.app[HEALTH].report()
    status = 200 if report["status"] in READY else 503
    return web.json_response(report, status=status, dumps=dump_json)


async def report_health(request: web.Request) -> web.Response:
    """Answer 200 with all that is known, and with the keys that the first service had."""
    report, waiting = await asyncio.gather(
        request.app[HEALTH].report(), _count_waiting(request.app)
    )
    checks = report["checks"]
    body: JsonObject = {
        **report,
        "database": _word(checks, "database", "ok" if waiting is not None else "unavailable"),
        "worker": _word(checks, "worker", "unknown"),
        "queue_size": waiting,
    }
    return web.json_response(body, dumps=dump_json)


async def _count_waiting(app: web.Application) -> int | None:
    try:
        async with asyncio.timeout(CHECK_SECONDS):
            return int((await app[QUEUE].depth())["pending"])
    except (StorageError, TimeoutError):
        return None


def _word(checks: JsonObject, name: str, default: str) -> str:
    if name not in checks:
        return default
    return "ok" if checks[name]["ok"] else "unavailable"
