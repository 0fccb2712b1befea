"""One promise after the other, kept by every vector engine alike."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from uuid import uuid4

import numpy as np
import pytest
from qdrant_client import models

from daemon.errors import ConfigError, DependencyDownError, PermanentError, RetryableError
from handlers.face_store import PictureFaces, QdrantFaceStore
from handlers.image_store import QdrantImageStore
from handlers.inference import Vector
from handlers.qdrant.qdrant_server import ServerEngine
from handlers.qdrant.vector_engine import (
    AtLeast,
    CollectionSpec,
    Equals,
    Filter,
    Point,
    SharedEngine,
)
from handlers.qdrant.vector_points import face_point_id
from tests.vector_engines import ENGINES, MemoryClient, Place, place_of

# The server engine speaks to the library's in-memory server here, which has no indexes.
pytestmark = pytest.mark.filterwarnings("ignore:Payload indexes have no effect")


@pytest.fixture(params=ENGINES)
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Place:
    return place_of(request.param, tmp_path / "v")


@pytest.fixture
async def images(place: Place) -> AsyncIterator[QdrantImageStore]:
    async with QdrantImageStore(engine=place()) as store:
        yield store


@pytest.fixture
async def faces(place: Place) -> AsyncIterator[QdrantFaceStore]:
    async with QdrantFaceStore(engine=place()) as store:
        yield store


def vector(seed: int) -> Vector:
    return np.random.default_rng(seed).standard_normal(512).astype(np.float32)


def unit(seed: int) -> Vector:
    array = vector(seed)
    return array / np.linalg.norm(array)


def face(media_store_id: int, index: int, *, job_id: str = "j") -> Point:
    payload = {"media_store_id": media_store_id, "face_index": index, "job_id": job_id}
    return Point(face_point_id(media_store_id, index), vector(index), payload)


async def write(store: QdrantFaceStore, media_store_id: int, points: Sequence[Point]) -> None:
    part = await store.searched()
    picture = PictureFaces(media_store_id, {"media_store_id": media_store_id}, points)
    assert await store.write({part.fingerprint: picture}) == ()


async def indexes_of(store: QdrantFaceStore, media_store_id: int) -> list[int]:
    points = await store.find_by_media_store_id(media_store_id)
    return [point.payload["face_index"] for point in points]


# ---- points


async def test_a_point_comes_back_as_it_went_in(images: QdrantImageStore) -> None:
    payload = {
        "media_store_id": 2**63 - 1,
        "job_id": "a",
        "bbox": {"x": 1.5, "y": -2, "width": 3, "height": 4},
        "list": [1, "zwei", None, True],
        "text": "größer \u2603",
        "none": None,
    }

    await images.upsert([Point(7, vector(1), payload)])
    point = await images.fetch(7)

    assert point is not None
    assert point.point_id == 7
    assert point.payload == payload
    assert point.vector.dtype == np.float32
    np.testing.assert_allclose(point.vector, unit(1), atol=1e-6)


@pytest.mark.parametrize(
    "point_id",
    [0, 2**64 - 1, "d04685bb-69e6-47f4-a78d-d08c2888cff6", "job-123-0", "ein Bild/ä", "x" * 5000],
)
async def test_any_id_finds_its_point_again(images: QdrantImageStore, point_id: int | str) -> None:
    await images.upsert([Point(point_id, vector(1), {"n": 1})])

    point = await images.fetch(point_id)
    match = (await images.find(vector(1)))[0]

    assert point is not None
    assert (point.point_id, point.payload) == (point_id, {"n": 1})
    assert (match.point_id, match.payload) == (point_id, {"n": 1})


async def test_a_decimal_string_is_its_int(images: QdrantImageStore) -> None:
    await images.upsert([Point("123", vector(1))])

    point = await images.fetch(123)

    assert point is not None
    assert point.point_id == 123


async def test_the_string_of_a_mapped_id_is_kept_for_other_tools(place: Place) -> None:
    shared = place()
    async with QdrantImageStore(engine=shared) as store:
        await store.upsert([Point("job-1", vector(1), {"a": 1})])
        engine = await shared.open()
        page = await engine.scroll("image_embeddings")
        await shared.close()

    assert page.points[0].payload == {"a": 1, "original_id": "job-1"}


async def test_an_unknown_id_is_nothing(images: QdrantImageStore) -> None:
    assert await images.fetch(1) is None
    assert await images.fetch("nobody") is None
    await images.remove([1, "nobody"])


async def test_storing_twice_changes_nothing(images: QdrantImageStore) -> None:
    for _ in range(2):
        await images.upsert([Point(1, vector(1), {"a": 1})])

    assert await images.count() == 1


async def test_a_new_payload_replaces_the_old_one_whole(images: QdrantImageStore) -> None:
    await images.upsert([Point(1, vector(1), {"a": 1, "old": True})])
    await images.upsert([Point(1, vector(2), {"a": 2})])

    point = await images.fetch(1)

    assert point is not None
    assert point.payload == {"a": 2}
    np.testing.assert_allclose(point.vector, unit(2), atol=1e-6)


async def test_of_equal_ids_in_one_call_the_last_counts(images: QdrantImageStore) -> None:
    await images.upsert([Point(1, vector(1), {"a": 1}), Point("1", vector(2), {"a": 2})])

    point = await images.fetch(1)

    assert point is not None
    assert point.payload == {"a": 2}


async def test_no_points_are_no_call(images: QdrantImageStore) -> None:
    await images.upsert([])
    await images.remove([])


async def test_one_unsound_point_stops_the_whole_call(images: QdrantImageStore) -> None:
    with pytest.raises(PermanentError, match="point 2") as caught:
        await images.upsert([Point(1, vector(1)), Point(2, vector(2) * np.nan)])

    assert caught.value.code == "bad_vector"
    assert await images.count() == 0


# ---- search


async def test_the_most_similar_come_first_with_their_cosine(images: QdrantImageStore) -> None:
    await images.upsert([Point(i, vector(i), {"i": i}) for i in range(20)])
    query = vector(3) + 0.5 * vector(4)

    found = await images.find(query, limit=5)

    assert [match.point_id for match in found[:2]] == [3, 4]
    assert len(found) == 5
    assert found[0].payload == {"i": 3}
    scores = [match.score for match in found]
    assert scores == sorted(scores, reverse=True)
    expected = float(unit(3) @ query / np.linalg.norm(query))
    assert found[0].score == pytest.approx(expected, abs=1e-5)


async def test_scores_stay_within_a_cosine(images: QdrantImageStore) -> None:
    for seed in range(20):
        await images.upsert([Point(1, vector(seed)), Point(2, -vector(seed))])

        found = await images.find(vector(seed))

        assert found[0].score == pytest.approx(1, abs=1e-5)
        assert found[1].score == pytest.approx(-1, abs=1e-5)
        assert all(-1 <= match.score <= 1 for match in found)


async def test_min_score_leaves_out_the_rest(images: QdrantImageStore) -> None:
    await images.upsert([Point(i, vector(i)) for i in range(10)])

    assert [m.point_id for m in await images.find(vector(3), min_score=0.5)] == [3]
    assert await images.find(vector(77), min_score=0.9) == []


async def test_a_search_can_be_narrowed(images: QdrantImageStore) -> None:
    await images.upsert([Point(i, vector(i), {"job_id": f"j{i % 2}"}) for i in range(10)])

    found = await images.find(vector(4), where=Filter.where(Equals("job_id", "j1")))

    assert {match.point_id for match in found} == {1, 3, 5, 7, 9}


async def test_an_empty_collection_finds_nothing(images: QdrantImageStore) -> None:
    assert await images.find(vector(1)) == []
    assert await images.count() == 0


async def test_a_query_is_checked_like_a_point(images: QdrantImageStore) -> None:
    with pytest.raises(PermanentError, match="the query") as caught:
        await images.find(np.zeros(512, np.float32))
    assert caught.value.code == "bad_vector"
    with pytest.raises(ValueError, match="limit"):
        await images.find(vector(1), limit=0)


# ---- deleting, faces


async def test_a_removed_point_is_gone(images: QdrantImageStore) -> None:
    await images.upsert([Point(1, vector(1)), Point("two", vector(2)), Point(3, vector(3))])

    await images.remove([1, "two"])

    assert await images.fetch(1) is None
    assert await images.fetch("two") is None
    assert [match.point_id for match in await images.find(vector(1))] == [3]


async def test_removing_by_picture_leaves_other_pictures(faces: QdrantFaceStore) -> None:
    await faces.upsert([face(m, i) for m in (1, 2, 2**63 - 1) for i in range(3)])

    assert await faces.count_of_media(2**63 - 1) == 3
    await faces.remove_by_media_store_id(2**63 - 1)
    await faces.remove_by_media_store_id(1)

    assert await faces.count_of_media(1) == await faces.count_of_media(7) == 0
    assert await faces.count_of_media(2) == await faces.count() == 3
    assert await indexes_of(faces, 2) == [0, 1, 2]


async def test_removing_by_job_leaves_other_jobs(faces: QdrantFaceStore) -> None:
    await faces.upsert([face(1, 0, job_id="a"), face(2, 0, job_id="a"), face(3, 0, job_id="b")])

    await faces.remove_by_job_id("a")

    assert await faces.count() == 1
    assert await indexes_of(faces, 3) == [0]


async def test_many_points_go_in_batches_and_come_back_in_their_order(
    faces: QdrantFaceStore,
) -> None:
    await faces.upsert([face(5, i) for i in reversed(range(260))] + [face(6, 0)])

    assert await indexes_of(faces, 5) == list(range(260))
    assert await faces.count() == 261


async def test_a_picture_may_be_named_by_a_string(faces: QdrantFaceStore) -> None:
    await faces.upsert([Point("j-0", vector(0), {"media_store_id": "media-456"})])

    found = await faces.find_by_media_store_id("media-456")

    assert [point.point_id for point in found] == ["j-0"]


async def test_a_rerun_that_finds_fewer_faces_leaves_none_behind(faces: QdrantFaceStore) -> None:
    await write(faces, 5, [face(5, i) for i in range(4)])
    await write(faces, 6, [face(6, i) for i in range(4)])

    for _ in range(2):
        await write(faces, 5, [face(5, i, job_id="again") for i in range(2)])

    points = await faces.find_by_media_store_id(5)
    assert [point.payload["face_index"] for point in points] == [0, 1]
    assert {point.payload["job_id"] for point in points} == {"again"}
    assert await indexes_of(faces, 6) == [0, 1, 2, 3]


async def test_a_rerun_that_finds_no_face_leaves_none(faces: QdrantFaceStore) -> None:
    await write(faces, 5, [face(5, 0)])

    await write(faces, 5, [])

    assert await faces.count() == 0


async def test_faces_of_another_picture_are_refused(faces: QdrantFaceStore) -> None:
    with pytest.raises(ValueError, match="face 0 of picture 5"):
        await write(faces, 5, [face(6, 0)])
    with pytest.raises(ValueError, match="face 0 of picture 5"):
        await write(faces, 5, [face(5, 1)])


# ---- models


async def test_vectors_of_two_models_never_mix(place: Place) -> None:
    async with QdrantImageStore(engine=place()) as store:
        await store.claim("f1", "clip-one")
        await store.upsert([Point(1, vector(1))])

    async with QdrantImageStore(engine=place()) as store:
        await store.claim("f1", "clip-one, by another name")
        with pytest.raises(ConfigError) as caught:
            await store.claim("f2", "clip-two")

    assert caught.value.code == "model_mismatch"
    for named in ("clip-one", "clip-two", "image_embeddings", "INFERD_DATA_DIR"):
        assert named in caught.value.message


async def test_each_collection_has_its_own_model(place: Place) -> None:
    shared = place()
    async with QdrantImageStore(engine=shared) as images, QdrantFaceStore(engine=shared) as faces:
        await images.claim("f1", "clip")
        await faces.claim("f2", "arcface")
        await images.upsert([Point(1, vector(1))])
        await faces.upsert([face(1, 0)])

        assert await images.count() == await faces.count() == 1


async def test_an_emptied_collection_may_change_its_model(place: Place) -> None:
    async with QdrantImageStore(engine=place()) as store:
        await store.claim("f1", "one")
        await store.upsert([Point(1, vector(1))])
        await store.remove([1])

        await store.claim("f2", "two")
        await store.upsert([Point(1, vector(1))])

        with pytest.raises(ConfigError, match="of two, not of one"):
            await store.claim("f1", "one")


async def test_points_that_nobody_claimed_are_refused_unless_adopted(place: Place) -> None:
    async with QdrantImageStore(engine=place()) as store:
        await store.upsert([Point(1, vector(1))])

        with pytest.raises(ConfigError, match="adopt=True") as caught:
            await store.claim("f1", "one")
        assert caught.value.code == "model_unknown"

        await store.claim("f1", "one", adopt=True)
        await store.claim("f1", "one")
        with pytest.raises(ConfigError):
            await store.claim("f2", "two", adopt=True)


async def test_who_lost_the_collection_can_store_no_more(place: Place) -> None:
    # Two daemons start at once on an empty server, with different models.
    shared = place()
    async with QdrantImageStore(engine=shared) as first, QdrantImageStore(engine=shared) as second:
        await first.claim("f1", "one")
        await second.claim("f2", "two")

        with pytest.raises(DependencyDownError, match="is two's by now") as caught:
            await first.upsert([Point(1, vector(1))])
        await second.upsert([Point(2, vector(2))])

    assert caught.value.code == "model_mismatch"


# ---- collections and engines


async def test_what_was_stored_is_there_after_reopening(place: Place) -> None:
    async with QdrantFaceStore(engine=place()) as store:
        await store.claim("f1", "one")
        await store.upsert([face(1, i) for i in range(10)])
        await store.remove([face_point_id(1, 9)])

    async with QdrantFaceStore(engine=place()) as store:
        assert await indexes_of(store, 1) == list(range(9))
        await store.claim("f1", "one")
        await store.upsert([face(1, 9)])
        assert await store.count() == 10


async def test_a_collection_of_another_dimension_is_refused(place: Place) -> None:
    shared = place()
    engine = await shared.open()
    await engine.ensure_collection(CollectionSpec("image_embeddings", 4))
    await shared.close()

    with pytest.raises(ConfigError, match="image_embeddings") as caught:
        await QdrantImageStore(engine=place()).open()

    assert caught.value.code == "collection_mismatch"
    assert "4" in caught.value.message
    assert "512" in caught.value.message


async def test_a_store_opens_again_after_a_refusal(place: Place) -> None:
    shared = place()
    engine = await shared.open()
    await engine.ensure_collection(CollectionSpec("image_embeddings", 4))
    store = QdrantImageStore(engine=shared)

    with pytest.raises(ConfigError):
        await store.open()
    await shared.close()

    async with QdrantFaceStore(engine=place()) as faces:
        assert await faces.count() == 0


async def test_stores_share_an_engine_until_the_last_one_closes(place: Place) -> None:
    shared = place()
    images, faces = QdrantImageStore(engine=shared), QdrantFaceStore(engine=shared)
    await asyncio.gather(images.open(), faces.open())

    await images.close()
    await images.close()
    await faces.upsert([face(1, 0)])
    await faces.close()

    async with images:
        assert await images.count() == 0


async def test_who_comes_while_a_store_opens_waits_for_it(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    began, answers = asyncio.Event(), asyncio.Event()
    is_away = True
    shared = place()
    engine = await shared.open()
    collections = engine.collections

    async def hang() -> list[str]:
        began.set()
        await answers.wait()
        if is_away:
            raise DependencyDownError("away", code="vector_store_unreachable")
        return await collections()

    monkeypatch.setattr(engine, "collections", hang)
    store = QdrantImageStore(engine=shared)

    async def look() -> int:
        await store.open()
        return await store.count()

    for expected in (DependencyDownError, int):
        began.clear()
        answers.clear()
        first = asyncio.create_task(look())
        await began.wait()
        others = [asyncio.create_task(look()) for _ in range(2)]
        await asyncio.sleep(0)
        answers.set()
        found = await asyncio.gather(first, *others, return_exceptions=True)
        assert [type(each) for each in found] == [expected] * 3
        is_away = False
    await store.close()
    await shared.close()


async def test_a_closed_store_says_so(place: Place) -> None:
    store = QdrantImageStore(engine=place())

    with pytest.raises(RuntimeError, match="open the store of image_embeddings first"):
        await store.upsert([Point(1, vector(1))])


async def test_calls_may_go_side_by_side(images: QdrantImageStore) -> None:
    async def round_trip(number: int) -> None:
        await images.upsert([Point(number, vector(number), {"n": number})])
        assert (await images.find(vector(number), limit=1))[0].point_id == number

    await asyncio.gather(*(round_trip(number) for number in range(50)))

    assert await images.count() == 50


async def test_a_cancelled_call_harms_no_later_one(images: QdrantImageStore) -> None:
    calls = [asyncio.create_task(images.upsert([Point(i, vector(i))])) for i in range(20)]
    await asyncio.sleep(0)  # let them begin

    for call in calls[::2]:
        call.cancel()
    await asyncio.gather(*calls, return_exceptions=True)

    await images.upsert([Point(i, vector(i)) for i in range(20)])
    assert await images.count() == 20


async def test_pages_of_a_scroll_are_whole_and_disjoint(place: Place) -> None:
    shared = place()
    ids = {str(uuid4()) for _ in range(7)} | set(range(7))
    async with QdrantImageStore(engine=shared) as store:
        await store.upsert([Point(point_id, vector(1)) for point_id in ids])
        engine = await shared.open()

        seen = []
        page = await engine.scroll("image_embeddings", limit=4)
        seen.extend(page.points)
        while page.next_id is not None:
            page = await engine.scroll("image_embeddings", limit=4, from_id=page.next_id)
            assert len(page.points) <= 4
            seen.extend(page.points)
        await shared.close()

    assert len(seen) == 14
    assert {point.point_id for point in seen} == ids


async def test_counts_and_deletes_by_condition(place: Place) -> None:
    shared = place()
    async with QdrantFaceStore(engine=shared) as store:
        await store.upsert([face(m, i) for m in (1, 2) for i in range(5)])
        engine = await shared.open()
        where = Filter.where(Equals("media_store_id", 1), AtLeast("face_index", 3))

        assert await engine.count("face_embeddings", where) == 2
        await engine.delete_where("face_embeddings", where)

        assert await engine.count("face_embeddings", where) == 0
        assert await engine.count("face_embeddings") == 8
        await shared.close()


async def test_a_dropped_collection_is_gone_and_may_be_made_anew(place: Place) -> None:
    shared = place()
    engine = await shared.open()
    spec, other = CollectionSpec("drop.me", 4), CollectionSpec("keep", 4)
    for each in (spec, other):
        await engine.ensure_collection(each)
        await engine.upsert(each.name, [Point(1, np.ones(4, np.float32))])
        await engine.flush(each.name)

    before = await engine.collections()
    await engine.drop_collection("drop.me")
    await engine.drop_collection("drop.me")
    between = await engine.collections()
    await engine.ensure_collection(CollectionSpec("drop.me", 8))

    assert (before, between) == (["drop.me", "keep"], ["keep"])
    assert (await engine.count("drop.me"), await engine.count("keep")) == (0, 1)
    await shared.close()


async def test_a_collection_is_named_and_dropped_without_having_been_opened(place: Place) -> None:
    first = place()
    engine = await first.open()
    await engine.ensure_collection(CollectionSpec("left", 4))
    await first.close()

    second = place()
    engine = await second.open()
    assert await engine.collections() == ["left"]
    await engine.drop_collection("left")
    assert await engine.collections() == []
    await second.close()

    third = place()
    assert await (await third.open()).collections() == []
    await third.close()


async def test_a_collection_that_is_not_there_is_no_vendors_error(place: Place) -> None:
    shared = place()
    engine = await shared.open()

    for call in (
        engine.upsert("nowhere", [Point(1, vector(1))]),
        engine.retrieve("nowhere", [1]),
        engine.search("nowhere", vector(1), limit=1),
        engine.delete("nowhere", [1]),
        engine.scroll("nowhere"),
        engine.count("nowhere"),
    ):
        with pytest.raises(RetryableError) as caught:
            await call
        assert caught.value.code == "vector_store_error"
    await shared.close()


# ---- from plain code


def test_plain_code_uses_the_documented_doors(place: Place) -> None:
    shared = place()
    with QdrantImageStore(engine=shared) as images, QdrantFaceStore(engine=shared) as faces:
        images.add_vector("job-123", vector(1), {"job_id": "job-123"})
        for index in range(3):
            payload = {"job_id": "job-123", "media_store_id": 9, "face_index": index}
            faces.add_vector(f"job-123-{index}", vec_f32=vector(index), payload=payload)

        stored = images.get_vector("job-123")
        assert stored is not None
        assert stored.payload == {"job_id": "job-123"}
        assert images.search(vector(1), limit=1, min_score=0.9)[0].point_id == "job-123"
        assert [p.point_id for p in faces.search_by_media_store_id(9)] == [
            "job-123-0",
            "job-123-1",
            "job-123-2",
        ]
        faces.delete_by_job_id("job-123")
        assert faces.search_by_media_store_id(9) == []
        images.delete("job-123")
        assert images.get_vector("job-123") is None


def test_plain_code_needs_no_with(place: Place) -> None:
    store = QdrantImageStore(engine=place())

    store.add_vector(1, vector(1))

    with store:
        assert store.get_vector(1) is not None


def test_asyncio_is_refused_while_plain_code_uses_the_store(place: Place) -> None:
    with QdrantImageStore(engine=place()) as store:
        with pytest.raises(RuntimeError, match="is used from plain code"):
            asyncio.run(store.count())
        with pytest.raises(RuntimeError, match="is used from plain code"):
            asyncio.run(store.open())


async def test_plain_code_is_refused_inside_asyncio(images: QdrantImageStore) -> None:
    with pytest.raises(RuntimeError, match="would block the event loop"):
        images.add_vector(1, vector(1))
    with pytest.raises(RuntimeError, match="is used from asyncio"):
        await asyncio.to_thread(images.add_vector, 1, vector(1))


async def test_a_server_that_compares_otherwise_is_refused() -> None:
    client = MemoryClient(":memory:")
    await client.create_collection(
        "image_embeddings", models.VectorParams(size=512, distance=models.Distance.DOT)
    )
    store = QdrantImageStore(
        engine=SharedEngine(lambda: ServerEngine("http://m:6333", client=client))
    )

    with pytest.raises(ConfigError, match="compares by Dot") as caught:
        await store.open()

    assert caught.value.code == "collection_mismatch"
