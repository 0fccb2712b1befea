"""ImageEmbeddingInference: one square picture in, one CLIP vector of length 1 out."""

import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from daemon.errors import ConfigError, InferdError
from daemon.settings import Settings
from handlers.clip.cuda import CudaPasses
from handlers.clip.image_tower import ClipModel, normalise, normalise_floats
from handlers.clip.tower import CPU_BATCH
from handlers.inference import Batch, Buffers, ModelInference, Numbers, Vector, check_pixels
from handlers.lanes.self_test import synthetic_picture
from handlers.media.clip_input import read
from handlers.media.images import Limits


class ImageEmbeddingInference(ModelInference[Vector]):
    """CLIP's image tower behind the documented interface.

    A buffer is either uint8 RGB [height, width, 3] of `input_size`, which is normalised here, or
    float32 of the same shape that is normalised already: (x / 255 - mean) / std. A batch may hold
    both.
    """

    def __init__(
        self,
        embedding_dim: int | None = 512,
        input_size: tuple[int, int] | None = (224, 224),
        *,
        weights: str | None = None,
        settings: Settings | None = None,
    ) -> None:
        """Take the model from `settings`, or from the environment where none are given.

        Args:
            embedding_dim: length of the vectors that is expected; None takes the model's.
            input_size: height and width of the pictures that is expected; None takes the model's.
            weights: openai, a path, or untrained, instead of what the settings say.
            settings: which model, where its file is and on what device it runs.

        Raises:
            ConfigError: the configuration is wrong, or its model has another vector length or
                picture size than was asked for, or takes pictures that are not square.
        """
        settings = settings or Settings.from_env(os.environ)
        self._model = ClipModel(
            model=settings.clip.model,
            weights=weights or settings.clip.weights,
            models_dir=settings.models_path,
            device=settings.device,
            require_gpu=settings.require_gpu,
            offline=settings.offline,
            precision=settings.clip.precision,
            batch_size=settings.clip.batch_size,
            passes=settings.clip.passes,
            # While one batch runs the next is made ready: both are in flight.
            most_passes=settings.worker.in_flight // (2 * (settings.clip.batch_size or CPU_BATCH)),
        )
        super().__init__(self._model)
        self.embedding_dim = self._model.embedding_dim
        self.input_size = self._model.input_size
        actual = self.embedding_dim, self.input_size
        asked = (
            self.embedding_dim if embedding_dim is None else embedding_dim,
            self.input_size if input_size is None else tuple(input_size),
        )
        if actual != asked:
            raise ConfigError(
                f"{self._model.model} makes {actual[0]} numbers of {actual[1]} pixels; "
                f"asked for {asked[0]} of {asked[1]}"
            )
        if len(set(self.input_size)) != 1:
            raise ConfigError(f"{self._model.model} takes pictures that are not square")

    @property
    def batch(self) -> Batch | None:
        """How many pictures keep the model busy; see MLInference."""
        return self._model.batch

    @property
    def beside(self) -> int:
        """How many threads may infer at once; see MLInference."""
        return self._model.beside

    def infer(self, buffer: NDArray[Any], label: str = "") -> Vector:
        """Return float32 [embedding_dim] of length 1.

        Args:
            buffer: uint8 RGB or normalised float32, [height, width, 3].
            label: names the picture in errors.

        Raises:
            PermanentError: code bad_buffer; the buffer is neither.
            ConfigError: the model had to be loaded and could not be.
        """
        self._check(buffer, label)
        return super().infer(buffer, label)

    def cuda_passes(self, *, uses_graphs: bool = True) -> CudaPasses:
        """Return passes of the loaded model on its GPU, to be measured by themselves.

        Raises:
            RuntimeError: it is not loaded; or torch's own.
        """
        return self._model.cuda_passes(uses_graphs=uses_graphs)

    @property
    def prepares(self) -> bool:
        """Whether it runs on a GPU; see MLInference."""
        return self._model.prepares

    def prepare(self, buffers: Buffers) -> Buffers:
        """Begin to upload pictures; see MLInference."""
        shape = (*self.input_size, 3)
        is_plain = all(each.dtype == np.uint8 and each.shape == shape for each in buffers)
        return self._model.prepare(buffers) if is_plain else buffers

    def infer_batch(self, buffers: Buffers) -> list[Vector]:
        """Return one float32 [embedding_dim] of length 1 for each buffer, in order.

        Raises:
            PermanentError: code bad_buffer; a buffer is neither kind.
        """
        if not buffers:
            return []
        for number, buffer in enumerate(buffers):
            self._check(buffer, f"number {number} of {len(buffers)}" if len(buffers) > 1 else "")
        self.load()
        if all(buffer.dtype == np.uint8 for buffer in buffers):
            return list(self._model.encode_crops(buffers))
        pixels = np.empty((len(buffers), 3, *self.input_size), np.float32)
        for row, buffer in zip(pixels, buffers, strict=True):
            to_pixels = normalise if buffer.dtype == np.uint8 else normalise_floats
            row[...] = to_pixels(buffer[np.newaxis])[0]
        return list(self._model.encode_images(pixels))

    def self_test(self) -> Numbers:
        """Return the vector of a built-in picture; see MLInference."""
        return self.infer_batch([synthetic_picture(*self.input_size)])[0]

    def _check(self, buffer: NDArray[Any], label: str) -> None:
        shape = (*self.input_size, 3)
        check_pixels(buffer, shape, normalised="(x / 255 - mean) / std", label=label)


def demo(arguments: Sequence[str]) -> int:
    """Embed the picture named on the command line, or a grey one, and say what ran."""
    try:
        inference = ImageEmbeddingInference(None, None)
        buffer = np.full((*inference.input_size, 3), 128, np.uint8)
        label = arguments[0] if arguments else "an even grey"
        if arguments:
            images = Settings.from_env(os.environ).images
            buffer = read(
                Path(label).read_bytes(),
                Limits.from_settings(images),
                side=inference.input_size[0],
                decoding=images.decoding,
            ).pixels
        vector = inference.infer(buffer, label=label)
    except (InferdError, OSError) as error:
        sys.stderr.write(f"{error}\n")
        return 1
    ran = inference.provenance
    sys.stdout.write(
        f"{ran.model}, weights {ran.weights}, on {ran.device} in {ran.precision}\n"
        f"{label}: {vector.size} numbers, norm {np.linalg.norm(vector):.6f}\n"
        f"{np.array2string(vector[:8], precision=4)} ...\n"
    )
    return 0


if __name__ == "__main__":
    sys.exit(demo(sys.argv[1:]))
