"""The section on how a GPU is fed: says so without one, and runs on one that is torch's CPU."""

from dataclasses import replace
from typing import Any

import pytest

from bench import gpu_passes
from bench.rows import Options, Row
from handlers.clip.cuda import sizes
from handlers.clip.vendors import load_vendors
from handlers.image_embedding import ImageEmbeddingInference
from tests import clip_models
from tests.fake_cuda import Torch

SMALLEST = Options(size="smallest")


@pytest.fixture
def settings(monkeypatch: pytest.MonkeyPatch) -> Any:
    # A replay operator by operator takes minutes of the real one where the cores are busy.
    monkeypatch.setattr("handlers.clip.weights.architecture", lambda _model: clip_models.TINY)
    return clip_models.settings(clip__weights="untrained", clip__batch_size=2)


def both_sides(row: Row) -> bool:
    return row.ours is not None and row.theirs is not None and row.ratio is not None


def test_without_a_gpu_each_row_says_that_nothing_was_measured() -> None:
    if load_vendors().torch.cuda.is_available():
        pytest.skip("there is one")
    rows = gpu_passes.measure(SMALLEST)

    assert len(rows) == 6
    assert {row.note for row in rows} == {"not measured: no GPU here"}
    assert all(row.ratio is None for row in rows)


def test_each_batch_size_and_the_overlap_have_both_sides(
    settings: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = ImageEmbeddingInference(None, None, settings=settings)
    model.load()
    fake, vendors = Torch(), load_vendors()
    monkeypatch.setattr(
        "handlers.clip.image_tower.load_vendors", lambda: replace(vendors, torch=fake)
    )
    fast, slow = model.cuda_passes(), model.cuda_passes(uses_graphs=False)

    rows = gpu_passes.measure_passes(fast, slow, gpu_passes.squares(model, 2), SMALLEST)

    names = [gpu_passes.graphs_name(size) for size in sizes(2)]
    assert [row.name for row in rows] == [*names, gpu_passes.OVERLAP]
    assert all(both_sides(row) for row in rows)
    assert fake.cuda.captures == 2, "of the fast ones alone, one for each size"


async def test_lanes_have_both_sides(settings: Any) -> None:
    models = [ImageEmbeddingInference(None, None, settings=settings) for _ in range(2)]

    row = await gpu_passes.measure_lanes(models, ["cuda:0", "cuda:1"], rounds=1, count=4)

    assert (row.name, both_sides(row)) == (gpu_passes.LANES, True)
