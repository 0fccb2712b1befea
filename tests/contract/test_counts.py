"""How much waits: each job counted once, in whatever way it waits."""

from pathlib import Path

from daemon.jobs import TaskType
from tests.queue_bench import FACES, IMAGE, LEASE, NOON, Bench, open_bench


async def wait_in_every_way(bench: Bench) -> None:
    """Let three jobs wait, asked for 10 s apart: a suspect, a delayed one, one that is ready."""
    await bench.accept(1)
    (lost,) = await bench.lease()
    bench.clock.advance(seconds=10)
    await bench.accept(2)
    (delayed,) = await bench.lease()
    later = bench.clock() + 3_600_000
    await bench.queue.retry(delayed, run_at=later, code="c", message="m")
    bench.clock.advance(seconds=LEASE - 10 + 1)
    assert [job.job_id for job in await bench.queue.reclaim()] == [lost.job.job_id]
    await bench.accept(3)


async def test_a_queue_has_room_for_as_many_as_do_not_wait_in_any_way(place: Path | str) -> None:
    async with open_bench(place, max_pending=5) as bench:
        await wait_in_every_way(bench)
        await bench.accept(9, FACES)
        await bench.lease(FACES)  # it runs, and takes no room
        bench.clock.advance(seconds=2)  # what was counted is too old

        outcomes = [await bench.ask(number) for number in (4, 5, 6)]

        assert [getattr(outcome, "code", "accepted") for outcome in outcomes] == [
            "accepted",
            "accepted",
            "queue_full",
        ]


async def test_what_waits_longest_is_told_in_whatever_way_it_waits(bench: Bench) -> None:
    await wait_in_every_way(bench)
    bench.clock.advance(seconds=1)

    found = await bench.queue.snapshot()

    assert (found.pending, found.delayed, found.processing) == (3, 1, 0)
    assert found.oldest_pending_seconds == (bench.clock() - NOON) / 1000
    assert found.oldest_event_seconds == (bench.clock() - NOON) / 1000

    suspect = await bench.suspect()
    found = await bench.queue.snapshot()
    assert (found.pending, found.processing) == (2, 1)
    assert found.oldest_pending_seconds == (bench.clock() - NOON) / 1000 - 10

    await bench.queue.bury(suspect, code="c", message="m")
    (ready,) = await bench.lease()
    found = await bench.queue.snapshot()
    assert found.oldest_pending_seconds == (bench.clock() - NOON) / 1000 - 10
    await bench.queue.complete(ready, {})
    assert (await bench.queue.snapshot()).pending == 1


async def test_what_waits_is_told_by_task_type_and_whether_it_is_paused(bench: Bench) -> None:
    await wait_in_every_way(bench)
    await bench.accept(1, FACES)
    await bench.lease(FACES)
    await bench.queue.pauses.pause(IMAGE, seconds=60)
    until = bench.clock() + 60_000

    async def told(task_type: TaskType) -> tuple[int, int, bool, int | None]:
        found = (await bench.queue.depth_by_task())[task_type]
        return found.pending, found.processing, found.is_paused, found.paused_until

    assert await told(FACES) == (0, 1, False, None)
    assert await told(IMAGE) == (3, 0, True, until)
    bench.clock.advance(seconds=60)
    assert await told(IMAGE) == (3, 0, False, None)
    await bench.queue.pauses.pause(IMAGE)
    await bench.queue.pauses.resume(IMAGE)
    assert await told(IMAGE) == (3, 0, False, None)


async def test_failures_are_counted_by_code_and_task_type_and_told_by_the_latest(
    bench: Bench,
) -> None:
    async def end(number: int, code: str, task_type: TaskType, *, is_late: bool = False) -> None:
        bench.clock.advance(seconds=1)
        await bench.accept(number, task_type)
        lease = await bench.lease_one(task_type)
        why = {"code": code, "message": str(number)}
        if is_late:
            await bench.queue.give_up_sync(lease, {}, run_at=None, **why)
        else:
            await bench.queue.bury(lease, **why)

    await end(1, "away", IMAGE)
    await end(2, "away", FACES)
    await end(3, "refused", FACES, is_late=True)
    await end(4, "refused", FACES)
    await end(5, "away", IMAGE)
    await bench.accept(6)
    await bench.queue.complete(await bench.lease_one(), {})

    found = [
        (each.code, each.task_type, each.number, each.media_store_id, each.message, each.latest)
        for each in await bench.queue.failures(9)
    ]

    assert found == [
        ("away", IMAGE, 2, 5, "away: 5", NOON + 5000),
        ("refused", FACES, 2, 4, "refused: 4", NOON + 4000),
        ("away", FACES, 1, 2, "away: 2", NOON + 2000),
    ]
    assert [each.media_store_id for each in await bench.queue.failures(1)] == [5]
    await bench.queue.requeue((await bench.queue.batches.of_media(4))[0].job_id)
    assert [each.number for each in await bench.queue.failures(9)] == [2, 1, 1]


async def test_what_ended_last_is_told_first(bench: Bench) -> None:
    for number in range(3):
        await bench.accept(number)
    for lease in reversed(await bench.lease()):
        bench.clock.advance(seconds=1)
        await bench.queue.complete(lease, {})
    await bench.accept(3)

    assert [job.media_store_id for job in await bench.queue.latest(9)] == [0, 1, 2]
    assert [job.media_store_id for job in await bench.queue.latest(1)] == [0]


async def test_only_results_that_are_still_offered_count_as_undelivered(bench: Bench) -> None:
    for number, run_at in enumerate((NOON + 1000, None)):
        await bench.accept(number, IMAGE)
        lease = await bench.lease_one()
        await bench.queue.give_up_sync(lease, {}, run_at=run_at, code="c", message="m")

    assert (await bench.queue.snapshot()).undelivered == 1
