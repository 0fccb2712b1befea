"""A model that nobody uses gives its memory back, and no job ever notices."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from itertools import count

from handlers.handler_set import HandlerSet
from handlers.lanes.device import ModelRunner
from handlers.lanes.lane import DeviceLane
from tests.integration.test_little_memory import picture
from tests.short_memory import Memory, ShortModel
from tests.waiting import until

IDLE = 0.01


class Clock:
    """Seconds that only a test moves: a machine that stands still is no model that nobody uses."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


@asynccontextmanager
async def runner(model: ShortModel, clock: Callable[[], float]) -> AsyncIterator[ModelRunner[int]]:
    async with (
        DeviceLane() as lane,
        ModelRunner("m", model, lane, max_batch=4, idle_seconds=IDLE) as found,
    ):
        life = found.copies[0].life
        life._clock, life._used_at = clock, clock()
        yield found


async def test_an_idle_model_is_unloaded_and_the_next_job_loads_it() -> None:
    model, clock = ShortModel(Memory()), Clock()
    async with runner(model, clock) as found:
        handlers = HandlerSet(runners=[found])
        assert await found.infer(picture(1)) == 1
        loaded = await handlers.tell_models()
        clock.now += IDLE
        await until(lambda: found.idle_unloads == 1)

        assert loaded["m"]["loaded"] is True
        assert await handlers.check_models() == {"m": {"loaded": False}}
        assert model.memory.used == {"cuda:0": 0, "cpu": 0}
        assert await found.infer(picture(2)) == 2


async def test_a_preloaded_model_is_unloaded_too() -> None:
    clock = Clock()
    async with runner(ShortModel(Memory()), clock) as found:
        await found.load()
        assert found.is_loaded

        clock.now += IDLE
        await until(lambda: found.idle_unloads == 1)
        assert not found.is_loaded


async def test_a_model_in_use_is_not_unloaded() -> None:
    clock, looks = Clock(), list[float]()
    async with runner(ShortModel(Memory()), clock) as found:
        life = found.copies[0].life
        unload_if_idle = life.unload_if_idle

        def look() -> None:
            began = clock()
            unload_if_idle()
            looks.append(began)

        life.unload_if_idle = look  # type: ignore[method-assign]
        for number in range(20):
            await found.infer(picture(number))
            clock.now += 0.6 * IDLE
            await until(lambda: looks and looks[-1] == clock())

        assert found.idle_unloads == 0


async def test_without_a_setting_nothing_is_ever_unloaded() -> None:
    async with (
        DeviceLane() as lane,
        ModelRunner("m", ShortModel(Memory()), lane, max_batch=4, idle_seconds=0) as found,
    ):
        await found.load()
        assert found._tasks == []
        assert found.is_loaded


async def test_no_batch_ever_meets_a_model_that_is_being_unloaded() -> None:
    # Each reading of it is later than the last by more than a model may idle.
    async with runner(ShortModel(Memory()), count().__next__) as found:

        async def ask(numbers: range) -> list[int]:
            answers = []
            for number in numbers:
                answers.append(await found.infer(picture(number)))
                await asyncio.sleep(0.001 * (number % 4))
            return answers

        asked = [range(start, start + 200) for start in range(0, 1000, 200)]
        answers = await asyncio.gather(*(ask(numbers) for numbers in asked))

        assert answers == [list(numbers) for numbers in asked]
        assert found.idle_unloads > 0


async def test_a_model_that_cannot_be_unloaded_works_on() -> None:
    class Stuck(ShortModel):
        def unload(self) -> None:
            self.sizes.append(-1)
            raise RuntimeError("no")

    model = Stuck(Memory())
    async with runner(model, count().__next__) as found:
        await found.load()
        await until(lambda: model.sizes.count(-1) >= 2)

        assert await found.infer(picture(1)) == 1
        assert found.idle_unloads == 0
