"""The server engine against a server that is away, slow, broken or unwilling."""

import asyncio
import socket
import struct
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import grpc  # type: ignore[import-untyped] # ships no types
import grpc.aio  # type: ignore[import-untyped] # as above
import numpy as np
import pytest
from aiohttp import web
from qdrant_client import grpc as grpc_models
from qdrant_client import models

from daemon.errors import ConfigError, DependencyDownError, RetryableError
from handlers.image_store import QdrantImageStore
from handlers.qdrant.qdrant_server import ServerEngine
from handlers.qdrant.vector_engine import AtLeast, CollectionSpec, Equals, Filter, Point
from tests.ports import free_port
from tests.qdrant_http import qdrant_server

SPEC = CollectionSpec("c", 4)
POINT = Point(1, np.ones(4, np.float32), {"a": 1})
IMAGE = Point(1, np.ones(512, np.float32), {"media_store_id": 1})

Handle = Callable[[web.Request], Awaitable[web.StreamResponse]]
Serve = Callable[[Handle], Awaitable[str]]


@pytest.fixture
async def serve() -> AsyncIterator[Serve]:
    runners: list[web.AppRunner] = []

    async def start(handle: Handle) -> str:
        app = web.Application()
        app.router.add_route("*", "/{path:.*}", handle)
        runner = web.AppRunner(app, shutdown_timeout=0)
        runners.append(runner)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        return f"http://127.0.0.1:{runner.addresses[0][1]}"

    yield start
    for runner in runners:
        await runner.cleanup()


@pytest.fixture
async def connect() -> AsyncIterator[Callable[..., Awaitable[ServerEngine]]]:
    engines: list[ServerEngine] = []

    async def start(url: str, **options: Any) -> ServerEngine:
        engine = ServerEngine(url, **options)
        engines.append(engine)
        await engine.open()
        return engine

    yield start
    for engine in engines:
        await engine.close()


Connect = Callable[..., Awaitable[ServerEngine]]


@pytest.fixture
def closed_port() -> int:
    return free_port()


def answer(status: int, body: str = '{"status":{"error":"out of disk"}}') -> Handle:
    async def handle(_: web.Request) -> web.Response:
        return web.Response(status=status, text=body, content_type="application/json")

    return handle


async def failure(call: Awaitable[Any]) -> RetryableError:
    with pytest.raises(RetryableError) as caught:
        await call
    return caught.value


async def test_a_server_that_is_away(connect: Connect, closed_port: int) -> None:
    url = f"http://127.0.0.1:{closed_port}"
    engine = await connect(url)

    for call in (
        engine.ensure_collection(SPEC),
        engine.upsert("c", [POINT]),
        engine.retrieve("c", [1]),
        engine.search("c", POINT.vector, limit=1),
        engine.count("c"),
    ):
        error = await failure(call)
        assert isinstance(error, DependencyDownError)
        assert error.code == "vector_store_unreachable"
        assert url in error.message


async def test_a_store_can_open_once_its_server_is_back(serve: Serve, closed_port: int) -> None:
    store = QdrantImageStore(url=f"http://127.0.0.1:{closed_port}")

    for _ in range(2):
        assert (await failure(store.open())).code == "vector_store_unreachable"


def test_plain_code_meets_the_same_error(closed_port: int) -> None:
    store = QdrantImageStore(url=f"http://127.0.0.1:{closed_port}")

    for _ in range(2):
        with pytest.raises(DependencyDownError):
            store.add_vector(1, np.ones(512, np.float32))


@pytest.mark.parametrize("status", [400, 404, 409, 422])
async def test_a_server_that_refuses(serve: Serve, connect: Connect, status: int) -> None:
    engine = await connect(await serve(answer(status)))

    error = await failure(engine.upsert("c", [POINT]))

    assert not isinstance(error, DependencyDownError)
    assert error.code == "vector_store_error"
    assert f"HTTP {status}" in error.message
    assert "out of disk" in error.message


@pytest.mark.parametrize("status", [500, 507])
async def test_no_point_is_at_fault_where_the_server_fails(
    serve: Serve, connect: Connect, status: int
) -> None:
    engine = await connect(await serve(answer(status)))

    error = await failure(engine.upsert("c", [POINT]))

    assert isinstance(error, DependencyDownError)
    assert error.code == "vector_store_error"
    assert f"HTTP {status}" in error.message
    assert "out of disk" in error.message


async def test_a_collection_that_was_deleted_under_us_is_made_anew() -> None:
    async with qdrant_server() as (url, kept, _), QdrantImageStore(url=url) as store:
        await store.claim("model-a", "model-a")
        await store.upsert([IMAGE])

        for name in ("image_embeddings", "inferd_models"):
            await kept.delete_collection(name)
        await store.upsert([IMAGE])

        assert await store.count() == 1
        assert await store.fetch(1) is not None


async def test_vectors_that_nobody_claims_any_more_are_not_mixed_with() -> None:
    async with qdrant_server() as (url, kept, _), QdrantImageStore(url=url) as store:
        await store.claim("model-a", "model-a")
        await store.upsert([IMAGE])

        await kept.delete_collection("inferd_models")

        error = await failure(store.upsert([IMAGE]))
        assert isinstance(error, DependencyDownError)
        assert error.code == "model_unknown"


async def test_a_collection_that_somebody_made_otherwise_is_named() -> None:
    async with qdrant_server() as (url, kept, _), QdrantImageStore(url=url) as store:
        await kept.delete_collection("image_embeddings")
        await kept.create_collection(
            "image_embeddings",
            vectors_config=models.VectorParams(size=4, distance=models.Distance.COSINE),
        )

        error = await failure(store.upsert([IMAGE]))

        assert isinstance(error, DependencyDownError)
        assert error.code == "collection_mismatch"
        assert "4" in error.message


@pytest.mark.parametrize("status", [502, 503, 504])
async def test_a_proxy_before_a_server_that_is_away(
    serve: Serve, connect: Connect, status: int
) -> None:
    engine = await connect(await serve(answer(status, "<html>Bad Gateway</html>")))

    error = await failure(engine.upsert("c", [POINT]))

    assert isinstance(error, DependencyDownError)
    assert error.code == "vector_store_unreachable"


async def test_a_server_that_asks_for_time(serve: Serve, connect: Connect) -> None:
    async def handle(_: web.Request) -> web.Response:
        return web.json_response(
            {"status": {"error": "slow down"}}, status=429, headers={"Retry-After": "7"}
        )

    engine = await connect(await serve(handle))

    error = await failure(engine.upsert("c", [POINT]))

    assert error.code == "vector_store_error"
    assert error.retry_after_seconds == 7


async def test_a_server_that_does_not_answer(serve: Serve, connect: Connect) -> None:
    release = asyncio.Event()

    async def handle(_: web.Request) -> web.Response:
        await release.wait()
        return web.Response()

    engine = await connect(await serve(handle), timeout_seconds=0.5)

    error = await failure(engine.upsert("c", [POINT]))
    release.set()

    assert error.code == "vector_store_error"
    assert "did not answer within 1 s" in error.message


async def test_a_server_that_answers_a_byte_at_a_time(serve: Serve, connect: Connect) -> None:
    done = asyncio.Event()

    async def handle(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        while not done.is_set():
            await response.write(b" ")
            await asyncio.sleep(0.1)
        return response

    engine = await connect(await serve(handle), timeout_seconds=0.5)

    error = await failure(engine.upsert("c", [POINT]))
    done.set()

    assert error.code == "vector_store_error"


@pytest.mark.parametrize("status", [401, 403])
async def test_a_wrong_key(serve: Serve, connect: Connect, status: int) -> None:
    keys = []

    async def handle(request: web.Request) -> web.Response:
        keys.append(request.headers.get("api-key"))
        return web.Response(status=status, text="Invalid API key or JWT")

    engine = await connect(await serve(handle), api_key="wrong-key")

    with pytest.raises(ConfigError, match="INFERD_QDRANT__API_KEY") as at_start:
        await engine.ensure_collection(SPEC)
    later = await failure(engine.upsert("c", [POINT]))

    assert at_start.value.code == later.code == "vector_store_unauthorized"
    assert isinstance(later, DependencyDownError)
    assert "wrong-key" not in at_start.value.message + later.message
    assert set(keys) == {"wrong-key"}


@pytest.mark.parametrize("body", ["<html>hello</html>", "{}", '{"result": 5}', ""])
async def test_something_that_is_no_qdrant(serve: Serve, connect: Connect, body: str) -> None:
    engine = await connect(await serve(answer(200, body)))

    error = await failure(engine.count("c"))

    assert error.code == "vector_store_error"


async def test_a_connection_that_breaks(connect: Connect) -> None:
    async def reset(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        raw = writer.get_extra_info("socket")
        raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        writer.close()

    server = await asyncio.start_server(reset, "127.0.0.1", 0)
    async with server:
        engine = await connect(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}")

        error = await failure(engine.upsert("c", [POINT]))

    assert error.code == "vector_store_unreachable"


async def test_two_daemons_may_create_a_collection_at_once(serve: Serve, connect: Connect) -> None:
    asked: list[str] = []

    async def handle(request: web.Request) -> web.Response:
        asked.append(f"{request.method} {request.path}")
        match asked[-1]:
            case "GET /collections/c/exists":
                exists = asked.count(asked[-1]) > 1
                return web.json_response({"result": {"exists": exists}, "status": "ok", "time": 0})
            case "PUT /collections/c":
                error = {"error": "Wrong input: Collection `c` already exists!"}
                return web.json_response({"status": error, "time": 0}, status=409)
            case _:
                return web.Response(status=500, text="enough seen")

    engine = await connect(await serve(handle))

    error = await failure(engine.ensure_collection(SPEC))

    assert "enough seen" in error.message
    assert asked[-1] == "GET /collections/c"


async def test_a_call_waits_until_the_server_has_applied_it(serve: Serve, connect: Connect) -> None:
    asked: list[str] = []

    async def handle(request: web.Request) -> web.Response:
        asked.append(f"{request.method} {request.path_qs}")
        result = {"operation_id": 1, "status": "completed"}
        return web.json_response({"result": result, "status": "ok", "time": 0})

    engine = await connect(await serve(handle))
    await engine.upsert("c", [POINT])
    await engine.delete("c", [1])

    assert asked == [
        "PUT /collections/c/points?wait=true",
        "POST /collections/c/points/delete?wait=true",
    ]


# ---- gRPC


class Refusing(grpc.GenericRpcHandler):  # type: ignore[misc] # grpc ships no types
    """Answers every call with one status, or, without one, never."""

    def __init__(self, status: grpc.StatusCode | None) -> None:
        self._status = status
        self.keys: list[str | None] = []

    def service(self, _: Any) -> Any:
        return grpc.unary_unary_rpc_method_handler(self._answer)

    async def _answer(self, _: bytes, context: Any) -> bytes:
        self.keys.append(dict(context.invocation_metadata()).get("api-key"))
        if self._status is None:
            await asyncio.Event().wait()
        await context.abort(self._status, "because")
        return b""


@pytest.fixture
async def serve_grpc() -> AsyncIterator[Callable[[Refusing], Awaitable[int]]]:
    servers = []

    async def start(handler: Refusing) -> int:
        server = grpc.aio.server()
        servers.append(server)
        server.add_generic_rpc_handlers((handler,))
        port: int = server.add_insecure_port("127.0.0.1:0")
        await server.start()
        return port

    yield start
    for server in servers:
        await server.stop(grace=None)


async def test_grpc_that_is_away_names_its_port_and_the_mend(
    connect: Connect, closed_port: int
) -> None:
    engine = await connect("http://127.0.0.1:6333", grpc_port=closed_port)

    error = await failure(engine.upsert("c", [POINT]))

    assert isinstance(error, DependencyDownError)
    assert error.code == "vector_store_unreachable"
    assert f"gRPC port {closed_port}" in error.message
    assert "INFERD_QDRANT__GRPC_PORT=0" in error.message


async def test_grpc_with_a_wrong_key(
    connect: Connect, serve_grpc: Callable[[Refusing], Awaitable[int]]
) -> None:
    handler = Refusing(grpc.StatusCode.UNAUTHENTICATED)
    engine = await connect(
        "http://127.0.0.1:6333", grpc_port=await serve_grpc(handler), api_key="wrong-key"
    )

    with pytest.raises(ConfigError) as caught:
        await engine.ensure_collection(SPEC)

    assert caught.value.code == "vector_store_unauthorized"
    assert handler.keys == ["wrong-key"]


@pytest.mark.parametrize(
    ("status", "seconds", "said"),
    [
        (grpc.StatusCode.INTERNAL, 60, "answered INTERNAL: because"),
        (None, 1, "did not answer within 1 s"),
    ],
)
async def test_grpc_that_fails(
    connect: Connect,
    serve_grpc: Callable[[Refusing], Awaitable[int]],
    status: grpc.StatusCode | None,
    seconds: float,
    said: str,
) -> None:
    port = await serve_grpc(Refusing(status))
    engine = await connect("http://127.0.0.1:6333", grpc_port=port, timeout_seconds=seconds)

    error = await failure(engine.upsert("c", [POINT]))

    assert error.code == "vector_store_error"
    assert said in error.message


class Points(grpc_models.PointsServicer):
    """Keeps the last upsert and gives it back, as Qdrant would."""

    def __init__(self) -> None:
        self.upsert: Any = None
        self.deletes: list[Any] = []

    async def Upsert(self, request: Any, _: Any) -> Any:  # noqa: N802 - Qdrant's name
        self.upsert = request
        return grpc_models.PointsOperationResponse(result=self._done())

    async def Delete(self, request: Any, _: Any) -> Any:  # noqa: N802 - Qdrant's name
        self.deletes.append(request)
        return grpc_models.PointsOperationResponse(result=self._done())

    async def Get(self, request: Any, _: Any) -> Any:  # noqa: N802 - Qdrant's name
        points = []
        for point in self.upsert.points:
            assert point.id in request.ids
            dense = grpc_models.DenseVector(data=point.vectors.vector.dense.data)
            output = grpc_models.VectorsOutput(vector=grpc_models.VectorOutput(dense=dense))
            points.append(
                grpc_models.RetrievedPoint(id=point.id, payload=point.payload, vectors=output)
            )
        return grpc_models.GetResponse(result=points)

    @staticmethod
    def _done() -> Any:
        return grpc_models.UpdateResult(operation_id=1, status=grpc_models.UpdateStatus.Completed)


async def test_points_and_filters_survive_grpc(connect: Connect) -> None:
    points = Points()
    server = grpc.aio.server()
    grpc_models.add_PointsServicer_to_server(points, server)  # type: ignore[no-untyped-call]
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    engine = await connect("http://127.0.0.1:6333", grpc_port=port)
    sent = [
        Point(2**64 - 1, np.eye(4, dtype=np.float32)[0], {"media_store_id": 2**63 - 1}),
        Point(
            "d04685bb-69e6-47f4-a78d-d08c2888cff6",
            np.eye(4, dtype=np.float32)[1],
            {"bbox": {"x": 1.5, "y": 2}, "list": [None, True, "ä"]},
        ),
    ]

    await engine.upsert("c", sent)
    back = await engine.retrieve("c", [point.point_id for point in sent])
    await engine.delete("c", [2**64 - 1])
    await engine.delete_where(
        "c", Filter.where(Equals("media_store_id", 2**63 - 1), AtLeast("face_index", 3))
    )
    await server.stop(grace=None)

    assert [(p.point_id, p.payload) for p in back] == [(p.point_id, p.payload) for p in sent]
    assert all(np.array_equal(a.vector, b.vector) for a, b in zip(back, sent, strict=True))
    assert points.upsert.wait
    assert all(delete.wait for delete in points.deletes)
    assert points.deletes[0].points.points.ids[0].num == 2**64 - 1
    equal, least = (condition.field for condition in points.deletes[1].points.filter.must)
    assert (equal.key, equal.match.integer) == ("media_store_id", 2**63 - 1)
    assert (least.key, least.range.gte) == ("face_index", 3)
