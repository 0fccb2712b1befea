"""Jobs whose process died while it held them: who gets them, when, and by which fence."""

from typing import Any

import pytest

from daemon.errors import LeaseLostError
from daemon.jobs import JobState, TaskType
from tests.queue_bench import IMAGE, LEASE, Bench


async def lose(bench: Bench, *media_store_ids: int) -> None:
    """Let the process die that held jobs for these pictures."""
    held = await bench.lease()
    assert [lease.job.media_store_id for lease in held] == list(media_store_ids)
    bench.clock.advance(seconds=LEASE + 1)
    await bench.queue.reclaim()


async def is_due(bench: Bench, task_type: TaskType = IMAGE) -> bool:
    """Whether the worker would stop everything for a suspect now."""
    # The worker looks for other jobs all the while, which also ends what waits for a moment.
    assert await bench.lease(task_type) == []
    return await bench.queue.has_suspect([task_type])


async def test_who_held_a_suspect_before_settles_nothing_any_more(bench: Bench) -> None:
    await bench.accept(1)
    zombie = await bench.lease_one()
    bench.clock.advance(seconds=LEASE + 1)
    await bench.queue.reclaim()

    lease = await bench.suspect()

    assert lease.fence > zombie.fence
    with pytest.raises(LeaseLostError):
        await bench.queue.complete(zombie, {})
    assert await bench.queue.renew([zombie], seconds=LEASE) == set()
    assert (await bench.queue.complete(lease, {})).status is JobState.COMPLETED


async def test_a_job_that_never_lost_a_lease_is_no_suspect(bench: Bench) -> None:
    await bench.accept(1)

    assert not await bench.queue.has_suspect([IMAGE])
    assert await bench.queue.lease_suspect([IMAGE], seconds=LEASE) is None


async def test_a_suspect_that_runs_or_has_ended_is_waited_for_no_more(bench: Bench) -> None:
    await bench.accept(1)
    await lose(bench, 1)
    lease = await bench.suspect()

    assert not await bench.queue.has_suspect([IMAGE])
    await bench.queue.complete(lease, {})
    assert not await bench.queue.has_suspect([IMAGE])


async def test_the_most_urgent_suspect_is_next(bench: Bench) -> None:
    for number, priority in enumerate((3, 8, 5), start=1):
        await bench.accept(number, priority=priority)
    await lose(bench, 2, 3, 1)

    found = [(await bench.suspect()).job.media_store_id for _ in range(3)]

    assert found == [2, 3, 1]


async def test_a_suspect_that_waits_for_its_moment_is_left_alone_until_then(bench: Bench) -> None:
    await bench.accept(1)
    await lose(bench, 1)
    moment = bench.clock() + 5000
    await bench.queue.retry(await bench.suspect(), run_at=moment, code="c", message="m")

    # Found and not leased, it would have the worker stop everything again and again.
    assert not await is_due(bench)
    assert await bench.queue.lease_suspect([IMAGE], seconds=LEASE) is None

    bench.clock.advance(seconds=5)
    assert await is_due(bench)
    assert (await bench.suspect()).job.attempt == 3


async def test_a_pause_that_ends_by_itself_holds_up_a_suspect_for_as_long(bench: Bench) -> None:
    await bench.accept(1)
    await lose(bench, 1)
    await bench.queue.pauses.pause(IMAGE, seconds=60)

    bench.clock.advance(seconds=59.999)
    assert not await is_due(bench)
    assert await bench.queue.lease_suspect([IMAGE], seconds=LEASE) is None

    bench.clock.advance(seconds=0.001)
    assert await is_due(bench)
    assert (await bench.suspect()).job.media_store_id == 1


@pytest.mark.parametrize("by_itself", [True, False])
async def test_a_pause_is_no_part_of_a_suspects_wait_for_a_dependency(
    bench: Bench, *, by_itself: bool
) -> None:
    await bench.accept(1)
    await lose(bench, 1)
    away: dict[str, Any] = {"run_at": bench.clock(), "code": "away", "message": "m"}
    await bench.queue.retry(await bench.suspect(), **away, gives_back=True)
    await bench.queue.pauses.pause(IMAGE, seconds=60 if by_itself else None)
    bench.clock.advance(seconds=61)
    if not by_itself:
        await bench.queue.pauses.resume(IMAGE)

    again = await bench.suspect()

    assert again.job.waiting_since is None
    await bench.queue.retry(again, **away, gives_back=True)
    began = bench.clock()
    bench.clock.advance(seconds=5)
    # What began after the pause goes on.
    assert (await bench.suspect()).job.waiting_since == began
