from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import qdrant_edge as edge

from handlers.qdrant.edge_shard import Shard
from handlers.qdrant.qdrant_edge import EdgeEngine
from handlers.qdrant.qdrant_server import ServerEngine
from handlers.qdrant.search_width import LEAST, MOST, search_width
from handlers.qdrant.vector_engine import CollectionSpec, Point
from tests.vector_engines import MemoryClient

SPEC = CollectionSpec(name="points", dimension=4)


@pytest.mark.parametrize(
    ("points", "width"),
    [(0, LEAST), (100_000, LEAST), (1_000_000, 2_000), (2_000_000, 4_000), (50_000_000, MOST)],
)
def test_a_larger_collection_is_searched_more_widely(points: int, width: int) -> None:
    assert search_width(10, points) == width


def test_many_matches_are_taken_from_twice_as_many_candidates() -> None:
    assert search_width(5_000, 1_000) == 10_000
    assert search_width(MOST, 50_000_000) == 2 * MOST


async def test_the_embedded_engine_searches_as_widely_as_its_points_want(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    widths: list[int] = []
    native = edge.SearchParams

    def recorded(*, hnsw_ef: int) -> Any:
        widths.append(hnsw_ef)
        return native(hnsw_ef=hnsw_ef)

    monkeypatch.setattr("handlers.qdrant.qdrant_edge.edge.SearchParams", recorded)
    engine = EdgeEngine(tmp_path / "edge")
    await engine.open()
    try:
        await engine.ensure_collection(SPEC)
        row = np.ones(4, np.float32)
        await engine.upsert(SPEC.name, [Point(1, row, {})])
        await engine.search(SPEC.name, row, limit=3)
        monkeypatch.setattr(Shard, "points", property(lambda _shard: 3_000_000))
        await engine.search(SPEC.name, row, limit=3)
        await engine.search(SPEC.name, row, limit=3_000, offset=6_000)
    finally:
        await engine.close()

    assert widths == [LEAST, 6_000, 18_000]


async def test_a_server_is_asked_for_more_candidates_than_it_takes_by_itself(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    widths: list[int] = []

    async def query_points(_collection: str, **asked: Any) -> SimpleNamespace:
        widths.append(asked["search_params"].hnsw_ef)
        return SimpleNamespace(points=[])

    client = MemoryClient(":memory:")
    monkeypatch.setattr(client, "query_points", query_points)
    engine = ServerEngine("http://memory:6333", client=client)
    try:
        row = np.ones(4, np.float32)
        await engine.search(SPEC.name, row, limit=10)
        await engine.search(SPEC.name, row, limit=100, offset=900)
    finally:
        await engine.close()

    assert widths == [LEAST, 2_000]
