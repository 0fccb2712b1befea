"""An embedder that notes what it is asked and answers numbers of its own; it may be held."""

import asyncio
from dataclasses import dataclass, field
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from daemon.errors import InvalidRequestError
from daemon.urgency import URGENCY

Vector = NDArray[np.float32]
CLIP = "ViT-B-32-quickgelu__openai"
PACK = "buffalo_l"


def float32(numbers: Any) -> Vector:
    """Return what came over the wire as the array that it stands for."""
    return np.asarray(numbers, np.float32)


def vector(seed: int, size: int = 512) -> Vector:
    """Return numbers of length 1, among them some that decimal text could spoil."""
    found = np.random.default_rng(seed).standard_normal(size).astype(np.float32)
    found[:3] = (1e-7, -3.4e-5, 1 / 3)
    return np.asarray(found / np.linalg.norm(found), np.float32)


@dataclass(frozen=True)
class Embedded:
    """A text or a picture."""

    vector: Vector
    tokens: int = 5
    width: int = 640
    height: int = 480


@dataclass(frozen=True)
class StandInFace:
    """A face at the picture's edge."""

    confidence: float
    bbox: tuple[float, float, float, float] = (-3.6, 10.5, 20.2, 30.0)
    landmarks: NDArray[np.float32] = field(
        default_factory=lambda: np.arange(10, dtype=np.float32).reshape(5, 2)
    )


@dataclass(frozen=True)
class FoundFaces:
    """What is in a picture."""

    faces: list[StandInFace]
    vectors: list[Vector]
    width: int = 640
    height: int = 480


class StandIn:
    """See above."""

    detector_name = PACK
    recogniser_name = PACK

    def __init__(self) -> None:
        self.asked: list[Any] = []
        self.error: Exception | None = None
        self.go = asyncio.Event()
        self.go.set()
        self.under_way = 0
        self.most = 0
        self.urgencies: set[int] = set()
        self.name = CLIP

    async def clip(self) -> Self:
        return self

    async def faces(self) -> Self:
        return self

    async def embed_text(self, text: str) -> Embedded:
        await self._note(("text", text))
        return Embedded(vector(len(text)))

    async def embed_picture(self, data: bytes) -> Embedded:
        await self._note(("picture", data))
        return Embedded(vector(len(data)))

    async def find_faces(self, data: bytes, *, min_score: float, with_vectors: bool) -> FoundFaces:
        if min_score < 0.5:
            raise InvalidRequestError("a least score of that is below INFERD_FACES__THRESHOLD")
        await self._note(("faces", data, min_score, with_vectors))
        faces = [StandInFace(each) for each in (0.91, 0.72) if each >= min_score]
        return FoundFaces(faces, [vector(n) for n in range(len(faces))] if with_vectors else [])

    async def _note(self, asked: Any) -> None:
        self.asked.append(asked)
        self.urgencies.add(URGENCY.get())
        self.under_way += 1
        self.most = max(self.most, self.under_way)
        try:
            await self.go.wait()
        finally:
            self.under_way -= 1
        if self.error is not None:
            raise self.error
