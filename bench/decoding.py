"""`python -m bench.decoding [FOLDER]`: what fast decoding of JPEGs gains, and what it changes.

First for embeddings, as the daemon does it (INFERD_IMAGES__DECODING). Then for faces, where the
daemon always decodes every pixel: the table says what scaled decoding would do to the faces.

Models are those of the environment (INFERD_FACES__PACK, INFERD_CLIP__WEIGHTS, ...); without any,
the cascade and untrained weights, which every installation has.
"""

import argparse
import functools
import os
import sys
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

import numpy as np

from bench.pictures import Sample, generated, of_folder, size_class
from bench.table import show, spread
from daemon.errors import InferdError
from daemon.settings import Settings
from handlers import clip_input
from handlers.face_detection import FaceDetectionInference
from handlers.face_embedding import FaceEmbeddingInference
from handlers.faces import Face, align
from handlers.image_embedding import ImageEmbeddingInference
from handlers.images import Limits, Picture, decode
from handlers.inference import Pixels, Vector

T = TypeVar("T")

LONG_SIDES = (640, 1280, 1920)
"""Scaled decoding for faces leaves at least so many pixels on the long side."""


@dataclass
class EmbeddingRow:
    """What embedding the pictures of one group took, and how far its two ways are apart."""

    exact_ms: list[float] = field(default_factory=list)
    fast_ms: list[float] = field(default_factory=list)
    pixels: list[float] = field(default_factory=list)
    """Cosine of the squares, round mid-grey."""
    vectors: list[float] = field(default_factory=list)
    """Cosine of the embeddings."""


@dataclass
class FaceRow:
    """What scaled decoding down to one long side did to the faces of all pictures it applies to."""

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


class Bench:
    """The models and the measurements so far."""

    def __init__(self, settings: Settings, rounds: int) -> None:
        """Load the models.

        Raises:
            ConfigError: one cannot be loaded.
        """
        self._rounds = rounds
        self._limits = Limits.from_settings(settings.images)
        self._clip = ImageEmbeddingInference(settings=settings)
        self._detector = FaceDetectionInference(settings=settings)
        self._recogniser = FaceEmbeddingInference(settings=settings)
        for model in (self._clip, self._detector, self._recogniser):
            model.load()
            print(f"model: {model.provenance.model}, weights {model.provenance.weights}")
        self.embedding: dict[str, EmbeddingRow] = {}
        self.faces = {long_side: FaceRow() for long_side in LONG_SIDES}

    def measure(self, sample: Sample) -> None:
        """Put one picture through everything.

        Raises:
            PermanentError: it is damaged, or too large.
        """
        self._measure_embedding(sample)
        whole, whole_ms = self._timed(lambda: decode(sample.data, self._limits))
        pixels = whole.pixels()
        faces = self._detector.infer(pixels)
        vectors = self._vectors(pixels, faces)
        for long_side, row in self.faces.items():
            min_side = _min_side(whole, long_side)
            if min_side is None:
                continue
            picture, scaled_ms = self._timed(
                functools.partial(decode, sample.data, self._limits, min_side=min_side)
            )
            if picture.box is None:
                continue
            row.exact_ms.append(whole_ms)
            row.scaled_ms.append(scaled_ms)
            self._compare(row, pixels, faces, vectors, picture)

    def _measure_embedding(self, sample: Sample) -> None:
        side = self._clip.input_size[0]
        exact: list[float] = []
        fast: list[float] = []
        for _ in range(self._rounds):
            # In turns, so that a slow spell of the machine meets both.
            one, milliseconds = _clocked(
                lambda: clip_input.read(sample.data, self._limits, side=side, decoding="exact")
            )
            exact.append(milliseconds)
            other, milliseconds = _clocked(
                lambda: clip_input.read(sample.data, self._limits, side=side, decoding="fast")
            )
            fast.append(milliseconds)
        first, second = self._clip.infer_batch([one.pixels, other.pixels])
        group = sample.group or size_class(one.width, one.height)
        row = self.embedding.setdefault(group, EmbeddingRow())
        row.exact_ms.append(min(exact))
        row.fast_ms.append(min(fast))
        row.pixels.append(_cosine(one.pixels, other.pixels))
        row.vectors.append(float(first @ second))

    def _compare(
        self,
        row: FaceRow,
        pixels: Pixels,
        faces: list[Face],
        vectors: list[Vector],
        picture: Picture,
    ) -> None:
        small = picture.pixels()
        scaled = self._detector.infer(small)
        left, top, right, bottom = picture.box or (0, 0, small.shape[1], small.shape[0])
        scale = (picture.width / (right - left), picture.height / (bottom - top))
        rest = dict(enumerate(scaled))
        for face, vector in zip(faces, vectors, strict=True):
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
            moved = self._recogniser.infer(align(pixels, landmarks))
            row.realigned.append(float(vector @ moved))
        row.extra += len(rest)

    def _vectors(self, pixels: Pixels, faces: Iterable[Face]) -> list[Vector]:
        return [self._recogniser.infer(align(pixels, face.landmarks)) for face in faces]

    def _timed(self, work: Callable[[], T]) -> tuple[T, float]:
        results = [_clocked(work) for _ in range(self._rounds)]
        return results[-1][0], min(milliseconds for _, milliseconds in results)


def _clocked(work: Callable[[], T]) -> tuple[T, float]:
    """Return the result and this thread's CPU milliseconds, which other programs disturb least."""
    began = time.thread_time()
    result = work()
    return result, (time.thread_time() - began) * 1000


def _min_side(picture: Picture, long_side: int) -> int | None:
    """Return the short side at the smallest scale that leaves `long_side`; None: no scale does."""
    for scale in (8, 4, 2):
        if max(picture.width, picture.height) // scale >= long_side:
            return min(picture.width, picture.height) // scale
    return None


def _edges(face: Face) -> np.ndarray[tuple[int, ...], np.dtype[np.float64]]:
    """Return [2, 2]: left and top, right and bottom."""
    x, y, width, height = face.bbox
    return np.array([[x, y], [x + width, y + height]])


def _cosine(one: Pixels, other: Pixels) -> float:
    a, b = one.astype(float).ravel() - 127.5, other.astype(float).ravel() - 127.5
    length = np.sqrt((a @ a) * (b @ b))
    return float(a @ b / length) if length else 1.0


def settings_of(environ: Mapping[str, str]) -> Settings:
    """Return the environment's settings, or those that need no weights.

    Raises:
        ConfigError: the environment is wrong.
    """
    defaults = {"INFERD_CLIP__WEIGHTS": "untrained", "INFERD_OFFLINE": "true"}
    if not any(name.startswith("INFERD_FACES__") for name in environ):
        defaults |= {"INFERD_FACES__PACK": "cascade", "INFERD_FACES__RECOGNISER": "untrained"}
    return Settings.from_env({**defaults, **environ})


def main(argv: list[str]) -> int:
    """Measure and print; 1 where a model or the configuration is missing."""
    parser = argparse.ArgumentParser(prog="python -m bench.decoding", description=__doc__)
    parser.add_argument("folder", nargs="?", type=Path, help="JPEGs to take instead of made ones")
    parser.add_argument("--rounds", type=int, default=3, help="the least of so many counts (3)")
    arguments = parser.parse_args(argv)
    try:
        bench = Bench(settings_of(os.environ), max(1, arguments.rounds))
    except InferdError as error:
        print(error, file=sys.stderr)
        return 1
    for sample in of_folder(arguments.folder) if arguments.folder else generated():
        try:
            bench.measure(sample)
        except InferdError as error:
            print(f"{sample.name}: {error}", file=sys.stderr)
    # Made pictures come in the order of the table; a folder's in any.
    groups = sorted(bench.embedding.items()) if arguments.folder else bench.embedding.items()
    show(
        "Embedding: decode and crop, CPU milliseconds a picture; cosines as min / median / max",
        ("pictures", "n", "exact", "fast", "exact/fast", "cosine of pixels", "cosine of vectors"),
        [
            (
                group,
                str(len(row.pixels)),
                f"{np.mean(row.exact_ms):.1f}",
                f"{np.mean(row.fast_ms):.1f}",
                f"{sum(row.exact_ms) / sum(row.fast_ms):.2f}",
                spread(row.pixels, 5),
                spread(row.vectors, 6),
            )
            for group, row in groups
        ],
    )
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
            for long_side, row in bench.faces.items()
        ],
    )
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
