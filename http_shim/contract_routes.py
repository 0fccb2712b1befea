"""Shows the contract of this door, as it is shipped; open to everybody."""

from importlib import resources

from aiohttp import web

FILE = "openapi.json"


def add_contract_routes(app: web.Application) -> None:
    """Add the route of the OpenAPI document, which is read once.

    Raises:
        OSError: the file is missing.
    """
    text = resources.files("http_shim").joinpath(FILE).read_text(encoding="utf-8")

    async def show_contract(_request: web.Request) -> web.Response:
        """Answer the document."""
        return web.json_response(text=text)

    app.router.add_get("/openapi.json", show_contract)
