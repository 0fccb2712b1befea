"""Search over real embedded vectors at known angles; models are stand-ins that take no time."""

import math
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from daemon.errors import DependencyDownError, NotFoundError
from daemon.stored_filter import StoredFilter
from handlers.clip.text_tower import Tokens
from handlers.image_store import QdrantImageStore
from handlers.inference import Provenance, Vector
from handlers.qdrant.qdrant_edge import EdgeEngine
from handlers.qdrant.vector_engine import Match, Point, SharedEngine
from handlers.search.query_vectors import ImageParts
from handlers.search.search import Search

RAN = Provenance(model="A", weights="a.pt", device="cpu", precision="fp32")
STEP = math.acos(0.97)
NUMBERS = range(6)


def at(steps: float) -> Vector:
    """Return a unit vector of 512 numbers, so many steps away from the first one."""
    vector = np.zeros(512, np.float32)
    vector[:2] = math.cos(steps * STEP), math.sin(steps * STEP)
    return vector


class Runner:
    """Says of every text that it is where picture 0 is."""

    is_loaded = True
    fingerprint = "A:1"
    provenance = RAN

    async def infer_and_tell(self, _buffer: Any) -> tuple[Vector, Provenance]:
        return at(0), RAN


@dataclass
class Rig:
    """A store of six pictures in a row, each 0.97 from the next, and the search over it."""

    store: QdrantImageStore
    other: QdrantImageStore
    search: Search
    meanwhile: list[Callable[[], Any]] = field(default_factory=list)
    """What happens after the vectors were searched."""

    async def take_over(self) -> None:
        """Empty the collection, and make it another model's."""
        await self.store.remove(list(NUMBERS))
        await self.other.claim("B:1", "B")


@pytest.fixture
async def rig(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Rig]:
    engine = SharedEngine(lambda: EdgeEngine(tmp_path / "vectors"))
    async with (
        QdrantImageStore(engine=engine) as store,
        QdrantImageStore(engine=engine) as other,
    ):
        await store.claim("A:1", "A")
        await store.upsert(
            [
                Point(number, at(number), {"media_store_id": number, "job_id": f"job-{number}"})
                for number in NUMBERS
            ]
        )
        runner = Runner()

        def tokenise(text: str) -> Tokens:
            return Tokens(np.zeros(77, np.int64), is_truncated=len(text) > 77)

        async def no_claim() -> None: ...

        async def model_of(_part: Any) -> Any:
            text = SimpleNamespace(runner=runner, tokenise=tokenise)
            return SimpleNamespace(runner=runner, text=text, side=224)

        stands_in: Any = SimpleNamespace(claim=SimpleNamespace(require=no_claim))
        models: Any = SimpleNamespace(of=model_of)
        absent: Any = None
        parts = ImageParts(
            handler=stands_in,
            runner=absent,
            store=store,
            text=absent,
            tokenise=tokenise,
            models=models,
            side=0,
        )
        rig = Rig(store, other, Search(images=parts))
        find = QdrantImageStore.find

        async def find_and_go_on(*args: Any, **options: Any) -> list[Match]:
            found = await find(*args, **options)
            if rig.meanwhile:
                await rig.meanwhile.pop(0)()
            return found

        monkeypatch.setattr(QdrantImageStore, "find", find_and_go_on)
        yield rig


def ids(found: dict[str, Any]) -> list[int]:
    return [each["media_store_id"] for each in found["results"]]


async def test_what_is_like_a_picture_is_paged_without_itself(rig: Rig) -> None:
    search = rig.search
    first = await search.by_likeness("image_embeddings", 0, limit=2)
    second = await search.by_likeness("image_embeddings", 0, limit=2, offset=2)
    last = await search.by_likeness("image_embeddings", 0, limit=2, offset=4)
    whole = await search.by_likeness("image_embeddings", 0, limit=5)

    assert [ids(page) for page in (first, second, last)] == [[1, 2], [3, 4], [5]]
    assert [page["next"] for page in (first, second, last, whole)] == [2, 4, None, None]
    assert first["results"][0] == {
        "point_id": 1,
        "score": pytest.approx(0.97, abs=1e-4),
        "media_store_id": 1,
        "job_id": "job-1",
        "payload": {"media_store_id": 1, "job_id": "job-1"},
    }
    assert first["model"] == RAN.to_wire()


async def test_the_picture_itself_need_not_be_among_those_meant(rig: Rig) -> None:
    others = StoredFilter(media_store_ids=(0, 4, 5))

    found = await rig.search.by_likeness("image_embeddings", 3, limit=10, where=others)
    cluster = await rig.search.duplicates(3, min_score=0.95, limit=10, where=others)
    near = await rig.search.by_likeness("image_embeddings", 3, limit=10, min_score=0.9)

    assert ids(found) == [4, 5, 0]
    assert ids(cluster) == [4, 5]
    assert sorted(ids(near)) == [2, 4]


async def test_a_text_finds_all_that_is_stored_and_is_told(rig: Rig) -> None:
    whole = await rig.search.by_text("dog", limit=6)
    found = await rig.search.by_text("dog", limit=3, offset=1, min_score=0.8)

    assert (ids(whole), whole["next"]) == (list(NUMBERS), None)
    assert found["query"] == {"kind": "text", "text": "dog"}
    assert (ids(found), found["next"]) == ([1, 2], None)


async def test_a_cluster_says_how_each_of_it_is_linked(rig: Rig) -> None:
    found = await rig.search.duplicates(2, min_score=0.95, limit=3)

    assert found["query"] == {"kind": "duplicates", "media_store_id": 2, "min_score": 0.95}
    assert (found["collection"], found["model"]) == ("image_embeddings", RAN.to_wire())
    assert not found["complete"]
    near = {each["media_store_id"]: each["near"] for each in found["results"]}
    assert near.items() >= {1: 2, 3: 2}.items()
    assert [each["score"] for each in found["results"]] == sorted(
        (each["score"] for each in found["results"]), reverse=True
    )
    for each in found["results"]:
        steps = abs(each["media_store_id"] - 2)
        assert each["score"] == pytest.approx(math.cos(steps * STEP), abs=1e-4)
        assert each["near_score"] == pytest.approx(0.97, abs=1e-4)
        assert each["point_id"] == each["media_store_id"]
        assert each["job_id"] == f"job-{each['media_store_id']}"


async def test_a_member_that_is_deleted_meanwhile_is_none(rig: Rig) -> None:
    """And what is linked through it alone is not found either."""
    rig.meanwhile.append(lambda: rig.store.remove([1]))

    found = await rig.search.duplicates(0, min_score=0.95, limit=10)

    assert (ids(found), found["complete"]) == ([], True)


@pytest.mark.parametrize(
    "ask",
    [
        lambda search: search.by_text("dog", limit=5),
        lambda search: search.by_likeness("image_embeddings", 0, limit=5),
        lambda search: search.duplicates(0, min_score=0.95, limit=5),
    ],
    ids=["text", "like", "duplicates"],
)
async def test_nothing_is_told_of_a_collection_that_became_anothers_meanwhile(
    rig: Rig, ask: Callable[[Search], Awaitable[Any]]
) -> None:
    rig.meanwhile.append(rig.take_over)

    with pytest.raises(DependencyDownError) as caught:
        await ask(rig.search)

    assert caught.value.code == "model_mismatch"
    assert rig.meanwhile == []


async def test_a_picture_without_a_vector_is_not_found(rig: Rig) -> None:
    for search in (
        rig.search.by_likeness("image_embeddings", 9, limit=5),
        rig.search.duplicates(9, min_score=0.95, limit=5),
    ):
        with pytest.raises(NotFoundError) as caught:
            await search
        assert caught.value.code == "vector_not_found"
