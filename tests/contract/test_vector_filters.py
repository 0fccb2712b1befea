"""What searches are narrowed to and how they are paged: every vector engine does it alike."""

from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from handlers.image_store import QdrantImageStore
from handlers.inference import Vector
from handlers.qdrant.qdrant_edge import EdgeEngine
from handlers.qdrant.qdrant_local import LocalEngine
from handlers.qdrant.qdrant_server import ServerEngine
from handlers.qdrant.vector_engine import (
    AtLeast,
    Condition,
    Equals,
    Filter,
    HasId,
    Not,
    OneOf,
    Point,
    SharedEngine,
    VectorEngine,
)
from tests.vector_engines import MemoryClient

# The server engine speaks to the library's in-memory server here, which has no indexes.
pytestmark = pytest.mark.filterwarnings("ignore:Payload indexes have no effect")

FACE = "d04685bb-69e6-47f4-a78d-d08c2888cff6"
PAYLOADS: dict[int | str, dict[str, Any]] = {
    1: {"media_store_id": 1, "stored_at": 1000, "label": "cat", "job_id": "a"},
    2: {"media_store_id": 2, "stored_at": 2000, "label": "dog", "job_id": "b"},
    3: {"media_store_id": 2**63 - 1, "stored_at": 3000, "label": ["dog", "cat"]},
    4: {"media_store_id": 2**53 + 1, "label": "5", "nested": {"name": "x"}},
    FACE: {"media_store_id": 2, "stored_at": 3000, "label": 5},
}


@pytest.fixture(params=["edge", "local", "server"])
def shared(request: pytest.FixtureRequest, tmp_path: Path) -> SharedEngine:
    makers: dict[str, Callable[[], VectorEngine]] = {
        "edge": lambda: EdgeEngine(tmp_path / "v"),
        "local": lambda: LocalEngine(tmp_path / "v"),
        "server": lambda: ServerEngine("http://memory:6333", client=MemoryClient(":memory:")),
    }
    return SharedEngine(makers[request.param])


@pytest.fixture
async def images(shared: SharedEngine) -> AsyncIterator[QdrantImageStore]:
    async with QdrantImageStore(engine=shared) as store:
        yield store


def vector(seed: int) -> Vector:
    return np.random.default_rng(seed).standard_normal(512).astype(np.float32)


@pytest.mark.parametrize(
    ("conditions", "expected"),
    [
        ([Equals("label", "cat")], {1, 3}),
        ([Equals("label", 5)], {FACE}),
        ([Equals("label", "5")], {4}),
        ([Equals("media_store_id", 2**53 + 1)], {4}),
        ([Equals("nested.name", "x")], {4}),
        ([Equals("absent", "x")], set()),
        ([OneOf("label", ("cat", "5"))], {1, 3, 4}),
        ([OneOf("media_store_id", (1, 2**63 - 1, 77))], {1, 3}),
        ([OneOf("media_store_id", ())], set()),
        ([AtLeast("stored_at", 2000)], {2, 3, FACE}),
        ([Not(AtLeast("stored_at", 2000))], {1, 4}),
        ([AtLeast("stored_at", 2000), Not(AtLeast("stored_at", 3000))], {2}),
        ([AtLeast("media_store_id", 2)], {2, 3, 4, FACE}),
        ([Not(AtLeast("media_store_id", 2))], {1}),
        ([HasId((1, FACE, 99))], {1, FACE}),
        ([Not(HasId((1, FACE)))], {2, 3, 4}),
        ([Equals("label", "dog"), Not(Equals("job_id", "b"))], {3}),
    ],
)
async def test_only_what_every_condition_holds_for_is_found(
    images: QdrantImageStore,
    shared: SharedEngine,
    conditions: list[Condition],
    expected: set[int | str],
) -> None:
    await images.upsert([Point(i, vector(n), p) for n, (i, p) in enumerate(PAYLOADS.items())])
    where = Filter.where(*conditions)

    found = await images.find(vector(0), where=where)

    assert {match.point_id for match in found} == expected
    engine = await shared.open()
    try:
        page = await engine.scroll(images.collection, where=where)
        assert {point.point_id for point in page.points} == expected
        assert await engine.count(images.collection, where) == len(expected)
    finally:
        await shared.close()


async def test_the_best_can_be_left_out(images: QdrantImageStore) -> None:
    await images.upsert([Point(i, vector(i), {"odd": i % 2}) for i in range(40)])

    whole = await images.find(vector(3), limit=40)
    pages = [await images.find(vector(3), limit=7, offset=offset) for offset in range(0, 42, 7)]

    assert [match.point_id for page in pages for match in page] == [m.point_id for m in whole]
    assert await images.find(vector(3), limit=7, offset=40) == []
    odd = Filter.where(Equals("odd", 1))
    rest = await images.find(vector(3), limit=40, offset=5, where=odd)
    assert [m.point_id for m in rest] == [m.point_id for m in whole if m.payload["odd"]][5:]


async def test_a_least_score_counts_before_the_offset(images: QdrantImageStore) -> None:
    await images.upsert([Point(i, vector(i)) for i in range(20)])

    best = await images.find(vector(3), min_score=0.5)
    assert [match.point_id for match in best] == [3]
    assert await images.find(vector(3), min_score=0.5, offset=1) == []


async def test_payloads_are_read_without_their_vectors(
    images: QdrantImageStore, shared: SharedEngine
) -> None:
    await images.upsert([Point(i, vector(0), {"n": i}) for i in (1, 2, FACE)])
    engine = await shared.open()
    try:
        page = await engine.scroll(images.collection, with_vectors=False)
        some = await engine.retrieve(images.collection, [2, FACE, 9], with_vectors=False)
        whole = await engine.retrieve(images.collection, [2])
    finally:
        await shared.close()

    assert [(point.point_id, point.payload) for point in page.points] == [
        (1, {"n": 1}),
        (2, {"n": 2}),
        (FACE, {"n": FACE}),
    ]
    assert {point.point_id for point in some} == {2, FACE}
    assert {point.vector.size for point in [*page.points, *some]} == {0}
    assert whole[0].vector.size == 512
