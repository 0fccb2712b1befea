"""A stage: batches by themselves, back-pressure, and one bad item harms nobody."""

import asyncio
import gc
import weakref
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager

import pytest

from daemon.stage import Stage, StageClosedError
from daemon.urgency import EVERY, URGENCY

Outcome = int | Exception


class Oven:
    """A batch function that waits until the test lets it go on."""

    def __init__(self, *, is_open: bool = False) -> None:
        self.batches: list[list[int]] = []
        self.running = 0
        self.most = 0
        self.began = asyncio.Event()
        self.go = asyncio.Event()
        if is_open:
            self.go.set()

    async def bake(self, items: Sequence[int]) -> list[Outcome]:
        self.batches.append(list(items))
        self.running += 1
        self.most = max(self.most, self.running)
        self.began.set()
        try:
            await self.go.wait()
        finally:
            self.running -= 1
        return [ValueError(str(item)) if item < 0 else item * 2 for item in items]


async def turns(count: int = 20) -> None:
    """Let everything that can run do so."""
    for _ in range(count):
        await asyncio.sleep(0)


def ask(stage: Stage[int, int], *items: int) -> list[asyncio.Task[int]]:
    return [asyncio.create_task(stage.submit(item)) for item in items]


async def test_an_idle_stage_runs_a_single_item_at_once() -> None:
    oven = Oven(is_open=True)
    async with Stage("s", oven.bake, max_batch=8) as stage:
        assert await stage.submit(21) == 42

    assert oven.batches == [[21]]


async def test_what_waits_becomes_the_next_batch() -> None:
    oven = Oven()
    async with Stage("s", oven.bake, max_batch=8) as stage:
        first = ask(stage, 0)
        await oven.began.wait()
        others = ask(stage, 1, 2, 3)
        await turns()
        oven.go.set()

        assert await asyncio.gather(*first, *others) == [0, 2, 4, 6]

    assert oven.batches == [[0], [1, 2, 3]]


async def test_a_batch_is_never_larger_than_allowed() -> None:
    oven = Oven(is_open=True)
    async with Stage("s", oven.bake, max_batch=3) as stage:
        await asyncio.gather(*ask(stage, *range(10)))

    assert max(map(len, oven.batches)) == 3
    assert sorted(item for batch in oven.batches for item in batch) == list(range(10))


async def test_no_more_batches_run_at_once_than_there_are_workers() -> None:
    oven = Oven()
    async with Stage("s", oven.bake, workers=2) as stage:
        asked = ask(stage, *range(6))
        await turns()
        assert (oven.running, stage.depth) == (2, 4)
        oven.go.set()
        await asyncio.gather(*asked)

    assert oven.most == 2


async def test_the_most_urgent_caller_is_next_whoever_came_before() -> None:
    oven = Oven()
    async with Stage("s", oven.bake, max_batch=2) as stage:
        first = ask(stage, 0)
        await oven.began.wait()
        asked = []
        for item, urgency in ((1, 500), (2, 500), (3, 400), (4, 500), (5, 300)):
            token = URGENCY.set(urgency)
            asked += ask(stage, item)
            URGENCY.reset(token)
        await turns()
        oven.go.set()
        await asyncio.gather(*first, *asked)

    assert oven.batches == [[0], [5, 3], [1, 2], [4]]


async def test_a_less_urgent_caller_does_not_wait_out_a_backlog() -> None:
    oven = Oven()
    async with Stage("s", oven.bake) as stage:
        asked = ask(stage, 0)
        await oven.began.wait()
        for item, urgency in ((1, 500), *((item, 300) for item in range(2, 30))):
            token = URGENCY.set(urgency)
            asked += ask(stage, item)
            URGENCY.reset(token)
        await turns()
        oven.go.set()
        await asyncio.gather(*asked)

    assert [1] in oven.batches[: EVERY + 1]
    others = [batch for batch in oven.batches if batch != [1]]
    assert others == sorted(others)


async def test_nothing_is_taken_before_there_is_a_turn_to_run_it() -> None:
    oven, free = Oven(is_open=True), asyncio.Event()
    ended: list[str] = []

    @asynccontextmanager
    async def turn() -> AsyncIterator[Callable[[Sequence[int]], Awaitable[list[Outcome]]]]:
        await free.wait()
        yield oven.bake
        ended.append("turn")

    async with Stage[int, int]("s", None, max_batch=4, workers=3, turn=turn) as stage:
        asked = [asyncio.create_task(ranked(stage, 500, item)) for item in (1, 2)]
        await turns()
        asked += [
            asyncio.create_task(ranked(stage, rank, item))
            for rank, item in ((300, 3), (500, 4), (500, 5))
        ]
        await turns()
        waiting = stage.depth
        free.set()

        assert await asyncio.gather(*asked) == [2, 4, 6, 8, 10]
        await turns()

    assert (waiting, oven.batches) == (5, [[3, 1, 2, 4], [5]])
    assert ended == ["turn", "turn"], "nobody takes a turn to do nothing"


async def test_a_turn_that_came_too_late_is_given_back() -> None:
    oven, free = Oven(is_open=True), asyncio.Event()
    held = 0

    @asynccontextmanager
    async def turn() -> AsyncIterator[Callable[[Sequence[int]], Awaitable[list[Outcome]]]]:
        nonlocal held
        await free.wait()
        held += 1
        yield oven.bake
        held -= 1

    async with Stage[int, int]("s", None, turn=turn) as stage:
        (left,) = ask(stage, 1)
        await turns()
        left.cancel()
        await turns()
        free.set()
        await turns()

        assert (held, oven.batches) == (0, [])
        assert await stage.submit(2) == 4


def test_a_stage_that_nothing_runs_is_refused() -> None:
    with pytest.raises(ValueError, match="run_batch"):
        Stage[int, int]("s", None)


async def ranked(stage: Stage[int, int], rank: int, item: int) -> int:
    URGENCY.set(rank)
    return await stage.submit(item)


async def test_a_caller_outside_of_any_job_goes_first() -> None:
    oven = Oven()
    async with Stage("s", oven.bake) as stage:
        token = URGENCY.set(1)
        asked = ask(stage, 0, 1)
        URGENCY.reset(token)
        await oven.began.wait()
        asked += ask(stage, 2)
        await turns()
        oven.go.set()
        await asyncio.gather(*asked)

    assert oven.batches == [[0], [2], [1]]


async def test_outcomes_go_to_those_they_belong_to() -> None:
    oven = Oven(is_open=True)
    async with Stage("s", oven.bake, max_batch=8) as stage:
        outcomes = await asyncio.gather(*ask(stage, 1, -2, 3), return_exceptions=True)

    assert [outcomes[0], outcomes[2]] == [2, 6]
    assert isinstance(outcomes[1], ValueError)


async def test_a_batch_that_raises_is_told_to_everyone_in_it() -> None:
    async def fail(items: Sequence[int]) -> list[int]:
        raise OSError("disk")

    async with Stage("s", fail, max_batch=8) as stage:
        outcomes = await asyncio.gather(*ask(stage, 1, 2), return_exceptions=True)

    assert [type(outcome) for outcome in outcomes] == [OSError, OSError]


async def test_a_batch_that_raises_does_not_end_the_stage() -> None:
    calls = 0

    async def fail_once(items: Sequence[int]) -> list[int]:
        nonlocal calls
        calls += 1
        if calls == 1:
            raise OSError("disk")
        return list(items)

    async with Stage("s", fail_once) as stage:
        with pytest.raises(OSError, match="disk"):
            await stage.submit(1)

        assert await stage.submit(2) == 2


@pytest.mark.parametrize("outcomes", [[], [1], [1, 2, 3]])
async def test_a_wrong_number_of_outcomes_is_an_error_for_all(outcomes: list[int]) -> None:
    go = asyncio.Event()

    async def miscount(items: Sequence[int]) -> list[int]:
        await go.wait()
        return outcomes if len(items) == 2 else list(items)

    async with Stage("s", miscount, max_batch=2) as stage:
        first = ask(stage, 9)
        await turns()
        asked = ask(stage, 1, 2)
        await turns()
        go.set()
        told = await asyncio.gather(*first, *asked, return_exceptions=True)

    assert told[0] == 9
    assert [str(each) for each in told[1:]] == [
        f"stage s: {len(outcomes)} outcomes for 2 items"
    ] * 2


async def test_a_caller_that_left_is_not_run() -> None:
    oven = Oven()
    async with Stage("s", oven.bake, max_batch=8) as stage:
        first = ask(stage, 0)
        await oven.began.wait()
        stays, leaves = ask(stage, 1, 2)
        await turns()
        leaves.cancel()
        await turns()
        oven.go.set()
        assert await asyncio.gather(*first, stays) == [0, 2]

    assert oven.batches == [[0], [1]]


async def test_a_batch_runs_on_without_a_caller_that_left() -> None:
    oven = Oven()
    async with Stage("s", oven.bake, max_batch=8) as stage:
        first = ask(stage, 0)
        await oven.began.wait()
        stays, leaves = ask(stage, 1, 2)
        await turns()
        oven.began.clear()
        oven.go.set()
        oven.go.clear()
        await oven.began.wait()
        leaves.cancel()
        await turns()
        oven.go.set()

        assert await asyncio.gather(*first, stays) == [0, 2]

    assert oven.batches == [[0], [1, 2]]


async def test_a_caller_can_stay_to_the_end_of_its_batch_though_it_is_cancelled() -> None:
    # A picture was removed while its cancelled job's vector was on the way, which was stored then.
    oven = Oven()
    async with Stage("s", oven.bake) as stage:
        begun, waiting = (asyncio.create_task(stage.submit_to_end(item)) for item in (1, 2))
        await oven.began.wait()
        for task in (begun, waiting):
            task.cancel()
        await turns()

        assert (begun.done(), waiting.cancelled()) == (False, True)

        oven.go.set()
        with pytest.raises(asyncio.CancelledError):
            await begun
        assert (oven.running, oven.batches) == (0, [[1]])


async def test_what_failed_after_its_caller_was_cancelled_is_no_lost_error() -> None:
    # Of this loop alone: what an earlier test has left behind may be collected here.
    complaints: list[object] = []
    asyncio.get_running_loop().set_exception_handler(
        lambda _loop, context: complaints.append(context)
    )
    oven = Oven()
    async with Stage("s", oven.bake) as stage:
        staying = asyncio.create_task(stage.submit_to_end(-1))
        await oven.began.wait()
        staying.cancel()
        await turns()
        oven.go.set()
        with pytest.raises(asyncio.CancelledError):
            await staying
    del staying
    gc.collect()

    assert complaints == []


async def test_closing_tells_everyone_who_waits() -> None:
    oven = Oven()
    stage: Stage[int, int] = Stage("s", oven.bake)
    async with stage:
        asked = ask(stage, 0, 1, 2, 3)
        await turns()

    told = await asyncio.wait_for(asyncio.gather(*asked, return_exceptions=True), 5)
    assert [type(each) for each in told] == [StageClosedError] * 4


async def test_a_closed_stage_takes_nothing() -> None:
    stage: Stage[int, int] = Stage("s", Oven(is_open=True).bake)
    async with stage:
        pass

    with pytest.raises(StageClosedError):
        await stage.submit(1)


async def test_closing_twice_is_safe() -> None:
    stage: Stage[int, int] = Stage("s", Oven(is_open=True).bake)
    async with stage:
        await stage.close()

    await stage.close()


async def test_closing_leaves_no_error_that_nobody_asked_for() -> None:
    loop = asyncio.get_running_loop()
    complaints: list[object] = []
    loop.set_exception_handler(lambda _loop, context: complaints.append(context))
    oven = Oven()
    async with Stage("s", oven.bake) as stage:
        asked = ask(stage, 0, 1)
        await turns()
        for task in asked:
            task.cancel()

    await asyncio.wait(asked)
    del asked, task
    gc.collect()
    assert complaints == []


async def test_the_workers_are_named_after_their_stage() -> None:
    async with Stage("decode", Oven().bake, workers=2):
        names = {task.get_name() for task in asyncio.all_tasks()}

    assert {"decode-0", "decode-1"} <= names


async def test_an_idle_stage_keeps_no_picture_alive() -> None:
    class Picture:
        """Something large that only the caller should own."""

    async def run(batch: Sequence[Picture]) -> Sequence[int | Exception]:
        return [1 for _ in batch]

    async with Stage("test", run) as stage:
        picture = Picture()
        watched = weakref.ref(picture)
        await stage.submit(picture)
        del picture

        gc.collect()
        assert watched() is None
