"""FaceEmbeddingInference: ArcFace behind the documented interface."""

import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from daemon.errors import ConfigError, InferdError
from daemon.settings import Settings
from handlers.face_detection import FaceDetectionInference, upright_pixels
from handlers.faces.alignment import FACE_SIZE
from handlers.faces.arcface import ArcFaceRecogniser
from handlers.faces.face import EMBEDDING_DIM, Face
from handlers.faces.pixels import align
from handlers.inference import (
    Batch,
    ModelInference,
    Numbers,
    Pixels,
    Vector,
    check_pixels,
)
from handlers.lanes.self_test import synthetic_picture
from handlers.media.images import Limits


class FaceEmbeddingInference(ModelInference[Vector]):
    """ArcFace behind the documented interface: one aligned face in, one vector of length 1 out.

    A buffer is RGB [112, 112, 3] as `handlers.faces.pixels.align` makes it: uint8, or float32 that
    is normalised already as (x - 127.5) / 127.5.
    """

    def __init__(
        self,
        embedding_dim: int | None = EMBEDDING_DIM,
        input_size: tuple[int, int] = (FACE_SIZE, FACE_SIZE),
        *,
        settings: Settings | None = None,
    ) -> None:
        """Take the recogniser from `settings`, or from the environment where none are given.

        Args:
            embedding_dim: length of the vectors that is expected; None is what the recogniser
                gives, nearly always 512.
            input_size: height and width of the faces that is expected; 112, 112.
            settings: which recogniser, where its file is and on what device it runs.

        Raises:
            ConfigError: the configuration is wrong, or another length or size was asked for.
        """
        settings = settings or Settings.from_env(os.environ)
        wanted = embedding_dim or EMBEDDING_DIM
        if (wanted, tuple(input_size)) != (EMBEDDING_DIM, (FACE_SIZE, FACE_SIZE)):
            raise ConfigError(
                f"ArcFace makes {EMBEDDING_DIM} numbers of {FACE_SIZE}x{FACE_SIZE} pixels; "
                f"asked for {embedding_dim} of {tuple(input_size)}"
            )
        self.input_size = input_size
        self._recogniser = ArcFaceRecogniser(
            settings.faces,
            models_dir=settings.models_path,
            device=settings.device,
            require_gpu=settings.require_gpu,
            offline=settings.offline,
            dimension=embedding_dim,
        )
        super().__init__(self._recogniser)

    @property
    def embedding_dim(self) -> int:
        """Numbers in a vector; where any number was allowed 512 before the file was resolved."""
        return self._recogniser.dimension

    @property
    def batch(self) -> Batch | None:
        """How many faces the recogniser runs at a time; see MLInference."""
        return self._recogniser.batch

    def infer(self, buffer: NDArray[Any], label: str = "") -> Vector:
        """Return float32 [embedding_dim] of length 1.

        Args:
            buffer: uint8 RGB or normalised float32, [112, 112, 3].
            label: names the face in errors.

        Raises:
            PermanentError: code bad_buffer; the buffer is neither.
            ConfigError: the recogniser had to be loaded and could not be.
        """
        self._check(buffer, label)
        return super().infer(buffer, label)

    def infer_batch(self, buffers: Sequence[NDArray[Any]]) -> list[Vector]:
        """Return one float32 [embedding_dim] of length 1 for each face, in order.

        Raises:
            PermanentError: code bad_buffer; a buffer is neither kind.
        """
        for number, buffer in enumerate(buffers):
            self._check(buffer, f"number {number} of {len(buffers)}" if len(buffers) > 1 else "")
        self.load()
        return self._recogniser.embed_batch(buffers)

    def self_test(self) -> Numbers:
        """Return the vector of a built-in picture; see MLInference."""
        return self.infer_batch([synthetic_picture(*self.input_size)])[0]

    def _check(self, buffer: NDArray[Any], label: str) -> None:
        shape = (*self.input_size, 3)
        check_pixels(buffer, shape, normalised="(x - 127.5) / 127.5", label=label)


def configured_dimension(settings: Settings) -> int:
    """Return how long vectors of the configured recogniser are; 512 where its file is absent."""
    if not settings.faces.recogniser:
        # A pack's; published ones have 512, and looking for one may unpack it.
        return EMBEDDING_DIM
    inference = FaceEmbeddingInference(None, settings=settings)
    try:
        inference.resolve()
    except ConfigError:
        return EMBEDDING_DIM
    return inference.embedding_dim


def aligned(pixels: Pixels, faces: Sequence[Face]) -> list[Pixels]:
    """Return the faces of a picture as a recogniser takes them; blocks."""
    return [align(pixels, face.landmarks) for face in faces]


def demo(arguments: Sequence[str]) -> int:
    """Embed the faces of the picture named on the command line, or a grey square; say what ran."""
    try:
        settings = Settings.from_env(os.environ)
        inference = FaceEmbeddingInference(settings=settings)
        crops = [np.full((*inference.input_size, 3), 128, np.uint8)]
        label = "an even grey"
        if arguments:
            label = arguments[0]
            limits = Limits.from_settings(settings.images)
            pixels = upright_pixels(Path(label).read_bytes(), limits, None)
            faces = FaceDetectionInference(settings=settings).infer(pixels, label=label)
            crops = aligned(pixels, faces)
        vectors = [
            inference.infer(crop, label=f"face {index} of {label}")
            for index, crop in enumerate(crops)
        ]
    except (InferdError, OSError) as error:
        sys.stderr.write(f"{error}\n")
        return 1
    if not vectors:
        sys.stdout.write(f"{label}: no face\n")
        return 0
    ran = inference.provenance
    sys.stdout.write(f"{ran.model}, weights {ran.weights}, on {ran.device} in {ran.precision}\n")
    for index, vector in enumerate(vectors):
        first = np.array2string(vector[:4], precision=4)
        likeness = ", ".join(f"{vector @ other:.3f}" for other in vectors)
        sys.stdout.write(
            f"{label}, face {index}: {vector.size} numbers, norm {np.linalg.norm(vector):.6f}, "
            f"{first} ...; cosine to each: {likeness}\n"
        )
    return 0


if __name__ == "__main__":
    sys.exit(demo(sys.argv[1:]))
