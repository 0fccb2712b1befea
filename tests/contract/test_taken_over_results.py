"""A result that waits to be delivered, once its job has gone on or another stands for its pair."""

from collections.abc import Awaitable, Callable

import pytest

from daemon.jobs import Job, JobState
from tests.queue_bench import FACES, NOON, Bench

LATER = NOON + 60_000


async def undelivered(bench: Bench) -> Job:
    await bench.accept(1, FACES)
    lease = await bench.lease_one(FACES)
    return await bench.queue.give_up_sync(lease, {"a": 1}, run_at=NOON, code="c", message="m")


async def by_a_newer_job_that_failed(bench: Bench, job: Job) -> None:
    await bench.accept(1, FACES)
    await bench.queue.bury(await bench.lease_one(FACES), code="c", message="m")


async def by_itself_which_waits_again(bench: Bench, job: Job) -> None:
    await bench.queue.requeue(job.job_id)
    lease = await bench.lease_one(FACES)
    await bench.queue.keep(lease, {"a": 1}, run_at=NOON, code="c", message="m")


@pytest.mark.parametrize("take_over", [by_a_newer_job_that_failed, by_itself_which_waits_again])
async def test_whoever_still_offers_a_result_that_was_taken_over_changes_nothing(
    bench: Bench, take_over: Callable[[Bench, Job], Awaitable[None]]
) -> None:
    """A daemon read it as due; by the time it offers it, or has been answered, that is over."""
    stale = await undelivered(bench)
    await take_over(bench, stale)
    row, told = await bench.row(stale.job_id), await bench.told()

    assert not await bench.queue.claim_sync(stale, seconds=30)
    await bench.queue.delay_sync(stale, run_at=LATER, code="d", message="n")
    await bench.queue.heal(stale)

    assert await bench.row(stale.job_id) == row
    assert await bench.told() == told
    bench.clock.advance(seconds=3600)
    assert await bench.queue.due_syncs([FACES], 9) == []


async def test_of_a_failure_that_was_mended_nothing_is_left(bench: Bench) -> None:
    job = await undelivered(bench)

    await bench.queue.heal(job)

    row = await bench.row(job.job_id)
    assert row["status"] == JobState.COMPLETED
    assert [row[name] for name in ("run_at", "error_code", "error_message")] == [None] * 3
