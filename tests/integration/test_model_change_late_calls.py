"""Two daemons on one server: what one dropped is not made anew by a late call of the other."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from qdrant_client import AsyncQdrantClient

from handlers.qdrant.qdrant_edge import EdgeEngine
from handlers.qdrant.qdrant_server import ServerEngine
from handlers.qdrant.vector_engine import DroppedError, SharedEngine
from handlers.vectors.model_record import physical_name
from tests.model_changes import B, Rig, rig, wait_briefly
from tests.qdrant_http import qdrant_server

pytestmark = pytest.mark.filterwarnings("ignore:Payload indexes have no effect")

NAME = "image_embeddings"
OF_B = physical_name(NAME, "B")


@dataclass
class Two:
    """Two daemons, and what their server keeps."""

    one: Rig
    other: Rig
    kept: AsyncQdrantClient

    async def names(self) -> set[str]:
        """Return the collections that there are."""
        return {each.name for each in (await self.kept.get_collections()).collections}


@pytest.fixture
async def two(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Two]:
    wait_briefly(monkeypatch)
    async with (
        qdrant_server() as (url, kept, _),
        rig(SharedEngine(lambda: ServerEngine(url)), None) as one,
        rig(SharedEngine(lambda: ServerEngine(url)), None) as other,
    ):
        await one.job(1, "j")
        yield Two(one, other, kept)


@asynccontextmanager
async def meanwhile(
    daemon: Rig, verb: str, collection: str, call: Callable[[], Awaitable[Any]]
) -> AsyncIterator[asyncio.Task[Any]]:
    """Hold a call of a daemon where it is about to do `verb` with a collection, and let it go on.

    Gives the call's task, which goes on after the body.
    """
    engine = daemon.store.parts.engine
    plain = getattr(engine, verb)
    begun, go_on = asyncio.Event(), asyncio.Event()

    async def held(first: Any, *rest: Any) -> Any:
        if collection == getattr(first, "name", first):
            begun.set()
            await go_on.wait()
        return await plain(first, *rest)

    setattr(engine, verb, held)
    task = asyncio.ensure_future(call())
    try:
        async with asyncio.timeout(60):
            await begun.wait()
        yield task
    finally:
        setattr(engine, verb, plain)
        go_on.set()
    async with asyncio.timeout(60):
        await asyncio.wait([task])


@pytest.mark.parametrize("verb", ["upsert", "ensure_collection"])
async def test_a_job_that_writes_a_change_that_was_given_up_is_done_without_it(
    two: Two, verb: str
) -> None:
    await two.one.change.use(B)
    if verb == "upsert":
        await two.other.job(1, "opened before")

    async with meanwhile(two.other, verb, OF_B, lambda: two.other.job(2, "late")) as job:
        await two.one.change.abort()
        assert OF_B not in await two.names()
    await job

    assert await two.names() == {NAME, "inferd_models"}
    assert (await two.one.change.told())["leftover"] == []
    _, found = await two.one.active()
    assert found[2] == "late"


async def test_what_is_embedded_and_dropped_while_it_is_told_of_stays_dropped(
    tmp_path: Path,
) -> None:
    async with rig(SharedEngine(lambda: EdgeEngine(tmp_path / "v")), tmp_path) as one:
        await one.job(1, "j")
        async with one.working():
            await one.change.use(B)
            await one.until_of("B")
        one.store.parts._ensured.clear()

        async with meanwhile(one, "ensure_collection", NAME, one.change.told) as told:
            await one.change.drop()

        assert (told.result()["previous"], told.result()["leftover"]) == (None, [])
        assert await one.store.parts.engine.collections() == [OF_B, "inferd_models"]


async def changed(two: Two) -> None:
    """Change to B; what was before is kept."""
    async with two.one.working():
        await two.one.change.use(B)
        await two.one.until_of("B")


async def test_what_is_told_is_told_anew_where_a_part_was_dropped_meanwhile(two: Two) -> None:
    await changed(two)
    two.other.store.parts._ensured.clear()

    telling = meanwhile(two.other, "ensure_collection", NAME, two.other.change.told)
    async with telling as told:
        await two.one.change.drop()

    assert (told.result()["previous"], told.result()["leftover"]) == (None, [])
    assert await two.names() == {OF_B, "inferd_models"}


@pytest.mark.parametrize("verb", ["delete", "ensure_collection"])
async def test_a_delete_goes_on_where_a_part_was_dropped_meanwhile(two: Two, verb: str) -> None:
    await changed(two)
    if verb == "ensure_collection":
        two.other.store.parts._ensured.clear()

    removing = meanwhile(two.other, verb, NAME, lambda: two.other.store.remove([1]))
    async with removing as removed:
        await two.one.change.drop()
    await removed

    assert await two.names() == {OF_B, "inferd_models"}
    assert await two.one.active() == ("B", {})


async def test_a_count_of_what_was_dropped_makes_nothing(two: Two) -> None:
    await changed(two)
    record = await two.other.store.record()
    assert record is not None
    assert record.previous is not None
    former = two.other.store.at(record.previous)
    assert await former.count() == 1

    await two.one.change.drop()
    with pytest.raises(DroppedError):
        await former.count()

    assert await two.names() == {OF_B, "inferd_models"}


async def test_what_is_wanted_still_is_made_anew_where_somebody_deleted_it(two: Two) -> None:
    await changed(two)
    await two.kept.delete_collection(OF_B)

    await two.other.job(2, "anew")

    assert await two.one.active() == ("B", {2: "anew"})
