"""Filters and pages of the embedded engine once its index is built: the right ones are found."""

from collections.abc import AsyncIterator

import numpy as np
import pytest
import pytest_asyncio

from handlers.inference import Vector
from handlers.qdrant.qdrant_edge import EdgeEngine
from handlers.qdrant.vector_engine import (
    AtLeast,
    CollectionSpec,
    Equals,
    Filter,
    HasId,
    Not,
    OneOf,
    Point,
)
from tests.integration.test_edge_upkeep import MANY, indexed, vectors

pytestmark = pytest.mark.asyncio(loop_scope="module")

SPEC = CollectionSpec("c", 512, {"stored_at": "integer", "request_id": "keyword"})
FOUND = vectors(MANY)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def engine(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[EdgeEngine]:
    """Return an engine whose index is built over two in three of its points."""
    engine = EdgeEngine(tmp_path_factory.mktemp("edge") / "v")
    await engine.open()
    await engine.ensure_collection(SPEC)
    points = [Point(n, row, payload(n)) for n, row in enumerate(FOUND)]
    for start in range(0, MANY, 500):
        await engine.upsert("c", points[start : start + 500])
    assert await engine.optimise("c")
    assert indexed(engine) > 0
    yield engine
    await engine.close()


def payload(number: int) -> dict[str, int | str]:
    # The first tenth is of before points said when they were stored.
    when = {} if number < MANY // 10 else {"stored_at": number}
    return {**when, "request_id": f"r{number % 500}", "label": f"l{number % 7}"}


def nearest(query: Vector, numbers: list[int], limit: int) -> list[int]:
    rows = FOUND[numbers] / np.linalg.norm(FOUND[numbers], axis=1, keepdims=True)
    order = np.argsort(-(rows @ query))
    return [numbers[place] for place in order[:limit]]


@pytest.mark.parametrize(
    ("where", "fits"),
    [
        (Filter.where(AtLeast("stored_at", MANY // 2)), lambda n: n >= MANY // 2),
        (Filter.where(Not(AtLeast("stored_at", MANY // 2))), lambda n: n < MANY // 2),
        (
            Filter.where(AtLeast("stored_at", 3000), Not(AtLeast("stored_at", 3030))),
            lambda n: 3000 <= n < 3030,
        ),
        (Filter.where(Equals("request_id", "r7")), lambda n: n % 500 == 7),
        (Filter.where(OneOf("label", ("l1", "l2"))), lambda n: n % 7 in (1, 2)),
        (Filter.where(Not(HasId(tuple(range(100))))), lambda n: n >= 100),
        (
            Filter.where(Equals("label", "l3"), AtLeast("stored_at", 5000)),
            lambda n: n % 7 == 3 and n >= 5000,
        ),
    ],
)
async def test_the_nearest_of_those_that_fit_are_found(
    engine: EdgeEngine, where: Filter, fits: "object"
) -> None:
    assert callable(fits)
    numbers = [number for number in range(MANY) if fits(number)]
    hits = wanted = 0
    for query in vectors(20, seed=5):
        found = await engine.search("c", query, limit=10, where=where)
        expected = nearest(query, numbers, 10)
        assert {match.point_id for match in found} <= set(numbers)
        assert len(found) == len(expected)
        hits += len({match.point_id for match in found} & set(expected))
        wanted += len(expected)

    # An index finds nearly all.
    assert hits >= 0.95 * wanted


async def test_pages_go_on_where_the_one_before_ended(engine: EdgeEngine) -> None:
    query = vectors(1, seed=6)[0]
    found: list[int | str] = []
    for offset in range(0, 200, 20):
        page = await engine.search("c", query, limit=20, offset=offset)
        assert len(page) == 20
        found += [match.point_id for match in page]

    expected = nearest(query, list(range(MANY)), 200)
    assert len(set(found)) >= 195
    assert len(set(found) & set(expected)) >= 190
