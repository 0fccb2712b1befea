"""Reads the body of a request, within a timeout, and refuses compressed ones."""

import asyncio

from aiohttp import web
from aiohttp.http_exceptions import BadHttpMessage

BODY_SECONDS = 30.0
"""How long a client may take to send its body."""


async def read_body(request: web.Request, max_bytes: int | None = None) -> bytes:
    """Return the body.

    Args:
        request: whose.
        max_bytes: the most that is read; None is what the application allows.

    Raises:
        web.HTTPException: it is packed, late, too large or not framed as HTTP demands.
    """
    if request.headers.get("Content-Encoding", "identity").lower() != "identity":
        # The server does not unpack: a small body cannot become a large one.
        raise web.HTTPUnsupportedMediaType(reason="Send the body without Content-Encoding")
    try:
        async with asyncio.timeout(BODY_SECONDS):
            # Not `read`, which waits for a body that says beforehand that it is too large.
            most = request.client_max_size if max_bytes is None else max_bytes
            return await _read_at_most(request, most)
    except TimeoutError:
        raise web.HTTPRequestTimeout(reason="The body did not come in time") from None
    except (web.RequestPayloadError, BadHttpMessage):
        raise web.HTTPBadRequest(reason="The body is not framed as HTTP demands") from None


async def _read_at_most(request: web.Request, max_bytes: int) -> bytes:
    length = request.content_length or 0
    body = bytearray()
    if length <= max_bytes:
        async for chunk in request.content.iter_any():
            body += chunk
            if len(body) > max_bytes:
                break
        else:
            return bytes(body)
    raise web.HTTPRequestEntityTooLarge(max_size=max_bytes, actual_size=max(length, len(body)))
