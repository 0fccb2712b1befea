"""Passes on a GPU, with one that is made of torch's CPU: see tests/fake_cuda.py."""

import gc
import logging
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from daemon.errors import OutOfMemoryError, PermanentError, RetryableError
from handlers.clip.cuda import GPU_BATCH, CudaPasses, sizes
from handlers.clip.image_tower import _constants, _normalised, normalise
from handlers.clip.layers import image_tower
from handlers.clip.staging import SLOTS, Uploaded
from handlers.clip.tower import CPU_BATCH
from handlers.clip.vendors import load_vendors
from handlers.image_embedding import ImageEmbeddingInference
from handlers.inference import Vector
from tests import clip_models
from tests.fake_cuda import Torch

SIDE = (8, 8)
DIM = 6
SMALL = "ViT-S-32-alt"
"""A CLIP that is made and run in a fraction of the default's time."""
Pass = Callable[[torch.Tensor], torch.Tensor]


@pytest.fixture
def weights() -> torch.Tensor:
    return torch.randn(8 * 8 * 3, DIM, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def tower(weights: torch.Tensor) -> Pass:
    mean, std = _constants("cpu")

    def vectors_of(crops: torch.Tensor) -> torch.Tensor:
        features = _normalised(crops, mean, std).flatten(1) @ weights
        return torch.nn.functional.normalize(features, dim=-1).float()

    return vectors_of


def passes(torch_: Torch, tower: Pass, batch_size: int = 32, **options: Any) -> CudaPasses:
    return CudaPasses(
        torch_, tower, device="cuda:0", batch_size=batch_size, side=SIDE, dimension=DIM, **options
    )


def crops(count: int, seed: int = 0) -> list[NDArray[np.uint8]]:
    rng = np.random.default_rng(seed)
    return list(rng.integers(0, 256, (count, *SIDE, 3), dtype=np.uint8))


def expected(tower: Pass, pictures: list[NDArray[np.uint8]]) -> Vector:
    with torch.inference_mode():
        found: Vector = tower(torch.from_numpy(np.stack(pictures))).numpy()
    return found


def test_batches_have_few_sizes() -> None:
    assert sizes(1) == [1]
    assert sizes(8) == [1, 8]
    assert sizes(GPU_BATCH) == [1, 8, 32, 128]
    assert sizes(200) == [1, 8, 32, 128, 200]


@pytest.mark.parametrize("count", [1, 2, 8, 9, 31, 32, 33, 70])
def test_a_batch_of_any_length_gives_what_the_tower_gives(tower: Pass, count: int) -> None:
    it = passes(Torch(), tower)
    for seed in range(3):
        pictures = crops(count, seed)
        np.testing.assert_allclose(it.run(pictures), expected(tower, pictures), atol=1e-6)


def test_a_size_is_captured_once_and_replayed_from_then_on(tower: Pass) -> None:
    fake, calls = Torch(), 0

    def counted(given: torch.Tensor) -> torch.Tensor:
        nonlocal calls
        calls += 1
        return tower(given)

    it = passes(fake, counted)
    for count in (3, 8, 5, 2, 1, 1):
        it.run(crops(count))
    before = calls
    for count in (7, 1):
        it.run(crops(count))

    assert fake.cuda.captures == 2
    assert calls == before, "a replay runs no Python"


def test_without_graphs_it_is_the_same(tower: Pass) -> None:
    fake = Torch()
    it = passes(fake, tower, uses_graphs=False)
    pictures = crops(5)

    np.testing.assert_allclose(it.run(pictures), expected(tower, pictures), atol=1e-6)
    assert fake.cuda.captures == 0


def test_a_capture_that_fails_leaves_the_slower_way_and_one_line(
    tower: Pass, caplog: pytest.LogCaptureFixture
) -> None:
    fake = Torch()

    def reads(given: torch.Tensor) -> torch.Tensor:
        # As a tower that asks the device for a number: no graph can hold that.
        assert float(given.sum()) >= 0
        return tower(given)

    it = passes(fake, reads)
    pictures = crops(5)
    for _ in range(3):
        np.testing.assert_allclose(it.run(pictures), expected(tower, pictures), atol=1e-6)
    it.run(crops(20))

    assert fake.cuda.captures == 1
    lines = [each for each in caplog.records if "no CUDA graphs" in each.message]
    assert [each.levelno for each in lines] == [logging.WARNING]


def test_a_graph_that_gives_something_else_is_not_used(
    tower: Pass, caplog: pytest.LogCaptureFixture
) -> None:
    fake = Torch()
    fake.cuda.spoils = True
    it = passes(fake, tower)
    pictures = crops(5)

    np.testing.assert_allclose(it.run(pictures), expected(tower, pictures), atol=1e-6)
    assert "gives other vectors" in caplog.text
    assert fake.cuda.replays == 1


def test_without_memory_for_a_graph_passes_go_on_and_it_is_tried_after_memory_was_freed(
    tower: Pass,
) -> None:
    fake = Torch()

    def full() -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB.")

    fake.cuda.fails = full
    it = passes(fake, tower)
    pictures = crops(5)
    for _ in range(2):
        np.testing.assert_allclose(it.run(pictures), expected(tower, pictures), atol=1e-6)
    assert fake.cuda.captures == 1
    fake.cuda.fails = lambda: None
    it.free()
    it.run(pictures)
    it.run(pictures)

    assert fake.cuda.captures == 2
    assert fake.cuda.replays == 3, "one is the comparison"


def test_freeing_memory_lets_go_of_graphs_and_the_next_pass_captures_again(tower: Pass) -> None:
    fake = Torch()
    it = passes(fake, tower)
    it.run(crops(1))
    it.run(crops(5))
    it.free()
    assert fake.cuda.resets == 2

    pictures = crops(5, seed=3)
    np.testing.assert_allclose(it.run(pictures), expected(tower, pictures), atol=1e-6)
    assert fake.cuda.captures == 3


def test_the_next_batch_is_uploaded_on_a_stream_of_its_own(tower: Pass) -> None:
    fake = Torch()
    it = passes(fake, tower)
    first, second = crops(4, seed=1), crops(6, seed=2)
    ready, next_one = it.upload(first), it.upload(second)
    assert isinstance(ready, Uploaded)
    assert isinstance(next_one, Uploaded)
    uploads = list(fake.cuda.log)
    fake.cuda.log.clear()
    found = [it.run(ready), it.run(next_one)]

    for vectors, pictures in zip(found, (first, second), strict=True):
        np.testing.assert_allclose(vectors, expected(tower, pictures), atol=1e-6)
    copying, computing = "s1", "s2"
    assert uploads.count(f"on {copying}") == 2
    assert not any(computing in line for line in uploads if line.startswith("on"))
    assert f"on {copying}" not in fake.cuda.log, "nothing is uploaded a second time"
    assert fake.cuda.log.count("synchronize") == 2, "one wait a batch: for its results"
    assert fake.cuda.log.count(f"{computing} waits for an event") == 2


def test_no_more_is_uploaded_than_there_is_room_for(tower: Pass) -> None:
    it = passes(Torch(), tower)
    batches = [crops(3, seed) for seed in range(SLOTS + 1)]
    ready = [it.upload(each) for each in batches]

    assert [isinstance(each, Uploaded) for each in ready] == [True] * SLOTS + [False]
    for given, pictures in zip(ready, batches, strict=True):
        np.testing.assert_allclose(it.run(given), expected(tower, pictures), atol=1e-6)
    assert isinstance(it.upload(batches[0]), Uploaded)


def test_a_batch_that_nobody_wants_any_more_makes_room(tower: Pass) -> None:
    it = passes(Torch(), tower)
    for seed in range(5 * SLOTS):
        assert isinstance(it.upload(crops(2, seed)), Uploaded)
        gc.collect()


def test_a_batch_for_another_gpu_is_good_all_the_same(tower: Pass) -> None:
    before, after = passes(Torch(), tower), passes(Torch(), tower)
    pictures = crops(4)
    ready = before.upload(pictures)
    before.close()

    np.testing.assert_allclose(after.run(ready), expected(tower, pictures), atol=1e-6)
    assert before.upload(pictures) is pictures
    before.close()


def test_a_pass_that_fails_takes_no_place_with_it(tower: Pass) -> None:
    is_broken = True

    def fails(given: torch.Tensor) -> torch.Tensor:
        if is_broken:
            raise RuntimeError("CUDA error: unspecified launch failure")
        return tower(given)

    it = passes(Torch(), fails)
    for _ in range(2 * SLOTS):
        with pytest.raises(RuntimeError, match="launch failure"):
            it.run(crops(2))
    is_broken = False
    pictures = crops(2)

    np.testing.assert_allclose(it.run(pictures), expected(tower, pictures), atol=1e-6)
    assert isinstance(it.upload(pictures), Uploaded)


def test_our_own_image_tower_can_be_captured() -> None:
    """No step of it reads from the device, or makes a tensor out of the host's numbers."""
    vendors = load_vendors()
    config = {"layers": 2, "width": 32, "head_width": 16, "patch_size": 4, "image_size": 8}
    whole = vendors.open_clip.CLIP(
        embed_dim=DIM, vision_cfg=config, text_cfg={"layers": 1, "width": 16, "heads": 1}
    )
    with torch.inference_mode():
        module = image_tower(vendors.open_clip, whole.visual.eval())
    assert module is not None
    mean, std = _constants("cpu")

    def vectors_of(given: torch.Tensor) -> torch.Tensor:
        assert module is not None
        features = module(_normalised(given, mean, std))
        return torch.nn.functional.normalize(features, dim=-1).float()

    fake = Torch()
    it = passes(fake, vectors_of)
    for seed in range(3):
        pictures = crops(5, seed)
        np.testing.assert_allclose(it.run(pictures), expected(vectors_of, pictures), atol=1e-5)

    assert fake.cuda.replays == 4


@pytest.fixture
def on_gpu(monkeypatch: pytest.MonkeyPatch) -> ImageEmbeddingInference:
    """A model with passes on such a GPU, as it has after a load there."""
    inference = ImageEmbeddingInference(
        None, None, settings=clip_models.settings(clip__weights="untrained", clip__model=SMALL)
    )
    inference.load()
    model = inference._model
    vendors = load_vendors()
    monkeypatch.setattr(
        "handlers.clip.image_tower.load_vendors", lambda: replace(vendors, torch=Torch())
    )
    assert model._module is not None
    model._cuda = model._passes_on("cpu", model._module)
    return inference


def pictures_of(inference: ImageEmbeddingInference, count: int) -> list[NDArray[np.uint8]]:
    rng = np.random.default_rng(1)
    return list(rng.integers(0, 256, (count, *inference.input_size, 3), dtype=np.uint8))


def test_a_model_prepares_batches_and_gives_the_vectors_of_the_slower_way(
    on_gpu: ImageEmbeddingInference,
) -> None:
    pictures = pictures_of(on_gpu, 5)
    ready = on_gpu.prepare(pictures)
    fast = on_gpu.infer_batch(ready)
    floats = on_gpu.infer_batch([normalise(each[None])[0].transpose(1, 2, 0) for each in pictures])

    assert on_gpu.prepares
    assert isinstance(ready, Uploaded)
    np.testing.assert_allclose(np.stack(fast), np.stack(floats), atol=2e-3)


def test_what_is_no_picture_is_not_uploaded_and_refused_as_ever(
    on_gpu: ImageEmbeddingInference,
) -> None:
    wrong = [np.zeros((3, 3, 3), np.uint8)]

    assert on_gpu.prepare(wrong) is wrong
    with pytest.raises(PermanentError):
        on_gpu.infer_batch(on_gpu.prepare(wrong))


def test_a_models_graphs_go_with_its_memory_and_the_rest_with_the_model(
    on_gpu: ImageEmbeddingInference,
) -> None:
    passes_ = on_gpu._model._cuda
    assert passes_ is not None
    on_gpu.infer_batch(pictures_of(on_gpu, 2))
    captured = len(passes_._graphs)
    on_gpu.free_memory()
    freed = len(passes_._graphs)
    on_gpu.unload()

    assert (captured, freed) == (1, 0)
    assert not on_gpu.prepares
    assert passes_.upload(pictures_of(on_gpu, 1)).__class__ is list


def test_a_gpu_that_broke_keeps_no_model_from_leaving_it(
    on_gpu: ImageEmbeddingInference, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*_: Any) -> None:
        raise RuntimeError("CUDA error: unspecified launch failure")

    passes_ = on_gpu._model._cuda
    assert passes_ is not None
    # As each of torch's calls does from then on.
    monkeypatch.setattr("tests.fake_cuda.Event.synchronize", fails)
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.cuda, "empty_cache", fails)

    on_gpu.unload()

    assert not on_gpu.is_loaded
    assert not on_gpu.prepares
    on_gpu.load()
    assert len(on_gpu.infer_batch(pictures_of(on_gpu, 2))) == 2


def test_a_pass_that_fails_on_the_gpu_is_told_as_on_the_cpu(
    on_gpu: ImageEmbeddingInference, monkeypatch: pytest.MonkeyPatch
) -> None:
    passes_ = on_gpu._model._cuda
    assert passes_ is not None

    def fails(_given: torch.Tensor) -> torch.Tensor:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB.")

    monkeypatch.setattr(passes_, "_vectors_of", fails)
    with pytest.raises(OutOfMemoryError):
        on_gpu.infer_batch(pictures_of(on_gpu, 2))

    def breaks(given: torch.Tensor) -> torch.Tensor:
        return torch.full((len(given), on_gpu.embedding_dim), float("nan"))

    on_gpu.free_memory()
    monkeypatch.setattr(passes_, "_vectors_of", breaks)
    with pytest.raises(RetryableError, match="NaN"):
        on_gpu.infer_batch(pictures_of(on_gpu, 2))


def test_a_batch_is_as_large_as_the_device_likes_it(on_gpu: ImageEmbeddingInference) -> None:
    assert on_gpu.batch is not None
    assert on_gpu.batch.size == CPU_BATCH
