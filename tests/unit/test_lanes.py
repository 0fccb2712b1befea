"""Several lanes, a copy of each model on each: who has the next batch, what a failing one costs."""

import asyncio
import logging
import queue
import threading
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from daemon.errors import ConfigError, DependencyDownError, OutOfMemoryError, RetryableError
from daemon.readings import Readings
from daemon.wire.worker import LoadedModel
from handlers.handler_set import HandlerSet
from handlers.image_embedding import ImageEmbeddingInference
from handlers.inference import Buffers, Numbers
from handlers.lanes.device import ModelRunner
from handlers.lanes.lane import DeviceLane, turn_on
from handlers.lanes.lane_threads import LaneThreads
from handlers.lanes.self_test import synthetic_picture
from tests import clip_models
from tests.short_memory import BREAKS, GPU, WEIGHTS, Memory, ShortModel
from tests.waiting import until

OTHER = "cuda:1"
BOTH = (GPU, OTHER)


class Gpu(ShortModel):
    """A copy on one of two GPUs; `gate` holds its passes up, `is_dead` makes them fail."""

    def __init__(self, device: str, memory: Memory | None = None) -> None:
        super().__init__(memory or Memory(**{OTHER: 1000}), device=device)
        self.gate = threading.Event()
        self.gate.set()
        self.running = threading.Event()
        self.is_dead = False
        self.clings = False
        self.unloads = 0
        """Tries among them."""
        self.weights = "short"
        self.prepared: list[int] = []
        self.looks_ahead = False

    @property
    def fingerprint(self) -> str:
        return self.weights

    @property
    def prepares(self) -> bool:
        return self.looks_ahead

    def prepare(self, buffers: Buffers) -> Buffers:
        self.prepared.append(len(buffers))
        return tuple(buffers)

    def infer_batch(self, buffers: Sequence[NDArray[Any]]) -> list[int]:
        self.running.set()
        assert self.gate.wait(30)
        if self.is_dead:
            self.sizes.append(-len(buffers))
            raise RetryableError("CUDA error: unspecified launch failure", code="model_error")
        return super().infer_batch(buffers)

    def self_test(self) -> Numbers:
        if self.is_dead:
            raise RetryableError("CUDA error: unspecified launch failure", code="model_error")
        return np.ones(3)

    def unload(self) -> None:
        self.unloads += 1
        if self.clings:
            raise RuntimeError("CUDA error: unspecified launch failure")
        super().unload()

    def hold(self) -> None:
        self.gate.clear()
        self.running.clear()


class Rig:
    """Two lanes, and models on both."""

    def __init__(self, stack: AsyncExitStack, lanes: list[DeviceLane]) -> None:
        self._stack = stack
        self.lanes = lanes

    async def add(self, *models: Gpu, name: str = "m", **options: Any) -> ModelRunner[int]:
        (first, lane), *others = zip(models, self.lanes, strict=True)
        values: dict[str, Any] = {"max_batch": 4, "retry_seconds": 30, **options}
        runner = ModelRunner(name, first, lane, others=others, **values)
        await self._stack.enter_async_context(runner)
        await runner.resolve()
        return runner


@asynccontextmanager
async def lanes(*names: str) -> AsyncIterator[Rig]:
    async with AsyncExitStack() as stack:
        found = [DeviceLane(name, close_seconds=30) for name in names or BOTH]
        for lane in found:
            await stack.enter_async_context(lane)
        yield Rig(stack, found)


def ask(runner: ModelRunner[int], *numbers: int, size: int = 10) -> list[asyncio.Task[Any]]:
    return [
        asyncio.create_task(runner.infer_and_tell(np.array([number, size]))) for number in numbers
    ]


async def told(tasks: list[asyncio.Task[Any]]) -> list[tuple[int, str]]:
    async with asyncio.timeout(20):
        return [(number, ran.device) for number, ran in await asyncio.gather(*tasks)]


async def asked_until(runner: ModelRunner[int], device: str) -> None:
    """Ask until the device answers."""
    async with asyncio.timeout(10):
        for _ in range(1000):
            if await told(ask(runner, 1)) == [(1, device)]:
                return
            await asyncio.sleep(0.01)
    pytest.fail(f"{device} never answered")


async def turns(count: int = 30) -> None:
    for _ in range(count):
        await asyncio.sleep(0)


# -- who has the next batch --------------------------------------------------------------------


async def test_two_gpus_run_two_batches_at_the_same_time() -> None:
    one, two = Gpu(GPU), Gpu(OTHER)
    async with lanes() as rig:
        runner = await rig.add(one, two)
        await runner.load()
        one.hold()
        two.hold()
        first = ask(runner, *range(4))
        await until(one.running.is_set)
        second = ask(runner, *range(4, 8))
        await until(two.running.is_set)
        one.gate.set()
        two.gate.set()

        assert await told(first) == [(number, GPU) for number in range(4)]
        assert await told(second) == [(number, OTHER) for number in range(4, 8)]


async def test_what_waits_while_all_are_busy_is_one_batch_of_whoever_is_free_first() -> None:
    one, two = Gpu(GPU), Gpu(OTHER)
    async with lanes() as rig:
        runner = await rig.add(one, two)
        await runner.load()
        one.hold()
        two.hold()
        running = ask(runner, 0)
        await until(one.running.is_set)
        running += ask(runner, 1)
        await until(two.running.is_set)
        waiting = []
        for number in (2, 3, 4):
            waiting += ask(runner, number)
            await turns()
        two.gate.set()

        assert await told(waiting) == [(2, OTHER), (3, OTHER), (4, OTHER)]
        assert two.sizes == [1, 3], "nobody takes a batch before there is a lane for it"
        one.gate.set()
        await told(running)


async def test_few_pictures_stay_with_the_first_gpu() -> None:
    one, two = Gpu(GPU), Gpu(OTHER)
    async with lanes() as rig:
        runner = await rig.add(one, two)
        for number in range(5):
            assert await told(ask(runner, number)) == [(number, GPU)]

        assert (one.loads, two.loads) == (1, 0)


async def test_a_gpu_that_is_busy_with_another_model_does_not_get_the_batch() -> None:
    faces, clip = (Gpu(GPU), Gpu(OTHER)), (Gpu(GPU), Gpu(OTHER))
    async with lanes() as rig:
        detector = await rig.add(*faces, name="faces")
        embedder = await rig.add(*clip, name="clip")
        faces[0].hold()
        busy = ask(detector, 1)
        await until(faces[0].running.is_set)

        assert await told(ask(embedder, 2)) == [(2, OTHER)]
        faces[0].gate.set()
        assert await told(busy) == [(1, GPU)]


async def test_models_on_one_lane_take_turns() -> None:
    clip, faces = Gpu(GPU), Gpu(GPU)
    clip.looks_ahead = True
    order: list[str] = []

    def noted(name: str, model: Gpu) -> None:
        run = model.infer_batch

        def infer(buffers: Sequence[NDArray[Any]]) -> list[int]:
            order.append(name)
            return run(buffers)

        model.infer_batch = infer  # type: ignore[method-assign]

    noted("clip", clip)
    noted("faces", faces)
    async with lanes(GPU) as rig:
        embedder = await rig.add(clip, name="clip", max_batch=1)
        detector = await rig.add(faces, name="faces", max_batch=1)
        await embedder.load()
        await detector.load()
        clip.hold()
        asked = ask(embedder, *range(6)) + ask(detector, *range(3))
        await until(clip.running.is_set)
        await turns()
        clip.gate.set()
        await told(asked)

    last = max(place for place, name in enumerate(order) if name == "faces")
    assert last <= 6, order
    assert order.count("clip") == 6


async def test_a_turn_whose_caller_went_away_is_the_next_ones() -> None:
    async with lanes(GPU) as rig:
        (lane,) = rig.lanes
        await turn_on({lane: 1})
        gone, next_one = (asyncio.create_task(turn_on({lane: 1})) for _ in range(2))
        await turns()
        lane.leave()
        # It has its turn, and does not know it yet.
        gone.cancel()

        assert await asyncio.wait_for(next_one, 5) is lane
        assert lane.in_hand == 1
        lane.leave()
        assert lane.in_hand == 0


async def test_of_lanes_with_room_the_least_loaded_has_the_turn() -> None:
    async with DeviceLane() as one, DeviceLane() as two:
        rooms = {one: 3, two: 3}
        given = [await turn_on(rooms) for _ in range(4)]
        assert given == [one, two, one, two]

        two.leave()
        two.leave()
        # Both have room, and the first has more in hand.
        assert await turn_on(rooms) is two
        assert (one.in_hand, two.in_hand) == (2, 1)


async def test_who_gave_up_asking_is_in_nobodys_way() -> None:
    async with lanes() as rig:
        one, two = rig.lanes
        for lane in rig.lanes:
            await turn_on({lane: 1})
        gone = asyncio.create_task(turn_on({one: 1, two: 1}))
        await turns()
        gone.cancel()
        await turns()
        two.leave()

        assert await turn_on({one: 1, two: 1}) is two


# -- the next batch, made ready meanwhile ------------------------------------------------------


async def test_the_next_batch_is_prepared_while_a_gpu_works() -> None:
    model = Gpu(GPU)
    model.looks_ahead = True
    async with lanes(GPU) as rig:
        runner = await rig.add(model)
        await runner.load()
        model.hold()
        running = ask(runner, 0)
        await until(model.running.is_set)
        ahead = ask(runner, 1, 2)
        await until(lambda: model.prepared == [2])
        late = ask(runner, 3, 4, 5)
        await turns()

        assert model.prepared == [2], "one batch ahead, and no more"
        model.gate.set()
        await told(running + ahead + late)
        assert model.sizes == [1, 2, 3]


async def test_a_cpu_takes_no_batch_before_it_is_free() -> None:
    model = Gpu("cpu")
    async with lanes("cpu") as rig:
        runner = await rig.add(model)
        await runner.load()
        model.hold()
        running = ask(runner, 0)
        await until(model.running.is_set)
        waiting = []
        for number in (1, 2, 3):
            waiting += ask(runner, number)
            await turns()
        model.gate.set()
        await told(running + waiting)

        assert (model.sizes, model.prepared) == ([1, 3], [])


# -- one that fails ----------------------------------------------------------------------------


async def test_a_gpu_that_is_full_goes_on_alone_and_the_others_take_its_batches() -> None:
    memory = Memory(gpu=WEIGHTS + 5, **{OTHER: 1000})
    one, two = Gpu(GPU, memory), Gpu(OTHER, memory)
    async with lanes() as rig:
        runner = await rig.add(one, two)
        await runner.load()
        first = await told(ask(runner, 0))
        later = [await told(ask(runner, number)) for number in range(1, 6)]

        assert first == [(0, "cpu")], "found out with the batch at hand"
        assert later == [[(number, OTHER)] for number in range(1, 6)]
        assert runner.error is None
        degraded, fit = runner.tell_copies()
        assert (degraded["lane"], degraded["device"]) == (GPU, "cpu")
        assert (fit["lane"], fit["device"], "degraded" in fit) == (OTHER, OTHER, False)


async def test_a_full_gpu_is_tried_again_and_comes_back() -> None:
    memory = Memory(gpu=WEIGHTS + 5, **{OTHER: 1000})
    one, two = Gpu(GPU, memory), Gpu(OTHER, memory)
    async with lanes() as rig:
        runner = await rig.add(one, two, retry_seconds=0.05)
        await runner.load()
        await told(ask(runner, 0))
        memory.room[GPU] = 1000
        await asked_until(runner, GPU)

        assert runner.degradation is None


async def test_what_does_not_fit_on_a_gpu_that_may_not_be_left_goes_to_another() -> None:
    memory = Memory(gpu=WEIGHTS + 5, **{OTHER: 1000})
    one, two = Gpu(GPU, memory), Gpu(OTHER, memory)
    async with lanes() as rig:
        runner = await rig.add(one, two, require_gpu=True)

        found = await told(ask(runner, 1, 2, 3, 4))
        tried = list(one.sizes)
        again = await told(ask(runner, 5))

        assert found == [(number, OTHER) for number in (1, 2, 3, 4)]
        assert memory.used["cpu"] == 0
        assert again == [(5, OTHER)]
        assert one.sizes == tried, "left out for a while"


async def test_a_gpu_that_dies_costs_no_picture() -> None:
    one, two = Gpu(GPU), Gpu(OTHER)
    async with lanes() as rig:
        runner = await rig.add(one, two)
        await runner.load()
        one.is_dead = True
        found = [await told(ask(runner, *range(start, start + 4))) for start in range(0, 12, 4)]

        assert found == [
            [(number, OTHER) for number in range(start, start + 4)] for start in range(0, 12, 4)
        ]
        assert runner.error is None, "the model works"
        dead, alive = runner.tell_copies()
        assert (dead["error"], "error" in alive) == ("model_error", False)
        assert [size for size in one.sizes if size < 0] == [-4, -1, -1, -1, -1], "one batch only"


async def test_a_gpu_that_works_again_gets_batches_again(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    one, two = Gpu(GPU), Gpu(OTHER)
    async with lanes() as rig:
        runner = await rig.add(one, two, retry_seconds=0.05)
        await runner.load()
        one.is_dead = True
        await told(ask(runner, 0))
        one.is_dead = False
        await asked_until(runner, GPU)

        assert f"m runs on {GPU} again" in caplog.messages


async def test_where_all_gpus_die_each_picture_is_told_so() -> None:
    models = Gpu(GPU), Gpu(OTHER)
    async with lanes() as rig:
        runner = await rig.add(*models)
        await runner.load()
        for model in models:
            model.is_dead = True
        found = await asyncio.gather(*ask(runner, 1, 2, 3), return_exceptions=True)

        assert [getattr(each, "code", None) for each in found] == ["model_error"] * 3
        assert runner.error is not None


@pytest.mark.parametrize("names", [(GPU,), BOTH])
@pytest.mark.parametrize("is_loaded", [True, False])
async def test_a_model_that_is_not_to_be_had_costs_no_picture_an_attempt(
    names: Sequence[str], is_loaded: bool
) -> None:
    models = [Gpu(name) for name in names]
    async with lanes(*names) as rig:
        runner = await rig.add(*models)
        if is_loaded:
            await runner.load()
        for model in models:
            model.is_dead = True
            model.absent |= set(BOTH)
        found = await asyncio.gather(*ask(runner, 1, 2, 3), return_exceptions=True)
        later = await asyncio.gather(*ask(runner, 4), return_exceptions=True)

    assert {(type(each), getattr(each, "code", "")) for each in (*found, *later)} == {
        (DependencyDownError, "model_error")
    }


async def test_a_gpu_that_fails_at_letting_go_too_costs_no_picture_an_attempt() -> None:
    model = Gpu(GPU)
    async with lanes(GPU) as rig:
        runner = await rig.add(model)
        await runner.load()
        model.is_dead = model.clings = True
        found = [
            (await asyncio.gather(*ask(runner, 1, 2), return_exceptions=True)) for _ in range(3)
        ]
        model.is_dead = model.clings = False

        assert {
            (type(each), getattr(each, "code", "")) for several in found for each in several
        } == {(DependencyDownError, "model_error")}
        assert await told(ask(runner, 3)) == [(3, GPU)]


async def test_of_a_gpu_that_fails_at_letting_go_too_another_takes_the_batches() -> None:
    one, two = Gpu(GPU), Gpu(OTHER)
    async with lanes() as rig:
        # So short that it is due again with every batch.
        runner = await rig.add(one, two, retry_seconds=1e-6)
        await runner.load()
        one.is_dead = one.clings = True
        found = [await told(ask(runner, number)) for number in range(4)]

    assert found == [[(number, OTHER)] for number in range(4)]


async def test_a_gpu_that_did_not_even_let_go_is_not_asked_with_every_batch() -> None:
    one, two = Gpu(GPU), Gpu(OTHER)
    async with lanes() as rig:
        runner = await rig.add(one, two)
        await runner.load()
        one.is_dead = one.clings = True
        with pytest.raises(RuntimeError, match="launch failure"):
            await runner.test()
        found = [await told(ask(runner, number)) for number in range(4)]

        assert found == [[(number, OTHER)] for number in range(4)]
        assert one.unloads == 2, "by the test, and by one batch"


async def test_a_gpu_that_fails_its_test_at_the_load_is_left_out_for_a_while() -> None:
    one, two = Gpu(GPU), Gpu(OTHER)
    one.is_dead = True
    async with lanes() as rig:
        runner = await rig.add(one, two)
        await runner.load()
        found = [await told(ask(runner, number)) for number in range(4)]

        assert found == [[(number, OTHER)] for number in range(4)]
        assert one.loads == 1


async def test_a_gpu_without_room_for_the_weights_is_left_out_for_a_while() -> None:
    one, two = Gpu(GPU, Memory(gpu=0)), Gpu(OTHER)
    async with lanes() as rig:
        runner = await rig.add(one, two, require_gpu=True)
        found = [await told(ask(runner, number)) for number in range(4)]

        assert found == [[(number, OTHER)] for number in range(4)]
        assert runner.copies[0].life.memory_steps["give_up"] == 1
        assert runner.tell_copies()[0]["error"] == "model_error"


async def test_a_model_alone_that_passes_its_test_again_is_well_after_the_next_picture() -> None:
    model = Gpu(GPU)
    async with lanes(GPU) as rig:
        runner = await rig.add(model)
        await runner.load()
        model.is_dead = True
        await asyncio.gather(*ask(runner, 1), return_exceptions=True)
        model.is_dead = False
        await runner.test()
        assert await told(ask(runner, 2)) == [(2, GPU)]

        assert runner.copies[0].life.is_well


async def test_a_picture_that_breaks_a_model_is_not_handed_round() -> None:
    one, two = Gpu(GPU), Gpu(OTHER)
    async with lanes() as rig:
        runner = await rig.add(one, two)
        await runner.load()
        found = await asyncio.gather(*ask(runner, 1, BREAKS), return_exceptions=True)

        assert isinstance(found[1], RuntimeError)
        assert not isinstance(found[0], BaseException)
        assert found[0][0] == 1
        assert two.sizes == []


async def test_a_gpu_that_is_gone_at_the_start_is_told_and_does_not_end_the_daemon() -> None:
    one, two = Gpu(GPU), Gpu(OTHER)
    one.absent.add(GPU)
    async with lanes() as rig:
        runner = await rig.add(one, two)
        await runner.load()

        assert await told(ask(runner, 1)) == [(1, OTHER)]
        assert runner.load_error is None, "one of them could be loaded"
        health = await HandlerSet(runners=[runner]).check_models()
        model = LoadedModel.model_validate(
            {key: value for key, value in health["m"].items() if key != "batch"}
        )
        assert model.device == OTHER
        assert model.copies is not None
        assert [(copy.lane, copy.loaded, copy.error) for copy in model.copies] == [
            (GPU, False, "model_error"),
            (OTHER, True, None),
        ]


async def test_metrics_tell_what_each_lane_does() -> None:
    one, two = Gpu(GPU), Gpu(OTHER)
    one.absent.add(GPU)
    async with lanes() as rig:
        runner = await rig.add(one, two)
        await runner.load()
        await told(ask(runner, 1, 2, 3))
        handlers = HandlerSet(runners=[runner], lanes=rig.lanes)
        nobody: Any = None
        readings = Readings(
            queue=nobody,
            database=nobody,
            link=nobody,
            worker=nobody,
            watchdog=nobody,
            handlers=handlers,
        )
        found = {
            (each.name.removeprefix("inferd_lane_"), each.labels["lane"]): each.value
            for each in await readings.lanes()
        }
        loaded = [each.labels["device"] for each in await readings.models()]

    assert (found[("fit", GPU)], found[("fit", OTHER)]) == (0, 1)
    assert (found[("batches", GPU)], found[("batches", OTHER)]) == (0, 1)
    assert (found[("inputs", GPU)], found[("inputs", OTHER)]) == (0, 3)
    assert (found[("batches_in_hand", GPU)], found[("batches_in_hand", OTHER)]) == (0, 0)
    assert loaded == [OTHER]


async def test_where_no_gpu_works_the_cpu_does_if_it_may() -> None:
    models = Gpu(GPU), Gpu(OTHER)
    for model in models:
        model.absent |= {GPU, OTHER}
    async with lanes() as rig:
        runner = await rig.add(*models, may_fall_back=True)
        first = await asyncio.gather(told(ask(runner, 1)), runner.load())

        assert first[0] == [(1, "cpu")]
        assert await told(ask(runner, 2, 3)) == [(2, "cpu"), (3, "cpu")]
        assert runner.error is None
        with pytest.raises(OutOfMemoryError):
            await told(ask(runner, 4, size=2000))


async def test_where_no_gpu_works_and_one_is_demanded_the_start_fails() -> None:
    models = Gpu(GPU), Gpu(OTHER)
    for model in models:
        model.absent |= {GPU, OTHER}
    async with lanes() as rig:
        runner = await rig.add(*models, require_gpu=True)
        with pytest.raises(ConfigError):
            await runner.load()


async def test_a_copy_of_other_weights_gives_no_results() -> None:
    one, two = Gpu(GPU), Gpu(OTHER)
    async with lanes() as rig:
        runner = await rig.add(one, two)
        one.weights = "others"
        await runner.load()

        assert await told(ask(runner, 1)) == [(1, OTHER)]
        assert not one.is_loaded
        assert runner.fingerprint == "others", "of the first, which is out"


async def test_where_all_is_full_pictures_wait_until_there_is_room() -> None:
    memory = Memory(gpu=0, cpu=0, **{OTHER: 0})
    async with lanes() as rig:
        runner = await rig.add(Gpu(GPU, memory), Gpu(OTHER, memory), retry_seconds=0.01)
        with pytest.raises(OutOfMemoryError):
            await runner.load()
        with pytest.raises(OutOfMemoryError):
            await told(ask(runner, 1))
        memory.room[OTHER] = 1000

        memory.room[GPU] = 1000
        async with asyncio.timeout(10):
            while True:
                (found,) = await asyncio.gather(*ask(runner, 2), return_exceptions=True)
                if not isinstance(found, OutOfMemoryError):
                    break
                await asyncio.sleep(0.01)
        assert not isinstance(found, BaseException)
        assert found[0] == 2


# -- their life --------------------------------------------------------------------------------


async def test_copies_are_unloaded_apart() -> None:
    one, two = Gpu(GPU), Gpu(OTHER)
    async with lanes() as rig:
        runner = await rig.add(one, two, idle_seconds=0.1)
        # A clock by hand: where the machine stands still, the one in use is not idle.
        now = 0.0
        for copy in runner.copies:
            copy.life._clock = lambda: now
            copy.life.mark_use()
        await runner.load()
        async with asyncio.timeout(60):
            while two.is_loaded:
                await told(ask(runner, 1))
                now += 0.02
                await asyncio.sleep(0.02)

        assert one.is_loaded
        assert runner.provenance.device == GPU
        now += 1
        await until(lambda: not runner.is_loaded)
        assert runner.idle_unloads == 2


async def test_copies_that_load_at_the_same_time_are_the_same() -> None:
    """Random weights too, which come from one generator of the process."""
    copies = [
        ImageEmbeddingInference(
            None, None, settings=clip_models.settings(clip__weights="untrained")
        )
        for _ in BOTH
    ]
    picture = synthetic_picture(*copies[0].input_size)
    async with lanes() as rig:
        (first, lane), *others = zip(copies, rig.lanes, strict=True)
        async with ModelRunner("clip", first, lane, others=others) as runner:
            await runner.load()
            vectors = [copy.infer(picture) for copy in copies]

    np.testing.assert_allclose(vectors[0], vectors[1], atol=1e-5)


async def test_each_copy_is_tested() -> None:
    models = Gpu(GPU), Gpu(OTHER)
    async with lanes() as rig:
        runner = await rig.add(*models)
        await runner.load()
        models[1].is_dead = True
        await runner.test()

        assert runner.self_tests[1] >= 1
        assert runner.error is None
        assert await told(ask(runner, 1)) == [(1, GPU)]


async def test_a_lane_that_hangs_is_left_behind_and_the_others_end() -> None:
    one, two = Gpu(GPU), Gpu(OTHER)
    async with lanes() as rig:
        rig.lanes[0].close_seconds = 0.05
        runner = await rig.add(one, two)
        await runner.load()
        one.hold()
        hanging = ask(runner, 1)
        await until(one.running.is_set)

        assert await told(ask(runner, 2)) == [(2, OTHER)], "the other one goes on"
    try:
        assert [lane.is_abandoned for lane in rig.lanes] == [True, False]
        assert [
            isinstance(each, Exception)
            for each in await asyncio.gather(*hanging, return_exceptions=True)
        ] == [True]
    finally:
        one.gate.set()


def test_a_close_bears_that_a_thread_takes_what_was_seen_to_wait() -> None:
    class Late(queue.SimpleQueue[Any]):
        def empty(self) -> bool:
            # Seen to wait, and taken since.
            return False

    threads = LaneThreads("t", is_single=True)
    threads._waiting = Late()
    assert threads.submit(lambda: 1).result(10) == 1
    for end in threads.close():
        end.result(10)
