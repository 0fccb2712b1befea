"""What a Qdrant server had confirmed and lost with its machine's power is done again."""

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
from qdrant_client import AsyncQdrantClient
from qdrant_client.models import PointIdsList

from daemon.errors import DependencyDownError
from daemon.jobs import JobState, TaskType
from daemon.queue.job_ledger import JobLedger
from daemon.queue.job_listing import JobSelection
from daemon.upkeep.audit import Audit
from daemon.upkeep.last_life import LastLife
from daemon.upkeep.scrub import Scrub
from daemon.upkeep.server_watch import MOST_LIVES, SAVE_MS, ServerWatch
from handlers.image_store import QdrantImageStore
from handlers.qdrant.qdrant_server import ServerEngine
from handlers.qdrant.server_life import ServerLife, life_of
from handlers.qdrant.vector_engine import Point, SharedEngine
from handlers.qdrant.vector_points import job_payload
from handlers.search.stored_vectors import StoredVectors
from tests.qdrant_http import qdrant_server
from tests.queue_bench import Bench, open_bench
from tests.waiting import until

MODEL = "ViT-B-32-quickgelu"
COLLECTION = "image_embeddings"


@dataclass
class World:
    """A queue, a server that may lose power, and who watches it."""

    bench: Bench
    url: str
    kept: AsyncQdrantClient
    life: dict[str, str]
    store: QdrantImageStore
    scrub: Scrub
    ask: Callable[[], object]
    noted: Path
    flushed: set[int] = field(default_factory=set)
    looks: list[tuple[int, int]] = field(default_factory=list)
    is_away: bool = False

    def watch(self, server: str | None = None) -> ServerWatch:
        """Return a daemon's watch, as its start makes it."""

        async def ask() -> ServerLife:
            if self.is_away:
                raise DependencyDownError("away", code="vector_store_unreachable")
            return await self.ask()  # type: ignore[misc,no-any-return]

        async def look(since: int, until: int) -> tuple[int, int]:
            self.looks.append((since, until))
            return await self.scrub.look(since, until)

        return ServerWatch(
            self.noted, server=server or self.url, life=ask, look=look, clock=self.bench.clock
        )

    async def do(self, *media_store_ids: int) -> None:
        """Do pictures as a daemon does, a second each."""
        for media_store_id in media_store_ids:
            await self.bench.accept(media_store_id)
            lease = await self.bench.lease_one()
            vector = np.random.default_rng(media_store_id).standard_normal(512)
            said = job_payload(lease.job, MODEL)
            await self.store.upsert([Point(media_store_id, vector.astype(np.float32), said)])
            await self.bench.queue.complete(lease, {"point_id": media_store_id})
            self.bench.clock.advance(seconds=1)

    async def flush(self) -> None:
        """Have the server write down what it has, as it does every few seconds."""
        self.flushed = await self.stored()

    async def lose_power(self) -> None:
        """Take what was not flushed, and start it anew."""
        lost = list(await self.stored() - self.flushed)
        if lost:
            await self.kept.delete(COLLECTION, PointIdsList(points=[*lost]))
        self.restart()

    def restart(self) -> None:
        """Have another process answer from now on."""
        self.life["id"] += "+"

    async def stored(self) -> set[int]:
        points, _ = await self.kept.scroll(COLLECTION, limit=10_000)
        return {int(point.id) for point in points}

    async def waiting(self) -> set[int]:
        """Return the pictures that are asked for again."""
        page = await self.bench.queue.list_jobs(JobSelection(status=JobState.PENDING))
        return {job.media_store_id for job in page.jobs}


@asynccontextmanager
async def world_of(folder: Path, life: dict[str, str]) -> AsyncIterator[World]:
    async with AsyncExitStack() as stack:
        url, kept, _ = await stack.enter_async_context(qdrant_server(life))
        engine = SharedEngine(lambda: ServerEngine(url))
        bench = await stack.enter_async_context(open_bench(folder / "queue.db"))
        store = await stack.enter_async_context(QdrantImageStore(engine=engine))
        await store.claim(f"{MODEL}:untrained-seed-7", f"{MODEL}:untrained-seed-7")
        vectors = StoredVectors({TaskType.IMAGE_EMBEDDING: store})
        ledger = JobLedger(bench.database)
        audit = Audit(bench.queue, ledger, vectors, clock=bench.clock)
        scrub = Scrub(ledger, audit, LastLife(folder / "last-life.json", is_needed=False))
        noted = folder / "vectors-server.json"
        yield World(bench, url, kept, life, store, scrub, lambda: life_of(engine), noted)


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    async with world_of(tmp_path, {"id": "process"}) as made:
        yield made


@pytest.fixture
async def mute(tmp_path: Path) -> AsyncIterator[World]:
    """Return a world whose server refuses its telemetry."""
    async with world_of(tmp_path, {}) as made:
        yield made


async def test_what_a_power_cut_took_from_the_server_is_done_again(world: World) -> None:
    watch = world.watch()
    await world.do(1, 2)
    await watch.look()
    await world.do(3, 4)
    await world.flush()
    await world.do(5, 6, 7)

    await world.lose_power()
    await watch.look()

    assert await world.waiting() == {5, 6, 7}


async def test_a_server_that_lost_nothing_costs_a_look_and_no_job(world: World) -> None:
    watch = world.watch()
    await watch.look()
    await world.do(1, 2)

    world.restart()
    for _ in range(5):
        await watch.look()

    assert await world.waiting() == set()
    # Once more at the next poll, and never again.
    assert len(world.looks) == 2


async def test_while_the_same_process_answers_nothing_is_looked_at(world: World) -> None:
    watch = world.watch()
    for number in range(1, 4):
        await watch.look()
        await world.do(number)
        world.is_away = True
        await watch.look()
        world.is_away = False
    # A vector that somebody deleted is no power cut's.
    await world.kept.delete(COLLECTION, [2])
    await watch.look()

    assert world.looks == []
    assert await world.waiting() == set()


async def test_what_ended_after_the_first_look_is_in_the_second(world: World) -> None:
    watch = world.watch()
    await watch.look()
    await world.bench.accept(1)
    lease = await world.bench.lease_one()
    # Its vector went with the power; the server is back before the job's end is written.
    await world.lose_power()
    await watch.look()
    await world.bench.queue.complete(lease, {"point_id": 1})
    world.bench.clock.advance(seconds=1)

    await watch.look()

    assert await world.waiting() == {1}


async def test_a_power_cut_while_no_daemon_was_there_is_noticed_by_the_next(world: World) -> None:
    await world.watch().look()
    await world.flush()
    await world.do(1, 2)
    await world.lose_power()
    world.bench.clock.advance(seconds=3600)

    await world.watch().look()

    assert await world.waiting() == {1, 2}


async def test_a_look_that_could_not_be_done_is_done_by_the_next_daemon(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    await world.watch().look()
    await world.do(1)
    await world.lose_power()

    async def fail(since: int, until: int) -> tuple[int, int]:
        raise DependencyDownError("gone again", code="vector_store_unreachable")

    with monkeypatch.context() as patch:
        patch.setattr(world.scrub, "look", fail)
        await world.watch().look()
    assert await world.waiting() == set()
    world.bench.clock.advance(seconds=3600)

    await world.watch().look()

    assert await world.waiting() == {1}


async def test_only_what_completed_since_the_former_process_was_seen_is_looked_at(
    world: World,
) -> None:
    watch = world.watch()
    await world.do(1)
    world.bench.clock.advance(seconds=7200)
    await watch.look()
    seen = world.bench.clock()
    await world.do(2)
    # Somebody deleted the old one on purpose.
    await world.kept.delete(COLLECTION, [1])

    await world.lose_power()
    await watch.look()

    assert await world.waiting() == {2}
    ((since, until),) = world.looks
    # A minute for the disk and twice what the collection may wait for its flush.
    assert 60_000 < seen - since < 120_000
    assert until == world.bench.clock()


async def test_a_server_that_does_not_tell_is_looked_after_when_it_was_away(mute: World) -> None:
    watch = mute.watch()
    await watch.look()
    await mute.do(1)
    await watch.look()
    assert mute.looks == []

    mute.is_away = True
    await watch.look()
    await mute.kept.delete(COLLECTION, [1])
    mute.is_away = False
    await watch.look()

    assert await mute.waiting() == {1}


async def test_a_server_that_does_not_tell_is_looked_after_at_each_start(mute: World) -> None:
    await mute.watch().look()
    await mute.do(1)
    await mute.kept.delete(COLLECTION, [1])

    await mute.watch().look()

    assert await mute.waiting() == {1}


async def test_another_server_is_not_compared_with_the_one_before(world: World) -> None:
    await world.watch().look()
    await world.do(1)
    await world.lose_power()

    await world.watch("http://elsewhere:6333").look()

    assert world.looks == []
    assert json.loads(world.noted.read_text())["lives"] == {"process+": world.bench.clock()}


async def test_nodes_that_answer_in_turn_are_looked_at_once_each(world: World) -> None:
    watch = world.watch()
    await world.do(1)
    for turn in range(8):
        world.life["id"] = f"node-{turn % 2}"
        await watch.look()
    # The second one is taken for a process that came in the first one's place.
    assert len(world.looks) == 2


async def test_processes_of_long_ago_make_no_look_longer(world: World) -> None:
    watch = world.watch()
    for hours in (0, 0, 2, 2):
        world.bench.clock.advance(seconds=3600 * hours)
        await watch.look()
        world.restart()
        await watch.look()
        await watch.look()

    world.bench.clock.advance(seconds=20)
    world.restart()
    await watch.look()

    assert world.looks[-1][1] - world.looks[-1][0] < 3_600_000


async def test_processes_without_end_are_not_kept_without_end(world: World) -> None:
    watch = world.watch()
    for number in range(MOST_LIVES + 5):
        world.life["id"] = f"process-{number}"
        await watch.look()
    world.bench.clock.advance(seconds=SAVE_MS / 1000)
    await watch.look()

    assert len(json.loads(world.noted.read_text())["lives"]) <= MOST_LIVES


@pytest.mark.parametrize("torn", ["", "{", "[]", '{"server": 1}', "whole"])
async def test_notes_that_cannot_be_read_stop_nobody(world: World, torn: str) -> None:
    await world.watch().look()
    told = json.loads(world.noted.read_text())
    world.noted.write_text(json.dumps({**told, "lives": 7}) if torn == "whole" else torn)
    world.restart()

    await world.watch().look()

    assert json.loads(world.noted.read_text())["lives"] == {"process+": world.bench.clock()}


async def test_it_watches_until_it_is_cancelled_and_then_keeps_what_it_saw(world: World) -> None:
    watching = asyncio.create_task(world.watch().run())
    await until(world.noted.exists)
    watching.cancel()
    await asyncio.wait([watching])

    assert watching.cancelled()
    assert json.loads(world.noted.read_text())["seen"] == world.bench.clock()


async def test_a_clock_that_was_set_back_hides_no_power_cut(world: World) -> None:
    watch = world.watch()
    await watch.look()
    world.bench.clock.advance(seconds=-7200)
    await watch.look()
    await world.do(1)
    await world.lose_power()

    # Another daemon, since this one was killed.
    await world.watch().look()

    assert await world.waiting() == {1}
