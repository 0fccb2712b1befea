"""What a model does when memory runs out, step by step, and how it comes back."""

import gc
import logging
import weakref
from collections.abc import Sequence
from contextvars import copy_context
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from daemon.errors import ConfigError, OutOfMemoryError, RetryableError
from handlers.lanes.degradation import LONGEST_WAIT
from tests.short_memory import BREAKS, GPU, PLENTY, WEIGHTS, Climber, Memory, ShortModel

EIGHT = tuple(range(8))


def on(device: str, numbers: Sequence[int] = EIGHT) -> list[tuple[int, str]]:
    return [(number, device) for number in numbers]


def climber(*, gpu: int = PLENTY, cpu: int = PLENTY, **options: Any) -> Climber:
    return Climber(ShortModel(Memory(gpu=gpu, cpu=cpu)), **options)


# -- down --------------------------------------------------------------------------------------


def test_where_memory_suffices_nothing_is_told() -> None:
    it = climber()

    assert it.run(*EIGHT) == on(GPU)
    assert (it.state, it.steps, it.model.sizes) == (None, {}, [8])


def test_what_is_kept_is_freed_first_and_the_same_batch_runs_again() -> None:
    it = Climber(ShortModel(Memory(gpu=WEIGHTS + 85), kept=20))
    it.run(0)

    assert it.run(*EIGHT) == on(GPU)
    assert it.model.sizes == [1, 8, 8]
    assert (it.state, it.steps) == (None, {"free": 1})


def test_a_batch_that_does_not_fit_is_halved_until_it_does_and_stays_so() -> None:
    it = climber(gpu=WEIGHTS + 30)

    first = it.run(*EIGHT)
    tried = list(it.model.sizes)
    second = it.run(*EIGHT)

    assert first == second == on(GPU)
    assert tried == [8, 8, 4, 2, 2, 2, 2]
    assert it.model.sizes[len(tried) :] == [2, 2, 2, 2], "no batch fails any more"
    assert it.state == (GPU, 2)
    assert it.steps == {"free": 1, "halve_batch": 2}


def test_what_was_prepared_is_taken_for_the_first_try_only() -> None:
    """Its place on the device may be another batch's by the second."""
    items = [(np.array([number, 10]), copy_context()) for number in range(4)]
    prepared = [buffer for buffer, _ in items]
    given: list[bool] = []

    class Noting(ShortModel):
        def infer_batch(self, buffers: Sequence[NDArray[Any]]) -> list[int]:
            given.append(buffers is prepared)
            return super().infer_batch(buffers)

    it = Climber(Noting(Memory(gpu=WEIGHTS + 30)))
    found = it.ladder.run(items, prepared)

    assert [each[0] for each in found if isinstance(each, tuple)] == [0, 1, 2, 3]
    assert given == [True, False, False, False], "whole, whole again, and its halves"


def test_results_of_smaller_batches_are_those_of_single_pictures_in_order() -> None:
    it, alone = climber(gpu=WEIGHTS + 30), climber()
    numbers = [5, 3, 9, 1, 7, 2, 8]

    assert it.run(*numbers) == [each for number in numbers for each in alone.run(number)]


def test_where_not_even_one_fits_the_model_moves_to_the_cpu_and_says_so() -> None:
    it = climber(gpu=WEIGHTS + 5)

    assert it.run(*EIGHT) == on("cpu")
    assert it.state == ("cpu", 8), "the CPU has memory of its own: the full batch again"
    assert it.steps == {"free": 1, "halve_batch": 3, "cpu": 1}
    assert it.model.memory.used[GPU] == 0


def test_each_result_tells_the_device_that_made_it() -> None:
    it = climber(gpu=WEIGHTS + 45)

    found = it.run_sized(*((number, 10) for number in range(4)), (4, 100), (5, 10))

    assert found[0] == (0, GPU)
    assert found[4:] == [(4, "cpu"), (5, "cpu")]
    assert [number for number, _ in found] == [0, 1, 2, 3, 4, 5]


def test_on_the_cpu_too_the_batch_is_halved() -> None:
    it = climber(gpu=WEIGHTS, cpu=WEIGHTS + 20)

    assert it.run(*EIGHT) == on("cpu")
    assert it.state == ("cpu", 2)


def test_a_gpu_that_is_demanded_is_never_left() -> None:
    it = climber(gpu=WEIGHTS + 5, require_gpu=True)

    found = it.run(1, 2)

    assert [(type(each), each.code) for each in found] == [
        (OutOfMemoryError, "out_of_memory"),
        (OutOfMemoryError, "out_of_memory"),
    ]
    assert all(isinstance(each, RetryableError) for each in found)
    assert it.state == (GPU, 1)
    assert it.model.device == GPU
    assert it.steps == {"free": 1, "halve_batch": 1, "give_up": 2}


def test_a_picture_that_does_not_fit_takes_no_neighbour_with_it() -> None:
    memory = Memory(cpu=WEIGHTS + 30)
    it = Climber(ShortModel(memory, device="cpu"))

    found = it.run_sized((0, 10), (1, 10), (2, 500), (3, 10), (4, 10))

    assert [each for each in found if not isinstance(each, Exception)] == on("cpu", [0, 1, 3, 4])
    assert isinstance(found[2], OutOfMemoryError)
    assert found[2].device == "cpu"
    assert "cpu" not in it.steps, "it is there already"
    assert it.steps["give_up"] == 1


def test_a_picture_that_breaks_the_model_is_still_found_among_halved_batches() -> None:
    it = climber(gpu=WEIGHTS + 25)

    found = it.run(1, 2, BREAKS, 4)

    assert [each for each in found if not isinstance(each, Exception)] == on(GPU, [1, 2, 4])
    assert type(found[2]) is RuntimeError


def test_memory_of_the_host_that_runs_out_moves_no_model_off_its_gpu() -> None:
    class HostBound(ShortModel):
        def infer_batch(self, buffers: Sequence[NDArray[Any]]) -> list[int]:
            if len(buffers) > 2 or any(buffer[1] > 100 for buffer in buffers):
                raise MemoryError
            return super().infer_batch(buffers)

    it = Climber(HostBound(Memory()))

    found = it.run_sized((0, 10), (1, 10), (2, 10), (3, 101))

    assert found[:3] == on(GPU, [0, 1, 2])
    assert isinstance(found[3], OutOfMemoryError)
    assert "cpu" not in it.steps
    assert it.state == (GPU, 1), "it runs there, whichever memory ran out"


def test_other_models_make_room_before_the_gpu_is_left() -> None:
    memory = Memory(gpu=2 * WEIGHTS + 5)
    other, it = ShortModel(memory), Climber(ShortModel(memory))
    it.others_to_unload = [other]
    other.load()

    assert it.run(1) == [(1, GPU)]
    assert not other.is_loaded
    assert (it.state, it.steps) == (None, {"free": 1, "unload_others": 1})


def test_two_models_do_not_unload_each_other_without_end() -> None:
    memory = Memory(gpu=2 * WEIGHTS + 5)
    one, two = Climber(ShortModel(memory)), Climber(ShortModel(memory))
    one.others_to_unload, two.others_to_unload = [two.model], [one.model]

    for _ in range(10):
        assert one.run(1)[0][0] == two.run(1)[0][0] == 1

    devices = [one.run(1)[0][1], two.run(1)[0][1]]
    assert sorted(devices) == ["cpu", GPU]
    assert one.steps["unload_others"] == two.steps["unload_others"] == 1


def test_a_model_that_cannot_be_loaded_on_the_gpu_loads_on_the_cpu() -> None:
    it = climber(gpu=WEIGHTS - 1)

    it.ladder.load()

    assert it.model.provenance.device == "cpu"
    assert it.steps == {"free": 1, "cpu": 1}
    assert it.run(1) == [(1, "cpu")]


def test_a_model_that_fits_nowhere_fails_its_jobs_until_it_fits() -> None:
    it = climber(gpu=WEIGHTS - 1, cpu=WEIGHTS - 1)

    for _ in range(2):
        with pytest.raises(OutOfMemoryError) as caught:
            it.run(1, 2)
        assert caught.value.code == "out_of_memory"
    it.model.memory.room["cpu"] = PLENTY

    assert it.run(1, 2) == on("cpu", [1, 2])


@pytest.mark.parametrize("gpu", [WEIGHTS - 1, WEIGHTS + 5])
def test_a_device_that_takes_long_to_say_no_is_not_asked_without_end(gpu: int) -> None:
    class Slow(ShortModel):
        def load(self) -> None:
            if not self.is_loaded:
                it.now += 61
            super().load()

        def infer_batch(self, buffers: Sequence[NDArray[Any]]) -> list[int]:
            it.now += 61
            return super().infer_batch(buffers)

    it = Climber(Slow(Memory(gpu=gpu)))
    freed: list[float] = []

    def note() -> None:
        freed.append(it.now)
        assert len(freed) < 10

    it.model.when_freed = note

    assert it.run(1, 2) == on("cpu", [1, 2])
    assert it.steps["free"] == 1


@pytest.mark.parametrize(
    ("again_at", "steps"), [(60, {"free": 1, "halve_batch": 1}), (61, {"free": 2})]
)
def test_freeing_is_tried_once_until_memory_sufficed_for_a_while(
    again_at: int, steps: dict[str, int]
) -> None:
    it = Climber(ShortModel(Memory(gpu=WEIGHTS + 85), kept=20))
    it.run(0)
    it.run(*EIGHT)

    it.now = again_at
    assert it.run(*EIGHT) == on(GPU)
    assert it.steps == steps


def test_each_step_is_logged_once_and_not_with_every_batch(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO)
    it = climber(gpu=WEIGHTS + 5)

    for _ in range(5):
        it.run(*EIGHT)

    assert len(caplog.records) == sum(it.steps.values()) == 5
    assert "no memory left on cuda:0" in caplog.text
    assert "runs on the CPU for now" in caplog.text


def test_a_failed_batch_does_not_hold_its_memory_while_room_is_made() -> None:
    class Tensor:
        """Stands for what the failed pass still had."""

    held: list[weakref.ref[Tensor]] = []
    alive: list[bool] = []

    class Holder(ShortModel):
        def infer_batch(self, buffers: Sequence[NDArray[Any]]) -> list[int]:
            tensor = Tensor()
            held.append(weakref.ref(tensor))
            results = super().infer_batch(buffers)
            del tensor
            return results

    model = Holder(Memory(gpu=WEIGHTS + 45))
    model.when_freed = lambda: alive.append(held[-1]() is not None)
    gc.disable()
    try:
        Climber(model).run(*EIGHT)
    finally:
        gc.enable()

    assert alive == [False]


# -- up ----------------------------------------------------------------------------------------


def test_before_the_quiet_time_is_over_nothing_is_tried() -> None:
    it = climber(gpu=WEIGHTS + 5)
    it.run(*EIGHT)
    it.model.memory.room[GPU] = PLENTY

    it.now = 59
    assert it.run(*EIGHT) == on("cpu")
    assert "retry" not in it.steps


@pytest.mark.parametrize("room", [WEIGHTS + 5, WEIGHTS + 30, WEIGHTS - 1])
def test_after_the_quiet_time_the_gpu_and_the_full_batch_are_back(room: int) -> None:
    it = climber(gpu=room)
    it.run(*EIGHT)
    assert it.steps["free"] == 1
    it.model.memory.room[GPU] = PLENTY

    it.now = 60
    assert it.run(*EIGHT) == on(GPU)
    assert it.model.sizes[-1] == 8
    assert it.state is None
    assert (it.steps["retry"], it.steps["recover"]) == (1, 1)
    assert it.model.memory.used["cpu"] == 0


def test_a_climb_in_vain_harms_no_job_and_the_next_one_waits_twice_as_long() -> None:
    it = climber(gpu=WEIGHTS + 5)
    it.run(*EIGHT)
    assert it.ladder.state is not None
    since = it.ladder.state.since

    climbs = []
    for it.now in range(0, 1000, 10):
        before = it.steps.get("retry", 0)
        assert it.run(*EIGHT) == on("cpu")
        if it.steps.get("retry", 0) > before:
            climbs.append(it.now)

    assert climbs == [60, 180, 420, 900]
    assert it.ladder.state.since == since
    assert "recover" not in it.steps


def test_a_gpu_without_room_for_the_weights_is_left_alone_at_once() -> None:
    it = climber(gpu=WEIGHTS + 5)
    it.run(*EIGHT)
    it.model.memory.room[GPU] = 0
    it.model.sizes.clear()
    freed: list[str] = []
    it.model.when_freed = lambda: freed.append(it.model.provenance.device)

    it.now = 60
    assert it.run(*EIGHT) == on("cpu")
    assert it.model.sizes == [8]
    assert freed == ["cpu"], "what the try left there"
    assert it.state == ("cpu", 8)

    it.model.memory.room[GPU] = PLENTY
    it.now = 180
    assert it.run(*EIGHT) == on(GPU), "it is not forgotten"


@pytest.mark.parametrize("is_loaded", [True, False])
def test_a_gpu_that_went_away_meanwhile_harms_no_job(is_loaded: bool) -> None:
    it = climber(gpu=WEIGHTS + 5)
    it.run(*EIGHT)
    it.model.absent.add(GPU)
    if not is_loaded:
        it.model.unload()

    it.now = 60
    assert it.run(*EIGHT) == on("cpu")


def test_the_quiet_time_grows_to_a_limit() -> None:
    it = climber(gpu=WEIGHTS + 5)
    it.run(1)
    state = it.ladder.state
    assert state is not None

    for _ in range(20):
        it.now += 10_000
        it.run(1)

    state = it.ladder.state
    assert state is not None
    wait = LONGEST_WAIT * 60
    before = it.steps["retry"]
    it.now += wait - 1
    it.run(1)
    assert it.steps["retry"] == before
    it.now += 1
    it.run(1)
    assert it.steps["retry"] == before + 1


def test_a_relapse_soon_after_a_recovery_counts_as_the_same_trouble() -> None:
    it = climber(gpu=WEIGHTS + 30)
    it.run(*EIGHT)
    it.now = 60
    assert it.run(1) == [(1, GPU)]
    assert it.state is None, "one picture fits: nothing speaks against the full batch yet"

    it.now = 70
    it.run(*EIGHT)
    it.now = 70 + 119
    it.run(1)
    assert it.steps["retry"] == 1
    it.now = 70 + 120
    it.run(1)
    assert it.steps["retry"] == 2

    it.now = 10_000
    it.run(*EIGHT)
    it.now = 10_060
    it.run(1)
    assert it.steps["retry"] == 3, "trouble long after is new trouble"


def test_a_climb_unloads_nobody() -> None:
    memory = Memory(gpu=2 * WEIGHTS + 5)
    it, other = Climber(ShortModel(memory)), ShortModel(memory)
    other.load()
    assert it.run(1) == [(1, "cpu")]
    it.others_to_unload = [other]

    it.now = 100
    assert it.run(1) == [(1, "cpu")]
    assert it.steps["retry"] == 1
    assert other.is_loaded


def test_a_climb_ends_on_the_step_that_holds() -> None:
    it = climber(gpu=WEIGHTS + 5)
    it.run(*EIGHT)
    it.model.memory.room[GPU] = WEIGHTS + 40

    it.now = 60
    assert it.run(*EIGHT) == on(GPU)
    assert it.state == (GPU, 4), "half the GPU is better than the CPU"


def test_a_demanded_gpu_recovers_too() -> None:
    it = climber(gpu=WEIGHTS + 5, require_gpu=True, max_batch=1)
    assert isinstance(it.run(1)[0], OutOfMemoryError)
    assert it.state == (GPU, 1)
    it.model.memory.room[GPU] = PLENTY

    it.now = 60
    assert it.run(1) == [(1, GPU)]
    assert it.state is None


def test_a_model_unloaded_on_the_cpu_loads_where_there_is_room_again() -> None:
    it = climber(gpu=WEIGHTS + 5)
    it.run(1)
    it.model.unload()
    assert it.run(1) == [(1, "cpu")], "too early"
    it.model.unload()
    it.model.memory.room[GPU] = PLENTY

    it.now = 60
    it.ladder.load()
    assert it.model.provenance.device == GPU
    assert it.run(1) == [(1, GPU)]
    assert it.state is None


def test_what_is_told_is_complete() -> None:
    it = climber(gpu=WEIGHTS + 45)
    it.run(*EIGHT)

    assert it.ladder.state is not None
    told = it.ladder.state.to_wire()
    since = told["since"]
    assert told == {
        "device": GPU,
        "why": "out_of_memory",
        "max_batch": 4,
        "since": since,
        "retry_at": since + 60_000,
    }


def test_a_model_that_cannot_be_loaded_for_another_reason_is_no_matter_of_memory() -> None:
    it = climber()
    it.model.absent.add(GPU)

    with pytest.raises(ConfigError, match="is gone"):
        it.run(1)
    assert (it.state, it.steps) == (None, {})


def test_random_rooms_never_lose_or_change_a_result() -> None:
    random = np.random.default_rng(7)
    it = climber()
    for it.now in range(0, 6000, 10):
        it.model.memory.room[GPU] = int(random.integers(0, 120))
        numbers = [100 + int(each) for each in random.integers(0, 100, random.integers(1, 9))]
        assert [number for number, _ in it.run(*numbers)] == numbers
        used = it.model.memory.used
        assert sorted(used.values()) == [0, WEIGHTS], "in one place, and nothing leaks"

    assert {"free", "halve_batch", "cpu", "retry", "recover"} <= set(it.steps)
