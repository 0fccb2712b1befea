"""Models of real shapes that need no weights: the vector of a picture follows from its colour.

A picture is of one colour, and its blue says how many faces it has. So a test knows each vector
that must be stored, and a daemon starts in a moment.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from daemon.worker import worker
from handlers import clip_opener, face_embedding, face_opener
from handlers.faces.face import Face
from handlers.inference import MLInference, Pixels, Provenance, Result, Vector

DIMENSION = 512
BLUE_STEP = 40
FACE_SIZE = 112

Colour = tuple[int, int, int]


def colour_of(media_id: int, faces: int) -> Colour:
    """Return the colour of a picture: its own, and telling how many faces it has (up to 5)."""
    return 20 + media_id % 200, 20 + media_id // 200, BLUE_STEP * faces + BLUE_STEP // 2


def vector_of(colour: Colour, face_index: int = -1) -> Vector:
    """Return the vector, float32 [512] of length 1, of a picture or of one of its faces."""
    vector = np.random.default_rng([*colour, face_index + 1]).standard_normal(DIMENSION)
    unit: Vector = (vector / np.linalg.norm(vector)).astype(np.float32)
    return unit


def _colour(pixels: NDArray[Any]) -> Colour:
    red, green, blue = (int(value) for value in pixels[-1, -1])
    return red, green, blue


class _StandIn(MLInference[Result]):
    input_size = (224, 224)
    embedding_dim = DIMENSION

    def __init__(self, *_: Any, **__: Any) -> None:
        self._is_loaded = False

    def resolve(self) -> None:
        """There are no weights."""

    @property
    def fingerprint(self) -> str:
        return f"stand-in {type(self).__name__}"

    @property
    def provenance(self) -> Provenance:
        return Provenance(model="stand-in", weights="UNTRAINED", device="cpu", precision="fp32")

    def load(self) -> None:
        self._is_loaded = True

    def unload(self) -> None:
        self._is_loaded = False

    @property
    def is_loaded(self) -> bool:
        return self._is_loaded


class ImageStandIn(_StandIn[Vector]):
    """Instead of CLIP's image tower."""

    def infer_batch(self, buffers: Sequence[NDArray[Any]]) -> list[Vector]:
        return [vector_of(_colour(buffer)) for buffer in buffers]


class TextStandIn(_StandIn[Vector]):
    """Instead of CLIP's text tower, which no job asks for."""

    tokenise = staticmethod(len)

    def infer_batch(self, buffers: Sequence[NDArray[Any]]) -> list[Vector]:
        return [vector_of((0, 0, 0)) for _ in buffers]


class DetectorStandIn(_StandIn[list[Face]]):
    """Instead of SCRFD: as many faces as the blue says, each with its index for landmarks."""

    def infer_batch(self, buffers: Sequence[NDArray[Any]]) -> list[list[Face]]:
        return [
            [
                Face((8.0 * index, 4.0, 6.0, 6.0), np.full((5, 2), index, np.float32), 0.9)
                for index in range(_colour(buffer)[2] // BLUE_STEP)
            ]
            for buffer in buffers
        ]


class RecogniserStandIn(_StandIn[Vector]):
    """Instead of ArcFace: the vector follows from the colour and the index of the face."""

    def infer_batch(self, buffers: Sequence[NDArray[Any]]) -> list[Vector]:
        return [vector_of(_colour(buffer), int(buffer[0, 0, 0])) for buffer in buffers]


def _align(pixels: Pixels, landmarks: NDArray[Any]) -> Pixels:
    crop = np.empty((FACE_SIZE, FACE_SIZE, 3), np.uint8)
    crop[:] = pixels[-1, -1]
    crop[0, 0] = int(landmarks[0, 0])
    return crop


def install() -> None:
    """Let this process build its handlers over the stand-ins, and be impatient."""
    worker.HOLD_SECONDS = 0.1
    vars(clip_opener)["ImageEmbeddingInference"] = ImageStandIn
    vars(clip_opener)["TextEmbeddingInference"] = TextStandIn
    vars(face_opener)["FaceDetectionInference"] = DetectorStandIn
    vars(face_opener)["FaceEmbeddingInference"] = RecogniserStandIn
    vars(face_embedding)["align"] = _align
