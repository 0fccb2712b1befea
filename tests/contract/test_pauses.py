"""Paused task types: never leased, by no daemon on the file, until they are resumed or time is."""

import asyncio
import contextlib
import multiprocessing
from pathlib import Path
from typing import Any

import pytest

from daemon.errors import ChangedError, InvalidRequestError
from daemon.jobs import JobState, TaskType
from daemon.queue.database import Database
from daemon.queue.pauses import Pause, Seen
from tests.queue_bench import (
    FACES,
    IMAGE,
    LEASE,
    NOON,
    Bench,
    ManualClock,
    open_bench,
    until,
)
from tests.waiting import until as wait_for

ID = "550e8400-e29b-41d4-a716-446655440000"
MINUTE = 60_000
STRESS_JOBS = 1500


# -- pausing -------------------------------------------------------------------------------------


async def test_a_paused_task_type_is_not_leased_and_others_are(bench: Bench) -> None:
    await bench.accept(1, IMAGE)
    await bench.accept(1, FACES)

    assert await bench.queue.pauses.pause(IMAGE) is None

    assert await bench.lease(IMAGE) == []
    assert len(await bench.lease(FACES)) == 1


async def test_a_request_for_a_paused_task_type_is_accepted_and_waits(bench: Bench) -> None:
    await bench.queue.pauses.pause(IMAGE)

    job = await bench.accept(job_id=ID)

    assert job.status is JobState.PENDING
    assert await bench.lease() == []
    assert [told.name for told in await bench.told()] == ["accepted"]


async def test_a_job_that_lost_its_lease_waits_too(bench: Bench) -> None:
    await bench.accept()
    await bench.lease_one()
    bench.clock.advance(seconds=LEASE + 1)
    await bench.queue.reclaim()
    assert await bench.queue.has_suspect([IMAGE])

    await bench.queue.pauses.pause(IMAGE)

    # The worker would else stop everything for it, again and again.
    assert not await bench.queue.has_suspect([IMAGE])
    assert await bench.queue.lease_suspect([IMAGE, FACES], seconds=LEASE) is None
    await bench.queue.pauses.resume(IMAGE)
    assert await bench.queue.has_suspect([IMAGE])
    assert (await bench.suspect()).job.task_type is IMAGE


async def test_a_suspect_of_another_task_type_is_found_behind_a_paused_one(bench: Bench) -> None:
    for task_type in (IMAGE, FACES):
        await bench.accept(1, task_type)
        await bench.lease_one(task_type)
    bench.clock.advance(seconds=LEASE + 1)
    await bench.queue.reclaim()

    await bench.queue.pauses.pause(IMAGE)

    assert (await bench.suspect()).job.task_type is FACES


async def test_what_runs_is_finished(bench: Bench) -> None:
    for number in range(2):
        await bench.accept(number)
    first, second = await bench.lease()

    await bench.queue.pauses.pause(IMAGE)

    assert (await bench.queue.complete(first, {})).status is JobState.COMPLETED
    assert await bench.queue.renew([second], seconds=LEASE) == {second.job.job_id}
    await bench.queue.retry(second, run_at=bench.clock(), code="c", message="m")
    assert await bench.lease() == []


async def test_a_job_that_waits_can_be_cancelled(bench: Bench) -> None:
    await bench.queue.pauses.pause(IMAGE)
    await bench.accept(job_id=ID)

    assert (await bench.queue.cancel(ID)).error_code == "cancelled"


# -- the end -------------------------------------------------------------------------------------


async def test_resuming_leases_again_and_wakes_the_worker(bench: Bench) -> None:
    await bench.queue.pauses.pause(IMAGE)
    await bench.accept()
    rings = bench.queue.ready[IMAGE].rings

    await bench.queue.pauses.resume(IMAGE)

    assert bench.queue.ready[IMAGE].rings > rings
    assert len(await bench.lease()) == 1


@pytest.mark.parametrize("end", [{"until": NOON + MINUTE}, {"seconds": 60}, {"seconds": 59.9999}])
async def test_a_pause_ends_by_itself_at_its_end(bench: Bench, end: dict[str, Any]) -> None:
    await bench.accept()

    assert await bench.queue.pauses.pause(IMAGE, **end) == NOON + MINUTE

    bench.clock.now = NOON + MINUTE - 1
    assert await bench.lease() == []
    assert await bench.queue.pauses.active() == {IMAGE: Pause(NOON, NOON + MINUTE)}
    bench.clock.now = NOON + MINUTE
    assert await bench.queue.pauses.active() == {}
    assert len(await bench.lease()) == 1


@pytest.mark.parametrize("later", [None, NOON + 2 * MINUTE, NOON + 1000])
async def test_pausing_again_replaces_the_end(bench: Bench, later: int | None) -> None:
    await bench.queue.pauses.pause(IMAGE, until=NOON + MINUTE)
    bench.clock.advance(seconds=0.5)

    assert await bench.queue.pauses.pause(IMAGE, until=later) == later

    assert await bench.queue.pauses.active() == {IMAGE: Pause(NOON, later)}


async def test_a_pause_after_a_pause_begins_anew(bench: Bench) -> None:
    for end in (NOON + MINUTE, None):
        await bench.queue.pauses.pause(IMAGE, until=end)
        bench.clock.advance(seconds=61)
        await bench.queue.pauses.resume(IMAGE)

    await bench.queue.pauses.pause(IMAGE)

    assert await bench.queue.pauses.active() == {IMAGE: Pause(NOON + 122_000, None)}


async def test_resuming_twice_and_without_a_pause_changes_nothing(bench: Bench) -> None:
    await bench.queue.pauses.resume(FACES)
    await bench.queue.pauses.pause(IMAGE)
    await bench.queue.pauses.resume(IMAGE)
    bench.clock.advance(seconds=5)
    await bench.queue.pauses.resume(IMAGE)

    assert await bench.queue.pauses.active() == {}
    assert await bench.rows("SELECT * FROM pauses") == [("image_embedding", NOON, None, NOON)]


async def test_what_another_admin_did_since_one_looked_is_not_undone(bench: Bench) -> None:
    pauses = bench.queue.pauses
    running, without_end = Seen(is_paused=False), Seen(is_paused=True)
    ends = Seen(is_paused=True, until=NOON + MINUTE)

    # A script pauses for a minute; meanwhile somebody pauses until they say otherwise.
    await pauses.pause(IMAGE, until=NOON + MINUTE, seen=running)
    await pauses.pause(FACES)
    await pauses.pause(IMAGE)
    for wrong in (ends, running, Seen(is_paused=True, until=NOON + 1)):
        with pytest.raises(ChangedError, match="is paused without an end"):
            await pauses.resume(IMAGE, seen=wrong)
        with pytest.raises(ChangedError):
            await pauses.pause(IMAGE, seconds=1, seen=wrong)
    assert (await pauses.active())[IMAGE] == Pause(NOON, None)

    await pauses.pause(IMAGE, until=NOON + MINUTE, seen=without_end)
    with pytest.raises(ChangedError, match=f"until {NOON + MINUTE}"):
        await pauses.resume(IMAGE, seen=without_end)
    bench.clock.advance(seconds=61)
    with pytest.raises(ChangedError, match="is not paused"):
        await pauses.resume(IMAGE, seen=ends)
    await pauses.resume(IMAGE, seen=running)
    await pauses.pause(IMAGE, seen=running)
    await pauses.resume(IMAGE, seen=without_end)
    assert await pauses.active() == {FACES: Pause(NOON, None)}


@pytest.mark.parametrize("end", [NOON, NOON - 1, 0])
async def test_an_end_that_is_not_in_the_future_is_refused(bench: Bench, end: int) -> None:
    with pytest.raises(InvalidRequestError) as caught:
        await bench.queue.pauses.pause(IMAGE, until=end)

    assert (caught.value.code, caught.value.field) == ("invalid_request", "until")
    assert await bench.queue.pauses.active() == {}


async def test_a_clock_that_steps_back_does_not_undo_a_resume(bench: Bench) -> None:
    await bench.queue.pauses.pause(IMAGE, until=NOON + MINUTE)
    await bench.queue.pauses.resume(IMAGE)

    bench.clock.advance(seconds=-10)

    assert await bench.queue.pauses.active() == {}


# -- what a pause leaves alone -------------------------------------------------------------------


@pytest.mark.parametrize("by_itself", [True, False])
async def test_a_pause_is_no_part_of_the_wait_for_a_dependency(
    bench: Bench, *, by_itself: bool
) -> None:
    # Whoever pauses because the media store is away must not find every job in error afterwards.
    await bench.accept()
    lease = await bench.lease_one()
    now = bench.clock()
    await bench.queue.retry(lease, run_at=now, code="away", message="m", gives_back=True)
    await bench.queue.pauses.pause(IMAGE, seconds=60 if by_itself else None)
    bench.clock.advance(seconds=61)
    if not by_itself:
        await bench.queue.pauses.resume(IMAGE)

    again = await bench.lease_one()

    assert again.job.waiting_since is None
    bench.clock.advance(seconds=1)
    await bench.queue.retry(again, run_at=now, code="away", message="m", gives_back=True)
    assert (await bench.lease_one()).job.waiting_since == now + 62_000


async def test_a_wait_that_began_after_the_pause_goes_on(bench: Bench) -> None:
    await bench.queue.pauses.pause(IMAGE, seconds=1)
    bench.clock.advance(seconds=2)
    await bench.accept()
    lease = await bench.lease_one()
    now = bench.clock()
    await bench.queue.retry(lease, run_at=now, code="away", message="m", gives_back=True)
    bench.clock.advance(seconds=5)

    assert (await bench.lease_one()).job.waiting_since == now


@pytest.mark.parametrize("is_suspect", [False, True], ids=["plain", "suspect"])
async def test_a_pause_of_another_task_type_is_no_end_of_a_wait(
    bench: Bench, is_suspect: bool
) -> None:
    await bench.accept()
    lease = await bench.lease_one()
    now = bench.clock()
    await bench.queue.retry(lease, run_at=now, code="away", message="m", gives_back=True)
    if is_suspect:
        await bench.execute("UPDATE jobs SET lost = 1")
    for task_type in (FACES, TaskType.FACE_EMBEDDING):
        await bench.queue.pauses.pause(task_type)
        bench.clock.advance(seconds=5)
        await bench.queue.pauses.resume(task_type)

    again = await (bench.suspect() if is_suspect else bench.lease_one())

    assert again.job.waiting_since == now


# -- the file ------------------------------------------------------------------------------------


async def test_a_pause_survives_a_restart(place: Path | str) -> None:
    async with open_bench(place) as bench:
        await bench.accept()
        await bench.queue.pauses.pause(IMAGE, seconds=60)

    async with open_bench(place) as bench:
        assert await bench.queue.pauses.active() == {IMAGE: Pause(NOON, NOON + MINUTE)}
        assert await bench.lease() == []


async def test_a_pause_is_durable_before_it_returns(tmp_path: Path) -> None:
    async with open_bench(tmp_path / "queue.db") as bench:
        await bench.lease()
        traced: list[str] = []
        assert isinstance(bench.database, Database)
        assert bench.database._writer is not None
        await bench.database._writer.set_trace_callback(traced.append)

        await bench.queue.pauses.pause(IMAGE)

    kept = [line for line in traced if line.startswith(("PRAGMA syn", "BEGIN", "COMMIT"))]
    assert kept == ["PRAGMA synchronous = FULL", "BEGIN IMMEDIATE", "COMMIT"]


async def test_a_task_type_of_a_newer_version_is_passed_over(bench: Bench) -> None:
    await bench.execute("INSERT INTO pauses VALUES ('mind_reading', 1, NULL, NULL)")
    await bench.queue.pauses.pause(FACES)

    assert list(await bench.queue.pauses.active()) == [FACES]


async def test_jobs_are_counted_by_task_type(bench: Bench) -> None:
    for number in range(4):
        await bench.accept(number)
    # One runs, one is delayed, one lost its lease, one waits.
    lost, delayed = await bench.lease(limit=2)
    await bench.queue.retry(delayed, run_at=NOON + 10 * MINUTE, code="c", message="m")
    bench.clock.advance(seconds=LEASE + 1)
    await bench.queue.reclaim()
    await bench.lease_one()
    await bench.queue.pauses.pause(FACES, until=NOON + MINUTE)

    found = await bench.queue.depth_by_task()

    assert lost.job.task_type is IMAGE
    assert {task: (each.pending, each.processing) for task, each in found.items()} == {
        "image_embedding": (3, 1),
        "face_detection": (0, 0),
        "face_embedding": (0, 0),
    }
    assert {task: (each.is_paused, each.paused_until) for task, each in found.items()} == {
        "image_embedding": (False, None),
        "face_detection": (True, NOON + MINUTE),
        "face_embedding": (False, None),
    }
    bench.clock.advance(seconds=60)
    assert not (await bench.queue.depth_by_task())[FACES].is_paused


# -- two daemons ---------------------------------------------------------------------------------


async def test_another_daemons_pause_holds_at_the_next_lease(place: Path | str) -> None:
    clock = ManualClock()
    async with (
        open_bench(place, clock=clock, worker="a") as first,
        open_bench(place, clock=clock, worker="b") as second,
    ):
        await first.accept()

        await first.queue.pauses.pause(IMAGE)

        assert await second.lease() == []
        assert list(await second.queue.pauses.active()) == [IMAGE]
        await second.queue.pauses.resume(IMAGE)
        assert len(await first.lease()) == 1


async def test_once_a_pause_returned_no_other_process_begins_a_job(place: Path | str) -> None:
    context = multiprocessing.get_context("spawn")
    tries = context.Value("i", 0)
    async with open_bench(place) as bench:
        await asyncio.gather(*(bench.accept(number) for number in range(STRESS_JOBS)))
        rival = context.Process(target=lease_for_ever, args=(place, tries))
        rival.start()
        try:
            await passes(tries, 10)

            await bench.queue.pauses.pause(IMAGE)
            before = await begun(bench)
            # Something waits, however far the other process had come.
            await bench.accept(STRESS_JOBS)
            await passes(tries, tries.value + 20)

            assert before > 0
            assert await begun(bench) == before
            await bench.queue.pauses.resume(IMAGE)
            await until(lambda: has_begun(bench, before + 1), "it leases once it may")
        finally:
            rival.terminate()
            rival.join()


async def passes(tries: Any, number: int) -> None:
    await wait_for(lambda: tries.value >= number)


async def begun(bench: Bench) -> int:
    return int((await bench.rows("SELECT count(*) FROM jobs WHERE fence > 0"))[0][0])


async def has_begun(bench: Bench, number: int) -> bool:
    return await begun(bench) >= number


def lease_for_ever(place: Path | str, tries: Any) -> None:
    async def work() -> None:
        async with open_bench(place, worker="rival") as bench:
            while True:
                for lease in await bench.lease(limit=1):
                    await bench.queue.complete(lease, {})
                tries.value += 1

    with contextlib.suppress(KeyboardInterrupt):
        asyncio.run(work())
