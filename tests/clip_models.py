"""Models that several test files share, each made once: loading one costs seconds."""

import functools
from pathlib import Path
from typing import Any

from daemon.settings import Settings
from handlers.clip import ClipModel
from handlers.clip_catalog import architecture
from handlers.clip_vendors import load_vendors
from handlers.image_embedding import ImageEmbeddingInference

MODEL = "ViT-B-32-quickgelu"

TINY: dict[str, Any] = {
    "embed_dim": 64,
    "quick_gelu": True,
    "vision_cfg": {"image_size": 64, "layers": 2, "width": 64, "patch_size": 32},
    "text_cfg": {"context_length": 8, "vocab_size": 32, "width": 64, "heads": 1, "layers": 1},
}
"""The same architecture with small numbers: its files are written and read in milliseconds."""


def settings(**values: Any) -> Settings:
    """Return settings that no variable of the machine running the tests gets into."""
    environ = {"INFERD_DEVICE": "cpu", "INFERD_OFFLINE": "true"}
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
    model._config = config
    return model
