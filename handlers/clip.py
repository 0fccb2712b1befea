"""The CLIP image encoder: the only file that imports torch, torchvision and open_clip.

They load inside `ClipModel.load`, never with this module.
"""

import contextlib
import ctypes
import importlib
import logging
import os
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from daemon.errors import ConfigError, RetryableError
from handlers.clip_catalog import FACTS_TOLERANCE, PUBLISHED, architecture, find_weights
from handlers.clip_checkpoint import Vendors, read_model
from handlers.inference import Pixels, Provenance, Vector
from handlers.weights import sha256

if TYPE_CHECKING:
    import torch

log = logging.getLogger(__name__)

MEAN = (0.48145466, 0.4578275, 0.40821073)
STD = (0.26862954, 0.26130258, 0.27577711)
"""What OpenAI trained with, in RGB order; part of the fingerprint as openai-preprocess-v1."""
PREPROCESSING = "openai-preprocess-v1"

UNTRAINED_SEED = 20210105
"""Fixed, so that a restart of a demo gives the same vectors. The day CLIP was published."""

_ONES = np.arange(256, dtype=np.float32) / np.float32(255)
_TABLE = np.stack(
    [(_ONES - np.float32(mean)) / np.float32(std) for mean, std in zip(MEAN, STD, strict=True)]
)
"""The normalised value of every channel and byte: exactly torchvision's float32 arithmetic."""


def normalise(crops: Pixels) -> NDArray[np.float32]:
    """Return uint8 [n, height, width, 3] as float32 [n, 3, height, width], as CLIP was trained."""
    return np.stack([_TABLE[channel][crops[..., channel]] for channel in range(3)], axis=1)


def normalise_floats(crops: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return already normalised float32 [n, height, width, 3] in the order the model takes."""
    return np.ascontiguousarray(crops.transpose(0, 3, 1, 2))


class ClipModel:
    """The image tower of one CLIP with one set of weights, on one device.

    Only the image tower stays in memory; `clip_checkpoint.read_model` gives both towers, for
    whoever embeds texts.
    Every method blocks, and none is safe to call from two threads at once.
    """

    def __init__(
        self,
        *,
        model: str,
        weights: str,
        models_dir: Path,
        device: str = "auto",
        require_gpu: bool = False,
        offline: bool = False,
    ) -> None:
        self.model = model
        self._weights = weights
        self._models_dir = models_dir
        self._asked_device = device
        self._require_gpu = require_gpu
        self._offline = offline
        self._config: dict[str, Any] | None = None
        self._path: Path | None = None
        self._digest = ""
        self._parameters = 0
        self._visual: torch.nn.Module | None = None
        self._provenance: Provenance | None = None

    @property
    def is_untrained(self) -> bool:
        """Whether the weights are random: demos and tests only."""
        return self._weights == "untrained"

    @property
    def config(self) -> Mapping[str, Any]:
        """The architecture, as open_clip describes it.

        Raises:
            ConfigError: open_clip is absent or does not know the model.
        """
        if self._config is None:
            self._config = architecture(self.model)
        return self._config

    @property
    def embedding_dim(self) -> int:
        """Length of the vectors."""
        return int(self.config["embed_dim"])

    @property
    def input_size(self) -> tuple[int, int]:
        """Height and width of the pictures."""
        size = self.config["vision_cfg"].get("image_size", 224)
        height, width = size if isinstance(size, list) else (size, size)
        return int(height), int(width)

    @property
    def fingerprint(self) -> str:
        """What vectors of this model may be compared with; known after `resolve`."""
        if self.is_untrained:
            return f"{self.model}:untrained-seed-{UNTRAINED_SEED}"
        if not self._digest:
            raise RuntimeError("the fingerprint is known after resolve()")
        return f"{self.model}:{self._digest[:16]}:{PREPROCESSING}"

    @property
    def provenance(self) -> Provenance:
        """What really runs; known after `load`."""
        if self._provenance is None:
            raise RuntimeError("the provenance is known after load()")
        return self._provenance

    @property
    def is_loaded(self) -> bool:
        """Whether `encode_images` may be called."""
        return self._visual is not None

    def resolve(self) -> None:
        """Find the weights, downloading the published ones where they are absent.

        Raises:
            ConfigError: the model is unknown, or its weights are nowhere.
        """
        _ = self.config
        if self.is_untrained or self._digest:
            return
        self._path = find_weights(
            self.model, self._weights, self._models_dir, offline=self._offline
        )
        self._digest = sha256(self._path)

    def load(self) -> None:
        """Load the weights, hold them to what is known of them, and run the model once.

        Raises:
            ConfigError: torch is absent or broken, the weights are absent, no checkpoint, of
                another shape, or not what they claim to be, or a demanded GPU does not run.
        """
        if self.is_loaded:
            return
        self.resolve()
        began = time.monotonic()
        torch = load_vendors().torch
        device = choose_device(self._asked_device, require_gpu=self._require_gpu)
        visual = self._build()
        with torch.inference_mode():
            visual = visual.eval().requires_grad_(False)
            self._check_facts(visual)
            try:
                visual = visual.to(device)
                probe = torch.zeros(1, 3, *self.input_size, device=device)
                ran_on = visual(probe).device
            except RuntimeError as error:
                raise ConfigError(f"{self.model} does not run on {device}: {error}") from error
        self._visual = visual
        _trim()
        name = self._path.name if self._path else "UNTRAINED"
        self._provenance = Provenance(
            model=self.model,
            weights="openai" if self._weights == "openai" else name,
            device=str(ran_on),
            precision="fp32",
        )
        if self.is_untrained:
            log.warning(
                "UNTRAINED WEIGHTS: %s IS RANDOM (SEED %d), ITS VECTORS MEAN NOTHING",
                self.model,
                UNTRAINED_SEED,
            )
        log.info(
            "loaded %s (%s) on %s in %.1f s",
            self.model,
            self._path or "UNTRAINED",
            ran_on,
            time.monotonic() - began,
        )

    def unload(self) -> None:
        """Give the memory back."""
        if self._visual is None:
            return
        on_gpu = self.provenance.device.startswith("cuda")
        self._visual = None
        if on_gpu:
            load_vendors().torch.cuda.empty_cache()
        _trim()
        log.info("unloaded %s", self.model)

    def encode_images(self, pixels: NDArray[np.float32]) -> Vector:
        """Return float32 [n, dim], each of length 1, for normalised pixels [n, 3, height, width].

        Raises:
            RetryableError: code model_error; the device failed, or gave no numbers.
        """
        if self._visual is None:
            raise RuntimeError("encode_images() before load()")
        torch = load_vendors().torch
        try:
            with torch.inference_mode():
                batch = torch.from_numpy(pixels).to(self.provenance.device)
                features = torch.nn.functional.normalize(self._visual(batch), dim=-1)
                vectors: Vector = features.float().cpu().numpy()
        except RuntimeError as error:
            raise RetryableError(f"{self.model} failed: {error}", code="model_error") from error
        if not np.isfinite(vectors).all():
            raise RetryableError(f"{self.model} gave NaN", code="model_error")
        return vectors

    def _build(self) -> "torch.nn.Module":
        vendors = load_vendors()
        if self._path is None:
            # The generator of the process stays as it was.
            with vendors.torch.random.fork_rng(devices=[]):
                vendors.torch.manual_seed(UNTRAINED_SEED)
                tower: torch.nn.Module = vendors.open_clip.CLIP(**self.config).visual
            return tower
        if sha256(self._path) != self._digest:
            raise ConfigError(
                f"{self._path} changed since it was found: vectors of two models must not mix; "
                "start again"
            )
        model = read_model(vendors, self.config, self._path)
        self._parameters = sum(tensor.numel() for tensor in model.parameters())
        visual: torch.nn.Module = model.visual
        # Copies: the file may be a mapping that somebody else writes to or truncates.
        own = {
            name: tensor.to(vendors.torch.float32, copy=True)
            for name, tensor in visual.state_dict().items()
        }
        broken = [name for name, tensor in own.items() if not tensor.isfinite().all()]
        if broken:
            raise ConfigError(f"{self._path}: visual.{broken[0]} holds NaN or infinity")
        visual.load_state_dict(own, assign=True)
        return visual

    def _check_facts(self, visual: "torch.nn.Module") -> None:
        """Hold the weights to what is published of OpenAI's: on the CPU, in fp32."""
        published = PUBLISHED.get(self.model)
        if published is None or self.is_untrained:
            return
        torch = load_vendors().torch
        embedding = visual(torch.full((1, 3, *self.input_size), 0.5))
        got = embedding[0, 1:4].tolist()
        matches = self._parameters == published.parameters and all(
            abs(have - want) <= FACTS_TOLERANCE
            for have, want in zip(got, published.half_grey, strict=True)
        )
        numbers = ", ".join(f"{value:.4f}" for value in got)
        if self._weights == "openai" and not matches:
            raise ConfigError(
                f"{self._path} is not OpenAI's {self.model}: an even grey gives {numbers}, "
                f"should be {', '.join(map(str, published.half_grey))}; "
                "delete the file, or name it in INFERD_CLIP__WEIGHTS if it is meant"
            )
        verdict = "are" if matches else "are not"
        log.info("the weights in %s %s OpenAI's (%s)", self._path, verdict, numbers)


_vendors: list[Vendors] = []
_schemas: list[object] = []
"""Keeps the operator schemas of `_import_torchvision` alive as long as the process."""


def load_vendors() -> Vendors:
    """Import torch, torchvision and open_clip, once.

    Raises:
        ConfigError: one of them is absent or broken.
    """
    if not _vendors:
        # Torch's threads spin while they wait for each other: beside decoders, or any other load,
        # one picture then takes ten times as long. Asleep they cost 5 to 15 % of an idle machine.
        os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
        try:
            torch = importlib.import_module("torch")
            _import_torchvision(torch)
            _vendors.append(Vendors(torch, importlib.import_module("open_clip")))
        except (ImportError, OSError, RuntimeError) as error:
            raise ConfigError(
                f"torch, torchvision and open_clip cannot be imported: {error}"
            ) from error
    return _vendors[0]


def _import_torchvision(torch: ModuleType) -> None:
    """Import torchvision also where its compiled part is built for another torch.

    Beside a CPU torch its C operators often cannot load; then its Python part stumbles over two
    operators that nobody here calls, so their bare schemas are enough.
    """
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


def choose_device(asked: str, *, require_gpu: bool) -> str:
    """Return `cpu` or `cuda:n`; a GPU only after it has calculated something.

    Raises:
        ConfigError: a GPU was demanded, or named, and does not run.
    """
    if asked == "cpu":
        return "cpu"
    torch = load_vendors().torch
    name = "cuda:0" if asked in ("auto", "cuda") else asked
    why = "torch sees no GPU"
    if torch.cuda.is_available():
        try:
            ones = torch.ones(8, 8, device=name)
            if float((ones @ ones).sum()) == 512.0:  # noqa: PLR2004 - 8 * 8 * 8
                # Convolutions would round to TF32 and still call themselves fp32.
                torch.backends.cudnn.allow_tf32 = False
                return name
            why = f"{name} calculates wrongly"
        except (RuntimeError, AssertionError) as error:
            why = str(error)
    if require_gpu or asked != "auto":
        raise ConfigError(
            f"INFERD_DEVICE={asked}, INFERD_REQUIRE_GPU={str(require_gpu).lower()}: "
            f"no GPU runs here: {why}"
        )
    return "cpu"


def _trim() -> None:
    """Give freed memory back to the system: glibc keeps 260 MB of what a loading left."""
    # Only glibc has malloc_trim; elsewhere nothing needs to be done.
    with contextlib.suppress(AttributeError, OSError):
        ctypes.CDLL(None).malloc_trim(0)
