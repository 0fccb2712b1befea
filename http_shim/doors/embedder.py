"""Embedder: the interface to the daemon's models that these APIs need."""

from collections.abc import Sequence
from typing import Protocol, TypeAlias

import numpy as np
from numpy.typing import NDArray

Vector: TypeAlias = NDArray[np.float32]


class EmbeddedText(Protocol):
    """A text's vector."""

    @property
    def vector(self) -> Vector:
        """float32 [dim] of length 1."""

    @property
    def tokens(self) -> int:
        """How many the model read."""


class EmbeddedPicture(Protocol):
    """A picture's vector."""

    @property
    def vector(self) -> Vector:
        """float32 [dim] of length 1."""

    @property
    def width(self) -> int:
        """Pixels of the upright picture."""

    @property
    def height(self) -> int:
        """Pixels of the upright picture."""


class Face(Protocol):
    """One face of a picture, in pixels of the upright picture."""

    @property
    def bbox(self) -> tuple[float, float, float, float]:
        """x, y, width, height; may reach beyond the picture."""

    @property
    def landmarks(self) -> NDArray[np.float32]:
        """[5, 2]."""

    @property
    def confidence(self) -> float:
        """0 to 1."""


class Faces(Protocol):
    """The faces of a picture."""

    @property
    def faces(self) -> Sequence[Face]:
        """In order of appearance in a job's result."""

    @property
    def vectors(self) -> Sequence[Vector]:
        """One for each face, where they were asked for."""

    @property
    def width(self) -> int:
        """Pixels of the upright picture."""

    @property
    def height(self) -> int:
        """Pixels of the upright picture."""


class Clip(Protocol):
    """One CLIP: all its vectors are of one model. Raises InferdErrors with the codes of jobs."""

    @property
    def name(self) -> str:
        """What it is called."""

    async def embed_text(self, text: str) -> EmbeddedText:
        """Return a text's vector."""

    async def embed_picture(self, data: bytes) -> EmbeddedPicture:
        """Return the vector of a picture file."""


class FaceFinder(Protocol):
    """One detector and one recogniser. Raises InferdErrors with the codes of jobs."""

    @property
    def detector_name(self) -> str:
        """What the detector is called."""

    @property
    def recogniser_name(self) -> str:
        """What the recogniser is called."""

    async def find_faces(self, data: bytes, *, min_score: float, with_vectors: bool) -> Faces:
        """Return the faces of a picture file."""


class Embedder(Protocol):
    """Gives models that embed at once. Raises InferdErrors with the codes of jobs and searches."""

    async def clip(self) -> Clip:
        """Return the CLIP whose vectors are searched at this moment."""

    async def faces(self) -> FaceFinder:
        """Return the models whose face vectors are searched at this moment."""
