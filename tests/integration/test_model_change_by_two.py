"""Two admins, or two daemons, change what a collection is of at once: nobody undoes the other's."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from daemon.cli import models
from daemon.errors import ChangedError, DependencyDownError
from handlers.model_change import lease
from handlers.qdrant.qdrant_edge import EdgeEngine
from handlers.qdrant.qdrant_server import ServerEngine
from handlers.qdrant.vector_engine import SharedEngine
from handlers.qdrant.vector_points import model_point_id
from handlers.vectors.model_record import MODELS, Part, Record, Records
from tests.documents import openapi
from tests.integration.test_search_command import Door, door
from tests.model_changes import B, C, FakeModel, Rig, rig, wait_briefly
from tests.qdrant_http import qdrant_server
from tests.waiting import until

__all__ = ["door"]

pytestmark = pytest.mark.filterwarnings("ignore:Payload indexes have no effect")

NAME = "image_embeddings"


@pytest.fixture
async def one(tmp_path: Path) -> AsyncIterator[Rig]:
    async with rig(SharedEngine(lambda: EdgeEngine(tmp_path / "v")), tmp_path) as one:
        await one.job(1, "j")
        yield one


async def changed(one: Rig, spec: dict[str, str]) -> None:
    """Change to a model, until it is done."""
    async with one.working():
        await one.change.use(spec)
        await one.until_of(spec["model"])


async def test_an_abort_ends_only_the_change_that_was_seen(one: Rig) -> None:
    seen = (await one.change.use(B))["version"]
    # Somebody else gives that up, and begins another one.
    await one.change.abort()
    begun = await one.change.use(C)

    with pytest.raises(ChangedError):
        await one.change.abort(seen=seen)

    told = await one.change.told()
    assert (told["shadow"]["model"], told["version"]) == ("C", begun["version"])
    told = await one.change.abort(seen=told["version"])
    assert told["shadow"] is None


async def test_a_drop_takes_only_what_was_seen_to_be_kept(one: Rig) -> None:
    await changed(one, B)
    seen = (await one.change.told())["version"]
    # Somebody else goes back: what is kept is B's by now, to try it again.
    async with one.working():
        await one.change.rollback(seen=seen)
        await one.until_of("A")

    for verb in (one.change.drop, one.change.rollback):
        with pytest.raises(ChangedError):
            await verb(seen=seen)

    told = await one.change.told()
    assert (told["previous"]["model"], told["change"]) == ("B", None)
    assert (await one.change.drop(seen=told["version"]))["previous"] is None


async def test_what_a_change_may_do_without_is_no_other_version(one: Rig) -> None:
    seen = (await one.change.use(B))["version"]

    assert (await one.change.use(B, allow_failed=3))["version"] == seen


Write = Callable[[Records, Record], Awaitable[None]]


@pytest.mark.parametrize("verb", ["abort", "drop"])
async def test_nothing_is_removed_that_another_daemon_made_searched_at_the_same_moment(
    one: Rig, monkeypatch: pytest.MonkeyPatch, verb: str
) -> None:
    plain: Write = Records.write
    if verb == "abort":
        # The other one's last look was before our write, and its own comes after.
        await one.change.use(B)
        overwritten = await one.store.record()
        assert overwritten is not None
        by_other = overwritten.swapped(7)
    else:
        await changed(one, B)
        overwritten = await one.store.record()
        assert overwritten is not None
        assert overwritten.previous is not None
        by_other = overwritten.begun(overwritten.previous)

    async def write_then_be_overwritten(records: Records, record: Record) -> None:
        await plain(records, record)
        await plain(records, by_other)

    with monkeypatch.context() as patched:
        patched.setattr(Records, "write", write_then_be_overwritten)
        with pytest.raises(ChangedError, match="which stays"):
            await getattr(one.change, verb)()

    names = await one.store.parts.engine.collections()
    assert {part.physical for part in by_other.parts} <= set(names)
    assert await one.store.record() == by_other


async def test_a_rollback_writes_nothing_over_what_was_done_while_it_opened_the_model(
    one: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    await changed(one, B)
    record = await one.store.record()
    assert record is not None
    by_other = record.without_previous()
    plain = one.models.of

    async def read_for_long(part: Part) -> FakeModel:
        # Another daemon drops what is kept.
        await one.store.parts.records.write(by_other)
        return await plain(part)

    monkeypatch.setattr(one.models, "of", read_for_long)
    with pytest.raises(ChangedError):
        await one.change.rollback(now=True)

    assert await one.store.record() == by_other


@dataclass
class Two:
    """Two daemons on one server."""

    one: Rig
    other: Rig


@pytest.fixture
async def two(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Two]:
    wait_briefly(monkeypatch)
    async with (
        qdrant_server() as (url, _, _),
        rig(SharedEngine(lambda: ServerEngine(url)), None) as one,
        rig(SharedEngine(lambda: ServerEngine(url)), None, one.embedder.pictures) as other,
    ):
        for number in range(3):
            await one.job(number, "j")
        yield Two(one, other)


async def test_of_a_new_change_nothing_is_told_that_was_so_of_the_one_before(two: Two) -> None:
    begun, go_on = asyncio.Event(), asyncio.Event()

    def hold(_media_id: int) -> Awaitable[object]:
        begun.set()
        return go_on.wait()

    two.other.embedder.on_embed = hold
    async with two.other.working():
        await two.one.change.use(B, allow_failed=1)
        await begun.wait()
        async with two.one.working():
            # It tells what the one says that embeds.
            await until(lambda: getattr(two.one.change._work._lease, "told", None))
            go_on.set()
            await two.one.until_of("B")

    for daemon in (two.one, two.other):
        told = (await daemon.change.rollback())["change"]
        assert (told["from_model"], told["to_model"]) == ("B (b)", "A (a)")
        assert (told["done"], told["total"], told["passes"]) == (0, 0, 0)


async def test_why_it_waited_is_told_no_longer_once_another_daemon_goes_on(
    two: Two, monkeypatch: pytest.MonkeyPatch
) -> None:
    two.one.embedder.errors[1] = DependencyDownError("away", code="media_store_unreachable")
    await two.one.change.use(B)
    async with two.one.working():
        await until(lambda: (two.one.change.stats() or {}).get("waits"))
        assert (await two.one.change.told())["waits_for"] == "away"
    # It was cut off from the server for long.
    monkeypatch.setattr(lease, "RENEW_SECONDS", 0.0)
    await two.one.store.parts.engine.delete(MODELS.name, [model_point_id(f"{NAME}:lease")])
    begun = asyncio.Event()

    def hold(_media_id: int) -> Awaitable[object]:
        begun.set()
        return asyncio.Event().wait()

    two.other.embedder.on_embed = hold
    async with two.other.working():
        await begun.wait()
        async with two.one.working():
            await until(lambda: not (two.one.change.stats() or {"waits": 1})["waits"])
            assert (await two.one.change.told())["waits_for"] is None


async def test_a_model_is_freed_that_another_daemon_left_between_two_looks(
    two: Two, monkeypatch: pytest.MonkeyPatch
) -> None:
    looks, read = 0, Records.read

    async def counted(records: Records) -> Record | None:
        nonlocal looks
        looks += records is two.one.store.parts.records
        return await read(records)

    monkeypatch.setattr(Records, "read", counted)
    async with two.one.working():
        # The second look comes after all of the first.
        await until(lambda: looks > 1)
    await changed(two.other, B)
    assert two.one.models.needed == []

    async with two.one.working():
        await until(lambda: two.one.models.needed)
    assert two.one.models.needed[0] == "B"


def test_the_command_carries_the_version_that_was_told(
    door: Door, capsys: pytest.CaptureFixture[str]
) -> None:
    operation = openapi()["paths"]["/models/{collection}"]["get"]["responses"]["200"]
    told = operation["content"]["application/json"]["example"]
    door.body = told

    assert models.main(["change"], prog="models") == 0
    assert f"`--seen {told['version']}`" in capsys.readouterr().out
    for verb in ("rollback", "abort", "drop"):
        assert models.main([verb, "--seen", told["version"]], prog="models") == 0
    assert models.main(["abort", "--faces"], prog="models") == 0

    assert [(path, query) for _, path, query, _, _ in door.asked[1:]] == [
        *(
            (f"/models/image_embeddings/{verb}", {"seen": told["version"]})
            for verb in ("rollback", "abort", "drop")
        ),
        ("/models/face_embeddings/abort", {}),
    ]


@pytest.mark.parametrize("verb", ["rollback", "abort", "drop"])
def test_a_version_that_is_empty_is_refused_before_anybody_is_asked(door: Door, verb: str) -> None:
    with pytest.raises(SystemExit) as caught:
        models.main([verb, "--seen", ""], prog="models")

    assert caught.value.code == 2
    assert door.asked == []
