"""The faces' collection changes its model while it is used: pictures are done whole, or not yet."""

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from daemon.errors import ModelChangeError, RetryableError
from handlers.model_change import face_inventory
from handlers.model_change.face_inventory import FaceInventory
from handlers.model_change.inventory import BEGIN, Unit
from handlers.qdrant.qdrant_edge import EdgeEngine
from handlers.qdrant.vector_engine import Filter, Point, SharedEngine
from handlers.qdrant.vector_points import face_point_id
from handlers.search.search import Search
from handlers.vectors.faceless import Faceless, faceless_part
from handlers.vectors.model_record import physical_name
from tests.face_changes import CROWD, FaceRig, count_of, face_rig
from tests.integration.test_model_change import places
from tests.model_changes import DIMENSIONS, B, vector_of, wait_briefly
from tests.waiting import until

pytestmark = pytest.mark.filterwarnings("ignore:Payload indexes have no effect")

NAME = "face_embeddings"
SOME = (1, 2, 3, 4, 5, 6, 7, 8)
"""Of which A and B find faces in all, in some, and in none."""


@pytest.fixture(autouse=True)
def _no_long_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    wait_briefly(monkeypatch)


@pytest.fixture
async def one(tmp_path: Path) -> AsyncIterator[FaceRig]:
    async with face_rig(SharedEngine(lambda: EdgeEngine(tmp_path / "v")), tmp_path) as made:
        yield made


def test_the_pictures_have_faces_by_both_models_by_one_and_by_none() -> None:
    counts = [(bool(count_of("A", each)), bool(count_of("B", each))) for each in SOME]

    assert set(counts) == {(True, True), (True, False), (False, True), (False, False)}


@pytest.mark.parametrize("engine", ["edge", "local", "server"])
async def test_it_changes_goes_back_and_is_dropped_with_every_face_exact(
    tmp_path: Path, engine: str
) -> None:
    place, folder = places(tmp_path, engine)
    pictures: dict[int, str] = {}
    async with face_rig(place(), folder, pictures) as first:
        for number in (*SOME, CROWD):
            await first.job(number, f"old-{number}")
        async with first.working():
            told = await first.change.use(B)
            assert told["change"]["to_model"] == "B (b)"
            await first.job(100, "during")
            await first.until_of("B")
            await first.job(101, "after")
        assert await first.active() == ("B", pictures)
        # Each once: none looks like a difference because one model finds no face in it.
        assert sorted(first.embedder.embedded)[: len(SOME)] == list(SOME)
        assert len(first.embedder.embedded) <= len(SOME) + 2

    # As after a restart: whatever the settings say, it is B's.
    async with face_rig(place(), folder, pictures) as second:
        assert await second.active() == ("B", pictures)
        await second.job(5, "anew")
        second.embedder.embedded.clear()
        async with second.working():
            await second.change.rollback()
            await second.until_of("A")
        assert sorted(second.embedder.embedded) == [5, 101]
        assert await second.active() == ("A", pictures)
        told = await second.change.drop()
        assert (told["previous"], told["leftover"]) == (None, [])
        active = (await second.store.parts.active()).physical
        beside = faceless_part(NAME, await second.store.parts.active()).physical
        assert active == NAME
        assert await second.store.parts.engine.collections() == [NAME, beside, "inferd_models"]


async def test_a_change_that_is_given_up_leaves_nothing_behind(one: FaceRig) -> None:
    for number in SOME:
        await one.job(number, "j")
    async with one.working():
        one.embedder.on_embed = lambda media_id: asyncio.Event().wait() if media_id == 8 else None
        await one.change.use(B)
        # In both parts, and without a face by either model.
        await one.job(0, "j")
    told = await one.change.abort()

    assert (told["change"], told["leftover"]) == (None, [])
    beside = faceless_part(NAME, await one.store.parts.active()).physical
    assert await one.store.parts.engine.collections() == [NAME, beside, "inferd_models"]
    assert await one.active() == ("A", dict.fromkeys((*SOME, 0), "j"))


async def test_a_job_that_began_before_the_change_and_wrote_after_it_loses_nothing(
    one: FaceRig, monkeypatch: pytest.MonkeyPatch
) -> None:
    await one.job(1, "j")
    engine = one.store.parts.engine
    begun, go_on = asyncio.Event(), asyncio.Event()
    upsert = engine.upsert

    async def slow(collection: str, points: Sequence[Point]) -> None:
        if any(point.payload.get("job_id") == "slow" for point in points) and not begun.is_set():
            begun.set()
            await go_on.wait()
        await upsert(collection, points)

    monkeypatch.setattr(engine, "upsert", slow)
    job = asyncio.create_task(one.job(3, "slow"))
    await begun.wait()
    async with one.working():
        await one.change.use(B)
        await one.until_of("B")
    go_on.set()
    await job

    assert await one.active() == ("B", {1: "j", 3: "slow"})


async def test_a_picture_that_is_deleted_is_gone_from_every_part_and_from_the_faceless(
    one: FaceRig,
) -> None:
    for number in SOME:
        await one.job(number, "j")
    async with one.working():
        await one.change.use(B)
        await one.until_of("B")
    for number in SOME:
        await one.store.remove_by_media_store_id(number)
    record = await one.store.record()
    assert record is not None
    assert len(record.parts) == 2
    for part in record.parts:
        assert await one.contents(part) == {}
        assert await Faceless(one.store.parts, NAME, part).count() == 0


async def test_what_a_job_writes_amid_a_stale_write_is_never_taken_for_whole_in_parts(
    one: FaceRig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The stale write has fewer faces, and removes more than it writes: all of before, no other."""
    picture = 2
    assert count_of("A", picture) > 0
    assert count_of("B", picture) == 3
    await one.job(picture, "old")
    await one.change.use(B)
    engine, record = one.store.parts.engine, await one.store.record()
    assert record is not None
    assert record.shadow is not None
    shadow = FaceInventory(one.faces, record.shadow)
    await shadow.put([(Unit(picture, "old", one.found("B", picture, "old").points), None)])
    (old,) = (await shadow.of([picture])).values()
    stale = one.found("B", picture, "stale")
    delete_where = engine.delete_where

    async def then_a_job(collection: str, where: Filter) -> None:
        monkeypatch.setattr(engine, "delete_where", delete_where)
        # Whole, between what the stale write removes and what it puts there.
        await one.job(picture, "new")
        await delete_where(collection, where)

    monkeypatch.setattr(engine, "delete_where", then_a_job)
    one_face = Unit(picture, "stale", stale.points[:1])
    await shadow.put([(one_face, old)])

    (found,) = (await shadow.of([picture])).values()
    assert not found.is_whole
    async with one.working():
        await one.until_of("B")
    assert await one.active() == ("B", {picture: "new"})


async def test_a_picture_whose_faces_were_written_in_part_is_done_again(one: FaceRig) -> None:
    await one.job(CROWD, "j")
    await one.change.use(B)
    record = await one.store.record()
    assert record is not None
    assert record.shadow is not None
    # As a process leaves it that was killed between two calls: face 0 comes last.
    cut = one.found("B", CROWD, "j").points[50:]
    await one.store.parts.put_stored(record.shadow, cut)
    async with one.working():
        await one.until_of("B")

    assert one.embedder.embedded == [CROWD]
    assert await one.active() == ("B", {CROWD: "j"})


async def test_points_that_name_no_picture_stop_the_change_until_they_are_allowed(
    one: FaceRig,
) -> None:
    await one.job(1, "j")
    strangers: tuple[int | str, ...] = (7, "somebody's")
    for number, point_id in enumerate(strangers):
        vector = vector_of("A", number, "x")
        await one.store.upsert([Point(point_id, vector, {"name": "x"})])
    one.embedder.embed = _refusing(one.embedder.embed)  # type: ignore[method-assign]
    async with one.working():
        await one.change.use(B)
        await until(lambda: (one.change.stats() or {}).get("waits"))
        told = await one.change.told()
        assert told["change"]["waits"] == "model_change_failures"
        assert {each["code"] for each in told["failures"]} == {"bad_payload"}
        assert told["change"]["failed"] == 2
        await one.change.use(B, allow_failed=2)
        await one.until_of("B")

    assert await one.active() == ("B", {1: "j"})


def _refusing(embed: Callable[..., Any]) -> Callable[..., Any]:
    """Refuse what names no picture, as the daemon does."""
    from handlers.model_change.face_shadow import FaceShadow  # noqa: PLC0415 - heavy

    async def refuse(part: Any, unit: Any) -> Any:
        if isinstance(unit.key, int):
            return await embed(part, unit)
        nobody: Any = None
        return await FaceShadow(nobody, nobody).embed(part, unit)

    return refuse


async def test_faces_of_two_jobs_are_taken_for_the_latest_ones(one: FaceRig) -> None:
    """So a job leaves them that is cut while it writes, and cancelled."""
    picture = 6
    assert count_of("A", picture) == 3
    await one.job(picture, "old")
    (late, *_) = one.found("A", picture, "late").points[:1]
    payload = {**late.payload, "stored_at": 5}
    await one.store.upsert([Point(late.point_id, late.vector, payload)])
    async with one.working():
        await one.change.use(B)
        await one.until_of("B")

    assert await one.active() == ("B", {picture: "late"})
    assert one.embedder.embedded == [picture]


async def test_a_pass_sees_each_picture_however_its_faces_lie_on_the_pages(
    one: FaceRig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(face_inventory, "PAGE", 5)
    for number in range(60):
        await one.job(number, "j")
    # Somebody removed the first face of one picture alone.
    await one.store.remove([face_point_id(6, 0)])
    record = await one.store.record()
    assert record is not None
    inventory = FaceInventory(one.faces, record.active)
    found, cursor = [], BEGIN
    while True:
        units, after = await inventory.page(cursor)
        found += [unit.key for unit in units]
        if after is None:
            break
        cursor = after

    assert set(found) == set(range(60))
    twice = {key for key in found if found.count(key) > 1}
    assert twice <= {6}
    assert await inventory.count() == 59


async def test_a_search_sees_one_model_whatever_becomes_of_the_record(one: FaceRig) -> None:
    for number in SOME:
        await one.job(number, "j")
    answers = set()

    async def search() -> None:
        while True:
            view, part = await one.store.now()
            await asyncio.sleep(0)
            query = vector_of(part.fingerprint, 2, "j/0")
            found = await view.find(query, limit=50)
            assert {match.payload["model"] for match in found} == {part.fingerprint}
            assert found[0].point_id == face_point_id(2, 0)
            answers.add(part.fingerprint)

    searching = asyncio.create_task(search())
    async with one.working():
        await one.change.use(B)
        await one.until_of("B")
        await until(lambda: answers == {"A", "B"} or searching.done())
    assert not searching.done()
    searching.cancel()


async def test_a_way_back_at_once_names_the_faces_that_it_searches(one: FaceRig) -> None:
    picture = 2
    assert count_of("A", picture) != count_of("B", picture)
    await one.job(picture, "j")

    async def require() -> None:
        """The rig has claimed the collection."""

    handler = SimpleNamespace(claim=SimpleNamespace(require=require))
    parts: Any = SimpleNamespace(store=one.store, handler=handler)
    search = Search(faces=parts)
    async with one.working():
        await one.change.use(B)
        await one.until_of("B")
    for fingerprint in ("B", "A"):
        found = await search.faces_of(picture)
        assert found is not None
        assert [each["face_index"] for each in found] == list(range(count_of(fingerprint, picture)))
        await one.change.rollback(now=True)


async def test_what_was_kept_beside_a_dropped_part_is_no_leftover_and_goes_with_it(
    one: FaceRig,
) -> None:
    for number in SOME:
        await one.job(number, "j")
    async with one.working():
        await one.change.use(B)
        await one.until_of("B")
    told = await one.change.told()
    assert told["leftover"] == []
    assert told["active"]["dimension"] == DIMENSIONS["B"]
    await one.change.drop()
    with pytest.raises(ModelChangeError):
        await one.change.drop()

    record = await one.store.record()
    assert record is not None
    beside = faceless_part(NAME, record.active).physical
    names = sorted([physical_name(NAME, "B"), beside])
    assert await one.store.parts.engine.collections() == [*names, "inferd_models"]


@pytest.mark.parametrize("who", ["a pass", "a job"])
async def test_a_write_that_is_cut_between_two_calls_leaves_nothing_that_looks_whole(
    one: FaceRig, monkeypatch: pytest.MonkeyPatch, who: str
) -> None:
    await one.job(1, "j")
    await one.change.use(B)
    record = await one.store.record()
    assert record is not None
    assert record.shadow is not None
    shadow = FaceInventory(one.faces, record.shadow)
    engine, written = one.store.parts.engine, []
    upsert = engine.upsert

    async def cut(collection: str, points: Sequence[Point]) -> None:
        if collection == shadow._part.physical:
            written.append(len(points))
            if len(written) > 1:
                raise RetryableError("cut", code="vector_store_error")
        await upsert(collection, points)

    monkeypatch.setattr(engine, "upsert", cut)
    points = one.found("B", CROWD, "j").points
    stale = [(Unit(CROWD, "j", points), None)]
    writing = one.job(CROWD, "j") if who == "a job" else shadow.put(stale)
    with pytest.raises(RetryableError):
        await writing

    assert len(written) == 2
    assert written[0] < len(points)
    (found,) = (await shadow.of([CROWD])).values()
    assert not found.is_whole
