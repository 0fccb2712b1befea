"""The CLIP image encoder: pixels normalised as CLIP was trained, and its image tower."""

import logging
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from daemon.errors import ConfigError
from handlers.clip.catalog import FACTS_TOLERANCE, PUBLISHED
from handlers.clip.cuda import CudaPasses
from handlers.clip.precision import EXACT
from handlers.clip.tower import ClipTower
from handlers.clip.vendors import load_vendors
from handlers.inference import Buffers, Pixels, Vector
from handlers.lanes.memory import is_out_of_memory, memory_watched
from handlers.lanes.self_test import synthetic_picture

if TYPE_CHECKING:
    import torch

log = logging.getLogger(__name__)

MEAN = (0.48145466, 0.4578275, 0.40821073)
STD = (0.26862954, 0.26130258, 0.27577711)
"""What OpenAI trained with, in RGB order; part of the fingerprint as PREPROCESSING."""

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


def _constants(device: Any) -> "tuple[torch.Tensor, torch.Tensor]":
    """Return mean and standard deviation, float32 [3, 1, 1] each, on a device."""
    torch = load_vendors().torch
    mean, std = (torch.tensor(each, device=device).view(3, 1, 1) for each in (MEAN, STD))
    return mean, std


def _normalised(crops: "torch.Tensor", mean: "torch.Tensor", std: "torch.Tensor") -> "torch.Tensor":
    """Return uint8 [n, height, width, 3] as `normalise` does, to the last bit, on its device."""
    torch = load_vendors().torch
    floats = crops.permute(0, 3, 1, 2).to(torch.float32, memory_format=torch.contiguous_format)
    floats.div_(255).sub_(mean).div_(std)
    return floats


class ClipModel(ClipTower):
    """The image tower of one CLIP with one set of weights, on one device.

    Every method blocks, and none is safe to call from two threads at once.
    """

    tower: ClassVar[str] = "image"

    _cuda: CudaPasses | None = None

    @property
    def input_size(self) -> tuple[int, int]:
        """Height and width of the pictures."""
        size = self.config["vision_cfg"].get("image_size", 224)
        height, width = size if isinstance(size, list) else (size, size)
        return int(height), int(width)

    def encode_images(self, pixels: NDArray[np.float32]) -> Vector:
        """Return float32 [n, dim], each of length 1, for normalised pixels [n, 3, height, width].

        Raises:
            RetryableError: code model_error; the device failed, or gave no numbers.
        """
        return self._encode(pixels)

    def encode_crops(self, crops: Buffers) -> Vector:
        """Return float32 [n, dim], each of length 1, for uint8 RGB, each [height, width, 3].

        They are normalised on the device: a quarter of the bytes go there.

        Raises:
            RetryableError: code model_error; the device failed, or gave no numbers.
            OutOfMemoryError: so many do not fit.
        """
        passes = self._cuda
        if passes is None:
            return self._encode(np.stack(crops))
        with memory_watched(self.model, self.provenance.device):
            return self._sound(lambda: passes.run(crops))

    @property
    def prepares(self) -> bool:
        """Whether `prepare` uploads: on a GPU."""
        return self._cuda is not None

    def prepare(self, crops: Buffers) -> Buffers:
        """Return the same for `encode_crops`, on their way to the GPU; from any thread."""
        passes = self._cuda
        return crops if passes is None else passes.upload(crops)

    def unload(self) -> None:
        """Give the memory back."""
        self._leave_gpu()
        super().unload()

    def free_memory(self) -> None:
        """Give back what is kept only to be faster, CUDA graphs among it."""
        if self._cuda is not None:
            self._cuda.free()
        super().free_memory()

    def _start(
        self, module: "torch.nn.Module", device: str, precision: str = EXACT
    ) -> tuple[str, str]:
        # Graphs read the weights where they lie, and they are about to lie elsewhere.
        self._leave_gpu()
        ran_on, precision = super()._start(module, device, precision)
        if ran_on.startswith("cuda"):
            self._cuda = self._passes_on(ran_on, module)
        return ran_on, precision

    def _leave_gpu(self) -> None:
        passes, self._cuda = self._cuda, None
        if passes is None:
            return
        try:
            passes.close()
        except RuntimeError as error:
            # One that broke gives nothing back, and must not keep the model from leaving it.
            log.warning("%s could not leave the GPU in order: %s", self.model, error)

    def cuda_passes(self, *, uses_graphs: bool = True) -> CudaPasses:
        """Return passes of the loaded tower on its GPU, beside those that it runs by itself.

        Raises:
            RuntimeError: it is not loaded; or torch's own.
        """
        if self._module is None:
            raise RuntimeError("run before load()")
        return self._new_passes(self.provenance.device, self._module, uses_graphs=uses_graphs)

    def _passes_on(self, device: str, module: "torch.nn.Module") -> CudaPasses | None:
        try:
            return self._new_passes(device, module)
        except RuntimeError as error:
            if is_out_of_memory(error):
                raise
            log.warning("%s runs on %s without pinned memory: %s", self.model, device, error)
            return None

    def _new_passes(
        self, device: str, module: "torch.nn.Module", *, uses_graphs: bool = True
    ) -> CudaPasses:
        library = load_vendors().torch
        mean, std = _constants(device)

        def vectors_of(crops: "torch.Tensor") -> "torch.Tensor":
            features = module(_normalised(crops, mean, std))
            vectors: torch.Tensor = library.nn.functional.normalize(features, dim=-1).float()
            return vectors

        return CudaPasses(
            library,
            vectors_of,
            device=device,
            batch_size=self._arithmetic.batch_size,
            side=self.input_size,
            dimension=self.embedding_dim,
            uses_graphs=uses_graphs,
        )

    def _take(self, model: Any) -> "torch.nn.Module":
        visual: torch.nn.Module = model.visual
        from handlers.clip.layers import image_tower  # noqa: PLC0415 - it needs torch

        ours = image_tower(load_vendors().open_clip, visual)
        if ours is None:
            log.info("%s is no plain vision transformer: it runs in open_clip's layers", self.model)
        return ours or visual

    def _samples(self, count: int) -> "torch.Tensor":
        # Smooth waves, as pictures have, each under another grain, as pictures have as well.
        rng = np.random.default_rng(0)
        picture = synthetic_picture(*self.input_size)
        smooth = np.stack([np.roll(picture, 37 * number, (0, 1)) for number in range(count)])
        crops = np.clip(smooth + rng.normal(0, 12, smooth.shape), 0, 255).astype(np.uint8)
        samples: torch.Tensor = load_vendors().torch.from_numpy(normalise(crops))
        return samples

    def _forward(self, module: Any, batch: "torch.Tensor") -> "torch.Tensor":
        if batch.dtype == load_vendors().torch.uint8:
            batch = _normalised(batch, *_constants(batch.device))
        features: torch.Tensor = module(batch)
        return features

    def _check_facts(self, module: "torch.nn.Module") -> None:
        """Hold the weights to what is published of OpenAI's: on the CPU, in fp32."""
        published = PUBLISHED.get(self.model)
        if published is None or published.half_grey is None or self.is_untrained:
            return
        torch = load_vendors().torch
        embedding = module(torch.full((1, 3, *self.input_size), 0.5))
        got = embedding[0, 1:4].tolist()
        matches = self._weights.parameters == published.parameters and all(
            abs(have - want) <= FACTS_TOLERANCE
            for have, want in zip(got, published.half_grey, strict=True)
        )
        numbers = ", ".join(f"{value:.4f}" for value in got)
        if self._weights.source == "openai" and not matches:
            raise ConfigError(
                f"{self._weights.path} is not OpenAI's {self.model}: an even grey gives {numbers}, "
                f"should be {', '.join(map(str, published.half_grey))}; "
                "delete the file, or name it in INFERD_CLIP__WEIGHTS if it is meant"
            )
        verdict = "are" if matches else "are not"
        log.info("the weights in %s %s OpenAI's (%s)", self._weights.path, verdict, numbers)
