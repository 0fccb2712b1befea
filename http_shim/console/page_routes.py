"""The page and its files, read once from assets/; open to everybody, since they hold no data."""

import hashlib
from collections.abc import Mapping
from importlib import resources

from aiohttp import web

from http_shim.console.parts import CONSOLE, console_of
from http_shim.keys import AUTHENTICATOR

PATH = "/console/{asset}"
PAGE = "index.html"
GUARDED_PAGE = "index.html?guarded"
"""The page where a token is needed; no request can name it."""
TYPES = {
    "css": "text/css",
    "html": "text/html",
    "js": "text/javascript",
    "svg": "image/svg+xml",
}
CONTENT_SECURITY_POLICY = "; ".join(  # noqa: FLY002 - a directive a line
    (
        "default-src 'none'",
        "script-src 'self'",
        "style-src 'self'",
        "connect-src 'self'",
        # Pictures are asked for with the token, and shown from memory.
        "img-src 'self' blob:",
        "base-uri 'none'",
        "form-action 'none'",
        "frame-ancestors 'none'",
        "require-trusted-types-for 'script'",
        "trusted-types 'none'",
    )
)
_HEADERS = {
    # Asked for each time and answered in a few bytes: an update is seen at once.
    "Cache-Control": "no-cache",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
}
_Assets = Mapping[str, tuple[bytes, str, str]]
ASSETS: web.AppKey[_Assets] = web.AppKey("assets")


def add_page_routes(app: web.Application) -> None:
    """Add the routes of the files; the page at / is the greeting's, which asks `page`.

    Raises:
        OSError: a file is missing.
    """
    folder = resources.files("http_shim.console").joinpath("assets")
    found = {}
    for file in folder.iterdir():
        kind = TYPES.get(file.name.rpartition(".")[2])
        if kind is not None:
            found[file.name] = _file(file.read_bytes(), kind)
    page_data = found[PAGE][0].replace(b"<html ", b"<html data-guarded ", 1)
    found[GUARDED_PAGE] = _file(page_data, TYPES["html"])
    app[ASSETS] = found
    app.router.add_get(PATH, show_asset)


def page(request: web.Request) -> web.Response | None:
    """Return the page where HTML is accepted; None where it is not, or there is no console."""
    if request.app[CONSOLE] is None or "text/html" not in request.headers.get("Accept", ""):
        return None
    # Said beforehand: a page that asked and were refused would note an error in the browser.
    is_guarded = not request.app[AUTHENTICATOR].is_disabled
    response = _answer(request, GUARDED_PAGE if is_guarded else PAGE)
    response.headers["Vary"] = "Accept"
    response.headers["Content-Security-Policy"] = CONTENT_SECURITY_POLICY
    return response


def _file(data: bytes, kind: str) -> tuple[bytes, str, str]:
    return data, kind, hashlib.sha256(data).hexdigest()[:20]


async def show_asset(request: web.Request) -> web.Response:
    """Answer a file of the page."""
    console_of(request)
    name = request.match_info["asset"]
    if name not in request.app[ASSETS] or name == GUARDED_PAGE:
        raise web.HTTPNotFound
    return _answer(request, name)


def _answer(request: web.Request, name: str) -> web.Response:
    data, kind, digest = request.app[ASSETS][name]
    headers = {**_HEADERS, "ETag": f'"{digest}"'}
    if any(tag.value in (digest, "*") for tag in request.if_none_match or ()):
        return web.Response(status=304, headers=headers)
    return web.Response(body=data, content_type=kind, charset="utf-8", headers=headers)
