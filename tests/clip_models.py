"""Models that several test files share, each made once: loading one costs seconds."""

import copy
import functools
import importlib
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

from daemon.settings import Settings
from handlers.clip.catalog import architecture
from handlers.clip.image_tower import ClipModel
from handlers.clip.vendors import load_vendors
from handlers.image_embedding import ImageEmbeddingInference

MODEL = "ViT-B-32-quickgelu"
_schemas: list[object] = []
"""Keeps operators' schemas alive as long as the process."""

TINY: dict[str, Any] = {
    "embed_dim": 64,
    "quick_gelu": True,
    "vision_cfg": {"image_size": 64, "layers": 2, "width": 64, "patch_size": 32},
    "text_cfg": {"context_length": 8, "vocab_size": 32, "width": 64, "heads": 1, "layers": 1},
}
"""The same architecture with small numbers: its files are written and read in milliseconds."""
TINY_TEXT: dict[str, Any] = {
    **TINY,
    "text_cfg": {"context_length": 16, "vocab_size": 49408, "width": 64, "heads": 1, "layers": 2},
}
"""Likewise, with the vocabulary that open_clip's tokeniser has."""


def settings(**values: Any) -> Settings:
    """Return settings that no variable of the machine running the tests gets into."""
    environ = {
        "INFERD_DEVICE": "cpu",
        "INFERD_OFFLINE": "true",
        # The same on every machine; what auto finds is its own tests' business.
        "INFERD_CLIP__PRECISION": "fp32",
        "INFERD_CLIP__PASSES": "1",
    }
    environ |= {f"INFERD_{name.upper()}": str(value) for name, value in values.items()}
    return Settings.from_env(environ)


@functools.cache
def untrained() -> ImageEmbeddingInference:
    """Return the loaded demo model."""
    inference = ImageEmbeddingInference(settings=settings(clip__weights="untrained"))
    inference.load()
    return inference


@functools.cache
def full_size() -> Any:
    """Return open_clip's model with random weights that half precision holds exactly."""
    return _random(architecture(MODEL))


@functools.cache
def tiny() -> Any:
    """Return a model of TINY numbers, likewise."""
    return _random(TINY)


@functools.cache
def tiny_text() -> Any:
    """Return a model of TINY_TEXT numbers, likewise."""
    return _random(TINY_TEXT)


def _random(config: dict[str, Any]) -> Any:
    vendors = load_vendors()
    with vendors.torch.random.fork_rng(devices=[]):
        vendors.torch.manual_seed(1)
        return vendors.open_clip.CLIP(**config).half().float().eval()


def clip(path: Path | str, models_dir: Path, *, config: dict[str, Any] | None = None) -> ClipModel:
    """Return an unloaded ClipModel over a file."""
    model = ClipModel(
        model=MODEL, weights=str(path), models_dir=models_dir, device="cpu", offline=True
    )
    model._weights._config = config
    return model


def save_openai_archive(model: Any, path: Path) -> None:
    """Save as OpenAI did: a TorchScript archive in half precision with three numbers beside."""
    torch = load_vendors().torch
    image = torch.zeros(1, 3, *model.visual.image_size)

    class Archive(torch.nn.Module):  # type: ignore[name-defined, misc] # torch is Any here
        def __init__(self) -> None:
            super().__init__()
            for name, child in model.named_children():
                setattr(self, name, child)
            for name, tensor in model.named_parameters(recurse=False):
                setattr(self, name, tensor)
            for name, value in (("input_resolution", 224), ("context_length", 77)):
                self.register_buffer(name, torch.tensor(value))
            self.register_buffer("vocab_size", torch.tensor(49408))

        def forward(self, image: Any) -> Any:
            return self.visual(image)

    with warnings.catch_warnings():
        # torch asks to stop using TorchScript, and warns of shapes that tracing fixes.
        warnings.simplefilter("ignore")
        torch.jit.trace(Archive().eval(), image, check_trace=False).half().save(str(path))
    model.float()


def save_openai_state(model: Any, path: Path) -> None:
    state = {name: tensor.half() for name, tensor in model.state_dict().items()}
    torch = load_vendors().torch
    numbers = {"input_resolution": 224, "context_length": 77, "vocab_size": 49408}
    state |= {name: torch.tensor(value) for name, value in numbers.items()}
    torch.save(state, path)


def save_open_clip_state(model: Any, path: Path) -> None:
    load_vendors().torch.save(model.state_dict(), path)


def save_old_format(model: Any, path: Path) -> None:
    load_vendors().torch.save(model.state_dict(), path, _use_new_zipfile_serialization=False)


def save_training_checkpoint(model: Any, path: Path) -> None:
    state = {f"module.{name}": tensor for name, tensor in model.state_dict().items()}
    load_vendors().torch.save({"epoch": 3, "name": "run", "state_dict": state}, path)


def save_safetensors(model: Any, path: Path) -> None:
    from safetensors.torch import save_file  # noqa: PLC0415 - needs torch

    save_file({name: tensor.contiguous() for name, tensor in model.state_dict().items()}, path)


SAVERS: dict[str, Callable[[Any, Path], None]] = {
    "ViT-B-32.pt": save_openai_archive,
    "openai_state.pt": save_openai_state,
    "open_clip_pytorch_model.bin": save_open_clip_state,
    "old.pth": save_old_format,
    "epoch_3.pt": save_training_checkpoint,
    "open_clip_model.safetensors": save_safetensors,
    "a_wrong_ending.pt": save_safetensors,
}


def stressed(model: Any, *, tails: float = 0.5, outliers: float = 15) -> Any:
    """Return a copy with what makes few bits go wrong, in both towers.

    Args:
        model: open_clip's.
        tails: standard deviation of the logarithm of each norm's gains.
        outliers: how much larger than the others four channels of the residual stream become.
    """
    model = copy.deepcopy(model)
    torch = load_vendors().torch
    generator = torch.Generator().manual_seed(7)
    for transformer in (model.visual.transformer, model.transformer):
        width = transformer.width
        channels = torch.randperm(width, generator=generator)[:4]
        with torch.no_grad():
            for norm in transformer.modules():
                if isinstance(norm, torch.nn.LayerNorm):
                    norm.weight.copy_(torch.exp(tails * torch.randn(width, generator=generator)))
            for block in transformer.resblocks:
                for linear in (block.attn.out_proj, block.mlp.c_proj):
                    linear.weight[channels] *= outliers
                    linear.bias[channels] *= outliers
    return model


@functools.cache
def import_transformers() -> Any:
    """Return transformers, also where torchvision's compiled part is built for another torch.

    Beside a CPU torch its operators often cannot load; then its Python part stumbles over two of
    them that nobody here calls, so their bare schemas are enough.
    """
    torch = load_vendors().torch
    try:
        importlib.import_module("torchvision")
    except RuntimeError as error:
        if "torchvision::nms" not in str(error):
            raise
        for name in [name for name in sys.modules if name.partition(".")[0] == "torchvision"]:
            del sys.modules[name]
        library = torch.library.Library("torchvision", "DEF")
        for operator in ("nms", "qnms"):
            library.define(f"{operator}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        _schemas.append(library)
        importlib.import_module("torchvision")
    return importlib.import_module("transformers")
