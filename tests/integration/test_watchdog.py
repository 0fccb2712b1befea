"""The watchdog on loops and calls that are slow, frozen, or come back after all."""

import asyncio
import threading
import time
from collections.abc import Callable
from contextvars import Context, copy_context
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest

from daemon.jobs import Job, JobState, TaskType
from daemon.logs import about
from daemon.worker.watchdog import EXIT_STALLED, LOADS_LONGER, Watchdog
from handlers.lanes.device import ModelRunner
from handlers.lanes.lane import DeviceLane
from tests.short_memory import Memory, ShortModel
from tests.waiting import until

STALL = 0.3


@dataclass
class Busy:
    """What the lane of a test is busy with."""

    work: str = "infer"
    number: int = 1
    contexts: tuple[Context, ...] = ()
    model: str = "clip"


@pytest.fixture
def ends() -> list[int]:
    return []


def watchdog(ends: list[int], seconds: float = STALL, **options: Any) -> Watchdog:
    return Watchdog(stall_seconds=seconds, end=ends.append, **options)


class LanesAlone(Watchdog):
    """Minds no loop: a busy machine may let one wait for longer than these tests say."""

    def _look_at_loop(self, _awake: float) -> None:
        pass


def lanes_watchdog(ends: list[int], seconds: float = STALL) -> Watchdog:
    return LanesAlone(stall_seconds=seconds, end=ends.append)


def context_of(job_id: str) -> Context:
    job = Job(
        job_id=job_id,
        task_type=TaskType.IMAGE_EMBEDDING,
        media_store_id=1,
        priority=5,
        status=JobState.PROCESSING,
        created_at=0,
    )
    with about(job):
        return copy_context()


async def test_a_call_that_hangs_is_told_with_its_jobs_and_ends_the_daemon(
    ends: list[int], caplog: pytest.LogCaptureFixture
) -> None:
    busy = Busy(contexts=(context_of("a"), context_of("b"), Context()))
    looks: list[tuple[bool, bool]] = []

    def call() -> Busy:
        # Asked by the watchdog's thread: this loop may be late.
        looks.append((watching.stall is not None, watching._left is not None))
        return busy

    with lanes_watchdog(ends) as watching:
        watching.start(call)
        async with asyncio.timeout(60):
            await watching.is_over.wait()
        stall = watching.stall

    assert (True, False) in looks, "it is told before the end begins"
    assert stall is not None
    assert stall.model == "clip"
    assert set(stall.job_ids) == {"a", "b"}
    assert "it has the pictures of a, b" in caplog.messages[0]
    assert ends == []


async def test_a_call_that_comes_back_after_all_ends_nothing(
    ends: list[int], caplog: pytest.LogCaptureFixture
) -> None:
    next_calls = [Busy(number=2)]
    is_told = threading.Event()

    def call() -> Busy | None:
        # Asked by the watchdog's thread: it comes back in time, however late this loop is.
        if watching.stall is not None:
            is_told.set()
        if is_told.is_set():
            return next_calls.pop() if next_calls else None
        return Busy()

    with lanes_watchdog(ends, 0.6) as watching:
        watching.start(call)
        await until(lambda: is_told.is_set() and watching.stall is None)
        await asyncio.sleep(1.5)

        assert not watching.is_over.is_set()
        assert "clip goes on after all" in caplog.messages


async def test_a_lane_that_hangs_is_told_beside_one_that_goes_on(
    ends: list[int], caplog: pytest.LogCaptureFixture
) -> None:
    busy, hanging = Busy(model="clip"), Busy(model="faces")

    def next_call() -> Busy:
        busy.number += 1
        return busy

    calls: list[Busy | None] = [hanging]
    with lanes_watchdog(ends, 0.6) as watching:
        watching.start(next_call, lambda: calls[0])
        await until(lambda: watching.stall is not None)
        stall = watching.stall
        calls[0] = None
        await until(lambda: watching.stall is None)

    assert stall is not None
    assert stall.model == "faces"
    assert "faces goes on after all" in caplog.messages
    assert not any("clip" in message for message in caplog.messages)


async def test_of_two_lanes_that_hang_both_end_the_daemon(ends: list[int]) -> None:
    first, second = Busy(model="clip"), Busy(model="faces")
    calls: list[Busy | None] = [first, second]
    with lanes_watchdog(ends) as watching:
        watching.start(lambda: calls[0], lambda: calls[1])
        await until(lambda: watching.stall is not None)
        calls[0] = None
        # Read once: the watchdog's thread may change it meanwhile.
        await until(lambda: getattr(watching.stall, "model", None) == "faces")
        async with asyncio.timeout(60):
            await watching.is_over.wait()


async def test_many_short_calls_are_no_hang(ends: list[int]) -> None:
    busy = Busy()

    def next_call() -> Busy:
        busy.number += 1
        return busy

    with lanes_watchdog(ends) as watching:
        watching.start(next_call)
        await asyncio.sleep(4 * STALL)

        assert watching.stall is None
        assert ends == []


async def test_a_load_may_take_longer(ends: list[int]) -> None:
    with lanes_watchdog(ends, 0.2) as watching:
        began = time.monotonic()
        watching.start(lambda: Busy(work="load"))
        await until(lambda: watching.stall is not None)

        # The time of the watchdog's looks is never more than that of the wall.
        assert time.monotonic() - began >= 0.2 * LOADS_LONGER


async def test_a_loop_that_hangs_ends_the_process(
    ends: list[int], caplog: pytest.LogCaptureFixture
) -> None:
    with watchdog(ends) as watching:
        watching.start(lambda: None)
        hang_here(lambda: bool(ends))

    assert set(ends) == {EXIT_STALLED}
    assert "hang_here" in caplog.messages[0]


def hang_here(is_over: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 30
    while not is_over() and time.monotonic() < deadline:
        time.sleep(0.01)


async def test_a_machine_that_slept_hung_nowhere(ends: list[int]) -> None:
    nights = iter(range(0, 10**9, 3600))
    with watchdog(ends, 2.0, clock=lambda: float(next(nights))) as watching:
        watching.start(lambda: None)
        # Each look is an hour after the one before, and counts as twice what was meant: 0.4 s.
        await asyncio.sleep(0.9)

        assert ends == []


async def test_a_stop_that_does_not_end_is_ended(ends: list[int]) -> None:
    with watchdog(ends) as watching:
        watching.start(lambda: None)
        watching.expect_end(0.2)
        await until(lambda: bool(ends))

    assert ends[0] == EXIT_STALLED


async def test_nothing_is_watched_where_that_is_switched_off(ends: list[int]) -> None:
    # Those of other tests may end meanwhile.
    before = set(threading.enumerate())
    with watchdog(ends, 0) as watching:
        watching.start(Busy)
        watching.expect_end(0)

        assert set(threading.enumerate()) <= before


async def test_a_lane_that_hangs_is_left_behind_and_says_what_it_was_busy_with(
    caplog: pytest.LogCaptureFixture,
) -> None:
    go, entered = threading.Event(), threading.Event()

    class Hanging(ShortModel):
        def infer_batch(self, buffers: Any) -> list[int]:
            entered.set()
            go.wait(30)
            return super().infer_batch(buffers)

    lane = DeviceLane(close_seconds=0.05)
    try:
        async with lane, ModelRunner("m", Hanging(Memory()), lane) as runner:
            asking = asyncio.create_task(runner.infer(np.array([1, 10])))
            await asyncio.to_thread(entered.wait, 30)
            waiting = asyncio.create_task(lane.run(lambda: 1))
            call = lane.call
    finally:
        go.set()
    found = await asyncio.gather(asking, waiting, return_exceptions=True)

    assert call is not None
    assert (call.model, call.work, len(call.contexts)) == ("m", "infer", 1)
    assert lane.is_abandoned
    assert "infer of m does not end: it is left behind" in caplog.messages
    # Nobody waits for ever.
    assert all(isinstance(each, BaseException) for each in found)


async def test_a_lane_that_is_done_is_closed_without_a_word() -> None:
    lane = DeviceLane()
    async with lane:
        assert await lane.run(lambda: 7) == 7
        with pytest.raises(ZeroDivisionError):
            await lane.run(lambda: 1 // 0)
        assert lane.call is None

    assert not lane.is_abandoned
    with pytest.raises(RuntimeError, match="closed"):
        await lane.run(lambda: 7)
