"""The cluster of a picture, over real embedded vectors."""

import math
from collections.abc import AsyncIterator, Sequence
from pathlib import Path

import numpy as np
import pytest

from daemon.errors import NotFoundError
from handlers.image_store import QdrantImageStore
from handlers.inference import Vector
from handlers.qdrant.vector_engine import Point
from handlers.search.duplicates import Cluster, cluster_of

STEP = math.acos(0.97)
"""Angle of two pictures whose cosine is 0.97; two steps make 0.88."""


def at(angle: float, plane: int = 0) -> Vector:
    """Return a unit vector of 512 numbers at an angle within one plane."""
    vector = np.zeros(512, np.float32)
    vector[2 * plane : 2 * plane + 2] = math.cos(angle), math.sin(angle)
    return vector


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[QdrantImageStore]:
    async with QdrantImageStore(path=tmp_path / "vectors") as store:
        yield store


async def put(store: QdrantImageStore, vectors: dict[int, Vector]) -> None:
    await store.upsert(
        [
            Point(number, vector, {"media_store_id": number, "job_id": f"job-{number}"})
            for number, vector in vectors.items()
        ]
    )


def ids(cluster: Cluster) -> Sequence[object]:
    return [member.point.point_id for member in cluster.members]


async def test_a_chain_is_one_cluster_whoever_of_it_is_asked_for(store: QdrantImageStore) -> None:
    await put(store, {number: at(number * STEP) for number in range(5)} | {9: at(0, plane=1)})

    for asked in range(5):
        found = await cluster_of(store, asked, min_score=0.95, limit=100)
        assert sorted(map(str, ids(found))) == [str(n) for n in range(5) if n != asked]
        assert found.is_complete

    found = await cluster_of(store, 0, min_score=0.95, limit=100)
    assert ids(found) == [1, 2, 3, 4]  # the most alike first
    for number, member in enumerate(found.members, 1):
        assert member.score == pytest.approx(math.cos(number * STEP), abs=1e-4)
        assert member.near == number - 1
        assert member.near_score == pytest.approx(0.97, abs=1e-4)


async def test_a_link_that_is_too_weak_ends_the_cluster(store: QdrantImageStore) -> None:
    await put(store, {0: at(0), 1: at(STEP), 2: at(3 * STEP), 3: at(4 * STEP)})

    assert ids(await cluster_of(store, 0, min_score=0.95, limit=100)) == [1]
    assert ids(await cluster_of(store, 3, min_score=0.95, limit=100)) == [2]
    assert ids(await cluster_of(store, 0, min_score=0.98, limit=100)) == []
    assert len(ids(await cluster_of(store, 0, min_score=0.85, limit=100))) == 3


async def test_the_limit_bounds_it_and_says_so(store: QdrantImageStore) -> None:
    await put(store, {number: at(0.001 * number) for number in range(20)})

    cut = await cluster_of(store, 0, min_score=0.95, limit=7)
    assert (len(cut.members), cut.is_complete) == (7, False)
    exact = await cluster_of(store, 0, min_score=0.95, limit=19)
    assert (len(exact.members), exact.is_complete) == (19, True)
    assert max(member.score for member in exact.members) <= 1
    one = await cluster_of(store, 0, min_score=0.95, limit=1)
    assert (ids(one), one.is_complete) == ([1], False)


async def test_a_picture_without_a_vector_is_told(store: QdrantImageStore) -> None:
    with pytest.raises(NotFoundError) as caught:
        await cluster_of(store, 7, min_score=0.95, limit=10)
    assert caught.value.code == "vector_not_found"
