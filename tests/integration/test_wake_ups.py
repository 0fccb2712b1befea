"""What is due begins at its moment although no poll comes: the real clock, a poll of hours."""

import asyncio
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from daemon.errors import RetryableError
from daemon.jobs import Job, JsonObject
from tests.integration.test_worker import Handler, raising, reaches, working
from tests.queue_bench import FACES, IMAGE, Bench, ManualClock, open_bench

ID = "550e8400-e29b-41d4-a716-446655440000"
OTHER = "550e8400-e29b-41d4-a716-446655440001"
HOURS = 10_000.0
SETTLE_SECONDS = 0.1
"""For a worker to look at all that there is, and wait; a longer look would hide no fault."""


class WallClock(ManualClock):
    """The real one."""

    def __call__(self) -> int:
        return time.time_ns() // 1_000_000


@pytest.fixture
async def bench(tmp_path: Path) -> AsyncIterator[Bench]:
    async with open_bench(tmp_path / "queue.db", clock=WallClock()) as opened:
        yield opened


def once(error: Exception) -> Handler:
    """Return a handler that fails at first and then works."""
    left = [error]

    async def script(_job: Job) -> JsonObject:
        if left:
            raise left.pop()
        return {}

    return Handler(script)


async def test_a_job_that_is_retried_begins_at_its_moment(bench: Bench) -> None:
    handler = once(RetryableError("torn in transit", code="media_store_error"))
    await bench.accept(job_id=ID)
    async with working(bench, handler, queue={"backoff_seconds": 0.1}, poll_seconds=HOURS):
        row = await reaches(bench, ID, "completed")

    assert row["attempt"] == 2


async def test_a_retried_job_wakes_a_worker_that_has_nothing_else_of_its_kind(bench: Bench) -> None:
    # The moment is found by the loop of any task type, and is news to the one it belongs to.
    handler = once(RetryableError("torn in transit", code="media_store_error"))
    await bench.accept(1, IMAGE, job_id=ID)
    await bench.accept(1, FACES, job_id=OTHER)
    async with working(
        bench,
        handler,
        Handler(task_type=FACES),
        queue={"backoff_seconds": 0.1},
        poll_seconds=HOURS,
    ):
        await reaches(bench, OTHER, "completed")
        await reaches(bench, ID, "completed")


async def test_what_waited_for_its_moment_before_the_start_begins_at_it(bench: Bench) -> None:
    await bench.accept(job_id=ID)
    failing = Handler(raising(RetryableError("torn", code="media_store_error")))
    async with working(bench, failing, queue={"backoff_seconds": 0.5}, poll_seconds=HOURS):
        await reaches(bench, ID, "pending", attempt=1)

    async with working(bench, Handler(), poll_seconds=HOURS):
        await reaches(bench, ID, "completed")


async def test_the_end_of_a_pause_begins_what_waited_for_it(bench: Bench) -> None:
    await bench.queue.pauses.pause(IMAGE, seconds=0.2)
    await bench.accept(job_id=ID)
    async with working(bench, Handler(), poll_seconds=HOURS):
        await reaches(bench, ID, "completed")


async def test_a_job_whose_process_died_begins_once_it_is_taken_back(bench: Bench) -> None:
    await bench.accept(job_id=ID)
    await bench.queue.lease(IMAGE, 1, seconds=-1)
    async with working(bench, Handler(), poll_seconds=HOURS):
        await asyncio.sleep(SETTLE_SECONDS)
        await bench.queue.reclaim()
        row = await reaches(bench, ID, "completed")

    assert row["lost"] == 1


async def test_such_a_job_that_is_retried_begins_at_its_moment(bench: Bench) -> None:
    # It is leased by another loop than the one that finds the moment.
    await bench.accept(job_id=ID)
    await bench.queue.lease(IMAGE, 1, seconds=-1)
    await bench.queue.reclaim()
    handler = once(RetryableError("torn in transit", code="media_store_error"))
    async with working(bench, handler, queue={"backoff_seconds": 0.3}, poll_seconds=HOURS):
        row = await reaches(bench, ID, "completed")

    assert (row["lost"], row["attempt"]) == (1, 3)
