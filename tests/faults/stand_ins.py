"""Quick models of real shapes: what they make follows from the pixels alone, so tests know it."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from daemon.settings import Settings
from handlers.faces.face import Face
from handlers.inference import ModelInference, Provenance, Vector

SIDE = 96
"""Pixels of the square pictures that tests serve."""
LANDMARKS = np.array([[30, 40], [60, 40], [45, 55], [33, 70], [57, 70]], np.float32)


class QuickModel:
    """The life of a model that needs no file."""

    def __init__(self, name: str) -> None:
        self.fingerprint = f"quick-{name}"
        self.provenance = Provenance(
            model=self.fingerprint, weights="none", device="cpu", precision="fp32"
        )
        self.is_loaded = False

    def resolve(self) -> None:
        """There is nothing to find."""

    def load(self) -> None:
        self.is_loaded = True

    def unload(self) -> None:
        self.is_loaded = False

    def move_to(self, device: str) -> None:
        """It runs nowhere else."""

    def free_memory(self) -> None:
        """It keeps nothing."""


class QuickImages(ModelInference[Vector]):
    def __init__(
        self,
        embedding_dim: int | None = 512,
        input_size: tuple[int, int] | None = (224, 224),
        *,
        settings: Settings | None = None,
    ) -> None:
        super().__init__(QuickModel("clip"))
        self.embedding_dim, self.input_size = embedding_dim or 512, input_size or (224, 224)

    def infer_batch(self, buffers: Sequence[NDArray[Any]]) -> list[Vector]:
        return [vector_of(buffer) for buffer in buffers]


class QuickTexts(QuickImages):
    def __init__(self, embedding_dim: int = 512, *, settings: Settings | None = None) -> None:
        super().__init__(embedding_dim, settings=settings)

    def tokenise(self, text: str) -> NDArray[np.int64]:
        return np.zeros(77, np.int64)


class QuickDetector(ModelInference[list[Face]]):
    """Finds as many faces as the picture's green says."""

    def __init__(self, *, settings: Settings | None = None) -> None:
        super().__init__(QuickModel("detector"))

    def infer_batch(self, buffers: Sequence[NDArray[Any]]) -> list[list[Face]]:
        return [
            [
                Face((20.0, 30.0 + index / 1000, 50.0, 50.0), LANDMARKS, 0.9)
                for index in range(faces_in(buffer))
            ]
            for buffer in buffers
        ]


class QuickFaces(QuickImages):
    def __init__(
        self,
        embedding_dim: int = 512,
        input_size: tuple[int, int] = (112, 112),
        *,
        settings: Settings | None = None,
    ) -> None:
        super().__init__(embedding_dim, input_size, settings=settings)


def colour(media_id: int, faces: int = 1) -> tuple[int, int, int]:
    """Return the colour of a picture, which says all that the stand-ins look at."""
    return media_id % 256, faces, media_id // 256 % 256


def vector_of(pixels: NDArray[Any]) -> Vector:
    """Return float32 [512] of length 1 that follows from the middle pixel."""
    middle = pixels[pixels.shape[0] // 2, pixels.shape[1] // 2]
    seed = [round(float(channel)) & 0xFF for channel in middle]
    found = np.random.default_rng(seed).standard_normal(512).astype(np.float32)
    unit: Vector = found / np.linalg.norm(found)
    return unit


def faces_in(pixels: NDArray[Any]) -> int:
    """Return how many faces the stand-in finds."""
    return int(pixels[0, 0, 1])
