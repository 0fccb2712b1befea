"""Out of the queue: order, leases, fences, and that an end and its event are one commit."""

import asyncio
import multiprocessing
import subprocess
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from daemon.errors import ConflictError, JobNotFoundError, LeaseLostError, StorageError
from daemon.identity import is_alive, is_dead, own_identity
from daemon.jobs import Job, JobState, Lease, TaskType
from daemon.queue import job_listing
from daemon.queue.job_listing import JobSelection
from daemon.queue.job_queue import JobQueue
from daemon.queue.settlement import Settlement
from daemon.queue.verbs import reclaiming
from daemon.queue.verbs.reclaiming import ORPHANED_MS
from tests.queue_bench import (
    FACES,
    IMAGE,
    LEASE,
    NOON,
    Bench,
    ManualClock,
    open_bench,
    submission,
)

ID = "550e8400-e29b-41d4-a716-446655440000"
OTHER = "550e8400-e29b-41d4-a716-446655440001"
STRESS_JOBS = 400
SOON = NOON + 5000

Settle = Callable[[JobQueue, Lease], Awaitable[Job]]
EXITS: dict[str, Settle] = {
    "complete": lambda queue, lease: queue.complete(lease, {"a": 1}),
    "retry": lambda queue, lease: queue.retry(lease, run_at=SOON, code="c", message="m"),
    "bury": lambda queue, lease: queue.bury(lease, code="c", message="m"),
    "release": lambda queue, lease: queue.release(lease),
    "keep": lambda queue, lease: queue.keep(lease, {}, run_at=SOON, code="c", message="m"),
    "give_up_sync": lambda queue, lease: queue.give_up_sync(
        lease, {}, run_at=None, code="c", message="m"
    ),
}
every_exit = pytest.mark.parametrize("settle", EXITS.values(), ids=EXITS.keys())


# -- order -------------------------------------------------------------------------------------


def ids(leases: list[Lease]) -> list[int]:
    return [lease.job.media_store_id for lease in leases]


async def test_the_higher_priority_goes_first(bench: Bench) -> None:
    for number, priority in enumerate([0, 10, 5]):
        await bench.accept(number, priority=priority)

    assert ids(await bench.lease()) == [1, 2, 0]


async def test_equal_priorities_go_in_the_order_they_came(bench: Bench) -> None:
    for number in range(5):
        await bench.accept(number)

    assert ids(await bench.lease()) == [0, 1, 2, 3, 4]


async def test_a_job_that_waited_longer_than_its_levels_are_worth_overtakes(
    bench: Bench,
) -> None:
    await bench.accept(1, priority=4)
    bench.clock.advance(seconds=61)
    await bench.accept(2, priority=5)

    assert ids(await bench.lease()) == [1, 2]


async def test_a_job_that_waited_less_than_its_levels_are_worth_does_not(bench: Bench) -> None:
    await bench.accept(1, priority=4)
    bench.clock.advance(seconds=59)
    await bench.accept(2, priority=5)

    assert ids(await bench.lease()) == [2, 1]


async def test_without_aging_priority_is_strict(place: Path | str) -> None:
    async with open_bench(place, aging_seconds=0) as bench:
        await bench.accept(1, priority=0)
        bench.clock.advance(seconds=10 * 365 * 86400)
        await bench.accept(2, priority=1)

        assert ids(await bench.lease()) == [2, 1]


async def test_a_task_type_leases_its_own_jobs_only(bench: Bench) -> None:
    await bench.accept(1, FACES)

    assert await bench.lease(IMAGE) == []


async def test_no_more_are_leased_than_asked_for(bench: Bench) -> None:
    for number in range(5):
        await bench.accept(number)

    assert ids(await bench.lease(limit=2)) == [0, 1]
    assert ids(await bench.lease()) == [2, 3, 4]


# -- a lease -----------------------------------------------------------------------------------


async def test_leasing_counts_the_attempt_and_raises_the_fence(bench: Bench) -> None:
    await bench.accept(job_id=ID)

    lease = await bench.lease_one()

    row = await bench.row(ID)
    assert (lease.job.attempt, lease.job.started_at) == (1, NOON)
    assert lease.fence > 0
    assert (row["fence"], row["attempt"], row["worker"]) == (lease.fence, 1, "host/boot/ns/1/1")
    assert row["lease_until"] == NOON + LEASE * 1000


async def test_leasing_is_told(bench: Bench) -> None:
    await bench.accept(job_id=ID)

    await bench.lease_one()

    event = (await bench.told())[-1].event
    assert (event["event"], event["seq"], event["status"]) == ("job_started", 2, "processing")
    assert event["data"]["started_at"] == NOON


async def test_a_leased_job_is_not_leased_again(bench: Bench) -> None:
    await bench.accept()
    await bench.lease_one()

    assert await bench.lease() == []


async def test_the_fence_rises_with_every_lease_even_if_the_attempt_is_given_back(
    bench: Bench,
) -> None:
    await bench.accept()
    fences = []
    for _ in range(3):
        lease = await bench.lease_one()
        fences.append((lease.fence, lease.job.attempt))
        await bench.queue.release(lease)

    assert fences == sorted(set(fences))
    assert [attempt for _, attempt in fences] == [1, 1, 1]


async def test_renewing_extends_what_is_held(bench: Bench) -> None:
    await bench.accept(job_id=ID)
    lease = await bench.lease_one()
    bench.clock.advance(seconds=20)

    assert await bench.queue.renew([lease], seconds=LEASE) == {ID}

    bench.clock.advance(seconds=20)
    assert await bench.queue.reclaim() == []


async def test_renewing_does_not_name_what_was_lost(bench: Bench) -> None:
    await bench.accept(1, job_id=ID)
    await bench.accept(2, job_id=OTHER)
    lost, held = await bench.lease()
    await bench.queue.release(lost)

    assert await bench.queue.renew([lost, held], seconds=LEASE) == {OTHER}


async def test_renewing_with_an_old_fence_extends_nothing(bench: Bench) -> None:
    await bench.accept(job_id=ID)
    zombie = await bench.lease_one()
    await bench.queue.release(zombie)
    await bench.lease_one()

    assert await bench.queue.renew([zombie], seconds=1000 * LEASE) == set()
    assert (await bench.row(ID))["lease_until"] == NOON + LEASE * 1000


# -- settling ----------------------------------------------------------------------------------


async def test_a_completed_job_has_its_result_and_event(bench: Bench) -> None:
    await bench.accept(job_id=ID)
    lease = await bench.lease_one()
    bench.clock.advance(seconds=1)

    job = await bench.queue.complete(lease, {"a": [1.5, "ü"]})

    assert job == await bench.queue.get(ID)
    assert (job.status, job.completed_at) == (JobState.COMPLETED, NOON + 1000)
    last = (await bench.told())[-1].event
    assert (last["event"], last["seq"]) == ("job_completed", 3)
    assert last["data"] == job.to_wire()
    assert last["data"]["result"] == {"a": [1.5, "ü"]}


async def test_a_buried_job_is_told_as_completed_and_as_failed(bench: Bench) -> None:
    await bench.accept(job_id=ID)

    await bench.queue.bury(await bench.lease_one(), code="decode_error", message="it is torn")

    completed, failed = (await bench.told())[-2:]
    assert [(told.name, told.event["seq"]) for told in (completed, failed)] == [
        ("completed", 3),
        ("failed", 4),
    ]
    for told in (completed, failed):
        assert told.event["status"] == "error"
        assert told.event["data"]["error_message"] == "decode_error: it is torn"
    assert (await bench.queue.get(ID)).error_code == "decode_error"


async def test_a_retried_job_waits_for_its_moment(bench: Bench) -> None:
    await bench.accept()
    await EXITS["retry"](bench.queue, await bench.lease_one())

    assert await bench.lease() == []

    bench.clock.advance(seconds=5)
    assert (await bench.lease_one()).job.attempt == 2


async def test_a_retried_job_keeps_its_place(bench: Bench) -> None:
    await bench.accept(1)
    await EXITS["retry"](bench.queue, await bench.lease_one())
    bench.clock.advance(seconds=5)
    await bench.accept(2)

    assert ids(await bench.lease()) == [1, 2]


async def test_a_retry_shows_its_error_to_nobody_yet(bench: Bench) -> None:
    await bench.accept(job_id=ID)

    job = await EXITS["retry"](bench.queue, await bench.lease_one())

    assert job.error_message == "c: m"
    assert job.to_wire()["error_message"] is None


async def test_a_retry_that_gives_back_does_not_count(bench: Bench) -> None:
    await bench.accept()
    lease = await bench.lease_one()

    job = await bench.queue.retry(lease, run_at=NOON, code="c", message="m", gives_back=True)

    assert job.attempt == 0
    assert job.waiting_since == NOON


async def test_waiting_is_counted_from_its_beginning(bench: Bench) -> None:
    await bench.accept()
    for _ in range(3):
        lease = await bench.lease_one()
        job = await bench.queue.retry(
            lease, run_at=bench.clock(), code="c", message="m", gives_back=True
        )
        bench.clock.advance(seconds=60)

    assert job.waiting_since == NOON


async def test_waiting_ends_once_the_job_fails_otherwise(bench: Bench) -> None:
    await bench.accept()
    lease = await bench.lease_one()
    await bench.queue.retry(lease, run_at=NOON, code="c", message="m", gives_back=True)

    job = await bench.queue.retry(await bench.lease_one(), run_at=NOON, code="c", message="m")

    assert job.waiting_since is None


async def test_a_released_job_is_as_if_it_had_not_been_leased(bench: Bench) -> None:
    await bench.accept(job_id=ID)

    job = await bench.queue.release(await bench.lease_one())

    assert (job.status, job.attempt, job.lost) == (JobState.PENDING, 0, 0)
    assert (await bench.lease_one()).job.job_id == ID


async def test_a_kept_result_is_stored_but_not_shown(bench: Bench) -> None:
    await bench.accept(1, FACES)
    lease = await bench.lease_one(FACES)

    job = await bench.queue.keep(lease, {"a": 1}, run_at=SOON, code="c", message="m")

    assert (job.status, job.result, job.attempt, job.sync_attempt) == (
        JobState.PENDING,
        {"a": 1},
        0,
        1,
    )
    assert job.to_wire()["result"] is None


async def test_a_kept_result_survives_a_retry(bench: Bench) -> None:
    await bench.accept(1, FACES)
    await bench.queue.keep(
        await bench.lease_one(FACES), {"a": 1}, run_at=NOON, code="c", message="m"
    )

    job = await bench.queue.retry(await bench.lease_one(FACES), run_at=NOON, code="c", message="m")

    assert job.result == {"a": 1}


async def test_sync_failed_shows_its_result_and_why(bench: Bench) -> None:
    await bench.accept(1, FACES, job_id=ID)
    lease = await bench.lease_one(FACES)

    await bench.queue.give_up_sync(lease, {"a": 1}, run_at=None, code="c", message="m")

    completed, failed = (await bench.told())[-2:]
    assert (completed.name, failed.name) == ("completed", "failed")
    assert completed.event["status"] == "sync_failed"
    assert completed.event["data"]["result"] == {"a": 1}
    assert completed.event["data"]["error_message"] == "c: m"


@every_exit
async def test_every_exit_frees_the_lease(bench: Bench, settle: Settle) -> None:
    await bench.accept(job_id=ID)

    await settle(bench.queue, await bench.lease_one())

    row = await bench.row(ID)
    assert (row["worker"], row["lease_until"]) == (None, None)


@every_exit
async def test_every_exit_rings_for_who_waits_for_it(bench: Bench, settle: Settle) -> None:
    await bench.accept()
    lease = await bench.lease_one()
    jobs, messages = bench.queue.ready[IMAGE].rings, bench.queue.message_ready.rings

    job = await settle(bench.queue, lease)

    bell, before = (
        (bench.queue.message_ready, messages)
        if job.status.is_terminal
        else (bench.queue.ready[IMAGE], jobs)
    )
    assert bell.rings > before


# -- the fence ---------------------------------------------------------------------------------


@every_exit
async def test_a_zombie_changes_nothing(bench: Bench, settle: Settle) -> None:
    # It was stopped past its lease, somebody else holds the job, and now it wakes up.
    await bench.accept(job_id=ID)
    zombie = await bench.lease_one()
    await bench.queue.release(zombie)
    await bench.lease_one()
    before, told = await bench.row(ID), await bench.told()

    with pytest.raises(LeaseLostError):
        await settle(bench.queue, zombie)

    assert await bench.row(ID) == before
    assert await bench.told() == told


@every_exit
async def test_a_job_is_settled_once(bench: Bench, settle: Settle) -> None:
    await bench.accept(job_id=ID)
    lease = await bench.lease_one()
    await bench.queue.complete(lease, {"first": True})

    with pytest.raises(LeaseLostError):
        await settle(bench.queue, lease)

    assert (await bench.queue.get(ID)).result == {"first": True}


async def settled_together(bench: Bench, *settlements: Settlement) -> list[Any]:
    return list(await bench.queue._settle_batch(settlements))


def completion(lease: Lease, result: str = "{}") -> Settlement:
    return Settlement(lease=lease, status=JobState.COMPLETED, result_text=result)


async def test_a_zombie_beside_the_owner_in_one_batch_is_told_so(bench: Bench) -> None:
    # Outcomes were matched by job_id alone: the zombie was told that its result had been stored.
    await bench.accept(job_id=ID)
    zombie = await bench.lease_one()
    await bench.queue.release(zombie)
    owner = await bench.lease_one()

    told = await settled_together(
        bench, completion(zombie, '{"by":"zombie"}'), completion(owner, '{"by":"owner"}')
    )

    assert isinstance(told[0], LeaseLostError)
    assert isinstance(told[1], Job)
    assert (await bench.queue.get(ID)).result == {"by": "owner"}


async def test_a_release_that_follows_a_completion_into_its_batch_does_not_undo_it(
    bench: Bench,
) -> None:
    # The job was cancelled while its completion waited for the commit before it. UPDATE FROM
    # takes any one of two rows that match, so the result could be thrown away.
    await bench.accept(job_id=ID)
    lease = await bench.lease_one()

    told = await settled_together(
        bench,
        completion(lease),
        Settlement(lease=lease, status=JobState.PENDING, given_back=1),
    )

    assert isinstance(told[0], Job)
    assert isinstance(told[1], LeaseLostError)
    assert (await bench.queue.get(ID)).status is JobState.COMPLETED


async def test_a_completion_that_follows_a_release_into_its_batch_comes_too_late(
    bench: Bench,
) -> None:
    await bench.accept(job_id=ID)
    lease = await bench.lease_one()

    told = await settled_together(
        bench,
        Settlement(lease=lease, status=JobState.PENDING, given_back=1),
        completion(lease),
    )

    assert isinstance(told[1], LeaseLostError)
    assert (await bench.queue.get(ID)).status is JobState.PENDING


async def test_every_way_out_fits_into_one_batch(bench: Bench) -> None:
    for number in range(len(EXITS) + 1):
        await bench.accept(number)
    *leases, lost = await bench.lease()
    await bench.queue.release(lost)

    outcomes = await asyncio.gather(
        *(settle(bench.queue, lease) for settle, lease in zip(EXITS.values(), leases, strict=True)),
        bench.queue.complete(lost, {}),
        return_exceptions=True,
    )

    assert [getattr(outcome, "status", type(outcome)) for outcome in outcomes] == [
        JobState.COMPLETED,
        JobState.PENDING,
        JobState.ERROR,
        JobState.PENDING,
        JobState.PENDING,
        JobState.SYNC_FAILED,
        LeaseLostError,
    ]


@pytest.mark.parametrize(
    "wrong", [{"a": float("nan")}, {"a": float("inf")}, {"a": "\ud800"}, {"a": object()}, None, [1]]
)
async def test_a_result_that_cannot_be_stored_harms_no_other_job(bench: Bench, wrong: Any) -> None:
    # It was turned into text within the batch: its error went to all who shared the commit.
    await bench.accept(1)
    await bench.accept(2, job_id=OTHER)
    bad, good = await bench.lease()

    outcomes = await asyncio.gather(
        bench.queue.complete(bad, wrong), bench.queue.complete(good, {}), return_exceptions=True
    )

    assert isinstance(outcomes[0], ValueError | TypeError)
    assert (await bench.queue.get(OTHER)).status is JobState.COMPLETED


async def test_an_error_message_of_any_text_is_stored(bench: Bench) -> None:
    await bench.accept(job_id=ID)

    await bench.queue.bury(await bench.lease_one(), code="c", message="a\ud800\n'\"{}")

    assert (await bench.queue.get(ID)).error_message == "c: a?\n'\"{}"


@pytest.mark.parametrize("exit_name", ["complete", "bury", "give_up_sync"])
async def test_result_and_event_commit_together(bench: Bench, exit_name: str) -> None:
    await bench.accept(job_id=ID)
    lease = await bench.lease_one()
    before, told = await bench.row(ID), await bench.told()
    await bench.refuse_events("disk full")

    with pytest.raises(StorageError, match="disk full"):
        await EXITS[exit_name](bench.queue, lease)

    assert await bench.row(ID) == before
    assert await bench.told() == told


async def test_a_lease_and_its_event_commit_together(bench: Bench) -> None:
    await bench.accept(job_id=ID)
    before = await bench.row(ID)
    await bench.refuse_events("disk full")

    with pytest.raises(StorageError, match="disk full"):
        await bench.lease()

    assert await bench.row(ID) == before


async def test_a_settle_that_could_not_be_stored_can_be_repeated(bench: Bench) -> None:
    await bench.accept(job_id=ID)
    lease = await bench.lease_one()
    await bench.refuse_events("disk full")
    with pytest.raises(StorageError):
        await bench.queue.complete(lease, {})
    await bench.take_events()

    assert (await bench.queue.complete(lease, {})).status is JobState.COMPLETED


# -- lost leases -------------------------------------------------------------------------------


async def test_a_lease_that_ran_out_is_taken_back(bench: Bench) -> None:
    await bench.accept(job_id=ID)
    await bench.lease_one()
    bench.clock.advance(seconds=LEASE + 1)

    (job,) = await bench.queue.reclaim()

    assert (job.job_id, job.status, job.lost, job.attempt) == (ID, JobState.PENDING, 1, 1)


async def test_a_lease_that_runs_is_left_alone(bench: Bench) -> None:
    await bench.accept()
    await bench.lease_one()
    bench.clock.advance(seconds=LEASE)

    assert await bench.queue.reclaim() == []


async def test_a_job_that_lost_its_lease_is_left_to_lease_suspect(bench: Bench) -> None:
    await lose(bench, times=1)

    assert await bench.lease() == []
    assert await bench.queue.has_suspect([IMAGE])
    assert (await bench.suspect()).job.lost == 1


async def test_suspects_are_leased_one_at_a_time(bench: Bench) -> None:
    for number in range(3):
        await bench.accept(number)
    await bench.lease()
    bench.clock.advance(seconds=LEASE + 1)
    await bench.queue.reclaim()

    assert (await bench.suspect()).job.media_store_id == 0
    assert (await bench.suspect()).job.media_store_id == 1


async def test_suspects_of_other_task_types_are_not_ours(bench: Bench) -> None:
    await lose(bench, times=1)

    assert not await bench.queue.has_suspect([FACES])
    assert await bench.queue.lease_suspect([FACES], seconds=LEASE) is None


async def test_a_suspect_that_is_retried_stays_one(bench: Bench) -> None:
    await lose(bench, times=1)
    await bench.queue.retry(await bench.suspect(), run_at=NOON, code="c", message="m")

    assert await bench.lease() == []
    assert (await bench.suspect()).job.attempt == 3


async def test_a_job_that_kills_every_process_ends_with_both_events(bench: Bench) -> None:
    await lose(bench, times=4)

    job = await bench.queue.get(ID)
    assert (job.status, job.error_code, job.lost) == (JobState.ERROR, "worker_lost", 4)
    assert job.error_message == "worker_lost: its process died or hung 4 times"
    last = (await bench.told())[-2:]
    assert [(told.name, told.event["seq"]) for told in last] == [("completed", 6), ("failed", 7)]


async def test_a_taken_back_job_cannot_be_completed_by_its_old_worker(bench: Bench) -> None:
    await bench.accept(job_id=ID)
    zombie = await bench.lease_one()
    bench.clock.advance(seconds=LEASE + 1)
    await bench.queue.reclaim()

    with pytest.raises(LeaseLostError):
        await bench.queue.complete(zombie, {})


async def test_jobs_of_a_dead_process_come_back_at_once(place: Path | str) -> None:
    dead = identity_of_a_dead_process()
    async with open_bench(place, worker=dead) as bench:
        await bench.accept(job_id=ID)
        await bench.lease_one()

    async with open_bench(place, worker=own_identity()) as bench:
        (job,) = await bench.queue.reclaim_dead(is_dead)

        assert (job.job_id, job.status, job.lost) == (ID, JobState.PENDING, 1)


async def test_jobs_of_a_living_process_stay_with_it(place: Path | str) -> None:
    child = subprocess.Popen(  # noqa: ASYNC220 - nothing else runs in this loop
        [sys.executable, "-c", TELL_IDENTITY + "; input()"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=Path(__file__).parents[2],
    )
    assert child.stdout is not None
    living = child.stdout.readline().strip()
    async with open_bench(place, worker=living) as bench:
        await bench.accept(job_id=ID)
        await bench.lease_one()

    async with open_bench(place, worker=own_identity()) as bench:
        assert await bench.queue.reclaim_dead(is_dead) == []
        assert (await bench.queue.get(ID)).status is JobState.PROCESSING
        assert {told.owner for told in await bench.told()} == {living}
    child.communicate("\n")


async def test_our_own_jobs_are_not_taken_from_us(place: Path | str) -> None:
    async with open_bench(place, worker=own_identity()) as bench:
        await bench.accept()
        await bench.lease_one()

        assert await bench.queue.reclaim_dead(is_dead) == []


async def test_events_of_a_dead_process_are_adopted(place: Path | str) -> None:
    dead = identity_of_a_dead_process()
    async with open_bench(place, worker=dead) as bench:
        await bench.accept()

    async with open_bench(place, worker=own_identity()) as bench:
        await bench.queue.reclaim_dead(is_dead)

        assert {told.owner for told in await bench.told()} == {own_identity()}
        assert bench.queue.message_ready.rings > 0


async def test_many_events_are_adopted_a_few_in_each_transaction(
    place: Path | str, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Hundreds of thousands in one kept all others from writing until their leases ran out, and were
    # more than PostgreSQL's time for a statement: no start came to its end.
    monkeypatch.setattr(reclaiming, "ADOPT_BATCH", 2)
    async with open_bench(place, worker="a/dead/one/1/1") as bench:
        for number in range(5):
            await bench.accept(number)
        first = (await bench.told())[0].topic
        await bench.execute("UPDATE outbox SET run_at = 1 WHERE topic = ?", first)

    async with open_bench(place, worker="b") as bench:
        written, write = 0, bench.database.write

        async def counted(work: Any, **how: Any) -> Any:
            nonlocal written
            written += 1
            return await write(work, **how)

        monkeypatch.setattr(bench.database, "write", counted)
        await bench.queue.reclaim_dead(lambda name: name == "a/dead/one/1/1")

        assert {told.owner for told in await bench.told()} == {"b"}
        # Two, two, none left; and the jobs.
        assert written == 4


async def test_of_many_events_a_look_takes_over_some_and_the_jobs_only_after_all(
    place: Path | str, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The same loop renews our own leases: a million events took longer than a lease.
    monkeypatch.setattr(reclaiming, "ADOPT_BATCH", 1)
    monkeypatch.setattr(reclaiming, "ADOPT_STEPS", 2)
    async with open_bench(place, worker="a/dead/one/1/1") as bench:
        for number in range(3):
            await bench.accept(number)
        (held,) = await bench.lease(limit=1)

    async with open_bench(place, worker="b") as bench:
        looks = [
            await bench.queue.reclaim_dead(lambda name: name == "a/dead/one/1/1") for _ in range(3)
        ]

        assert [[job.job_id for job in look] for look in looks] == [[], [], [held.job.job_id]]
        assert {told.owner for told in await bench.told()} == {"b"}


async def test_old_events_of_an_owner_nobody_can_judge_are_adopted(place: Path | str) -> None:
    # A container that was made anew: the former one's host name says nothing here.
    gone = "other-host/boot/1/1/1"
    async with open_bench(place, worker=gone) as bench:
        await bench.accept()

    async with open_bench(place, worker=own_identity()) as bench:
        await bench.queue.adopt_orphans(is_alive)
        assert {told.owner for told in await bench.told()} == {gone}

        bench.clock.advance(seconds=ORPHANED_MS / 1000 + 1)
        await bench.queue.adopt_orphans(is_alive)

        assert {told.owner for told in await bench.told()} == {own_identity()}
        assert bench.queue.message_ready.rings > 0


async def test_old_events_of_a_living_daemon_stay_with_it(place: Path | str) -> None:
    async with open_bench(place, worker=own_identity()) as bench:
        await bench.accept()

    async with open_bench(place, worker="another") as bench:
        bench.clock.advance(seconds=ORPHANED_MS / 1000 + 1)
        await bench.queue.adopt_orphans(is_alive)

        assert {told.owner for told in await bench.told()} == {own_identity()}


async def test_a_release_does_not_begin_the_wait_for_a_dependency_anew(bench: Bench) -> None:
    await bench.accept(job_id=ID)
    lease = await bench.lease_one()
    now = bench.clock()
    await bench.queue.retry(lease, run_at=now, code="away", message="away", gives_back=True)
    bench.clock.advance(seconds=5)
    await bench.queue.release(await bench.lease_one())

    assert (await bench.row(ID))["waiting_since"] == now


async def test_a_job_that_expired_runs_when_it_is_asked_for_again(bench: Bench) -> None:
    await bench.accept(job_id=ID, expires_at=bench.clock() + 1000)
    await bench.queue.bury(await bench.lease_one(), code="expired", message="too late")

    await bench.queue.requeue(ID)

    assert (await bench.row(ID))["expires_at"] is None


# -- two daemons -------------------------------------------------------------------------------


def test_two_processes_never_lease_the_same_job(place: Path | str) -> None:

    async def fill() -> None:
        async with open_bench(place) as bench:
            await asyncio.gather(*(bench.accept(number) for number in range(STRESS_JOBS)))

    asyncio.run(fill())
    context = multiprocessing.get_context("spawn")
    start, taken = context.Barrier(2), context.Queue()
    racers = [
        context.Process(target=lease_all, args=(place, name, start, taken)) for name in ("a", "b")
    ]
    for racer in racers:
        racer.start()
    told = [taken.get(timeout=60) for _ in racers]
    for racer in racers:
        racer.join()

    everything = sorted([job for mine in told for job in mine])
    assert everything == list(range(STRESS_JOBS))


def lease_all(place: Path | str, name: str, start: Any, taken: Any) -> None:
    async def work() -> list[int]:
        mine: list[int] = []
        async with open_bench(place, worker=name) as bench:
            leases = await bench.lease(limit=3)
            # Both hold jobs before either goes on, so that there is a race.
            start.wait(30)
            assert leases
            while leases:
                mine += [lease.job.media_store_id for lease in leases]
                await asyncio.gather(*(bench.queue.complete(lease, {}) for lease in leases))
                leases = await bench.lease(limit=3)
        return mine

    taken.put(asyncio.run(work()))


async def test_a_daemon_sees_what_the_other_enqueued(place: Path | str) -> None:
    clock = ManualClock()
    async with (
        open_bench(place, clock=clock, worker="a") as first,
        open_bench(place, clock=clock, worker="b") as second,
    ):
        await first.accept(job_id=ID)

        lease = await second.lease_one()

        with pytest.raises(LeaseLostError):
            await first.queue.complete(Lease(lease.job, lease.fence - 1), {})
        await second.queue.complete(lease, {})
        assert (await first.queue.get(ID)).status is JobState.COMPLETED


# -- by hand -----------------------------------------------------------------------------------


async def test_a_pending_job_can_be_cancelled(bench: Bench) -> None:
    await bench.accept(job_id=ID)

    job = await bench.queue.cancel(ID)

    assert (job.status, job.error_code) == (JobState.ERROR, "cancelled")
    assert [(told.name, told.event["seq"]) for told in await bench.told()] == [
        ("accepted", 1),
        ("completed", 2),
        ("failed", 3),
    ]
    assert await bench.lease() == []


async def test_a_delayed_job_can_be_cancelled(bench: Bench) -> None:
    await bench.accept(job_id=ID)
    await EXITS["retry"](bench.queue, await bench.lease_one())

    await bench.queue.cancel(ID)

    bench.clock.advance(seconds=60)
    assert await bench.lease() == []


async def test_a_job_that_runs_cannot_be_cancelled(bench: Bench) -> None:
    await bench.accept(job_id=ID)
    await bench.lease_one()

    with pytest.raises(ConflictError, match="processing"):
        await bench.queue.cancel(ID)


@pytest.mark.parametrize("verb", ["cancel", "requeue", "forget", "get"])
async def test_a_job_that_is_not_there_is_not_found(bench: Bench, verb: str) -> None:
    with pytest.raises(JobNotFoundError, match=ID):
        await getattr(bench.queue, verb)(ID)


async def test_a_failed_job_starts_again_with_all_its_attempts(bench: Bench) -> None:
    await lose(bench, times=4)
    fence = (await bench.row(ID))["fence"]

    job = await bench.queue.requeue(ID)

    assert (job.status, job.attempt, job.lost, job.error_message) == (JobState.PENDING, 0, 0, None)
    assert (await bench.told())[-1].name == "accepted"
    assert (await bench.lease_one()).fence > fence


async def test_a_requeued_sync_failed_job_keeps_its_result(bench: Bench) -> None:
    await sync_failed(bench, {"a": 1}, run_at=NOON)

    await bench.queue.requeue(ID)

    assert (await bench.lease_one(FACES)).job.result == {"a": 1}
    assert await bench.queue.due_syncs([FACES], 10) == []


@pytest.mark.parametrize("state", ["pending", "processing", "completed"])
async def test_a_job_that_did_not_fail_cannot_be_requeued(bench: Bench, state: str) -> None:
    await bench.accept(job_id=ID)
    if state != "pending":
        lease = await bench.lease_one()
        if state == "completed":
            await bench.queue.complete(lease, {})

    with pytest.raises(ConflictError, match=state):
        await bench.queue.requeue(ID)


async def test_a_failed_job_whose_pair_has_a_newer_one_cannot_be_requeued(bench: Bench) -> None:
    await bench.accept(1, job_id=ID)
    await bench.queue.cancel(ID)
    await bench.accept(1, job_id=OTHER)
    told = await bench.told()

    with pytest.raises(ConflictError) as caught:
        await bench.queue.requeue(ID)

    assert caught.value.existing_job_id == OTHER
    assert await bench.told() == told


async def test_a_finished_job_can_be_forgotten(bench: Bench) -> None:
    await bench.accept(job_id=ID)
    await bench.queue.complete(await bench.lease_one(), {})

    await bench.queue.forget(ID)

    with pytest.raises(JobNotFoundError):
        await bench.queue.get(ID)


async def test_a_live_job_cannot_be_forgotten(bench: Bench) -> None:
    await bench.accept(job_id=ID)

    with pytest.raises(ConflictError, match="pending"):
        await bench.queue.forget(ID)


# -- undelivered results -----------------------------------------------------------------------


async def test_an_undelivered_result_is_due_at_its_moment(bench: Bench) -> None:
    await sync_failed(bench, {"a": 1}, run_at=SOON)
    assert await bench.queue.due_syncs([FACES], 10) == []

    bench.clock.advance(seconds=5)

    (job,) = await bench.queue.due_syncs([FACES], 10)
    assert (job.job_id, job.result) == (ID, {"a": 1})


async def test_a_lease_gives_up_no_result_whose_moment_has_come(bench: Bench) -> None:
    await sync_failed(bench, {"a": 1}, run_at=SOON)
    bench.clock.advance(seconds=5)

    assert await bench.lease() == []

    assert [job.job_id for job in await bench.queue.due_syncs([FACES], 10)] == [ID]


async def test_undelivered_results_of_others_do_not_crowd_out_ours(bench: Bench) -> None:
    # The oldest few were taken first and sorted out afterwards: with enough of another daemon's
    # task type at the head, ours were never tried.
    for number in range(3):
        await bench.accept(number, TaskType.FACE_EMBEDDING)
        lease = await bench.lease_one(TaskType.FACE_EMBEDDING)
        await bench.queue.give_up_sync(lease, {}, run_at=NOON - 1, code="c", message="m")
    await sync_failed(bench, {}, run_at=NOON)

    assert [job.job_id for job in await bench.queue.due_syncs([FACES], 2)] == [ID]


async def test_a_delivered_result_heals_its_job_with_another_completed(bench: Bench) -> None:
    await sync_failed(bench, {"a": 1}, run_at=NOON)
    bench.clock.advance(seconds=9)

    await bench.queue.heal(await bench.queue.get(ID))

    job = await bench.queue.get(ID)
    assert (job.status, job.error_message, job.completed_at) == (
        JobState.COMPLETED,
        None,
        NOON + 9000,
    )
    last = (await bench.told())[-1].event
    assert (last["event"], last["status"], last["seq"]) == ("job_completed", "completed", 5)


async def test_a_job_is_healed_once(bench: Bench) -> None:
    await sync_failed(bench, {}, run_at=NOON)
    job = await bench.queue.get(ID)
    await bench.queue.heal(job)
    told = await bench.told()

    await bench.queue.heal(job)

    assert await bench.told() == told


async def test_a_job_whose_pair_has_a_newer_one_is_not_healed(bench: Bench) -> None:
    await sync_failed(bench, {}, run_at=NOON)
    stale = await bench.queue.get(ID)
    await bench.accept(1, FACES)

    await bench.queue.heal(stale)

    assert (await bench.queue.get(ID)).status is JobState.SYNC_FAILED


@pytest.mark.parametrize("is_one_of_many", [False, True], ids=["one", "many"])
async def test_a_job_that_starts_again_takes_over_from_an_undelivered_result(
    bench: Bench, is_one_of_many: bool
) -> None:
    # It was given to the media store again and again, since no job of the pair could be healed
    # beside it, and with a few such jobs at the head no other result's turn ever came.
    await bench.accept(1, FACES, job_id=OTHER)
    await bench.queue.bury(await bench.lease_one(FACES), code="media_not_found", message="m")
    await sync_failed(bench, {}, run_at=NOON)

    if is_one_of_many:
        await bench.queue.batches.retry_failed("media_not_found", limit=10)
    else:
        await bench.queue.requeue(OTHER)

    assert (await bench.queue.get(OTHER)).status is JobState.PENDING
    assert await bench.queue.due_syncs([FACES], 10) == []


async def test_an_undelivered_result_that_a_former_version_left_beside_a_newer_job_is_given_up(
    bench: Bench,
) -> None:
    await sync_failed(bench, {}, run_at=NOON)
    await bench.accept(1, FACES)
    await bench.execute("UPDATE jobs SET run_at = ? WHERE job_id = ?", NOON, ID)

    await bench.queue.heal(await bench.queue.get(ID))

    assert await bench.queue.due_syncs([FACES], 10) == []


async def test_a_refused_delivery_is_put_off(bench: Bench) -> None:
    await sync_failed(bench, {}, run_at=NOON)

    await bench.queue.delay_sync(
        await bench.queue.get(ID), run_at=SOON, code="media_store_error", message="500"
    )

    job = await bench.queue.get(ID)
    assert (job.sync_attempt, job.error_message) == (2, "media_store_error: 500")
    assert await bench.queue.due_syncs([FACES], 10) == []


async def test_a_due_result_is_offered_by_one_daemon_at_a_time(bench: Bench) -> None:
    # Each daemon on the queue gave the media store all results that were due.
    await sync_failed(bench, {}, run_at=NOON)
    job = await bench.queue.get(ID)

    claimed = [await bench.queue.claim_sync(job, seconds=60) for _ in range(2)]
    bench.clock.advance(seconds=61)

    assert claimed == [True, False]
    assert await bench.queue.claim_sync(job, seconds=60)


async def test_a_result_that_a_newer_job_has_taken_over_is_not_offered(bench: Bench) -> None:
    # It was, after the newer one's, by a daemon that had found it due before and was busy since.
    await sync_failed(bench, {}, run_at=NOON)
    stale = await bench.queue.get(ID)
    await bench.accept(1, FACES)

    assert not await bench.queue.claim_sync(stale, seconds=60)


async def test_a_delivery_refused_for_good_is_never_due(bench: Bench) -> None:
    await sync_failed(bench, {}, run_at=NOON)

    await bench.queue.delay_sync(await bench.queue.get(ID), run_at=None, code="c", message="m")

    bench.clock.advance(seconds=10**6)
    assert await bench.queue.due_syncs([FACES], 10) == []


# -- to look at --------------------------------------------------------------------------------


async def test_jobs_are_listed_newest_first(bench: Bench) -> None:
    for number in range(3):
        await bench.accept(number)

    assert [job.media_store_id for job in (await bench.queue.list_jobs()).jobs] == [2, 1, 0]


async def test_pages_follow_each_other_while_jobs_come_in(bench: Bench) -> None:
    for number in range(5):
        await bench.accept(number)
    first = await bench.queue.list_jobs(limit=2)
    await bench.accept(9)

    second = await bench.queue.list_jobs(limit=2, after=first.next)
    by_job_id = await bench.queue.list_jobs(limit=2, after=first.jobs[-1].job_id)

    assert [job.media_store_id for job in first.jobs + second.jobs] == [4, 3, 2, 1]
    assert by_job_id == second


async def test_pages_follow_each_other_though_jobs_between_them_are_deleted(bench: Bench) -> None:
    for number in range(5):
        await bench.accept(number)
    first = await bench.queue.list_jobs(limit=2)
    gone = (await bench.queue.list_jobs()).jobs[1:3]
    for job in gone:
        await bench.queue.cancel(job.job_id)
        await bench.queue.forget(job.job_id)

    second = await bench.queue.list_jobs(limit=2, after=first.next)

    assert [job.media_store_id for job in second.jobs] == [1, 0]
    assert second.next is None


async def test_a_list_can_be_narrowed(bench: Bench) -> None:
    await bench.accept(1, FACES)
    await bench.accept(2, IMAGE)
    await bench.accept(3, IMAGE)
    await bench.lease(IMAGE, 1)

    asked = JobSelection(status=JobState.PENDING, task_type=IMAGE)
    found = await bench.queue.list_jobs(asked)

    assert [job.media_store_id for job in found.jobs] == [3]


@pytest.mark.parametrize("status", JobState)
async def test_a_list_by_status_holds_all_of_them_however_far_back_they_are(
    bench: Bench, status: JobState, monkeypatch: pytest.MonkeyPatch
) -> None:
    await bench.accept(300)
    await bench.lease_one()
    await bench.accept(301)
    await EXITS["retry"](bench.queue, await bench.lease_one())
    for number in range(4):
        await bench.accept(number)
        await bench.queue.complete(await bench.lease_one(), {})
        await bench.accept(number + 100, FACES)
        await bench.queue.bury(await bench.lease_one(FACES), code="c", message="m")
        await bench.accept(number + 200, FACES)
        lease = await bench.lease_one(FACES)
        await bench.queue.give_up_sync(lease, {}, run_at=NOON, code="c", message="m")
    for number in range(400, 405):
        await bench.accept(number)
    everything = (await bench.queue.list_jobs()).jobs
    monkeypatch.setattr(job_listing, "STRETCH", 3)

    listed, after = list[Job](), None
    while True:
        page = await bench.queue.list_jobs(JobSelection(status=status), limit=2, after=after)
        listed += page.jobs
        after = page.next
        if after is None:
            break

    assert listed == [job for job in everything if job.status is status]
    assert listed


async def test_a_page_after_no_job_is_not_found(bench: Bench) -> None:
    with pytest.raises(JobNotFoundError):
        await bench.queue.list_jobs(after=ID)


async def test_depth_counts_what_waits_and_what_runs(bench: Bench) -> None:
    for number in range(4):
        await bench.accept(number)
    await EXITS["retry"](bench.queue, await bench.lease_one())
    await bench.lease_one()
    await bench.queue.complete(await bench.lease_one(), {})

    assert await bench.queue.depth() == {
        "pending": 2,
        "delayed": 1,
        "processing": 1,
        "outbox": 4 + 3 + 1,
    }


async def test_depth_counts_suspects_as_pending(bench: Bench) -> None:
    await lose(bench, times=1)

    assert (await bench.queue.depth())["pending"] == 1


async def test_pruning_takes_the_oldest_finished_jobs_in_small_batches(bench: Bench) -> None:
    for number in range(5):
        await bench.accept(number)
        await bench.queue.complete(await bench.lease_one(), {})
        bench.clock.advance(seconds=1)

    counts = [await bench.queue.prune(before=NOON + 3000, limit=2) for _ in range(3)]

    assert counts == [2, 1, 0]
    assert [job.media_store_id for job in (await bench.queue.list_jobs()).jobs] == [4, 3]


async def test_pruning_leaves_live_jobs_and_undelivered_results(bench: Bench) -> None:
    await bench.accept(5)
    await bench.accept(6)
    await bench.lease_one()
    await sync_failed(bench, {}, run_at=NOON)

    assert await bench.queue.prune(before=NOON + 10**9) == 0


async def test_pruning_takes_results_that_were_given_up(bench: Bench) -> None:
    await sync_failed(bench, {}, run_at=None)

    assert await bench.queue.prune(before=NOON + 1) == 1


async def test_a_pruned_job_keeps_the_events_that_were_not_sent(bench: Bench) -> None:
    await bench.accept(job_id=ID)
    await bench.queue.complete(await bench.lease_one(), {})

    await bench.queue.prune(before=NOON + 1)

    assert [told.name for told in await bench.told(ID)] == ["accepted", "started", "completed"]


async def test_a_batch_larger_than_one_settle_is_settled_whole(bench: Bench) -> None:
    await asyncio.gather(*(bench.accept(number) for number in range(150)))
    leases = await bench.lease(limit=150)

    await asyncio.gather(*(bench.queue.complete(lease, {}) for lease in leases))

    assert await bench.rows("SELECT DISTINCT status FROM jobs") == [("completed",)]


async def lose(bench: Bench, *, times: int) -> None:
    """Let a job's process die: its lease runs out, and is taken back."""
    await bench.queue.enqueue(submission(bench.clock(), job_id=ID))
    for time in range(times):
        await (bench.lease_one() if time == 0 else bench.suspect())
        bench.clock.advance(seconds=LEASE + 1)
        await bench.queue.reclaim()


async def sync_failed(bench: Bench, result: dict[str, Any], *, run_at: int | None) -> None:
    await bench.accept(1, FACES, job_id=ID)
    lease = await bench.lease_one(FACES)
    await bench.queue.give_up_sync(lease, result, run_at=run_at, code="c", message="m")


TELL_IDENTITY = "from daemon.identity import own_identity; print(own_identity(), flush=True)"


def identity_of_a_dead_process() -> str:
    child = subprocess.run(
        [sys.executable, "-c", TELL_IDENTITY],
        capture_output=True,
        text=True,
        check=True,
        cwd=Path(__file__).parents[2],
    )
    return child.stdout.strip()
