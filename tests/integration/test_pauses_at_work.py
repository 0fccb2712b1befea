"""The worker and paused task types: nothing begins, nothing spins, resuming wakes it at once."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from daemon.jobs import JobState
from tests.integration.test_worker import Gate, Handler, reaches, turns, working
from tests.queue_bench import DEADLINE, FACES, IMAGE, LEASE, Bench, open_bench

ID = "550e8400-e29b-41d4-a716-446655440000"
OTHER = "550e8400-e29b-41d4-a716-446655440001"
FOR_EVER = 1000.0


@pytest.fixture
async def bench(tmp_path: Path) -> AsyncIterator[Bench]:
    async with open_bench(tmp_path / "queue.db") as opened:
        yield opened


async def test_the_other_task_type_goes_on_and_resuming_wakes_at_once(bench: Bench) -> None:
    paused, other = Handler(), Handler(task_type=FACES)
    async with working(bench, paused, other, poll_seconds=FOR_EVER):
        await bench.queue.pauses.pause(IMAGE)
        await bench.accept(1, IMAGE, job_id=ID)
        await bench.accept(1, FACES, job_id=OTHER)

        await reaches(bench, OTHER, "completed")
        assert paused.handled == []
        # No poll will come to its help.
        await bench.queue.pauses.resume(IMAGE)
        await reaches(bench, ID, "completed")


async def test_a_running_job_is_finished_and_the_next_one_waits(bench: Bench) -> None:
    gate = Gate()
    handler = Handler(gate)
    async with working(bench, handler, max_in_flight=1):
        await bench.accept(1, job_id=ID)
        await bench.accept(2, job_id=OTHER)
        await gate.began.wait()

        await bench.queue.pauses.pause(IMAGE)
        gate.open()
        await reaches(bench, ID, "completed")
        await turns(500)

        assert (await bench.queue.get(OTHER)).status is JobState.PENDING
        assert len(handler.handled) == 1


async def test_the_end_of_a_pause_is_noticed_by_the_poll(bench: Bench) -> None:
    await bench.queue.pauses.pause(IMAGE, seconds=60)
    await bench.accept(job_id=ID)
    handler = Handler()
    async with working(bench, handler, poll_seconds=0.02):
        await turns(500)
        assert handler.handled == []

        bench.clock.advance(seconds=60)

        await reaches(bench, ID, "completed")


async def test_nothing_spins_while_jobs_and_suspects_wait_for_the_end_of_a_pause(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(2):
        await bench.accept(number)
    await bench.lease(limit=1)
    bench.clock.advance(seconds=LEASE + 1)
    await bench.queue.reclaim()
    await bench.queue.pauses.pause(IMAGE)
    calls: list[str] = []
    for name in ("lease", "lease_suspect", "has_suspect"):
        monkeypatch.setattr(bench.queue, name, counted(calls, name, getattr(bench.queue, name)))

    async with working(bench, Handler(), poll_seconds=FOR_EVER):
        async with asyncio.timeout(DEADLINE):
            while not {"has_suspect", "lease"} <= set(calls):  # noqa: ASYNC110 - rings no bell
                await asyncio.sleep(0.005)
        await bench.rows("SELECT 1")
        await turns(500)
        assert sorted(calls) == ["has_suspect", "lease"]

        monkeypatch.undo()
        await bench.queue.pauses.resume(IMAGE)
        for job in (await bench.queue.list_jobs()).jobs:
            await reaches(bench, job.job_id, "completed")


def counted(calls: list[str], name: str, verb: Any) -> Any:
    async def call(*args: Any, **kwargs: Any) -> Any:
        calls.append(name)
        return await verb(*args, **kwargs)

    return call
