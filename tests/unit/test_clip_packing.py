"""Weights packed for the processor: the same vectors, the same weights back, and none where not."""

import logging
import os
from typing import Any

import pytest
import torch

from handlers.clip import packing as clip_packing
from handlers.clip import reduction as clip_reduction
from handlers.clip.arithmetic import Arithmetic
from handlers.clip.layers import image_tower, text_tower
from handlers.clip.precision import least_cosine
from handlers.clip.reduction import pack, reduce, unpack
from handlers.clip.vendors import load_vendors
from tests import clip_models
from tests.clip_models import TINY_TEXT

TEXTS = ["", "a dog", "word " * 100]


@pytest.fixture
def towers() -> tuple[Any, Any]:
    """Both towers of a tiny CLIP, in bf16."""
    vendors = load_vendors()
    torch.manual_seed(2)
    whole = vendors.open_clip.CLIP(**TINY_TEXT).eval().requires_grad_(False)
    both = image_tower(vendors.open_clip, whole.visual), text_tower(vendors.open_clip, whole)
    for tower in both:
        assert tower is not None
        reduce(tower, torch.bfloat16)
    return both


@torch.inference_mode()
def vectors(towers: tuple[Any, Any], count: int = 3) -> list[torch.Tensor]:
    image, text = towers
    pixels = torch.randn(count, 3, 64, 64, generator=torch.Generator().manual_seed(3))
    return [
        image(pixels),
        text(load_vendors().open_clip.tokenize(TEXTS[:count], context_length=16)),
    ]


def state(towers: tuple[Any, Any]) -> dict[tuple[int, str], torch.Tensor]:
    return {
        (number, name): tensor.clone()
        for number, tower in enumerate(towers)
        for name, tensor in tower.state_dict().items()
    }


def can_be_packed_here() -> bool:
    return clip_packing.can_pack(torch.randn(32, 16).bfloat16())


def require_packing() -> None:
    """Skip where nothing can be packed; CI has a processor and a torch that can."""
    if not can_be_packed_here():
        assert os.environ.get("CI") != "true", "nothing is packed in CI"
        pytest.skip("this processor or this torch packs nothing")


@pytest.mark.parametrize("count", [1, 3])
def test_packed_towers_give_the_vectors_of_plain_ones(towers: tuple[Any, Any], count: int) -> None:
    plain = vectors(towers, count)

    are_packed = [pack(tower) for tower in towers]

    assert are_packed == [can_be_packed_here()] * 2
    for found, expected in zip(vectors(towers, count), plain, strict=True):
        assert found.dtype == torch.float32
        # To the last bit on all machines seen; others' kernels may sum in another order.
        assert least_cosine(found.numpy(), expected.numpy()) >= 0.9999


def test_what_is_packed_is_kept_once_and_comes_back_to_the_last_bit(
    towers: tuple[Any, Any],
) -> None:
    before = state(towers)
    require_packing()
    assert all(pack(tower) for tower in towers)
    assert pack(towers[0])
    packed = state(towers)

    for tower in towers:
        unpack(tower)
        unpack(tower)

    after = state(towers)
    empty = [key for key in before if not packed[key].numel()]
    assert len(empty) >= 2 * 4
    assert all(name.endswith("weight") for _, name in empty)
    assert after.keys() == before.keys()
    assert all(torch.equal(after[key], before[key]) for key in before)


def test_exact_weights_are_not_packed() -> None:
    vendors = load_vendors()
    whole = vendors.open_clip.CLIP(**TINY_TEXT).eval().requires_grad_(False)
    tower = image_tower(vendors.open_clip, whole.visual)
    assert tower is not None

    assert not pack(tower)
    assert all(each.numel() for each in tower.parameters())


class Operators:
    """torch.ops.mkldnn of another torch."""

    def __init__(self, fault: str) -> None:
        self._fault = fault

    def _reorder_linear_weight(self, matrix: torch.Tensor) -> torch.Tensor:
        if self._fault == "refuses":
            raise NotImplementedError("no such kernel\nand a long story")
        return matrix

    def __getattr__(self, name: str) -> Any:
        if self._fault == "absent":
            raise AttributeError(f"no {name}")

        def linear(x: torch.Tensor, matrix: torch.Tensor, *_: Any) -> torch.Tensor:
            if self._fault == "other arguments":
                raise TypeError("it takes another number of arguments")
            wrong: torch.Tensor = torch.nn.functional.linear(x, matrix.flip(0))
            return wrong

        return linear


@pytest.mark.parametrize("fault", ["refuses", "absent", "other arguments", "wrong"])
def test_where_packing_does_not_work_all_stays_as_it_is(
    towers: tuple[Any, Any],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    fault: str,
) -> None:
    plain = vectors(towers)
    caplog.set_level(logging.INFO)
    monkeypatch.setattr(torch.ops, "mkldnn", Operators(fault))

    assert not any(pack(tower) for tower in towers)

    monkeypatch.undo()
    assert all(torch.equal(*each) for each in zip(vectors(towers), plain, strict=True))
    assert "weights stay unpacked" in caplog.text
    assert "long story" not in caplog.text


def test_memory_that_runs_out_half_way_leaves_no_tower_half_packed(
    towers: tuple[Any, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    before = state(towers)
    require_packing()
    packed, calls = clip_packing.packed, []

    def failing(matrix: torch.Tensor) -> torch.Tensor:
        calls.append(matrix)
        if len(calls) == 4:
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory")
        return packed(matrix)

    with monkeypatch.context() as patch:
        patch.setattr("handlers.clip.layers.packed", failing)
        with pytest.raises(RuntimeError, match="DefaultCPUAllocator"):
            pack(towers[0])

    assert len(calls) == 4
    after = state(towers)
    assert all(torch.equal(after[key], before[key]) for key in before)


def test_memory_that_runs_out_while_packing_leaves_the_weights_exact(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    vendors = load_vendors()
    whole = vendors.open_clip.CLIP(**TINY_TEXT).eval().requires_grad_(False)
    tower = image_tower(vendors.open_clip, whole.visual)
    assert tower is not None
    before = {name: tensor.clone() for name, tensor in tower.state_dict().items()}

    def failing(_tower: torch.nn.Module) -> bool:
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory")

    monkeypatch.setattr(clip_reduction, "pack", failing)
    with pytest.raises(RuntimeError, match="DefaultCPUAllocator"):
        Arithmetic("it", "bf16", 1).settle(tower, "cpu", torch.ones)

    after = tower.state_dict()
    assert all(torch.equal(after[name], before[name]) for name in before)
    assert {tensor.dtype for tensor in after.values()} == {torch.float32}


def test_outlier_channels_are_borne_packed() -> None:
    vendors = load_vendors()
    whole = clip_models.stressed(clip_models.full_size()).eval().requires_grad_(False)
    tower = image_tower(vendors.open_clip, whole.visual)
    assert tower is not None
    batch = torch.randn(3, 3, 224, 224, generator=torch.Generator().manual_seed(4))
    with torch.inference_mode():
        exact = tower(batch)
        reduce(tower, torch.bfloat16)
        clip_reduction.pack(tower)
        found = tower(batch)

    assert 0.9999 <= least_cosine(found.numpy(), exact.numpy()) < 0.99999999
