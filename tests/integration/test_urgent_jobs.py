"""Urgent jobs begin beyond the limit and are first in every stage, within what may begin at all."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from pathlib import Path

import pytest

from daemon.errors import DependencyDownError
from daemon.jobs import Job, JobState, JsonObject
from daemon.stage import Stage
from daemon.worker import worker as worker_module
from tests.integration.test_worker import Gate, Handler, raising, reaches, turns, working
from tests.queue_bench import IMAGE, Bench, open_bench, until

ID = "550e8400-e29b-41d4-a716-446655440000"
FOR_EVER = 1000.0
URGENT = 10
MOST = 4
"""Jobs in flight; one more may begin where it is urgent."""


@pytest.fixture
async def bench(tmp_path: Path) -> AsyncIterator[Bench]:
    async with open_bench(tmp_path / "queue.db") as opened:
        yield opened


async def begun(handler: Handler, count: int) -> None:
    async def has() -> bool:
        return len(handler.handled) >= count

    await until(has, f"{count} jobs begin, but {len(handler.handled)}")


def pictures(handler: Handler) -> list[int]:
    return [job.media_store_id for job in handler.handled]


async def fill(bench: Bench, count: int = 3 * MOST) -> None:
    for number in range(count):
        await bench.accept(number)


async def test_an_urgent_job_begins_although_there_is_no_room(bench: Bench) -> None:
    await fill(bench)
    handler = Handler(gate := Gate())
    async with working(bench, handler, max_in_flight=MOST, poll_seconds=FOR_EVER):
        await begun(handler, MOST)
        await bench.accept(100, priority=URGENT)
        await begun(handler, MOST + 1)
        await turns(500)

        assert pictures(handler) == [0, 1, 2, 3, 100]
        gate.open()


async def test_no_other_job_begins_without_room(bench: Bench) -> None:
    await fill(bench)
    handler = Handler(gate := Gate())
    async with working(bench, handler, max_in_flight=MOST, poll_seconds=FOR_EVER):
        await begun(handler, MOST)
        # It wakes the worker as an urgent one does.
        await bench.accept(100)
        await turns(500)

        assert pictures(handler) == [0, 1, 2, 3]
        gate.open()


async def test_a_flood_of_urgent_jobs_exceeds_the_limit_by_its_share_only(bench: Bench) -> None:
    await fill(bench)
    handler = Handler(gate := Gate())
    async with working(bench, handler, max_in_flight=MOST, poll_seconds=FOR_EVER) as worker:
        await begun(handler, MOST)
        for number in range(100, 110):
            await bench.accept(number, priority=URGENT)
        await begun(handler, MOST + 1)
        await turns(500)
        assert worker.in_flight == MOST + 1

        gate.open()
        await begun(handler, 3 * MOST + 10)
        # Before all that waited longer, and in their own order.
        assert pictures(handler)[MOST : MOST + 10] == list(range(100, 110))


async def test_what_is_paused_does_not_begin_however_urgent(bench: Bench) -> None:
    await fill(bench)
    handler = Handler(gate := Gate())
    async with working(bench, handler, max_in_flight=MOST, poll_seconds=FOR_EVER):
        await begun(handler, MOST)
        await bench.queue.pauses.pause(IMAGE)
        urgent = await bench.accept(100, priority=URGENT)
        await turns(500)
        assert (await bench.queue.get(urgent.job_id)).status is JobState.PENDING

        await bench.queue.pauses.resume(IMAGE)
        await begun(handler, MOST + 1)
        assert pictures(handler)[-1] == 100
        gate.open()


async def test_a_worker_that_drains_begins_nothing_however_urgent(bench: Bench) -> None:
    await fill(bench)
    handler = Handler(gate := Gate())
    async with working(bench, handler, max_in_flight=MOST, poll_seconds=FOR_EVER) as worker:
        await begun(handler, MOST)
        draining = asyncio.create_task(worker.drain(FOR_EVER))
        await turns()
        urgent = await bench.accept(100, priority=URGENT)
        await turns(500)
        gate.open()
        await draining

    assert (await bench.queue.get(urgent.job_id)).status is JobState.PENDING


async def test_while_a_dependency_is_away_an_urgent_job_takes_no_more_than_one_try(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(worker_module, "HOLD_SECONDS", FOR_EVER)
    away = DependencyDownError("nobody answers", code="media_store_unreachable")
    handler = Handler(raising(away))
    await bench.accept(1)
    async with working(bench, handler, max_in_flight=MOST, poll_seconds=FOR_EVER):
        await begun(handler, 1)
        for number in range(100, 104):
            await bench.accept(number, priority=URGENT)
        await turns(500)

        assert len(handler.handled) == 1


async def test_a_job_is_as_urgent_in_a_stage_as_in_the_queue(bench: Bench) -> None:
    taken: list[int] = []
    busy, go = asyncio.Event(), asyncio.Event()

    async def run(batch: Sequence[int]) -> Sequence[JsonObject]:
        busy.set()
        await go.wait()
        taken.extend(batch)
        return [{} for _ in batch]

    async with Stage[int, JsonObject]("model", run) as stage:

        async def script(job: Job) -> JsonObject:
            return await stage.submit(job.media_store_id)

        await fill(bench, MOST)
        async with working(bench, Handler(script), max_in_flight=MOST, poll_seconds=FOR_EVER):
            await busy.wait()
            urgent = await bench.accept(100, priority=URGENT)

            async def waits() -> bool:
                return stage.depth == MOST

            await until(waits, "all but one wait for the model")
            go.set()
            await reaches(bench, urgent.job_id, "completed")

    assert taken[:2] == [0, 100]
