"""What scaled decoding of JPEGs would do to faces: why the daemon gives them every pixel."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import partial

import numpy as np
from numpy.typing import NDArray

from bench.table import show, spread
from bench.timing import in_turns
from daemon.settings import Settings
from handlers.face_detection import FaceDetectionInference
from handlers.face_embedding import FaceEmbeddingInference
from handlers.faces.face import Face
from handlers.faces.pixels import align
from handlers.inference import Pixels, Vector
from handlers.media.images import Limits, Picture, decode

LONG_SIDES = (640, 1280, 1920)
"""Scaled decoding leaves at least so many pixels on the long side."""


@dataclass
class Row:
    """The faces of all pictures that are decoded scaled down to one long side."""

    exact_ms: list[float] = field(default_factory=list)
    scaled_ms: list[float] = field(default_factory=list)
    found: int = 0
    lost: int = 0
    extra: int = 0
    boxes: list[float] = field(default_factory=list)
    """Farthest edge of each face's box, in pixels of the original."""
    relative: list[float] = field(default_factory=list)
    """The same in per cent of the box's larger side."""
    landmarks: list[float] = field(default_factory=list)
    """Farthest coordinate of a landmark, in pixels of the original."""
    vectors: list[float] = field(default_factory=list)
    """Cosine of the vectors of faces aligned from scaled and from all pixels."""
    realigned: list[float] = field(default_factory=list)
    """The same, where only the landmarks come from the scaled picture."""


class ScaledFaces:
    """The face models, and what was measured so far."""

    def __init__(self, settings: Settings, rounds: int) -> None:
        """Load the models.

        Raises:
            ConfigError: one cannot be loaded.
        """
        self._rounds = rounds
        self._limits = Limits.from_settings(settings.images)
        self._detector = FaceDetectionInference(settings=settings)
        self._recogniser = FaceEmbeddingInference(settings=settings)
        self._rows = {long_side: Row() for long_side in LONG_SIDES}
        self.models = (self._detector, self._recogniser)
        for model in self.models:
            model.load()

    def measure(self, data: bytes) -> None:
        """Look for faces in a JPEG decoded every way.

        Raises:
            PermanentError: it is damaged, or too large.
        """
        read = partial(decode, data, self._limits)
        picture = read()
        scales = {long_side: _min_side(picture, long_side) for long_side in LONG_SIDES}
        min_sides = {long_side: side for long_side, side in scales.items() if side}
        ways = [read, *(partial(read, min_side=side) for side in min_sides.values())]
        (whole, whole_ms), *others = in_turns(ways, self._rounds)
        pixels = whole.pixels()
        faces = self._detector.infer(pixels)
        vectors = self._vectors(pixels, faces)
        for long_side, (scaled, scaled_ms) in zip(min_sides, others, strict=True):
            if scaled.box is not None:
                row = self._rows[long_side]
                row.exact_ms.append(whole_ms)
                row.scaled_ms.append(scaled_ms)
                self._compare(row, pixels, list(zip(faces, vectors, strict=True)), scaled)

    def show(self) -> None:
        """Print the table."""
        show(
            "Faces, if they were decoded scaled, which the daemon does not; min / median / max",
            (
                "long side",
                "pictures",
                "exact/scaled",
                "faces",
                "lost",
                "extra",
                "box, px",
                "box, %",
                "landmarks, px",
                "cosine",
                "cosine, realigned",
            ),
            [
                (
                    f">= {long_side}",
                    str(len(row.exact_ms)),
                    f"{sum(row.exact_ms) / sum(row.scaled_ms):.2f}" if row.scaled_ms else "-",
                    str(row.found + row.lost),
                    str(row.lost),
                    str(row.extra),
                    spread(row.boxes, 2),
                    spread(row.relative, 2),
                    spread(row.landmarks, 2),
                    spread(row.vectors, 4),
                    spread(row.realigned, 4),
                )
                for long_side, row in self._rows.items()
            ],
        )

    def _compare(
        self, row: Row, pixels: Pixels, known: Iterable[tuple[Face, Vector]], scaled: Picture
    ) -> None:
        small = scaled.pixels()
        left, top, right, bottom = scaled.box or (0, 0, *scaled.image.size)
        scale = (scaled.width / (right - left), scaled.height / (bottom - top))
        rest = dict(enumerate(self._detector.infer(small)))
        for face, vector in known:
            edges = _edges(face)
            size = max(face.bbox[2:])
            apart = {
                index: float(np.abs((_edges(each) - (left, top)) * scale - edges).max())
                for index, each in rest.items()
            }
            nearest = min(apart, key=lambda index: apart[index], default=None)
            if nearest is None or apart[nearest] > size / 2:
                row.lost += 1
                continue
            twin = rest.pop(nearest)
            landmarks = ((twin.landmarks - (left, top)) * scale).astype(np.float32)
            row.found += 1
            row.boxes.append(apart[nearest])
            row.relative.append(100 * apart[nearest] / size)
            row.landmarks.append(float(np.abs(landmarks - face.landmarks).max()))
            row.vectors.append(float(vector @ self._vectors(small, [twin])[0]))
            row.realigned.append(float(vector @ self._recogniser.infer(align(pixels, landmarks))))
        row.extra += len(rest)

    def _vectors(self, pixels: Pixels, faces: Iterable[Face]) -> list[Vector]:
        return [self._recogniser.infer(align(pixels, face.landmarks)) for face in faces]


def _min_side(picture: Picture, long_side: int) -> int | None:
    """Return the short side at the smallest scale that leaves `long_side`; None: no scale does."""
    for scale in (8, 4, 2):
        if max(picture.width, picture.height) // scale >= long_side:
            return min(picture.width, picture.height) // scale
    return None


def _edges(face: Face) -> NDArray[np.float64]:
    """Return [2, 2]: left and top, right and bottom."""
    x, y, width, height = face.bbox
    return np.array([[x, y], [x + width, y + height]])
