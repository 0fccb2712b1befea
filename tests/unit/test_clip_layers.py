"""Our CLIP layers: open_clip's vectors from open_clip's weights, without its two traps."""

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from handlers.clip.image_tower import MEAN, STD, ClipModel, _constants, _normalised, normalise
from handlers.clip.layers import image_tower, text_tower
from handlers.clip.precision import least_cosine
from handlers.clip.reduction import reduce, restore
from handlers.clip.text_tower import ClipTextModel
from handlers.clip.vendors import load_vendors
from tests import clip_models
from tests.clip_models import MODEL, SAVERS, TINY, TINY_TEXT

TEXTS = ["", "a dog", "two cats on a red sofa", "word " * 100]
KINDS: dict[str, dict[str, Any]] = {
    "QuickGELU": TINY,
    "GELU": {**TINY, "quick_gelu": False},
    "layer scale": {**TINY, "vision_cfg": {**TINY["vision_cfg"], "ls_init_value": 1e-4}},
    "heads of 16": {**TINY, "vision_cfg": {**TINY["vision_cfg"], "head_width": 16}},
    "wide MLP": {**TINY, "vision_cfg": {**TINY["vision_cfg"], "mlp_ratio": 4.9231}},
    "pixels left over": {**TINY, "vision_cfg": {**TINY["vision_cfg"], "image_size": 70}},
    "not square": {**TINY, "vision_cfg": {**TINY["vision_cfg"], "image_size": [64, 96]}},
    "one block": {**TINY, "vision_cfg": {**TINY["vision_cfg"], "layers": 1}},
}


def open_clip_model(config: dict[str, Any]) -> Any:
    vendors = load_vendors()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(2)
        model = vendors.open_clip.CLIP(**config).eval().requires_grad_(False)
        with torch.no_grad():
            for parameter in model.parameters():
                # Norms and biases begin as ones and zeros, which would hide a mistake.
                parameter.add_(0.05 * torch.randn(parameter.shape))
    return model


def pixels(count: int, height: int = 64, width: int = 64) -> torch.Tensor:
    rng = np.random.default_rng(3)
    crops = rng.integers(0, 256, (count, height, width, 3), dtype=np.uint8)
    return torch.from_numpy(normalise(crops))


def cosine(one: torch.Tensor, other: torch.Tensor) -> float:
    return least_cosine(one.numpy(), other.numpy())


# -- the same vectors ----------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("count", [1, 3, 7])
def test_the_image_tower_gives_open_clips_vectors(kind: str, count: int) -> None:
    vendors = load_vendors()
    visual = open_clip_model(KINDS[kind]).visual
    tower = image_tower(vendors.open_clip, visual)
    assert tower is not None
    batch = pixels(count, *visual.image_size)

    with torch.inference_mode():
        expected, got = visual(batch), tower(batch)

    assert torch.allclose(got, expected, rtol=1e-4, atol=1e-5)
    assert cosine(got, expected) >= 0.999999


@pytest.mark.parametrize("name", SAVERS)
def test_every_kind_of_checkpoint_gives_open_clips_vectors(tmp_path: Path, name: str) -> None:
    # Some kinds of file hold half precision only.
    whole = clip_models.stressed(clip_models.tiny_text()).half().float()
    SAVERS[name](whole, tmp_path / name)
    images = clip_models.clip(name, tmp_path, config=TINY_TEXT)
    texts = ClipTextModel(model=MODEL, weights=name, models_dir=tmp_path, device="cpu")
    texts._weights._config = TINY_TEXT
    images.load()
    texts.load()
    batch, ids = pixels(5), load_vendors().open_clip.tokenize(TEXTS, context_length=16)

    with torch.inference_mode():
        image_vectors, text_vectors = whole.encode_image(batch), whole.encode_text(ids)

    assert least_cosine(images.encode_images(batch.numpy()), image_vectors.numpy()) >= 0.999999
    assert least_cosine(texts.encode_texts(ids.numpy()), text_vectors.numpy()) >= 0.999999


@pytest.mark.parametrize("rows", [[0], [1, 2, 3], [3, 0, 1, 2, 2], [1, 1, 1, 1, 1, 1, 1]])
def test_the_text_tower_gives_open_clips_vectors_however_long_the_texts(rows: list[int]) -> None:
    vendors = load_vendors()
    whole = open_clip_model(TINY_TEXT)
    tower = text_tower(vendors.open_clip, whole)
    assert tower is not None
    ids = vendors.open_clip.tokenize([TEXTS[row] for row in rows], context_length=16)

    with torch.inference_mode():
        expected, got = whole.encode_text(ids), tower(ids)

    assert torch.allclose(got, expected, rtol=1e-4, atol=1e-5)
    assert cosine(got, expected) >= 0.999999


@pytest.fixture(scope="module")
def stressed() -> Any:
    return clip_models.stressed(clip_models.full_size()).eval().requires_grad_(False)


def test_outlier_channels_and_heavy_tails_are_borne_in_both_precisions(stressed: Any) -> None:
    vendors = load_vendors()
    tower = image_tower(vendors.open_clip, stressed.visual)
    assert tower is not None
    batch = pixels(3, 224, 224)

    with torch.inference_mode():
        expected = stressed.visual(batch)
        exact = tower(batch)
        singles = torch.cat([tower(each[None]) for each in batch])
        saved = reduce(tower, torch.bfloat16)
        reduced = tower(batch)
        reduced_singles = torch.cat([tower(each[None]) for each in batch])
        restore(saved)

    assert cosine(exact, expected) >= 0.999999
    assert cosine(singles, exact) >= 0.999999
    assert 0.9999 <= cosine(reduced, expected) < 0.99999999
    assert cosine(reduced_singles, reduced) >= 0.9999
    assert reduced.dtype == torch.float32


def test_texts_bear_outlier_channels_in_both_precisions() -> None:
    vendors = load_vendors()
    whole = clip_models.stressed(clip_models.full_size(), tails=0).eval().requires_grad_(False)
    tower = text_tower(vendors.open_clip, whole)
    assert tower is not None
    ids = vendors.open_clip.tokenize(TEXTS)

    with torch.inference_mode():
        expected = whole.encode_text(ids)
        exact = tower(ids)
        reduce(tower, torch.bfloat16)
        reduced = tower(ids)

    assert cosine(exact, expected) >= 0.999999
    # Random texts' attention is sharper than any that was learnt: it magnifies every rounding.
    assert 0.999 <= cosine(reduced, expected) < 0.99999999


def test_bytes_are_normalised_on_the_device_to_the_last_bit() -> None:
    ramp = np.arange(256, dtype=np.uint8).repeat(3).reshape(1, 16, 16, 3)
    assert len(MEAN) == len(STD) == 3

    found = _normalised(torch.from_numpy(ramp), *_constants("cpu"))

    assert np.array_equal(found.numpy(), normalise(ramp))


def test_crops_give_the_vectors_of_their_normalised_pixels(tmp_path: Path) -> None:
    model = clip_models.clip("untrained", tmp_path, config=TINY)
    model.load()
    crops = np.random.default_rng(1).integers(0, 256, (3, 64, 64, 3), dtype=np.uint8)

    assert np.array_equal(model.encode_crops(list(crops)), model.encode_images(normalise(crops)))


# -- weights -------------------------------------------------------------------------------------


def test_weights_keep_open_clips_names_and_are_not_copied() -> None:
    vendors = load_vendors()
    whole = open_clip_model(TINY_TEXT)
    tower = image_tower(vendors.open_clip, whole.visual)
    assert tower is not None
    ours, theirs = tower.state_dict(), whole.visual.state_dict()

    assert ours.keys() == theirs.keys()
    assert all(ours[name].data_ptr() == theirs[name].data_ptr() for name in ours)


def test_only_the_weights_of_products_are_reduced_and_can_be_put_back() -> None:
    vendors = load_vendors()
    tower = image_tower(vendors.open_clip, open_clip_model(TINY).visual)
    assert tower is not None
    before = {name: tensor.clone() for name, tensor in tower.state_dict().items()}

    saved = reduce(tower, torch.bfloat16)

    exact = {name for name, tensor in tower.state_dict().items() if tensor.dtype == torch.float32}
    assert {name.split(".")[-2] for name in exact if "." in name} == {
        "ln_pre",
        "ln_post",
        "ln_1",
        "ln_2",
    }
    assert {"class_embedding", "positional_embedding", "proj"} <= exact
    restore(saved)
    after = tower.state_dict()
    assert all(torch.equal(after[name], before[name]) for name in before)


def test_memory_that_runs_out_while_weights_are_reduced_leaves_them_as_they_were(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    vendors = load_vendors()
    tower = image_tower(vendors.open_clip, open_clip_model(TINY).visual)
    assert tower is not None
    before = {name: tensor.clone() for name, tensor in tower.state_dict().items()}
    to, calls = torch.Tensor.to, []

    def failing(self: torch.Tensor, *arguments: Any) -> torch.Tensor:
        calls.append(arguments)
        if len(calls) == 5:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return to(self, *arguments)

    with monkeypatch.context() as patch:
        patch.setattr(torch.Tensor, "to", failing)
        with pytest.raises(torch.OutOfMemoryError):
            reduce(tower, torch.bfloat16)

    after = tower.state_dict()
    assert len(calls) == 5
    assert all(torch.equal(after[name], before[name]) for name in before)


# -- what is not built here ----------------------------------------------------------------------


RESNET: dict[str, Any] = {
    **TINY,
    "vision_cfg": {"image_size": 64, "layers": [1, 1, 1, 1], "width": 16, "patch_size": None},
}
STRANGE: dict[str, dict[str, Any]] = {
    "a residual network": RESNET,
    "average pooling": {**TINY, "vision_cfg": {**TINY["vision_cfg"], "pool_type": "avg"}},
    "attentional pooling": {
        **TINY,
        "vision_cfg": {**TINY["vision_cfg"], "attentional_pool": True, "attn_pooler_queries": 1},
    },
    "normed queries": {**TINY, "vision_cfg": {**TINY["vision_cfg"], "qk_norm": True}},
}


@pytest.mark.parametrize("kind", STRANGE)
def test_other_image_towers_are_open_clips_own(kind: str) -> None:
    assert image_tower(load_vendors().open_clip, open_clip_model(STRANGE[kind]).visual) is None


@pytest.mark.parametrize(
    "change", [{"pool_type": "last"}, {"no_causal_mask": True}, {"proj_type": "none"}]
)
def test_other_text_towers_are_open_clips_own(change: dict[str, Any]) -> None:
    config = {**TINY_TEXT, "text_cfg": {**TINY_TEXT["text_cfg"], **change}}

    assert text_tower(load_vendors().open_clip, open_clip_model(config)) is None


def test_a_residual_network_still_runs_and_says_so(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", logger="handlers.clip.image_tower")
    model = ClipModel(
        model=MODEL, weights="untrained", models_dir=tmp_path, device="cpu", precision="auto"
    )
    model._weights._config = RESNET
    model.load()

    vectors = model.encode_images(pixels(2).numpy())

    assert vectors.shape == (2, 64)
    assert model.provenance.precision == "fp32"
    assert "open_clip's layers" in caplog.text


# -- the traps, counted --------------------------------------------------------------------------


def operations(work: Callable[[], Any]) -> list[tuple[str, list[list[int]]]]:
    """Return what torch did, each with the shapes that it took."""
    with (
        warnings.catch_warnings(),
        torch.inference_mode(),
        torch.profiler.profile(record_shapes=True) as profile,
    ):
        work()
    events = profile.events() or []
    return [(event.name, [shape for shape in event.input_shapes if shape]) for event in events]


def weights_handled(found: list[tuple[str, list[list[int]]]], tower: Any) -> list[str]:
    """Return the operations that copied or cast a weight, or multiplied one copy for each row."""
    matrices = [
        list(each.shape)
        for name, each in tower.named_parameters()
        if name.endswith("weight") and each.ndim > 1
    ]
    either = [shape for matrix in matrices for shape in (matrix, matrix[::-1])]
    wrong = []
    for name, shapes in found:
        is_copy = name in ("aten::copy_", "aten::_to_copy", "aten::clone", "aten::contiguous")
        if is_copy and any(shape in matrices for shape in shapes):
            wrong.append(f"{name} of a weight {shapes}")
        if is_copy and any(shape[1:] in either for shape in shapes if len(shape) == 3):
            wrong.append(f"{name} of a weight for each row {shapes}")
        if name in ("aten::bmm", "aten::baddbmm") and any(s[1:] in either for s in shapes):
            wrong.append(f"{name} by a weight for each row {shapes}")
    return wrong


ODD: dict[str, Any] = {
    **TINY,
    # Sizes that no activation has by chance.
    "vision_cfg": {**TINY["vision_cfg"], "width": 192, "layers": 2, "image_size": 160},
}


@pytest.mark.parametrize("dtype", [None, torch.bfloat16], ids=["fp32", "bf16"])
def test_no_weight_is_copied_or_cast_in_a_pass(dtype: torch.dtype | None) -> None:
    """The trap: outside its fast path nn.MultiheadAttention copies in_proj for each token."""
    vendors = load_vendors()
    visual = open_clip_model(ODD).visual
    tower = image_tower(vendors.open_clip, visual)
    assert tower is not None
    if dtype is not None:
        reduce(tower, dtype)
    batch = pixels(5, 160, 160)

    found = operations(lambda: tower(batch))

    assert weights_handled(found, tower) == []
    names = [name for name, _ in found]
    # Patches; queries, keys and values in one, the way out and two in the MLP; one more in the
    # last block, where only one token asks.
    assert names.count("aten::linear") == 1 + 4 + 5
    assert names.count("aten::scaled_dot_product_attention") == 2
    assert not [name for name in names if "multi_head" in name or "transformer_encoder" in name]


def test_the_counting_finds_open_clips_trap() -> None:
    visual = open_clip_model(ODD).visual
    batch = pixels(5, 160, 160)

    def stock() -> None:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            visual(batch)

    wrong = weights_handled(operations(stock), visual)

    assert any("aten::bmm by a weight for each row" in each for each in wrong)
    assert any("aten::_to_copy of a weight" in each for each in wrong)


def test_the_last_block_calculates_one_token_only() -> None:
    vendors = load_vendors()
    visual = open_clip_model(ODD).visual
    tower = image_tower(vendors.open_clip, visual)
    assert tower is not None
    batch = pixels(5, 160, 160)

    found = operations(lambda: tower(batch))

    hidden = [shapes[0] for name, shapes in found if name == "aten::linear" and shapes[1][0] == 768]
    assert hidden == [[5, 26, 192], [5, 1, 192]]


def test_a_short_text_costs_its_own_length_only() -> None:
    vendors = load_vendors()
    tower = text_tower(vendors.open_clip, open_clip_model(TINY_TEXT))
    assert tower is not None
    ids = vendors.open_clip.tokenize(["a dog", "dogs"], context_length=16)

    found = operations(lambda: tower(ids))

    lengths = {shapes[0][1] for name, shapes in found if name == "aten::linear"}
    assert lengths == {4, 1}
