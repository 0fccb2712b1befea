"""A Qdrant server's HTTP interface over qdrant-client's in-memory one, as far as stores use it."""

import warnings
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from aiohttp import web
from aiohttp.typedefs import Handler
from pydantic import BaseModel, TypeAdapter
from qdrant_client import AsyncQdrantClient, models

CLIENT = web.AppKey("client", AsyncQdrantClient)
KEYS = web.AppKey("keys", set[str])
LIFE = web.AppKey("life", dict[str, str])

routes = web.RouteTableDef()
_selector: TypeAdapter[models.PointsSelector] = TypeAdapter(models.PointsSelector)


@asynccontextmanager
async def qdrant_server(
    life: dict[str, str] | None = None,
) -> AsyncIterator[tuple[str, AsyncQdrantClient, set[str]]]:
    """Give its URL, what it keeps, and the API keys that it was shown.

    Its telemetry tells the `id` of its process as `life` has it when it is asked, and is refused
    where there is none.
    """
    client = AsyncQdrantClient(":memory:")
    # 32 MiB, as a real one takes.
    app = web.Application(middlewares=[refuse], client_max_size=32 << 20)
    app[CLIENT] = client
    app[KEYS] = set()
    app[LIFE] = {} if life is None else life
    app.add_routes(routes)
    runner = web.AppRunner(app, shutdown_timeout=0)
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        yield f"http://127.0.0.1:{runner.addresses[0][1]}", client, app[KEYS]
    finally:
        await runner.cleanup()
        await client.close()


@web.middleware
async def refuse(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Answer as Qdrant does where a collection does not exist, or takes no such vectors."""
    name = request.match_info.get("name")
    is_of_points = "/points" in request.path
    if name and is_of_points and not await request.app[CLIENT].collection_exists(name):
        return _refusal(404, f"Not found: Collection `{name}` doesn't exist!")
    try:
        return await handler(request)
    except ValueError as error:
        return _refusal(400, f"Wrong input: {error}")


def _refusal(status: int, what: str) -> web.Response:
    return web.json_response({"status": {"error": what}, "time": 0.001}, status=status)


@routes.get("/telemetry")
async def telemetry(request: web.Request) -> web.Response:
    """Say which process this is."""
    life = request.app[LIFE]
    if "id" not in life:
        return _refusal(403, "Forbidden: Global access is required")
    app = {"name": "qdrant", "version": "1.20.0", "startup": "2026-01-01T00:00:00Z"}
    return _answer({"id": life["id"], "app": app, "collections": {"number_of_collections": 2}})


@routes.get("/collections")
async def collections(request: web.Request) -> web.Response:
    """Name the collections."""
    return _answer(await request.app[CLIENT].get_collections())


@routes.post("/collections/aliases")
async def aliases(request: web.Request) -> web.Response:
    """Let aliases lead elsewhere, all at once."""
    asked = models.ChangeAliasesOperation.model_validate(await request.json())
    client = request.app[CLIENT]
    return _answer(await client.update_collection_aliases(asked.actions))


@routes.delete("/collections/{name}")
async def drop(request: web.Request) -> web.Response:
    """Delete a collection."""
    client, name = _parts(request)
    return _answer(await client.delete_collection(name))


@routes.get("/collections/{name}/exists")
async def exists(request: web.Request) -> web.Response:
    """Say whether there is a collection."""
    client, name = _parts(request)
    return _answer({"exists": await client.collection_exists(name)})


@routes.put("/collections/{name}")
async def create(request: web.Request) -> web.Response:
    """Make a collection."""
    client, name = _parts(request)
    asked = models.CreateCollection.model_validate(await request.json())
    await client.create_collection(name, vectors_config=asked.vectors)
    return _answer(True)


@routes.get("/collections/{name}")
async def describe(request: web.Request) -> web.Response:
    """Describe a collection."""
    client, name = _parts(request)
    return _answer(await client.get_collection(name))


@routes.put("/collections/{name}/index")
async def index(request: web.Request) -> web.Response:
    """Make an index, which has no effect in memory."""
    client, name = _parts(request)
    asked = models.CreateFieldIndex.model_validate(await request.json())
    with warnings.catch_warnings(action="ignore"):
        await client.create_payload_index(name, asked.field_name, asked.field_schema)
    return _applied()


@routes.put("/collections/{name}/points")
async def upsert(request: web.Request) -> web.Response:
    """Store points."""
    client, name = _parts(request)
    asked = models.PointsList.model_validate(await request.json())
    await client.upsert(name, asked.points)
    return _applied()


@routes.post("/collections/{name}/points")
async def retrieve(request: web.Request) -> web.Response:
    """Give points by their ids."""
    client, name = _parts(request)
    asked = models.PointRequest.model_validate(await request.json())
    return _answer(await client.retrieve(name, asked.ids, with_payload=True, with_vectors=True))


@routes.post("/collections/{name}/points/query")
async def query(request: web.Request) -> web.Response:
    """Give the points that are most similar."""
    client, name = _parts(request)
    asked = models.QueryRequest.model_validate(await request.json())
    return _answer(
        await client.query_points(
            name,
            query=(await request.json())["query"]["nearest"],
            limit=asked.limit or 10,
            score_threshold=asked.score_threshold,
            query_filter=asked.filter,
        )
    )


@routes.post("/collections/{name}/points/scroll")
async def scroll(request: web.Request) -> web.Response:
    """Give a page of points."""
    client, name = _parts(request)
    asked = models.ScrollRequest.model_validate(await request.json())
    points, following = await client.scroll(
        name,
        scroll_filter=asked.filter,
        limit=asked.limit or 10,
        offset=asked.offset,
        with_payload=True,
        with_vectors=True,
    )
    return _answer(models.ScrollResult(points=points, next_page_offset=following))


@routes.post("/collections/{name}/points/count")
async def count(request: web.Request) -> web.Response:
    """Count points."""
    client, name = _parts(request)
    asked = models.CountRequest.model_validate(await request.json())
    return _answer(await client.count(name, asked.filter, exact=True))


@routes.post("/collections/{name}/points/delete")
async def delete(request: web.Request) -> web.Response:
    """Delete points by ids or by a filter."""
    client, name = _parts(request)
    await client.delete(name, _selector.validate_python(await request.json()))
    return _applied()


def _parts(request: web.Request) -> tuple[AsyncQdrantClient, str]:
    request.app[KEYS].add(request.headers.get("api-key", ""))
    return request.app[CLIENT], request.match_info["name"]


def _applied() -> web.Response:
    return _answer({"operation_id": 1, "status": "completed"})


def _answer(result: Any) -> web.Response:
    def plain(value: Any) -> Any:
        return value.model_dump(mode="json") if isinstance(value, BaseModel) else value

    whole = [plain(each) for each in result] if isinstance(result, list) else plain(result)
    return web.json_response({"result": whole, "status": "ok", "time": 0.001})
