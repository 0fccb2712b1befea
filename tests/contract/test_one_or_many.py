"""What is done to many jobs at once does to each what is done to one alone."""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import Any

import pytest

from daemon.errors import JobNotFoundError, LeaseLostError
from daemon.events import Message
from daemon.jobs import Job, JobState, Lease, TaskType, dump_json
from daemon.queue import job_batches
from daemon.queue.job_batches import Retried
from daemon.queue.job_queue import JobQueue
from tests.queue_bench import FACES, IMAGE, LEASE, NOON, Bench

SOON = NOON + 60_000
ERROR: dict[str, Any] = {"code": "away", "message": "m"}
ITS_OWN = ("id", "job_id", "media_store_id", "fence")
"""Columns in which two jobs that had the same life may differ."""

Settle = Callable[[JobQueue, Lease], Awaitable[Job]]
EXITS: list[Settle] = [
    lambda queue, lease: queue.complete(lease, {"a": 1}),
    lambda queue, lease: queue.retry(lease, run_at=SOON, **ERROR),
    lambda queue, lease: queue.retry(lease, run_at=SOON, **ERROR, gives_back=True),
    lambda queue, lease: queue.bury(lease, **ERROR),
    lambda queue, lease: queue.release(lease),
    lambda queue, lease: queue.keep(lease, {"b": 2}, run_at=SOON, **ERROR),
    lambda queue, lease: queue.give_up_sync(lease, {"b": 2}, run_at=SOON, **ERROR),
]
LIVES: dict[str, list[Settle]] = {
    "new": [],
    "tried before": [lambda queue, lease: queue.retry(lease, run_at=NOON, **ERROR)] * 2,
    "waiting": [
        lambda queue, lease: queue.retry(lease, run_at=NOON, **ERROR, gives_back=True),
    ],
    "kept": [lambda queue, lease: queue.keep(lease, {"c": 3}, run_at=NOON, **ERROR)] * 2,
}


async def life(bench: Bench, job: Job) -> tuple[dict[str, Any], list[tuple[str, int, Any]]]:
    """Return a job's row and its events, without what is of this job alone."""
    row = await bench.row(job.job_id)
    told = await bench.told(job.job_id)
    return (
        {name: value for name, value in row.items() if name not in ITS_OWN},
        [(each.name, each.event["seq"], each.event["data"].get("result")) for each in told],
    )


@pytest.mark.parametrize("before", LIVES.values(), ids=LIVES.keys())
async def test_leases_that_end_in_one_commit_end_as_each_does_alone(
    bench: Bench, before: list[Settle]
) -> None:
    alone = [await bench.accept(number) for number, _ in enumerate(EXITS)]
    together = [await bench.accept(100 + number) for number, _ in enumerate(EXITS)]
    for settle in before:
        for lease in await bench.lease():
            await settle(bench.queue, lease)
    bench.clock.advance(seconds=5)
    leases = {lease.job.job_id: lease for lease in await bench.lease()}
    bench.clock.advance(seconds=5)

    for job, settle in zip(alone, EXITS, strict=True):
        await settle(bench.queue, leases[job.job_id])
    await asyncio.gather(
        *(
            settle(bench.queue, leases[job.job_id])
            for job, settle in zip(together, EXITS, strict=True)
        )
    )

    for one, other in zip(alone, together, strict=True):
        assert await life(bench, one) == await life(bench, other)
    attempt = (await bench.row(alone[0].job_id))["attempt"]
    attempts = [(await bench.row(job.job_id))["attempt"] for job in alone]
    assert attempts == [attempt, attempt, attempt - 1, attempt, attempt - 1, attempt - 1, attempt]


async def test_of_leases_that_end_in_one_commit_those_that_were_lost_change_nothing(
    bench: Bench,
) -> None:
    again, over = await bench.accept(1), await bench.accept(2)
    lost = await bench.lease()
    await bench.queue.release(lost[0])
    await bench.queue.complete(lost[1], {"a": 1})
    (held,) = await bench.lease()
    before = [await bench.row(job.job_id) for job in (again, over)], await bench.told()

    outcomes = await asyncio.gather(
        *(bench.queue.bury(lease, **ERROR) for lease in lost), return_exceptions=True
    )

    assert [type(each) for each in outcomes] == [LeaseLostError] * 2
    assert ([await bench.row(job.job_id) for job in (again, over)], await bench.told()) == before
    assert (await bench.queue.complete(held, {})).status is JobState.COMPLETED


async def test_a_job_that_went_on_since_it_was_found_failed_does_not_start_again(
    bench: Bench,
) -> None:
    (ended,) = await running(bench, 1)
    await bench.queue.complete(ended, {})
    (held,) = await running(bench, 2)
    before = await bench.row(ended.job.job_id), await bench.row(held.job.job_id)

    assert await bench.queue.batches._requeue([row["id"] for row in before]) == []

    assert (await bench.row(ended.job.job_id), await bench.row(held.job.job_id)) == before


async def test_leases_with_the_same_fence_are_told_apart_by_their_jobs(bench: Bench) -> None:
    # On PostgreSQL it is the moment in microseconds, and jobs are leased together.
    for number in (1, 2, 3):
        await bench.accept(number)
    leases = await bench.lease()
    await bench.execute("UPDATE jobs SET fence = 7")
    one, two, three = (replace(lease, fence=7) for lease in leases)
    bench.clock.advance(seconds=5)

    assert await bench.queue.renew([one], seconds=LEASE) == {one.job.job_id}
    await asyncio.gather(*(bench.queue.complete(lease, {}) for lease in (one, two)))

    row = await bench.row(three.job.job_id)
    assert (row["status"], row["lease_until"]) == ("processing", NOON + LEASE * 1000)


async def test_of_the_failures_of_a_picture_and_task_the_first_starts_again(
    bench: Bench,
) -> None:
    jobs = [await failed_at_once(bench, 1) for _ in range(2)]

    retried = await bench.queue.batches.retry_failed("away", limit=10)

    assert (retried.retried, retried.left_out) == (1, 1)
    assert (await bench.queue.get(jobs[0].job_id)).status is JobState.PENDING
    assert (await bench.queue.get(jobs[1].job_id)).status is JobState.ERROR


async def test_failures_start_again_beside_another_task_of_their_picture(bench: Bench) -> None:
    job = await failed_at_once(bench, 1)
    await bench.execute("UPDATE jobs SET waiting_since = ?", NOON)
    await bench.accept(1, FACES)

    assert (await bench.queue.batches.retry_failed("away", limit=10)).retried == 1
    again = await bench.queue.get(job.job_id)
    # Its wait for a dependency begins anew, too: it would be over at once.
    assert (again.status, again.waiting_since) == (JobState.PENDING, None)


async def failed_at_once(bench: Bench, media_store_id: int) -> Job:
    (lease,) = await running(bench, media_store_id)
    return await bench.queue.bury(lease, **ERROR)


async def failed(bench: Bench, media_store_id: int, code: str, settle: Settle | None = None) -> Job:
    """Return a job that lost a lease, was tried again, and failed for good."""
    job = await bench.accept(media_store_id, expires_at=NOON + 3_600_000)
    await bench.lease()
    bench.clock.advance(seconds=LEASE + 1)
    await bench.queue.reclaim()
    await bench.queue.keep(await bench.suspect(), {"c": 3}, run_at=NOON, **ERROR)
    await bench.lease()  # its moment has come
    lease = await bench.suspect()
    if settle is not None:
        return await settle(bench.queue, lease)
    return await bench.queue.bury(lease, code=code, message=str(job.media_store_id))


def late(code: str) -> Settle:
    """Return what ends a job whose result is still offered."""
    return lambda queue, lease: queue.give_up_sync(
        lease, {"b": 2}, run_at=SOON, code=code, message="m"
    )


async def test_failed_jobs_that_start_again_together_start_as_each_does_alone(
    bench: Bench,
) -> None:
    alone = [await failed(bench, 1, "one"), await failed(bench, 2, "one", late("one"))]
    together = [await failed(bench, 3, "many"), await failed(bench, 4, "many", late("many"))]
    same = {"created_at": NOON, "started_at": NOON, "rank": 0}
    await bench.execute("UPDATE jobs SET created_at = ?, started_at = ?, rank = ?", *same.values())

    for job in alone:
        await bench.queue.requeue(job.job_id)
    assert (await bench.queue.batches.retry_failed("many", limit=9)).retried == 2

    for one, other in zip(alone, together, strict=True):
        assert await life(bench, one) == await life(bench, other)
        row = await bench.row(other.job_id)
        assert (row["status"], row["attempt"], row["lost"]) == ("pending", 0, 0)
        assert (row["sync_attempt"], row["error_code"], row["run_at"]) == (0, None, None)


async def test_only_what_failed_with_the_code_by_then_starts_again(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(job_batches, "RETRY_BATCH", 2)
    for number in range(1, 6):
        await failed(bench, number, "away")
    superseded = await failed(bench, 6, "away")
    await bench.queue.complete((await running(bench, 6))[0], {})
    await failed(bench, 7, "other")
    faces = await bench.accept(8, FACES)
    await bench.queue.bury((await bench.lease(FACES))[0], code="away", message="m")
    until = bench.clock()
    bench.clock.advance(seconds=1)
    await failed(bench, 9, "away")

    async def retry(limit: int) -> Retried:
        return await bench.queue.batches.retry_failed(
            "away", task_type=IMAGE, before=until, limit=limit
        )

    # The oldest first; of the limit's last batch no more than it holds.
    assert await retry(3) == Retried(3, 0, more=True, before=until)
    assert [lease.job.media_store_id for lease in await bench.lease()] == [1, 2, 3]
    assert await retry(9) == Retried(2, 1, more=False, before=until)
    assert [lease.job.media_store_id for lease in await bench.lease()] == [4, 5]
    assert (await bench.queue.get(superseded.job_id)).status is JobState.ERROR

    left = await bench.queue.batches.retry_failed("away", limit=9)
    assert left == Retried(2, 1, more=False, before=bench.clock())
    assert (await bench.queue.get(faces.job_id)).status is JobState.PENDING


async def running(bench: Bench, media_store_id: int) -> list[Lease]:
    await bench.accept(media_store_id)
    return await bench.lease()


async def test_of_many_jobs_those_that_live_are_not_forgotten(bench: Bench) -> None:
    """One may have started again since somebody saw it ended."""
    (lease,) = await running(bench, 1)
    await bench.queue.complete(lease, {})
    held = await bench.accept(1, FACES)
    await bench.lease(FACES)
    waiting, stays = await bench.accept(1, TaskType.FACE_EMBEDDING), await bench.accept(4)
    asked = [lease.job.job_id, held.job_id, waiting.job_id]
    before = len(await bench.told())

    def tells(number: int) -> list[Message]:
        return [Message("inference/media/1/deleted", dump_json({"jobs": number}))]

    forget = bench.queue.batches.forget
    live = [held.job_id, waiting.job_id]
    assert await forget(1, asked, tells) == (1, live)
    assert await forget(1, asked, tells, staying=[held.job_id]) == (0, [waiting.job_id])
    assert len(await bench.told()) == before
    assert await forget(1, asked, tells, staying=live) == (0, [])
    assert [each.event for each in (await bench.told())[before:]] == [{"jobs": 0}]

    with pytest.raises(JobNotFoundError):
        await bench.queue.get(lease.job.job_id)
    for job in (held, waiting, stays):
        assert not (await bench.queue.get(job.job_id)).status.is_terminal


async def test_a_picture_has_all_its_jobs_in_whatever_state_and_no_others(bench: Bench) -> None:
    found = []
    for settle in (EXITS[3], EXITS[6], EXITS[0]):
        (lease,) = await running(bench, 1)
        found.append((await settle(bench.queue, lease)).job_id)
    found.append((await bench.accept(1, FACES)).job_id)
    await bench.lease(FACES)
    await bench.accept(2)

    assert [job.job_id for job in await bench.queue.batches.of_media(1)] == found
    assert [job.media_store_id for job in await bench.queue.batches.of_media(2)] == [2]
    await bench.queue.cancel((await bench.queue.batches.of_media(2))[0].job_id)
    assert len(await bench.queue.batches.of_media(2)) == 1
