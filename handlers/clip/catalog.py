"""Which CLIPs there are, what is published of them, and where their files lie.

Imports neither torch nor open_clip.
"""

import importlib.util
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from daemon.errors import ConfigError
from handlers.downloads.weights import download, first_file, mirrored, named_places, sha256


@dataclass(frozen=True, slots=True, kw_only=True)
class Published:
    """A file that its makers published, and what is known of it."""

    url: str
    sha256: str
    names: tuple[str, ...]
    """Under which of these it may lie in the models directory; the first is made by a download."""
    parameters: int
    """Of the whole model, both towers."""
    half_grey: tuple[float, float, float] | None = None
    """Elements 1 to 3 of the projected embedding of pixels that are all 0.5 once normalised; None
    where they are not known: then only the very file that was published will do."""


PUBLISHED = {
    "ViT-B-32-quickgelu": Published(
        url="https://openaipublic.azureedge.net/clip/models/"
        "40d365715913c9da98579312b702a82c18be219cc2a73407c4526f58eba950af/ViT-B-32.pt",
        sha256="40d365715913c9da98579312b702a82c18be219cc2a73407c4526f58eba950af",
        names=(
            "clip/ViT-B-32.pt",
            "ViT-B-32.pt",
            "clip/ViT-B-32.safetensors",
            "ViT-B-32.safetensors",
            # As a clone of the hub's timm/vit_base_patch32_clip_224.openai is laid out.
            "vit_base_patch32_clip_224.openai/open_clip_model.safetensors",
            "vit_base_patch32_clip_224.openai/open_clip_pytorch_model.bin",
        ),
        parameters=151_277_313,
        half_grey=(-0.3381, -0.0196, -0.4053),
    ),
    "ViT-B-16-quickgelu": Published(
        url="https://openaipublic.azureedge.net/clip/models/"
        "5806e77cd80f8b59890b7e101eabd078d9fb84e6937f9e85e4ecb61988df416f/ViT-B-16.pt",
        sha256="5806e77cd80f8b59890b7e101eabd078d9fb84e6937f9e85e4ecb61988df416f",
        names=("clip/ViT-B-16.pt", "ViT-B-16.pt"),
        parameters=149_620_737,
    ),
    "ViT-L-14-quickgelu": Published(
        url="https://openaipublic.azureedge.net/clip/models/"
        "b8cca3fd41ae0c99ba7e8951adf17d267cdb84cd88be6f7c2e0eca1737a03836/ViT-L-14.pt",
        sha256="b8cca3fd41ae0c99ba7e8951adf17d267cdb84cd88be6f7c2e0eca1737a03836",
        names=("clip/ViT-L-14.pt", "ViT-L-14.pt"),
        parameters=427_616_513,
    ),
    "ViT-L-14-336-quickgelu": Published(
        url="https://openaipublic.azureedge.net/clip/models/"
        "3035c92b350959924f9f00213499208652fc7ea050643e8b385c2dac08641f02/ViT-L-14-336px.pt",
        sha256="3035c92b350959924f9f00213499208652fc7ea050643e8b385c2dac08641f02",
        names=("clip/ViT-L-14-336px.pt", "ViT-L-14-336px.pt"),
        parameters=427_944_193,
    ),
}
FACTS_TOLERANCE = 1e-4
"""Of each published number; they are given with four places."""


def architecture(model: str) -> dict[str, Any]:
    """Return open_clip's description of a model, read from its file: nothing is imported.

    Raises:
        ConfigError: torch or open_clip are not installed, or the name is not that of a plain
            CLIP (those with a text tower from a hub would ask the network).
    """
    spec = importlib.util.find_spec("open_clip")
    if spec is None or spec.origin is None or importlib.util.find_spec("torch") is None:
        raise ConfigError(
            "image embeddings need torch, torchvision and open_clip_torch: "
            "install inferd with its requirements, or leave image_embedding out of "
            "INFERD_WORKER__TASK_TYPES"
        )
    folder = Path(spec.origin).parent / "model_configs"
    known = {path.stem: path for path in folder.glob("*.json")}
    if model not in known:
        near = sorted(name for name in known if name.startswith(model[:5]))
        raise ConfigError(
            f"open_clip knows no model {model!r}" + (f"; near: {', '.join(near)}" if near else "")
        )
    config: dict[str, Any] = json.loads(known[model].read_text(encoding="utf-8"))
    plain = {"embed_dim", "vision_cfg", "text_cfg", "quick_gelu", "init_logit_scale"}
    borrowed = ("timm_model_name", "hf_model_name", "hf_tokenizer_name")
    towers = (config["vision_cfg"], config["text_cfg"])
    if not set(config) <= plain or any(name in tower for tower in towers for name in borrowed):
        raise ConfigError(f"{model} is no plain CLIP; try ViT-B-32-quickgelu")
    return config


def find_weights(model: str, setting: str, models_dir: Path, *, offline: bool) -> Path:
    """Return the file that `openai`, or a path, stands for; downloads OpenAI's where it is absent.

    Raises:
        ConfigError: there is none, or it is the file of another model.
    """
    if setting == "openai":
        path = _openai_file(model, models_dir, offline=offline)
    else:
        path = _named_file(setting, models_dir)
    digest = sha256(path)
    if setting == "openai":
        published = _published(model)
        if published.half_grey is None and digest != published.sha256:
            raise ConfigError(
                f"{path} is not OpenAI's {model}: sha256 is {digest}, should be"
                f" {published.sha256}; delete the file, or name it in INFERD_CLIP__WEIGHTS if it is"
                " meant"
            )
    for other, published in PUBLISHED.items():
        if published.sha256 == digest and other != model:
            # ViT-B-32 takes the same tensors, and gives wrong vectors with its other activation.
            raise ConfigError(f"{path} is OpenAI's {other}: set INFERD_CLIP__MODEL={other}")
    return path


def _openai_file(model: str, models_dir: Path, *, offline: bool) -> Path:
    found = first_file(openai_places(model, models_dir))
    return found or download_openai(model, models_dir, offline=offline)


def openai_places(model: str, models_dir: Path) -> list[Path]:
    """Return where OpenAI's weights are looked for, in order.

    Raises:
        ConfigError: nothing is published of this model.
    """
    names = _published(model).names
    # Where OpenAI's own package and open_clip keep their downloads.
    cache = Path.home() / ".cache" / "clip"
    return [*(models_dir / name for name in names), cache / Path(names[0]).name]


def download_openai(model: str, models_dir: Path, *, offline: bool, mirror: str = "") -> Path:
    """Return OpenAI's weights in the models directory, downloaded unless they lie there.

    Args:
        model: open_clip's name.
        models_dir: gets the file under the first of its names.
        offline: fail instead of asking the network.
        mirror: an address that has the file under its published name, instead of OpenAI's.

    Raises:
        ConfigError: nothing is published of this model; or as `weights.download`.
    """
    published = _published(model)
    return download(
        mirrored(published.url, mirror),
        published.sha256,
        models_dir / published.names[0],
        offline=offline,
        looked_in=openai_places(model, models_dir),
    )


def _published(model: str) -> Published:
    published = PUBLISHED.get(model)
    if published is None:
        # Their weights are of that activation.
        meant = f"{model}-quickgelu"
        known = meant if meant in PUBLISHED else next(iter(PUBLISHED))
        raise ConfigError(
            f"where OpenAI's {model} lies is not known: set INFERD_CLIP__MODEL={known}, or name a"
            " file in INFERD_CLIP__WEIGHTS"
        )
    return published


def _named_file(setting: str, models_dir: Path) -> Path:
    if (path := first_file(named_places(setting, models_dir))) is not None:
        return path
    raise ConfigError(
        f"INFERD_CLIP__WEIGHTS={setting}: no such file, here or in {models_dir}; "
        "it may be openai, a path, or untrained"
    )
