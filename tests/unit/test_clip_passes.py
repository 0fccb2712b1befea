"""Several passes at a time: the same vectors in the same order, each on its share of the cores."""

import threading
from collections.abc import Iterator
from contextlib import closing

import numpy as np
import pytest
import torch

from handlers.clip import passes as clip_passes
from handlers.clip.passes import Passes, best_passes
from handlers.clip.precision import least_cosine
from handlers.image_embedding import ImageEmbeddingInference
from handlers.inference import Batch
from tests import clip_models


@pytest.fixture(autouse=True)
def four_cores(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    before = torch.get_num_threads()
    monkeypatch.setattr(clip_passes, "usable_cores", lambda: 4)
    yield
    torch.set_num_threads(before)


def numbered(count: int) -> torch.Tensor:
    return torch.arange(count, dtype=torch.float32)[:, None]


class Forward:
    """Notes of each pass who ran it and on how much."""

    def __init__(self) -> None:
        self.sizes: list[int] = []
        self.threads: set[str] = set()
        self.torch_threads: set[int] = set()
        self.inferring: set[bool] = set()

    def __call__(self, part: torch.Tensor) -> torch.Tensor:
        self.sizes.append(len(part))
        self.threads.add(threading.current_thread().name)
        self.torch_threads.add(torch.get_num_threads())
        self.inferring.add(torch.is_inference_mode_enabled())
        return part * 2


@pytest.mark.parametrize("count", [1, 2, 3, 4])
@pytest.mark.parametrize("inputs", [1, 2, 3, 7, 8, 9, 16, 33])
def test_every_input_has_its_answer_in_its_place_in_passes_of_bounded_size(
    count: int, inputs: int
) -> None:
    forward = Forward()
    with closing(Passes(torch, count=count, size=8)) as passes:
        found = passes.run(forward, numbered(inputs))

    assert torch.equal(found, 2 * numbered(inputs))
    assert max(forward.sizes) <= 8
    assert sum(forward.sizes) == inputs
    if inputs >= count:
        assert len(forward.sizes) >= count, "a core would have nothing to do"


def test_passes_share_the_cores_and_a_pass_alone_has_them_all() -> None:
    with closing(Passes(torch, count=2, size=8)) as passes:
        forward = Forward()
        passes.run(forward, numbered(16))
        assert forward.torch_threads == {2}
        assert all(name.startswith("clip-pass") for name in forward.threads)
        assert forward.inferring == {True}

        forward = Forward()
        passes.run(forward, numbered(1))
        assert forward.torch_threads == {4}
        assert forward.threads == {threading.current_thread().name}


def test_a_thread_that_comes_later_has_all_cores() -> None:
    counted: list[int] = []
    with closing(Passes(torch, count=4, size=8)):
        later = threading.Thread(target=lambda: counted.append(torch.get_num_threads()))
        later.start()
        later.join(20)

    assert counted == [4]


def test_passes_really_run_at_the_same_time() -> None:
    # Breaks, and fails the test, unless both are there at the same time.
    both = threading.Barrier(2)

    def forward(part: torch.Tensor) -> torch.Tensor:
        both.wait(20)
        return part

    with closing(Passes(torch, count=2, size=8)) as passes:
        assert len(passes.run(forward, numbered(16))) == 16


def test_a_pass_that_fails_is_told_once_the_others_have_ended() -> None:
    other_ended = threading.Event()
    go = threading.Event()

    def forward(part: torch.Tensor) -> torch.Tensor:
        if part[0] == 0:
            go.set()
            raise RuntimeError("the first is bad")
        go.wait(20)
        other_ended.set()
        return part

    with closing(Passes(torch, count=2, size=8)) as passes:
        with pytest.raises(RuntimeError, match="the first is bad"):
            passes.run(forward, numbered(16))
        assert other_ended.is_set()
        # And the passes are as good as before.
        assert len(passes.run(lambda part: part, numbered(16))) == 16


# -- how many are best ---------------------------------------------------------------------------


def chosen(seconds_of: dict[int, float], *, most: int = 8) -> tuple[int, list[int]]:
    """Return how many passes are chosen and which were tried, where each takes so many seconds."""
    now = 0.0
    runs: list[int] = []

    def run(self: Passes, _forward: object, batch: torch.Tensor) -> torch.Tensor:
        nonlocal now
        assert len(batch) == self.batch_size
        runs.append(self.count)
        now += seconds_of[self.count]
        return batch

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Passes, "run", run)
        samples = numbered(8)
        passes = best_passes(torch, lambda part: part, samples, most=most, clock=lambda: now)
    passes.close()
    return passes.count, runs


def test_the_most_inputs_a_second_win() -> None:
    # 8 in 0.1 s are fewer than 16 in 0.15 s; 32 in 0.6 s are the fewest.
    assert chosen({1: 0.1, 2: 0.15, 4: 0.6})[0] == 2


def test_among_near_ones_more_passes_win() -> None:
    assert chosen({1: 0.1, 2: 0.205, 4: 0.415})[0] == 4
    assert chosen({1: 0.1, 2: 0.205, 4: 0.5})[0] == 2


def test_never_more_than_allowed_or_than_cores() -> None:
    assert set(chosen({1: 0.1, 2: 0.1}, most=2)[1]) == {1, 2}
    assert set(chosen({1: 0.1, 2: 0.1, 3: 0.1}, most=3)[1]) == {1, 2, 3}
    assert set(chosen({1: 0.1, 2: 0.1, 4: 0.1}, most=99)[1]) == {1, 2, 4}


def test_one_that_is_allowed_alone_is_not_measured() -> None:
    assert chosen({}, most=1) == (1, [])
    assert chosen({}, most=0) == (1, [])


def test_a_slow_machine_measures_once() -> None:
    assert chosen({1: 5.0, 2: 9.0, 4: 30.0}) == (2, [1, 2, 4])


def test_what_does_not_fit_into_memory_is_not_chosen() -> None:
    def forward(part: torch.Tensor) -> torch.Tensor:
        if threading.current_thread().name.startswith("clip-pass"):
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory")
        return part

    with closing(best_passes(torch, forward, numbered(8), most=4)) as passes:
        assert passes.count == 1


def test_an_error_that_is_not_of_memory_is_raised() -> None:
    def forward(part: torch.Tensor) -> torch.Tensor:
        raise RuntimeError("broken")

    before = set(threading.enumerate())
    with pytest.raises(RuntimeError, match="broken"):
        best_passes(torch, forward, numbered(8), most=4)
    assert set(threading.enumerate()) <= before


# -- in the model --------------------------------------------------------------------------------


def test_clip_in_passes_gives_the_vectors_that_it_gives_alone() -> None:
    alone = clip_models.untrained()
    settings = clip_models.settings(clip__weights="untrained", clip__passes=2, clip__batch_size=3)
    together = ImageEmbeddingInference(settings=settings)
    before = set(threading.enumerate())
    rng = np.random.default_rng(5)
    crops = list(rng.integers(0, 256, (7, 224, 224, 3), dtype=np.uint8))
    try:
        vectors = together.infer_batch(crops)
        assert together.batch == Batch(6, "as configured", 2)
        assert together.batch.told == "up to 6 at a time, 2 passes side by side: as configured"
    finally:
        together.unload()

    expected = np.stack([alone.infer(crop) for crop in crops])
    assert least_cosine(np.stack(vectors), expected) > 0.999999
    assert set(threading.enumerate()) <= before


def test_what_was_measured_holds_for_a_reload(monkeypatch: pytest.MonkeyPatch) -> None:
    measured: list[int] = []
    real = clip_passes.best_passes

    def noted(*args: object, most: int, **kwargs: object) -> Passes:
        measured.append(most)
        return real(*args, most=most, **kwargs)  # type: ignore[arg-type]

    monkeypatch.setattr("handlers.clip.tower.best_passes", noted)
    settings = clip_models.settings(
        clip__weights="untrained", clip__passes=0, clip__batch_size=2, worker__max_in_flight=8
    )
    inference = ImageEmbeddingInference(settings=settings)
    try:
        inference.load()
        first = inference.batch
        inference.unload()
        inference.load()
        assert inference.batch == first
    finally:
        inference.unload()

    # Two batches, of two passes of two pictures each, are what eight jobs in flight can fill.
    assert measured == [2]
