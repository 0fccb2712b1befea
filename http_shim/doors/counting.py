"""Counts the answers of other products' APIs, by outcome, and how long they took."""

import time

from aiohttp import web
from aiohttp.typedefs import Handler

from http_shim.errors import ErrorResponse
from http_shim.keys import METRICS

GONE = "gone"
"""The outcome where nothing was answered, since the daemon ended meanwhile."""


async def counted(
    door: str, request: web.Request, handler: Handler
) -> tuple[web.StreamResponse, ErrorResponse | None]:
    """Return what the handler answers, and again where that is an error of ours."""
    began = time.monotonic()
    outcome = GONE
    try:
        response = await handler(request)
        error = response if isinstance(response, ErrorResponse) else None
        outcome = "ok" if error is None else error.code
        return response, error
    finally:
        request.app[METRICS].door_answered(door, outcome, time.monotonic() - began)
