"""A model that runs several passes at a time has batches beside each other, on one lane."""

import asyncio
import logging
import threading
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from daemon.errors import RetryableError
from daemon.urgency import URGENCY
from handlers.image_embedding import ImageEmbeddingInference
from handlers.inference import Batch, Numbers
from handlers.lanes.device import ModelRunner
from handlers.lanes.lane import DeviceLane
from tests import clip_models
from tests.short_memory import BREAKS, Memory, ShortModel
from tests.waiting import until

PASSES = 2
SIZE = 4
CPU = "cpu"


class Wide(ShortModel):
    """Runs two passes of four; a batch whose first number has a gate is held by it."""

    def __init__(self, memory: Memory | None = None) -> None:
        super().__init__(memory or Memory(), device=CPU)
        self.gates: dict[int, threading.Event] = {}
        self.running: list[list[int]] = []
        self.batches: list[list[int]] = []
        self.on: list[str] = []
        self.is_wrong = False

    @property
    def beside(self) -> int:
        return PASSES if self.is_loaded else 1

    @property
    def batch(self) -> Batch | None:
        return Batch(PASSES * SIZE, "as configured", PASSES) if self.is_loaded else None

    def hold(self, *firsts: int) -> None:
        self.gates |= {first: threading.Event() for first in firsts}

    def infer_batch(self, buffers: Sequence[NDArray[Any]]) -> list[int]:
        numbers = [int(buffer[0]) for buffer in buffers]
        self.batches.append(numbers)
        self.on.append(threading.current_thread().name)
        self.running.append(numbers)
        try:
            if numbers[0] in self.gates:
                assert self.gates[numbers[0]].wait(30)
            return super().infer_batch(buffers)
        finally:
            self.running.remove(numbers)

    def self_test(self) -> Numbers:
        if self.is_wrong:
            raise RetryableError("NaN", code="model_error")
        return np.ones(3)


class Narrow(Wide):
    """Runs one batch at a time."""

    @property
    def beside(self) -> int:
        return 1


@asynccontextmanager
async def opened(
    *models: ShortModel, close_seconds: float = 5, **options: Any
) -> AsyncIterator[tuple[DeviceLane, list[ModelRunner[int]]]]:
    lane = DeviceLane(CPU, close_seconds=close_seconds)
    values: dict[str, Any] = {"max_batch": 32, "retry_seconds": 30, **options}
    async with lane:
        runners = [ModelRunner(f"m{n}", model, lane, **values) for n, model in enumerate(models)]
        for runner in runners:
            await runner.__aenter__()
            await runner.load()
        try:
            yield lane, runners
        finally:
            for runner in runners:
                await runner.__aexit__(None, None, None)


def ask(runner: ModelRunner[int], *numbers: int, size: int = 10) -> list[asyncio.Task[int]]:
    return [asyncio.create_task(runner.infer(np.array([number, size]))) for number in numbers]


async def given(tasks: list[asyncio.Task[int]]) -> list[int]:
    async with asyncio.timeout(20):
        return await asyncio.gather(*tasks)


@pytest.fixture(autouse=True)
def two_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("handlers.lanes.device.usable_cores", lambda: PASSES)


async def both_busy(model: Wide, runner: ModelRunner[int]) -> list[asyncio.Task[int]]:
    """Have two batches run beside each other, held: of 0 to 7, and of 8."""
    model.hold(0, 8)
    asked = ask(runner, *range(2 * SIZE))
    await until(lambda: len(model.running) == 1)
    asked += ask(runner, 8)
    await until(lambda: len(model.running) == PASSES)
    return asked


# -- who runs when -----------------------------------------------------------------------------


async def test_a_batch_that_is_done_waits_for_no_other() -> None:
    model = Wide()
    async with opened(model) as (lane, (runner,)):
        asked = await both_busy(model, runner)
        assert lane.in_hand == PASSES
        model.gates[8].set()

        # The first one came earlier, and is still at it.
        assert await given(asked[-1:]) == [8]
        assert model.running == [list(range(8))]
        model.gates[0].set()
        assert await given(asked) == list(range(9))


async def test_what_waits_is_taken_when_a_pass_is_free_and_no_more_than_one_pass_takes() -> None:
    model = Wide()
    async with opened(model) as (_, (runner,)):
        asked = await both_busy(model, runner)
        asked += ask(runner, *range(9, 19))
        model.gates[8].set()
        assert await given(asked[8:]) == list(range(8, 19))
        model.gates[0].set()
        await given(asked)

    assert model.batches[:3] == [list(range(8)), [8], [9, 10, 11, 12]]


async def test_the_end_of_a_backlog_is_shared_by_the_passes() -> None:
    model = Wide()
    async with opened(model) as (_, (runner,)):
        asked = await both_busy(model, runner)
        model.hold(9)
        asked += ask(runner, *range(9, 13))
        model.gates[8].set()
        # One pass would take all four, and the other one would have nothing to do.
        await until(lambda: [9, 10, 11] in model.running)
        model.gates[0].set()
        assert await given(asked[-1:]) == [12]
        assert model.running == [[9, 10, 11]]
        model.gates[9].set()
        await given(asked)


async def test_of_those_that_wait_the_most_urgent_has_the_next_free_pass() -> None:
    model = Wide()
    async with opened(model) as (_, (runner,)):
        asked = await both_busy(model, runner)
        URGENCY.set(5)
        asked += ask(runner, *range(10, 20))
        await asyncio.sleep(0)
        URGENCY.set(4)
        asked += ask(runner, 20)
        await asyncio.sleep(0)
        model.gates[8].set()
        await given(asked[8:])
        model.gates[0].set()
        await given(asked)

    assert model.batches[2][0] == 20


async def test_too_few_for_all_passes_have_the_machine_for_themselves() -> None:
    model = Wide()
    model.hold(0)
    async with opened(model) as (lane, (runner,)):
        asked = ask(runner, 0)
        await until(lambda: model.running)
        asked += ask(runner, 1, 2, 3)
        for _ in range(50):
            await asyncio.sleep(0)
        assert (model.running, lane.in_hand) == ([[0]], 1)
        model.gates[0].set()
        assert await given(asked) == [0, 1, 2, 3]

    # The second one is enough for both passes, and goes beside whatever comes.
    assert [name.startswith("lane-cpu-beside") for name in model.on] == [False, True]


async def test_another_model_has_the_lane_for_itself_and_soon() -> None:
    model, other = Wide(), Narrow()
    other.hold(100)
    async with opened(model, other) as (lane, (runner, faces)):
        asked = await both_busy(model, runner)
        theirs = ask(faces, 100)
        await asyncio.sleep(0)
        asked += ask(runner, *range(9, 30))
        model.gates[8].set()
        await until(lambda: len(model.running) == 1)
        model.gates[0].set()
        # All that the first model asked later comes later.
        await until(lambda: other.running)
        await until(lambda: lane.in_hand == PASSES)
        for _ in range(50):
            await asyncio.sleep(0)
        assert (model.running, other.running) == ([], [[100]])
        other.gates[100].set()
        assert await given(asked) == list(range(30))
        assert await given(theirs) == [100]

    # What waits for another model's batch goes as one, of as many as all passes take.
    assert model.batches[2] == list(range(9, 17))


async def test_an_urgent_picture_goes_before_those_that_waited_for_another_model() -> None:
    model, other = Wide(), Narrow()
    other.hold(100)
    async with opened(model, other) as (_, (runner, faces)):
        theirs = ask(faces, 100)
        await until(lambda: other.running)
        URGENCY.set(5)
        asked = ask(runner, *range(10, 18))
        for _ in range(50):
            await asyncio.sleep(0)
        URGENCY.set(4)
        asked += ask(runner, 20)
        for _ in range(50):
            await asyncio.sleep(0)
        other.gates[100].set()
        await given(asked + theirs)

    assert model.batches[0][0] == 20


# -- what goes wrong ---------------------------------------------------------------------------


async def test_a_batch_for_which_there_is_no_memory_goes_down_the_ladder() -> None:
    model = Wide(Memory(cpu=60))
    async with opened(model) as (_, (runner,)):
        assert await given(ask(runner, *range(8))) == list(range(8))

        assert runner.memory_steps["halve_batch"] >= 1
        assert runner.degradation is not None
        # And from then on it goes by the ladder alone.
        model.on.clear()
        assert await given(ask(runner, *range(8))) == list(range(8))
        assert set(model.on) == {"lane-cpu"}


async def test_a_picture_that_the_model_cannot_bear_fails_alone() -> None:
    model = Wide()
    async with opened(model) as (_, (runner,)):
        found = await asyncio.gather(*ask(runner, 1, BREAKS, 3, 4), return_exceptions=True)

    assert [str(each) for each in found] == ["1", "it breaks", "3", "4"]
    assert runner.degradation is None


async def test_a_model_that_gives_wrong_results_gives_none_beside_either() -> None:
    model = Wide()
    async with opened(model) as (_, (runner,)):
        model.is_wrong = True
        await runner.test()
        model.batches.clear()
        found = await asyncio.gather(*ask(runner, 1, 2, 3), return_exceptions=True)

    assert all("self-test" in str(each) for each in found)
    assert model.batches == []


async def test_the_call_that_runs_longest_is_the_one_that_is_watched() -> None:
    model = Wide()
    async with opened(model) as (lane, (runner,)):
        asked = await both_busy(model, runner)
        hanging = lane.call
        assert hanging is not None
        assert (hanging.model, hanging.work, len(hanging.contexts)) == ("m0", "infer", 8)
        for number in range(20, 40):
            model.gates[8].set()
            assert await given(ask(runner, number)) == [number]
            assert lane.call is hanging
        model.gates[0].set()
        await given(asked)
        assert lane.call is None


async def test_a_lane_is_left_behind_where_a_batch_beside_others_hangs(
    caplog: pytest.LogCaptureFixture,
) -> None:
    model = Wide()
    caplog.set_level(logging.ERROR)
    try:
        async with opened(model, close_seconds=0.05) as (lane, (runner,)):
            asked = await both_busy(model, runner)
            model.gates[8].set()
            await given(asked[-1:])
        assert lane.is_abandoned
        assert "infer of m0 does not end: it is left behind" in caplog.messages
    finally:
        model.gates[0].set()
        await asyncio.gather(*asked, return_exceptions=True)


async def test_threads_are_used_again_and_all_have_ended_after_a_close() -> None:
    model = Wide()
    before = set(threading.enumerate())
    async with opened(model) as (_, (runner,)):
        for number in range(20):
            await given(ask(runner, *range(100 * number, 100 * number + 17)))
        beside = {name for name in model.on if "beside" in name}
    assert 1 <= len(beside) <= PASSES
    await until(lambda: set(threading.enumerate()) <= before)


# -- CLIP itself -------------------------------------------------------------------------------


async def test_clip_gives_the_same_vectors_beside_others_although_it_is_unloaded() -> None:
    settings = clip_models.settings(clip__weights="untrained", clip__passes=2, clip__batch_size=2)
    inference = ImageEmbeddingInference(settings=settings)
    rng = np.random.default_rng(1)
    crops = list(rng.integers(0, 256, (12, 224, 224, 3), dtype=np.uint8))
    expected = np.stack([clip_models.untrained().infer(crop) for crop in crops])
    async with DeviceLane(CPU) as lane, ModelRunner("clip", inference, lane, max_batch=32) as clip:
        await clip.load()
        asked = [asyncio.create_task(clip.infer(crop)) for crop in crops]
        await until(lambda: lane.in_hand > 1)
        await lane.run(inference.unload)
        async with asyncio.timeout(150):
            found = np.stack(await asyncio.gather(*asked))

    assert (found * expected).sum(axis=1).min() > 0.999999
