"""Several daemons on one PostgreSQL, whose transactions run side by side: each race is forced.

Two sessions are held apart by a lock that the test takes, so that the order is the test's, not
chance: `Held` is a transaction of another daemon that has done its part and not committed yet.
"""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

import pytest

from daemon.errors import ConflictError, LeaseLostError
from daemon.jobs import JobState, TaskType, dump_json
from daemon.queue import statements as sql
from daemon.queue.admission import Accepted, Refused
from daemon.queue.backend import Connection, TakenError, Turn
from daemon.queue.postgresql.backend import PostgresDatabase
from tests.postgresql import Cluster, schema_of
from tests.queue_bench import (
    DEADLINE,
    FACES,
    IMAGE,
    LEASE,
    NOON,
    Bench,
    ManualClock,
    open_bench,
    submission,
    until,
)

ID = "550e8400-e29b-41d4-a716-446655440000"
OTHER = "550e8400-e29b-41d4-a716-446655440001"


@pytest.fixture
async def two(cluster: Cluster) -> AsyncIterator[tuple[Bench, Bench]]:
    """Return two daemons on one queue, with one clock."""
    url, clock = cluster.schema(), ManualClock()
    async with (
        open_bench(url, clock=clock, worker="a") as first,
        open_bench(url, clock=clock, worker="b") as second,
    ):
        yield first, second


class Held:
    """A transaction that has done its work and waits for `finish`."""

    def __init__(self) -> None:
        self.is_done, self.may_commit = asyncio.Event(), asyncio.Event()

    async def finish(self) -> None:
        self.may_commit.set()


@asynccontextmanager
async def holding(
    bench: Bench, work: Callable[[Connection], Awaitable[object]]
) -> AsyncIterator[Held]:
    held = Held()

    async def wait(connection: Connection) -> None:
        await work(connection)
        held.is_done.set()
        await held.may_commit.wait()

    async with asyncio.timeout(DEADLINE):
        writing = asyncio.create_task(bench.database.write(wait))
        await held.is_done.wait()
        try:
            yield held
        finally:
            held.may_commit.set()
            await writing


async def waits(bench: Bench, what: str = "") -> None:
    """Return once a session of the database waits for a lock of another."""

    async def is_so() -> bool:
        rows = await bench.database.read(
            "SELECT 1 FROM pg_stat_activity WHERE wait_event_type = 'Lock'"
            " AND datname = current_database()"
        )
        return bool(rows)

    await until(is_so, f"somebody waits for a lock {what}")


def admits(bench: Bench, *asked: tuple[int, str, bool]) -> Callable[[Connection], Awaitable[Any]]:
    """Return the work of one intake's transaction: (media_store_id, job_id, force)."""
    submissions = [
        submission(NOON, number, job_id=job_id, force=force) for number, job_id, force in asked
    ]

    async def work(connection: Connection) -> Any:
        return await bench.queue._admission.admit(connection, submissions, NOON)

    return work


async def ids(bench: Bench) -> list[str]:
    return [row[0] for row in await bench.rows("SELECT job_id FROM jobs ORDER BY job_id")]


# -- into the queue ------------------------------------------------------------------------------


async def test_of_two_requests_for_a_pair_at_once_one_is_accepted(
    two: tuple[Bench, Bench],
) -> None:
    first, second = two
    async with holding(first, admits(first, (1, ID, False))):
        asking = asyncio.create_task(second.ask(1, job_id=OTHER))
        await waits(first)
    outcome = await asking

    assert isinstance(outcome, Refused)
    assert (outcome.code, outcome.existing_job_id) == ("conflict", ID)
    assert await ids(first) == [ID]


async def test_a_job_id_that_comes_to_two_daemons_at_once_is_a_duplicate(
    two: tuple[Bench, Bench],
) -> None:
    first, second = two
    async with holding(first, admits(first, (1, ID, False))):
        asking = asyncio.create_task(second.ask(1, job_id=ID))
        await waits(first)
    outcome = await asking

    assert isinstance(outcome, Accepted)
    assert outcome.is_duplicate
    assert outcome.job.seq == 2


async def test_repeats_of_a_job_that_come_to_two_daemons_at_once_have_numbers_of_their_own(
    two: tuple[Bench, Bench],
) -> None:
    # With one number their events would have one id, and be one to a client that drops doubles.
    first, second = two
    await first.accept(1, job_id=ID)
    await first.accept(2, job_id=OTHER)
    async with holding(first, admits(first, (1, ID, False))):
        asking = asyncio.create_task(second.ask(1, job_id=ID))
        await waits(first)
    outcome = await asking

    assert isinstance(outcome, Accepted)
    assert outcome.job.seq == (await first.row(ID))["seq"] == 3
    assert (await first.row(OTHER))["seq"] == 1


async def test_events_that_one_daemon_takes_over_are_not_taken_from_it_by_the_next(
    two: tuple[Bench, Bench],
) -> None:
    # They were: PostgreSQL looks once more at what it has waited for, by what the UPDATE names.
    first, second = two
    await first.accept(1, job_id=ID)
    await first.execute("UPDATE outbox SET owner = 'dead'")

    async def adopt(connection: Connection) -> None:
        assert (await connection.execute(sql.ADOPT, ("a", "dead", 10))).rowcount == 1

    async with holding(first, adopt):
        adopting = asyncio.create_task(second.queue.reclaim_dead(lambda name: name == "dead"))
        await waits(first)
    await adopting

    assert {told.owner for told in await first.told()} == {"a"}


async def test_force_does_not_drop_a_job_that_is_being_leased(two: tuple[Bench, Bench]) -> None:
    first, second = two
    await first.accept(1, job_id=ID)

    async def lease(connection: Connection) -> None:
        parameters = ("a", NOON, NOON + 1000, IMAGE.value, 1)
        assert len(await connection.execute_fetchall(sql.LEASE, parameters)) == 1

    async with holding(first, lease):
        asking = asyncio.create_task(second.ask(1, job_id=OTHER, force=True))
        await waits(first)
    outcome = await asking

    assert isinstance(outcome, Refused)
    assert outcome.existing_job_id == ID
    assert (await first.queue.get(ID)).status is JobState.PROCESSING


async def test_a_job_that_is_being_replaced_is_not_leased(two: tuple[Bench, Bench]) -> None:
    first, second = two
    await first.accept(1, job_id=ID)
    async with holding(first, admits(first, (1, OTHER, True))):
        # Passed over, not waited for.
        assert await second.lease() == []
    (lease,) = await second.lease()

    assert lease.job.job_id == OTHER


async def test_intakes_that_insert_the_same_pairs_crosswise_both_end(
    two: tuple[Bench, Bench],
) -> None:
    first, second = two
    numbers = range(40)

    forth = [submission(NOON, number) for number in numbers]
    back = [submission(NOON, number) for number in reversed(numbers)]
    async with asyncio.timeout(DEADLINE):
        outcomes = await asyncio.gather(
            first.queue._enqueue_batch(forth), second.queue._enqueue_batch(back)
        )

    accepted = [each for batch in outcomes for each in batch if isinstance(each, Accepted)]
    assert len(accepted) == len(numbers)
    assert await first.rows("SELECT count(*) FROM jobs") == [(len(numbers),)]
    assert len(await first.told()) == 2 * len(numbers)


async def test_a_deadlock_is_run_again_and_nobody_hears_of_it(two: tuple[Bench, Bench]) -> None:
    first, second = two
    for number, job_id in enumerate((ID, OTHER)):
        await first.accept(number, job_id=job_id)
    met = asyncio.Barrier(2)
    runs = []

    def touching(order: list[str]) -> Callable[[Connection], Awaitable[None]]:
        tries = []

        async def work(connection: Connection) -> None:
            runs.append(order[0])
            tries.append(1)
            for place, job_id in enumerate(order):
                await connection.execute(
                    "UPDATE jobs SET seq = seq + 1 WHERE job_id = ?", (job_id,)
                )
                if place == 0 and len(tries) == 1:
                    await met.wait()

        return work

    async with asyncio.timeout(DEADLINE):
        await asyncio.gather(
            first.database.write(touching([ID, OTHER])),
            second.database.write(touching([OTHER, ID])),
        )

    # Now and then the server ends both.
    assert len(runs) >= 3
    assert await first.rows("SELECT seq FROM jobs") == [(3,), (3,)]


async def test_daemons_together_keep_to_the_limit_while_neither_has_committed(
    cluster: Cluster,
) -> None:
    url = cluster.schema()
    async with (
        open_bench(url, worker="a", max_pending=1) as first,
        open_bench(url, worker="b", max_pending=1) as second,
    ):
        async with holding(first, admits(first, (1, ID, False))):
            asking = asyncio.create_task(second.ask(2, job_id=OTHER))
            await waits(first, "for its turn to count")
        outcome = await asking

        assert isinstance(outcome, Refused)
        assert outcome.code == "queue_full"


# -- leases --------------------------------------------------------------------------------------


async def test_daemons_lease_side_by_side_and_never_the_same(two: tuple[Bench, Bench]) -> None:
    first, second = two
    await asyncio.gather(*(first.accept(number) for number in range(20)))

    async def lease(connection: Connection) -> None:
        parameters = ("a", NOON, NOON + 1000, IMAGE.value, 8)
        assert len(await connection.execute_fetchall(sql.LEASE, parameters)) == 8

    async with holding(first, lease):
        # It waits for nobody.
        assert len(await second.lease(limit=20)) == 12


async def test_a_suspect_goes_to_one_daemon_and_the_other_does_not_wait_for_it(
    two: tuple[Bench, Bench],
) -> None:
    first, second = two
    await first.accept(1)
    await first.execute("UPDATE jobs SET lost = 1")

    async def lease(connection: Connection) -> None:
        parameters = ("a", NOON, NOON + 1000, dump_json([IMAGE.value]))
        assert len(await connection.execute_fetchall(sql.LEASE_SUSPECT, parameters)) == 1

    async with holding(first, lease):
        assert await second.queue.lease_suspect([IMAGE], seconds=LEASE) is None


async def test_nobody_waits_for_who_ends_the_wait_of_a_job(two: tuple[Bench, Bench]) -> None:
    first, second = two
    await first.accept(1)
    await first.execute("UPDATE jobs SET run_at = ?", NOON)

    async def promote(connection: Connection) -> None:
        assert (await connection.execute(sql.PROMOTE, (NOON,))).rowcount == 1

    async with holding(first, promote):
        assert await second.lease() == []
    assert len(await second.lease()) == 1


async def test_a_lease_renewed_while_it_is_reclaimed_is_lost_or_kept_but_never_both(
    two: tuple[Bench, Bench],
) -> None:
    first, second = two
    await first.accept(1, job_id=ID)
    lease = await first.lease_one()
    first.clock.advance(seconds=LEASE + 1)

    async def find(connection: Connection) -> None:
        rows = await connection.execute_fetchall(sql.FIND_EXPIRED, (first.clock(),))
        assert len(rows) == 1

    # Whoever reclaims has looked, and the owner renews before it writes.
    async with holding(second, find) as held:
        renewing = asyncio.create_task(first.queue.renew([lease], seconds=LEASE))
        await waits(first)
        await held.finish()
        assert await renewing == {ID}
    assert await second.queue.reclaim() == []


async def test_two_daemons_reclaim_a_lost_job_once(two: tuple[Bench, Bench]) -> None:
    first, second = two
    await first.accept(1, job_id=ID)
    await first.lease_one()
    first.clock.advance(seconds=LEASE + 1)

    both = await asyncio.gather(first.queue.reclaim(), second.queue.reclaim())

    assert sum(map(len, both)) == 1
    assert (await first.row(ID))["lost"] == 1


async def test_the_owner_of_a_reclaimed_job_cannot_settle_it(two: tuple[Bench, Bench]) -> None:
    first, second = two
    await first.accept(1, job_id=ID)
    lease = await first.lease_one()
    first.clock.advance(seconds=LEASE + 1)
    await second.queue.reclaim()
    await second.suspect()

    with pytest.raises(LeaseLostError):
        await first.queue.complete(lease, {})


async def test_the_fence_of_a_lease_that_a_dying_server_lost_is_not_given_again(
    two: tuple[Bench, Bench],
) -> None:
    # Leases are the one thing whose commit is not waited for.
    first, second = two
    await first.accept(1, job_id=ID)
    forgotten = await first.lease_one()
    await first.execute(
        "UPDATE jobs SET status = 'pending', fence = 0, attempt = 0, seq = 1, worker = NULL,"
        " lease_until = NULL"
    )
    again = await second.lease_one()

    assert again.fence > forgotten.fence
    with pytest.raises(LeaseLostError):
        await first.queue.complete(forgotten, {})
    assert (await second.queue.complete(again, {})).status is JobState.COMPLETED


async def test_a_pause_waits_for_leases_that_have_begun(two: tuple[Bench, Bench]) -> None:
    first, second = two
    await first.accept(1, job_id=ID)

    async def lease(connection: Connection) -> None:
        await connection.take_turn(Turn.PAUSES, shared=True)
        parameters = ("a", NOON, NOON + 1000, IMAGE.value, 1)
        await connection.execute_fetchall(sql.LEASE, parameters)

    async with holding(first, lease):
        pausing = asyncio.create_task(second.queue.pauses.pause(IMAGE))
        await waits(first)
        assert not pausing.done()
    await pausing

    assert (await first.queue.get(ID)).status is JobState.PROCESSING
    assert await first.lease() == []


async def test_leases_do_not_wait_for_each_other_over_pauses(two: tuple[Bench, Bench]) -> None:
    first, second = two

    async def share(connection: Connection) -> None:
        await connection.take_turn(Turn.PAUSES, shared=True)

    async with holding(first, share):
        assert await second.lease() == []


# -- by hand, and what failed ----------------------------------------------------------------------


async def buried(bench: Bench, task_type: TaskType = IMAGE, *, number: int = 1) -> str:
    job = await bench.accept(number, task_type)
    lease = await bench.lease_one(task_type)
    await bench.queue.bury(lease, code="broken", message="m")
    return job.job_id


async def test_a_failed_job_is_not_started_again_beside_one_that_comes_meanwhile(
    two: tuple[Bench, Bench],
) -> None:
    first, second = two
    failed = await buried(first)
    async with holding(first, admits(first, (1, ID, False))):
        retrying = asyncio.create_task(second.queue.requeue(failed))
        await waits(first)
    with pytest.raises(ConflictError) as caught:
        await retrying

    assert caught.value.existing_job_id == ID


async def test_many_failed_jobs_start_again_though_one_of_them_has_a_rival_by_now(
    two: tuple[Bench, Bench],
) -> None:
    first, second = two
    failed = [await buried(first, number=number) for number in (1, 2)]
    async with holding(first, admits(first, (1, ID, False))):
        retrying = asyncio.create_task(second.queue.batches.retry_failed("broken", limit=10))
        await waits(first)
    retried = await retrying

    assert (retried.retried, retried.left_out) == (1, 1)
    assert (await first.queue.get(failed[1])).status is JobState.PENDING
    assert (await first.queue.get(failed[0])).status is JobState.ERROR


async def test_failed_jobs_that_two_daemons_start_again_at_once_start_once(
    two: tuple[Bench, Bench],
) -> None:
    first, second = two
    job_id = await buried(first)
    ((number,),) = await first.rows("SELECT id FROM jobs")

    async def requeue(connection: Connection) -> None:
        parameters = (dump_json([number]),)
        assert len(await connection.execute_fetchall(sql.REQUEUE_ALL, parameters)) == 1

    async with holding(first, requeue):
        retrying = asyncio.create_task(second.queue.batches.retry_failed("broken", limit=10))
        await waits(first)

    assert (await retrying).retried == 0
    assert (await first.row(job_id))["seq"] == 5


async def test_a_result_is_delivered_late_or_replaced_but_not_both(
    two: tuple[Bench, Bench],
) -> None:
    first, second = two
    job = await first.accept(1, FACES)
    lease = await first.lease_one(FACES)
    await first.queue.give_up_sync(lease, {}, run_at=NOON, code="away", message="m")

    async def newer(connection: Connection) -> None:
        await first.queue._admission.admit(
            connection, [submission(NOON, 1, FACES, job_id=ID)], NOON
        )

    async with holding(first, newer):
        healing = asyncio.create_task(second.queue.heal(job))
        await waits(first)
    await healing

    assert (await first.queue.get(job.job_id)).status is JobState.SYNC_FAILED
    assert (await first.queue.get(ID)).status is JobState.PENDING
    assert "completed" not in [told.event["status"] for told in await first.told(job.job_id)]


async def test_a_cancel_and_a_lease_at_once_leave_one_outcome(two: tuple[Bench, Bench]) -> None:
    first, second = two
    await first.accept(1, job_id=ID)

    async def lease(connection: Connection) -> None:
        parameters = ("a", NOON, NOON + 1000, IMAGE.value, 1)
        await connection.execute_fetchall(sql.LEASE, parameters)

    async with holding(first, lease):
        cancelling = asyncio.create_task(second.queue.cancel(ID))
        await waits(first)
    with pytest.raises(ConflictError):
        await cancelling

    assert (await first.queue.get(ID)).status is JobState.PROCESSING


async def test_a_picture_that_is_removed_and_asked_for_again_at_once_is_gone_or_seen(
    two: tuple[Bench, Bench],
) -> None:
    first, second = two
    await first.accept(1, job_id=ID)
    await first.queue.complete(await first.lease_one(), {})
    forget = second.queue.batches.forget

    async with holding(first, admits(first, (1, OTHER, True))):
        forgetting = asyncio.create_task(forget(1, [ID], lambda _number: []))
        await waits(first)
    assert await forgetting == (0, [OTHER])

    await second.queue.complete(await second.lease_one(), {})
    again = replace(submission(NOON, 1, job_id=ID, force=True), instead_of=OTHER)

    async def forgets(connection: Connection) -> None:
        asked = dump_json([OTHER])
        assert (await connection.execute(sql.FORGET_ALL, (asked,))).rowcount == 1

    async with holding(second, forgets):
        asking = asyncio.create_task(first.queue.enqueue(again))
        await waits(second)
    assert isinstance(await asking, Refused)
    assert await ids(first) == []


async def test_two_daemons_prune_side_by_side(two: tuple[Bench, Bench]) -> None:
    first, second = two
    for number in range(6):
        await first.accept(number)
    for lease in await first.lease():
        await first.queue.complete(lease, {})

    counts = await asyncio.gather(
        first.queue.prune(before=NOON + 1, limit=4), second.queue.prune(before=NOON + 1, limit=4)
    )

    assert await first.rows("SELECT count(*) FROM jobs") == [(6 - sum(counts),)]


# -- the backend itself ----------------------------------------------------------------------------


async def test_what_stands_already_is_told_apart_from_a_database_that_fails(
    two: tuple[Bench, Bench],
) -> None:
    first, _ = two
    await first.accept(1, job_id=ID)

    async def again(connection: Connection) -> None:
        await connection.execute(
            "INSERT INTO jobs (job_id, task_type, media_store_id, priority, rank, created_at)"
            " VALUES (?, 'image_embedding', 2, 5, 0, 1)",
            (ID,),
        )

    with pytest.raises(TakenError):
        await first.database.write(again)
    await first.database.check()


async def test_only_leases_and_renewals_may_be_lost_by_a_dying_server(
    two: tuple[Bench, Bench],
) -> None:
    first, _ = two
    assert isinstance(first.database, PostgresDatabase)

    async def setting(connection: Connection) -> str:
        rows = await connection.execute_fetchall("SHOW synchronous_commit")
        return str(rows[0][0])

    assert await first.database.write(setting, is_repeatable=True) == "off"
    assert await first.database.write(setting) == "on"


async def test_a_role_that_does_not_wait_for_the_disk_is_overruled(cluster: Cluster) -> None:
    url = cluster.schema()
    name = f"hasty_{schema_of(url)}"
    cluster.psql(f"CREATE ROLE {name} LOGIN SUPERUSER")
    cluster.psql(f"ALTER ROLE {name} SET synchronous_commit = off")

    async def setting(connection: Connection) -> str:
        rows = await connection.execute_fetchall("SHOW synchronous_commit")
        return str(rows[0][0])

    async with PostgresDatabase(url.replace("//inferd@", f"//{name}@")) as database:
        assert await database.write(setting, durable=True) == "on"


async def test_what_a_cancelled_caller_began_is_finished(two: tuple[Bench, Bench]) -> None:
    first, _ = two
    begun = asyncio.Event()

    async def slow(connection: Connection) -> None:
        begun.set()
        await connection.execute_fetchall("SELECT pg_sleep(0.2)")
        await connection.execute("INSERT INTO pauses VALUES ('face_detection', 1, NULL, NULL)")

    writing = asyncio.create_task(first.database.write(slow))
    await begun.wait()
    writing.cancel()
    await asyncio.wait([writing])

    async def is_there() -> bool:
        return await first.rows("SELECT task_type FROM pauses") == [("face_detection",)]

    assert writing.cancelled()
    await until(is_there, "the transaction ends all the same")
