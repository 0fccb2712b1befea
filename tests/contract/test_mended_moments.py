"""Moments that a clock which ran ahead has set: brought back, and no others are touched."""

from typing import Any

from daemon.queue.verbs.reclaiming import FAR, LONGEST_DELAY_SECONDS
from daemon.settings import QueueSettings
from tests.queue_bench import IMAGE, LEASE, NOON, Bench

POLICY = QueueSettings()
LONGEST_MS = 1000 * int(
    max(POLICY.backoff_max_seconds, POLICY.sync_backoff_max_seconds, LONGEST_DELAY_SECONDS)
)
"""As long as anything waits by the settings."""
NEAR = NOON + int(FAR * LONGEST_MS)
"""The farthest moment that a right clock may have set, with some room."""
SOON = NOON + LONGEST_MS
LEASE_MS = 1000 * int(POLICY.lease_seconds)


async def run_at(bench: Bench, job_id: str) -> Any:
    return (await bench.row(job_id))["run_at"]


async def waiting(bench: Bench, media_store_id: int, until: int) -> str:
    """Return a job that waits for a moment to be tried again."""
    await bench.accept(media_store_id)
    lease = await bench.lease_one()
    await bench.queue.retry(lease, run_at=until, code="c", message="m")
    return lease.job.job_id


async def undelivered(bench: Bench, media_store_id: int, until: int) -> str:
    """Return a job whose result waits for a moment to be offered again."""
    await bench.accept(media_store_id)
    lease = await bench.lease_one()
    await bench.queue.give_up_sync(lease, {}, run_at=until, code="c", message="m")
    return lease.job.job_id


async def test_what_waits_for_a_moment_of_a_clock_that_has_gone_back_waits_no_longer(
    bench: Bench,
) -> None:
    job, result = await waiting(bench, 1, NEAR + 1), await undelivered(bench, 2, NEAR + 1)
    await bench.execute("UPDATE outbox SET run_at = ?", NEAR + 1)
    heard = bench.queue.ready[IMAGE].rings, bench.queue.message_ready.rings

    await bench.queue.mend_moments()

    assert (await run_at(bench, job), await run_at(bench, result)) == (NOON, NOON)
    assert await bench.rows("SELECT DISTINCT run_at FROM outbox") == [(NOON,)]
    assert [lease.job.job_id for lease in await bench.lease()] == [job]
    assert bench.queue.ready[IMAGE].rings > heard[0]
    assert bench.queue.message_ready.rings > heard[1]


async def test_what_a_right_clock_may_have_set_stays(bench: Bench) -> None:
    job, result = await waiting(bench, 1, NEAR), await undelivered(bench, 2, NEAR)
    await bench.execute("UPDATE outbox SET run_at = ?", NEAR)
    given_up = await undelivered(bench, 3, SOON)
    await bench.execute("UPDATE jobs SET run_at = NULL WHERE job_id = ?", given_up)
    await bench.accept(4)
    held = await bench.lease_one()
    heard = bench.queue.ready[IMAGE].rings, bench.queue.message_ready.rings

    await bench.queue.mend_moments()

    assert (await run_at(bench, job), await run_at(bench, result)) == (NEAR, NEAR)
    assert await run_at(bench, given_up) is None
    assert (await bench.rows("SELECT count(*) FROM outbox WHERE run_at = ?", NEAR))[0][0]
    assert not await bench.rows("SELECT 1 FROM outbox WHERE run_at < ?", NEAR)
    assert (await bench.row(held.job.job_id))["lease_until"] == NOON + int(1000 * LEASE)
    assert (bench.queue.ready[IMAGE].rings, bench.queue.message_ready.rings) == heard


async def test_a_lease_of_a_clock_that_has_gone_back_lasts_as_long_as_any_from_now(
    bench: Bench,
) -> None:
    """Whoever lives renews it in time; of a host that is gone it would else never run out."""
    await bench.accept(1)
    await bench.accept(2)
    far = await bench.queue.lease(IMAGE, 1, seconds=10 * POLICY.lease_seconds + 0.001)
    long = await bench.queue.lease(IMAGE, 1, seconds=10 * POLICY.lease_seconds)

    await bench.queue.mend_moments()

    rows = [await bench.row(lease.job.job_id) for lease in (*far, *long)]
    assert [row["lease_until"] - NOON for row in rows] == [LEASE_MS, 10 * LEASE_MS]
    assert await bench.queue.renew(far, seconds=LEASE) == {far[0].job.job_id}
