"""What a Qdrant server is asked for when a collection is made, read by Qdrant's own models."""

from collections.abc import AsyncIterator
from typing import Any

import numpy as np
import pytest
from aiohttp import web
from pydantic import SecretStr
from qdrant_client import models

from daemon.settings import QdrantSettings
from handlers.qdrant.qdrant_server import ServerEngine
from handlers.qdrant.server_layout import ServerLayout
from handlers.qdrant.vector_engine import CollectionSpec
from handlers.vectors.engine_choice import layout_of
from handlers.vectors.model_record import MODELS

SPEC = CollectionSpec("image_embeddings", 512)


class Asked:
    """A server that notes what collections it is to make, and makes none."""

    def __init__(self) -> None:
        self.made: dict[str, models.CreateCollection] = {}
        self.searched: list[models.QueryRequest] = []
        self.url = ""

    async def answer(self, request: web.Request) -> web.Response:
        name = request.path.split("/")[2]
        if request.path.endswith("/points/query"):
            self.searched.append(models.QueryRequest.model_validate(await request.json()))
            return self._result({"points": []})
        if request.method == "PUT" and request.path == f"/collections/{name}":
            asked = models.CreateCollection.model_validate(await request.json(), strict=False)
            self.made[name] = asked
            return self._result(True)
        if request.path.endswith("/exists"):
            return self._result({"exists": name in self.made})
        return self._result(self._described(self.made[name]))

    @staticmethod
    def _described(asked: models.CreateCollection) -> Any:
        hnsw = {"m": 16, "ef_construct": 100, "full_scan_threshold": 10_000}
        optimizer = {"deleted_threshold": 0.2, "vacuum_min_vector_number": 1000}
        optimizer |= {"default_segment_number": 0, "flush_interval_sec": 5}
        vectors = asked.vectors
        assert isinstance(vectors, models.VectorParams)
        config = {
            "params": {"vectors": vectors.model_dump(exclude_none=True)},
            "hnsw_config": hnsw,
            "optimizer_config": optimizer,
        }
        told = {"status": "green", "optimizer_status": "ok", "segments_count": 1}
        return {**told, "config": config, "payload_schema": {}}

    @staticmethod
    def _result(result: Any) -> web.Response:
        return web.json_response({"result": result, "status": "ok", "time": 0.001})


@pytest.fixture
async def server() -> AsyncIterator[Asked]:
    asked = Asked()
    app = web.Application()
    app.router.add_route("*", "/{path:.*}", asked.answer)
    runner = web.AppRunner(app, shutdown_timeout=0)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    asked.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
    yield asked
    await runner.cleanup()


async def make(server: Asked, layout: ServerLayout, spec: CollectionSpec) -> Any:
    engine = ServerEngine(server.url, layout=layout)
    await engine.open()
    try:
        await engine.ensure_collection(spec)
    finally:
        await engine.close()
    return server.made[spec.name]


async def test_a_collection_gets_what_the_settings_ask_for(server: Asked) -> None:
    settings = QdrantSettings(
        url=server.url,
        api_key=SecretStr("k"),
        shard_number=12,
        replication_factor=2,
        write_consistency_factor=2,
        quantization="int8",
        on_disk=True,
    )

    made = await make(server, layout_of(settings), SPEC)

    assert (made.shard_number, made.replication_factor) == (12, 2)
    assert made.write_consistency_factor == 2
    assert made.vectors == models.VectorParams(
        size=512, distance=models.Distance.COSINE, on_disk=True
    )
    assert isinstance(made.quantization_config, models.ScalarQuantization)
    assert made.quantization_config.scalar.type == models.ScalarType.INT8
    assert made.quantization_config.scalar.always_ram is True


async def test_binary_quantization(server: Asked) -> None:
    made = await make(server, ServerLayout(quantization="binary"), SPEC)

    assert isinstance(made.quantization_config, models.BinaryQuantization)


async def test_by_default_the_server_decides(server: Asked) -> None:
    made = await make(server, layout_of(QdrantSettings(url=server.url)), SPEC)

    assert made == models.CreateCollection(vectors=made.vectors)
    assert made.vectors.on_disk is None


async def test_claims_are_copied_as_vectors_are_and_neither_split_nor_compressed(
    server: Asked,
) -> None:
    layout = ServerLayout(shards=12, replicas=3, consistency=2, quantization="int8", on_disk=True)

    made = await make(server, layout, MODELS)

    assert (made.replication_factor, made.write_consistency_factor) == (3, 2)
    assert (made.shard_number, made.quantization_config) == (None, None)
    assert made.vectors.on_disk is None


async def test_scores_are_the_exact_vectors_also_where_others_are_looked_at_first(
    server: Asked,
) -> None:
    """A server leaves them out by itself where vectors are int8: scores are off by up to 0.004."""
    engine = ServerEngine(server.url)
    await engine.open()
    try:
        await engine.search("image_embeddings", np.ones(512, np.float32), limit=10)
    finally:
        await engine.close()

    (asked,) = server.searched
    assert asked.params is not None
    how = asked.params.quantization
    assert how is not None
    assert (how.rescore, how.ignore) == (True, False)
    assert how.oversampling is not None
    assert how.oversampling >= 2
