"""A collection changes its model while it is used: nothing is lost, nothing mixes."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any, cast

import pytest

from daemon.errors import (
    ConfigError,
    DependencyDownError,
    ModelChangeError,
    PermanentError,
    RetryableError,
)
from handlers.image_store import QdrantImageStore
from handlers.model_change import change, point_inventory, shadow
from handlers.model_change import lease as model_lease
from handlers.model_change.point_inventory import PointInventory
from handlers.model_change.work import ChangeWork
from handlers.qdrant.qdrant_edge import EdgeEngine
from handlers.qdrant.qdrant_models import to_alias
from handlers.qdrant.qdrant_server import ServerEngine
from handlers.qdrant.vector_engine import CollectionSpec, Point, SharedEngine
from handlers.vectors.model_record import Record, Records, physical_name
from tests.model_changes import DIMENSIONS, A, B, C, Rig, rig, vector_of, wait_briefly
from tests.qdrant_http import qdrant_server
from tests.vector_engines import Place, place_of
from tests.waiting import until

pytestmark = pytest.mark.filterwarnings("ignore:Payload indexes have no effect")

NAME = "image_embeddings"


@pytest.fixture(autouse=True)
def _no_long_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    wait_briefly(monkeypatch)


@pytest.fixture
async def one(tmp_path: Path) -> AsyncIterator[Rig]:
    async with rig(SharedEngine(lambda: EdgeEngine(tmp_path / "v")), tmp_path) as made:
        yield made


def places(tmp_path: Path, engine: str) -> tuple[Place, Path | None]:
    return place_of(engine, tmp_path / "v"), tmp_path if engine != "server" else None


@pytest.mark.parametrize("engine", ["edge", "local", "server"])
async def test_it_changes_goes_back_and_is_dropped_with_every_vector_exact(
    tmp_path: Path, engine: str, caplog: pytest.LogCaptureFixture
) -> None:
    place, folder = places(tmp_path, engine)
    pictures: dict[int, str] = {}
    async with rig(place(), folder, pictures) as first:
        for number in range(40):
            await first.job(number, f"old-{number}")
        async with first.working():
            told = await first.change.use(B)
            assert told["change"]["to_model"] == "B (b)"
            await first.job(100, "during")
            await first.until_of("B")
            await first.job(101, "after")
            # The record says B before all of the change is done.
            await until(lambda: first.models.needed)
        assert await first.active() == ("B", pictures)
        record = await first.store.record()
        assert record is not None
        assert record.previous is not None
        assert record.previous.physical == NAME
        assert record.active.physical == physical_name(NAME, "B")
        assert first.models.needed == ["B"]

    # As after a restart: whatever the settings say, it is B's.
    async with rig(place(), folder, pictures) as second:
        assert await second.active() == ("B", pictures)
        await second.job(5, "anew")
        second.embedder.embedded.clear()
        async with second.working():
            await second.change.rollback()
            await second.until_of("A")
        assert sorted(second.embedder.embedded) == [5, 101]
        assert await second.active() == ("A", pictures)
        told = await second.change.drop()
        assert told["previous"] is None
        assert told["active"]["collection"] == NAME
        assert await second.store.parts.engine.collections() == [NAME, "inferd_models"]
    assert "is tried again" not in caplog.text


async def test_the_first_collection_may_be_dropped_like_any_other(one: Rig) -> None:
    await one.job(1, "a")
    async with one.working():
        await one.change.use(B)
        await one.until_of("B")
        await one.change.drop()
        await one.change.use(A)
        await one.until_of("A")

    record = await one.store.record()
    assert record is not None
    assert record.active.physical == physical_name(NAME, "A")
    assert await one.active() == ("A", {1: "a"})


async def test_a_job_that_began_before_the_change_and_wrote_after_it_loses_nothing(
    one: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    await one.job(1, "a")
    engine = one.store.parts.engine
    begun, go_on = asyncio.Event(), asyncio.Event()
    upsert = engine.upsert

    async def slow(collection: str, points: Sequence[Point]) -> None:
        if collection == NAME and any(point.point_id == 2 for point in points):
            begun.set()
            await go_on.wait()
        await upsert(collection, points)

    monkeypatch.setattr(engine, "upsert", slow)
    job = asyncio.create_task(one.job(2, "slow"))
    await begun.wait()

    async with one.working():
        await one.change.use(B)
        await one.until_of("B")
    assert await one.active() == ("B", {1: "a"})
    go_on.set()
    await job

    assert await one.active() == ("B", {1: "a", 2: "slow"})


async def test_a_change_that_is_given_up_amid_a_write_leaves_none_out(
    one: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    await one.job(1, "a")
    await one.change.use(B)
    engine = one.store.parts.engine
    upsert = engine.upsert

    async def abort_first(collection: str, points: Sequence[Point]) -> None:
        monkeypatch.setattr(engine, "upsert", upsert)
        await one.change.abort()
        await upsert(collection, points)

    monkeypatch.setattr(engine, "upsert", abort_first)
    whole = {name: one.point(name, 2, "whole") for name in "AB"}
    store = cast("QdrantImageStore", one.store)
    missing = await store.write([whole, {"A": one.point("A", 3, "late")}])

    assert missing == [(), ()]
    assert await one.active() == ("A", {1: "a", 2: "whole", 3: "late"})


async def test_what_is_stale_when_it_is_written_is_mended_before_the_change_is_done(
    one: Rig,
) -> None:
    await one.job(1, "old")
    begun, go_on = asyncio.Event(), asyncio.Event()

    def hold(_media_id: int) -> Any:
        if begun.is_set():
            return None
        begun.set()
        return go_on.wait()

    one.embedder.on_embed = hold
    async with one.working():
        await one.change.use(B)
        await begun.wait()
        # The picture of before is in hand; a job does it anew in both parts meanwhile.
        await one.job(1, "new")
        go_on.set()
        await one.until_of("B")

    assert await one.active() == ("B", {1: "new"})
    assert one.embedder.embedded == [1, 1]


async def test_a_search_sees_one_model_whatever_becomes_of_the_record(one: Rig) -> None:
    for number in range(20):
        await one.job(number, f"j{number}")
    answers = set()

    async def search() -> None:
        while True:
            view, part = await one.store.now()
            await asyncio.sleep(0)
            found = await view.find(vector_of(part.fingerprint, 3, "j3"), limit=20)
            assert {match.payload["model"] for match in found} == {part.fingerprint}
            assert (found[0].point_id, len(found)) == (3, 20)
            assert found[0].score == pytest.approx(1, abs=1e-4)
            answers.add(part.fingerprint)

    searching = asyncio.create_task(search())
    async with one.working():
        await one.change.use(B)
        await one.until_of("B")
        await until(lambda: answers == {"A", "B"} or searching.done())
        await one.change.rollback()
        await one.until_of("A")
    assert not searching.done()
    searching.cancel()


async def test_a_picture_that_is_deleted_is_gone_from_every_part(one: Rig) -> None:
    for number in (1, 2, 3):
        await one.job(number, "j")
    async with one.working():
        await one.change.use(B)
        await one.until_of("B")
    await one.store.remove_by_media_store_id(2)
    record = await one.store.record()
    assert record is not None
    assert record.previous is not None
    assert set(await one.contents(record.active)) == {1, 3}
    assert set(await one.contents(record.previous)) == {1, 3}


async def test_what_is_deleted_while_it_is_embedded_does_not_come_back(one: Rig) -> None:
    for number in (1, 2):
        await one.job(number, "j")
    begun, go_on = asyncio.Event(), asyncio.Event()

    def hold(_media_id: int) -> Any:
        begun.set()
        return go_on.wait()

    one.embedder.on_embed = hold
    async with one.working():
        await one.change.use(B)
        await begun.wait()
        await one.store.remove_by_media_store_id(2)
        go_on.set()
        await one.until_of("B")

    assert await one.active() == ("B", {1: "j"})


async def test_pictures_that_cannot_be_embedded_stop_the_change_until_they_are_allowed(
    tmp_path: Path,
) -> None:
    place, folder = places(tmp_path, "edge")
    pictures: dict[int, str] = {}
    async with rig(place(), folder, pictures) as first:
        for number in range(5):
            await first.job(number, "j")
        first.embedder.errors[3] = PermanentError("gone", code="media_not_found")
        async with first.working():
            await first.change.use(B)
            await until(lambda: (first.change.stats() or {}).get("waits"))
            told = await first.change.told()
        assert told["change"]["waits"] == "model_change_failures"
        assert told["failures"] == [{"point_id": 3, "code": "media_not_found", "message": "gone"}]
        assert not await first.is_of("B")

    # Who is started again knows them still.
    async with rig(place(), folder, pictures) as second:
        second.embedder.errors[3] = PermanentError("gone", code="media_not_found")
        async with second.working():
            await second.change.use(B, allow_failed=1)
            await second.until_of("B")
        assert second.embedder.embedded == []
        assert set((await second.active())[1]) == {0, 1, 2, 4}


async def test_a_failed_picture_that_is_done_anew_is_tried_again(one: Rig) -> None:
    await one.job(1, "j")
    one.embedder.errors[1] = PermanentError("broken", code="decode_error")
    async with one.working():
        await one.change.use(B)
        await until(lambda: (one.change.stats() or {}).get("failed"))
        del one.embedder.errors[1]
        await one.job(1, "mended")
        await one.until_of("B")

    assert await one.active() == ("B", {1: "mended"})


async def test_a_way_back_keeps_the_vectors_of_pictures_that_the_change_went_without(
    one: Rig,
) -> None:
    for number in (1, 2):
        await one.job(number, "j")
    one.embedder.errors[2] = PermanentError("gone", code="media_not_found")
    async with one.working():
        await one.change.use(B, allow_failed=1)
        await one.until_of("B")
        assert await one.active() == ("B", {1: "j"})
        await one.change.rollback()
        await one.until_of("A")

    assert await one.active() == ("A", {1: "j", 2: "j"})


async def test_what_is_away_is_waited_for_and_what_fails_for_now_is_tried_thrice(one: Rig) -> None:
    for number in (1, 2):
        await one.job(number, "j")
    one.embedder.errors = {
        1: DependencyDownError("away", code="media_store_unreachable"),
        2: RetryableError("slow", code="decode_timeout"),
    }
    async with one.working():
        await one.change.use(B, allow_failed=1)
        await until(lambda: (one.change.stats() or {}).get("waits"))
        del one.embedder.errors[1]
        await one.until_of("B")

    assert await one.active() == ("B", {1: "j"})


async def test_a_change_that_is_given_up_leaves_nothing_behind(one: Rig) -> None:
    await one.job(1, "j")
    await one.change.use(B)
    told = await one.change.abort()

    assert told["change"] is None
    assert await one.store.parts.engine.collections() == [NAME, "inferd_models"]
    assert await one.active() == ("A", {1: "j"})


async def test_a_way_back_that_is_given_up_is_still_there(one: Rig) -> None:
    await one.job(1, "j")
    async with one.working():
        await one.change.use(B)
        await one.until_of("B")
    await one.change.rollback()
    told = await one.change.abort()

    assert told["previous"]["collection"] == NAME
    assert await one.active() == ("B", {1: "j"})


async def test_verbs_that_cannot_be_are_refused_with_their_code(one: Rig) -> None:
    await one.job(1, "j")

    async def code_of(verb: Any) -> str:
        with pytest.raises(ModelChangeError) as error:
            await verb
        return error.value.code

    assert await code_of(one.change.use(A)) == "model_in_use"
    assert await code_of(one.change.rollback()) == "nothing_to_roll_back"
    assert await code_of(one.change.drop()) == "nothing_to_drop"
    assert await code_of(one.change.abort()) == "no_model_change"
    with pytest.raises(ConfigError):
        await one.change.use({"model": "nobody", "weights": "x"})
    await one.change.use(B)
    assert await code_of(one.change.use(C)) == "model_change_running"
    async with one.working():
        await one.until_of("B")
    assert await code_of(one.change.use(C)) == "model_kept"


async def test_what_a_cut_change_left_is_named_and_dropped(one: Rig) -> None:
    await one.job(1, "j")
    left = physical_name(NAME, "cut")
    await one.store.parts.engine.ensure_collection(CollectionSpec(left, DIMENSIONS["A"]))

    told = await one.change.told()
    assert told["leftover"] == [left]
    told = await one.change.drop()
    assert told["leftover"] == []


async def test_a_store_of_another_model_may_not_write_what_changed(tmp_path: Path) -> None:
    engine = SharedEngine(lambda: EdgeEngine(tmp_path / "v"))
    async with rig(engine, tmp_path) as one, QdrantImageStore(engine=engine, dimension=32) as other:
        await other.claim("A", "A")
        await one.job(1, "j")
        async with one.working():
            await one.change.use(B)
            await one.until_of("B")
        with pytest.raises(DependencyDownError) as error:
            await other.upsert([Point(9, vector_of("A", 9, "x"), {})])
        assert error.value.code == "model_mismatch"
        with pytest.raises(ConfigError):
            await other.claim("A", "A")
        assert await other.count() == 1


async def test_only_one_of_two_daemons_embeds(tmp_path: Path) -> None:
    place, folder = places(tmp_path, "server")
    async with rig(place(), folder) as one, rig(place(), folder) as other:
        other.embedder.pictures = one.embedder.pictures
        for number in range(60):
            await one.job(number, "j")
        begun, go_on = asyncio.Event(), asyncio.Event()

        def hold(_media_id: int) -> Any:
            begun.set()
            return go_on.wait()

        one.embedder.on_embed = hold
        async with one.working():
            await one.change.use(B)
            await begun.wait()
            async with other.working():
                # What two find that look at the very same moment is up to SETTLE_SECONDS.
                await until(lambda: getattr(other.change._work._lease, "told", None))
                go_on.set()
                await other.until_of("B")
        assert (len(one.embedder.embedded), len(other.embedder.embedded)) == (60, 0)
        assert (await other.active())[0] == "B"


async def test_a_picture_that_fails_once_and_is_deleted_does_not_hold_up_the_change(
    one: Rig,
) -> None:
    for number in (1, 2):
        await one.job(number, "j")
    one.embedder.errors[2] = RetryableError("slow", code="decode_timeout")
    one.embedder.on_embed = lambda media_id: (
        one.store.remove_by_media_store_id(2) if media_id == 2 else None
    )
    async with one.working():
        await one.change.use(B)
        await one.until_of("B")

    assert await one.active() == ("B", {1: "j"})


async def test_a_pass_that_finds_nothing_keeps_its_lease_at_every_page(
    one: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(point_inventory, "PAGE", 10)
    for number in range(40):
        await one.job(number, "j")
    async with one.working():
        await one.change.use(B)
        await one.until_of("B")
    asked = 0
    take = model_lease.Lease.take

    async def counted(lease: model_lease.Lease, told: Any) -> bool:
        nonlocal asked
        asked += 1
        return await take(lease, told)

    monkeypatch.setattr(model_lease.Lease, "take", counted)
    async with one.working():
        await one.change.rollback()
        await one.until_of("A")
    assert asked >= 2 * 4


async def test_what_passes_wrote_is_synced_before_the_record_that_lets_it_answer(
    one: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    await one.job(1, "j")
    engine, calls = one.store.parts.engine, list[tuple[str, str]]()
    upsert, flush, write = engine.upsert, engine.flush, Records.write

    async def noted_upsert(collection: str, points: Sequence[Point]) -> None:
        await upsert(collection, points)
        calls.append((collection, "written"))

    async def noted_flush(collection: str) -> None:
        await flush(collection)
        calls.append((collection, "synced"))

    async def noted_write(records: Records, record: Record) -> None:
        calls.append((record.active.physical, "searched"))
        await write(records, record)

    monkeypatch.setattr(engine, "upsert", noted_upsert)
    monkeypatch.setattr(engine, "flush", noted_flush)
    monkeypatch.setattr(Records, "write", noted_write)
    async with one.working():
        await one.change.use(B)
        await one.until_of("B")

    told = [what for name, what in calls if name == physical_name(NAME, "B")]
    assert told == ["written", "synced", "searched"]


async def test_a_model_that_was_given_up_is_not_kept_in_memory(
    one: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    await one.job(1, "j")
    kept: list[list[str]] = []

    async def unload_others(*needed: Any) -> bool:
        kept.append([each.fingerprint for each in needed])
        return False

    monkeypatch.setattr(one.models, "unload_others", unload_others)
    begun, go_on = asyncio.Event(), asyncio.Event()

    def hold(_media_id: int) -> Any:
        begun.set()
        return go_on.wait()

    one.embedder.on_embed = hold
    async with one.working():
        await one.change.use(B)
        await begun.wait()
        await one.change.abort()
        go_on.set()
        await until(lambda: kept)
    assert kept == [["A"]]


async def test_a_model_that_a_job_loads_again_after_the_change_is_freed_too(
    one: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    await one.job(1, "j")
    loaded, freed = [True], [0]

    async def unload_others(*_needed: Any) -> bool:
        was_loaded, loaded[0] = loaded[0], False
        freed[0] += was_loaded
        return was_loaded

    monkeypatch.setattr(one.models, "unload_others", unload_others)
    async with one.working():
        await one.change.use(B)
        await until(lambda: freed[0] == 1)
        # It began before the change, and infers by the former model only now.
        loaded[0] = True
        await until(lambda: freed[0] == 2)


@pytest.mark.parametrize("is_said_late", [False, True])
async def test_a_way_back_at_once_is_searched_before_it_has_what_is_new(
    one: Rig, is_said_late: bool
) -> None:
    for number in (1, 2):
        await one.job(number, "old")
    async with one.working():
        await one.change.use(B)
        await one.until_of("B")
    await one.job(2, "anew")
    await one.job(3, "new")
    await one.store.remove_by_media_store_id(1)

    if is_said_late:
        await one.change.rollback()
        assert (await one.store.searched()).fingerprint == "B"
    told = await one.change.rollback(now=True)
    assert told["searched"] == told["shadow"]["collection"] == NAME
    # Nobody works on it yet: of before, but for what is deleted; jobs write both.
    await one.job(4, "late")
    searched = await one.store.searched()
    assert searched.fingerprint == "A"
    assert await one.contents(searched) == {2: "old", 4: "late"}
    # What an audit looks at has all.
    _, whole = await one.store.now()
    assert await one.contents(whole) == {2: "anew", 3: "new", 4: "late"}

    async with one.working():
        await one.until_of("A")
    assert (await one.store.searched()).fingerprint == "A"
    assert await one.active() == ("A", {2: "anew", 3: "new", 4: "late"})
    assert (await one.change.told())["previous"]["model"] == "B"


async def test_a_picture_that_is_deleted_while_it_is_embedded_is_not_found_by_a_way_back_at_once(
    one: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shadow, "GROUP", 1)
    begun, go_on, is_next = asyncio.Event(), asyncio.Event(), asyncio.Event()

    async def hold(media_id: int) -> None:
        if media_id == 2:
            begun.set()
            await go_on.wait()
        else:
            is_next.set()
            await asyncio.Event().wait()

    await one.job(1, "old")
    async with one.working():
        await one.change.use(B)
        await one.until_of("B")
    for number in (2, 3):
        await one.job(number, "new")
    one.embedder.on_embed = hold
    await one.change.rollback(now=True)
    async with one.working():
        await begun.wait()
        await one.store.remove_by_media_store_id(2)
        go_on.set()
        await is_next.wait()
        assert await one.contents(await one.store.searched()) == {1: "old"}


async def test_a_way_back_at_once_that_is_given_up_is_searched_no_longer(one: Rig) -> None:
    await one.job(1, "j")
    async with one.working():
        await one.change.use(B)
        await one.until_of("B")
    await one.change.rollback(now=True)
    told = await one.change.abort()

    assert told["searched"] == told["active"]["collection"] == physical_name(NAME, "B")
    await one.change.rollback()
    assert (await one.store.searched()).fingerprint == "B"


async def test_a_way_back_that_is_asked_for_twice_is_one(one: Rig) -> None:
    await one.job(1, "j")
    async with one.working():
        await one.change.use(B)
        await one.until_of("B")
    begun = await one.change.rollback()

    assert await one.change.rollback() == begun
    now = await one.change.rollback(now=True)
    assert now["searched"] == NAME
    # It is no order to search by the other one again.
    assert await one.change.rollback() == now


async def test_a_change_that_is_begun_anew_amid_the_last_look_is_not_done_by_that(
    one: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(3):
        await one.job(number, "j")
    begun, go_on = asyncio.Event(), asyncio.Event()
    page = PointInventory.page

    async def looked(inventory: PointInventory, cursor: Any) -> Any:
        found = await page(inventory, cursor)
        is_shadow = inventory._part.fingerprint == "B"
        if is_shadow and (one.change.stats() or {}).get("passes") == 2 and not begun.is_set():
            begun.set()
            await go_on.wait()
        return found

    monkeypatch.setattr(PointInventory, "page", looked)
    async with one.working():
        await one.change.use(B)
        await begun.wait()
        # What that pass found whole is removed, and all is to be done again.
        await one.change.abort()
        await one.change.use(B)
        go_on.set()
        await one.until_of("B")

    assert await one.active() == ("B", dict.fromkeys(range(3), "j"))


async def test_who_tells_late_of_a_former_change_lets_no_failure_of_the_next_one_pass(
    one: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in (1, 2):
        await one.job(number, "j")
    one.embedder.errors[2] = PermanentError("gone", code="media_not_found")
    asked, answer, swapping = asyncio.Event(), asyncio.Event(), asyncio.Event()
    collections, swap = one.store.parts.engine.collections, ChangeWork._swap

    async def slow() -> Any:
        found = await collections()
        if not asked.is_set():
            asked.set()
            await answer.wait()
        return found

    async def noted(work: ChangeWork, *arguments: Any) -> bool:
        swapping.set()
        return await swap(work, *arguments)

    monkeypatch.setattr(ChangeWork, "_swap", noted)
    await one.change.use(B)
    monkeypatch.setattr(one.store.parts.engine, "collections", slow)
    telling = asyncio.create_task(one.change.told())
    await asked.wait()
    await one.change.abort()
    await one.change.use(B)
    async with one.working():
        # As a way back has it while it loads a model.
        async with one.change._work.turn:
            async with asyncio.timeout(60):
                await swapping.wait()
            answer.set()
            await telling
        await until(lambda: (one.change.stats() or {"waits": "over"})["waits"])

        assert (one.change.stats() or {}).get("waits") == "model_change_failures"
        assert await one.is_of("A")


async def test_a_way_back_needs_room_for_what_is_new_alone(
    one: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[int] = []
    monkeypatch.setattr(change, "require_room", lambda _folder, wanted: asked.append(wanted))
    for number in range(10):
        await one.job(number, "j")
    async with one.working():
        await one.change.use(B)
        await one.until_of("B")
        await one.job(10, "new")
        await one.change.rollback()
        await one.until_of("A")
        await one.store.remove_by_media_store_id(10)
        await one.change.use(B)

    floats = [10 * DIMENSIONS["B"], DIMENSIONS["A"], 0]
    assert asked == [int(4 * change.ROOM_FACTOR * each) for each in floats]


async def test_a_servers_alias_leads_other_readers_to_what_is_searched() -> None:
    async def until_it_leads_to(name: str) -> None:
        async with asyncio.timeout(60):
            aliases: dict[str, str] = {}
            while aliases != {f"{NAME}.active": name}:
                await asyncio.sleep(0.005)
                found = (await client.get_aliases()).aliases
                aliases = {each.alias_name: each.collection_name for each in found}

    async with qdrant_server() as (url, client, _):
        engine = SharedEngine(lambda: ServerEngine(url))
        async with rig(engine, None) as one:
            await one.job(1, "j")
            async with one.working():
                await until_it_leads_to(NAME)
                await one.change.use(B)
                await until_it_leads_to(physical_name(NAME, "B"))
            # Healed where it was lost, and led back at once though nothing has caught up.
            await client.update_collection_aliases(to_alias(f"{NAME}.active", "inferd_models"))
            one.embedder.on_embed = lambda _id: asyncio.Event().wait()
            await one.job(2, "new")
            await one.change.rollback(now=True)
            async with one.working():
                await until_it_leads_to(NAME)
                assert await one.is_of("B")
        async with rig(engine, None) as other:
            await client.update_collection_aliases(to_alias(f"{NAME}.active", "inferd_models"))
            async with other.working():
                await until_it_leads_to(NAME)


async def test_the_alias_follows_a_way_back_that_is_said_to_be_at_once_amid_a_pass(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(shadow, "GROUP", 1)
    begun, go_on = asyncio.Event(), asyncio.Event()

    def hold(_id: int) -> Any:
        begun.set()
        # The second one for ever: the pass does not end.
        return asyncio.Event().wait() if go_on.is_set() else go_on.wait()

    async with (
        qdrant_server() as (url, client, _),
        rig(SharedEngine(lambda: ServerEngine(url)), None) as one,
    ):
        await one.job(1, "j")
        async with one.working():
            await one.change.use(B)
            await one.until_of("B")
        for number in (2, 3):
            await one.job(number, "new")
        one.embedder.on_embed = hold
        await one.change.rollback()
        async with one.working(), asyncio.timeout(60):
            await begun.wait()
            await one.change.rollback(now=True)
            go_on.set()
            led_to = ""
            while led_to != NAME:
                await asyncio.sleep(0.005)
                (alias,) = (await client.get_aliases()).aliases
                led_to = alias.collection_name
