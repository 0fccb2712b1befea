"""Streams events to browsers as server-sent events; a new stream begins with the whole state."""

import asyncio
import time

from aiohttp import web

from daemon.jobs import dump_json
from daemon.live import encode
from http_shim.auth import WRITE_PERMISSION, Caller, UnauthorizedError
from http_shim.callers import authorize
from http_shim.console.feed import FEED
from http_shim.console.parts import CONSOLE, Console, console_of
from http_shim.keys import AUTHENTICATOR

PATH = "/console/events"
CONTENT_TYPE = "text/event-stream"
QUIET_SECONDS = 15.0
"""After so long without an event a comment is sent: proxies close silent connections."""
WRITE_SECONDS = 10.0
"""A browser that reads nothing for so long is dropped."""
TOKEN_SECONDS = 30.0
"""How often the token is looked at again: it may have expired."""


def add_stream_routes(app: web.Application) -> None:
    """Add the route of the events."""
    app.router.add_get(PATH, stream_events)
    app.on_shutdown.append(_end_streams)


async def stream_events(request: web.Request) -> web.StreamResponse:
    """Send the whole state, then each event, until the browser leaves or is too slow.

    Needs a token, since it tells job_ids as the list of jobs does. Where the token expires the
    answer ends; a watcher that comes back is told why.
    """
    caller = authorize(request)
    console = console_of(request)
    headers = {"Content-Type": f"{CONTENT_TYPE}; charset=utf-8", "X-Accel-Buffering": "no"}
    if request.method == "HEAD":
        return web.Response(headers=headers)
    with console.live.watch() as watcher:
        # Watched first: what happens meanwhile comes after the snapshot, and nothing is missed.
        first = _greeting(request, console, caller) + await request.app[FEED].snapshot()
        response = web.StreamResponse(headers=headers)
        await response.prepare(request)
        checked_at = time.monotonic()
        found = first
        try:
            while not watcher.is_over:
                async with asyncio.timeout(WRITE_SECONDS):
                    await response.write(found or b": still here\n\n")
                found = await watcher.take(QUIET_SECONDS)
                if time.monotonic() - checked_at > TOKEN_SECONDS:
                    authorize(request)
                    checked_at = time.monotonic()
        except (ConnectionError, TimeoutError, UnauthorizedError):
            # Gone, too slow, or no longer allowed: it may come back.
            if request.transport is not None:
                request.transport.abort()
    return response


async def _end_streams(app: web.Application) -> None:
    """Let no browser hold up the end of the daemon."""
    console = app[CONSOLE]
    if console is not None:
        console.live.close()


def _greeting(request: web.Request, console: Console, caller: Caller) -> bytes:
    value = {
        "subject": caller.subject,
        "may_write": caller.is_admin or WRITE_PERMISSION in caller.permissions,
        "is_open": request.app[AUTHENTICATOR].is_disabled,
        "task_types": [each.value for each in console.task_types],
        "max_picture_bytes": console.max_picture_bytes,
    }
    return encode("hello", dump_json(value))
