"""Refuses requests that another site's page makes a browser send (CSRF), where tokens are off.

Any page may have a browser send a POST to this machine: it cannot read the answer, but a pause, a
change of the model or a job would be done. Where tokens are on none can: for the header with the
token the browser asks us first (a CORS preflight), and we do not allow it.
"""

from collections.abc import Mapping
from urllib.parse import urlsplit

from aiohttp import web
from aiohttp.typedefs import Handler

from http_shim.auth import ForbiddenError
from http_shim.keys import AUTHENTICATOR

SAFE = ("GET", "HEAD", "OPTIONS")
READING = ("/search/{collection}", "/v1/embeddings")
"""Routes that change nothing, though they are POSTed to."""


@web.middleware
async def refuse_foreign_pages(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Let requests pass that no browser sent, that our own page sent, or that change nothing."""
    resource = request.match_info.route.resource
    if (
        request.method not in SAFE
        and resource is not None
        and resource.canonical not in READING
        and request.app[AUTHENTICATOR].is_disabled
        and is_foreign(request.headers)
    ):
        raise ForbiddenError(
            "a page of another site asked for this, and no token is asked for here; turn"
            " authentication on to let other sites' pages in"
        )
    return await handler(request)


def is_foreign(headers: Mapping[str, str]) -> bool:
    """Whether a browser says that a page from elsewhere sends this; other clients say nothing."""
    site = headers.get("Sec-Fetch-Site")
    if site is not None:
        return site not in ("same-origin", "none")
    # Browsers say it only over TLS and on this machine, and older ones never.
    origin = headers.get("Origin")
    try:
        return origin is not None and urlsplit(origin).netloc != headers.get("Host")
    except ValueError:
        return True
