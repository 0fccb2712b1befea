"""Reads the body of a request, within a time and as it was sent."""

import asyncio

from aiohttp import web
from aiohttp.http_exceptions import BadHttpMessage

BODY_SECONDS = 30.0
"""How long a client may take to send its body."""


async def read_body(request: web.Request) -> bytes:
    """Return the body; its size is limited by the application.

    Raises:
        web.HTTPException: it is packed, late, too large or not framed as HTTP demands.
    """
    if request.headers.get("Content-Encoding", "identity").lower() != "identity":
        # The server does not unpack: a small body cannot become a large one.
        raise web.HTTPUnsupportedMediaType(reason="Send the body without Content-Encoding")
    try:
        async with asyncio.timeout(BODY_SECONDS):
            return await request.read()
    except TimeoutError:
        raise web.HTTPRequestTimeout(reason="The body did not come in time") from None
    except (web.RequestPayloadError, BadHttpMessage):
        raise web.HTTPBadRequest(reason="The body is not framed as HTTP demands") from None
