"""scikit-image's frontal-face cascade as a detector: real boxes where no weights are in reach.

The only file that imports skimage. It finds upright, frontal faces that are not small in the
picture, knows no score and sees no landmarks; its provenance says so.
"""

import importlib
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from daemon.errors import ConfigError, RetryableError
from handlers.faces.alignment import FACE_SIZE, TEMPLATE
from handlers.faces.face import Face
from handlers.faces.pixels import shrunk
from handlers.inference import Batch, Numbers, Pixels, Provenance
from handlers.lanes.memory import HOST, memory_watched, trim
from handlers.lanes.self_test import synthetic_picture

log = logging.getLogger(__name__)

LONG_SIDE = 640
"""Larger pictures are made smaller first, as the other detector does."""
SMALLEST = 30
"""Side of the smallest face, in pixels of the picture made smaller; the cascade's own is 24."""
SCALE_FACTOR = 1.2
NEIGHBOURS = 4
"""Windows that must agree. With the two above: 35 of 46 noses and 3 extra boxes on the photos
that the tests know; 26, 1.1 and 4 find 41, with 13 extra, in three times the time."""
MERGE_OVERLAP = 0.4
OVERLAP = 0.3
"""Part of the smaller of two boxes that may lie in the other: one face gives one box."""
CONFIDENCE = 0.5

NOTES = (
    "landmarks are estimated: a mean face placed in the box",
    f"confidence is the constant {CONFIDENCE}: the cascade gives no score",
    "finds upright frontal faces only",
)

# The mean face in parts of the cascade's box: its boxes cut closer than ArcFace's crops, and
# higher. Fitted to 44 faces whose landmarks a trained detector knew.
_LANDMARKS: NDArray[np.float64] = (TEMPLATE / FACE_SIZE - (0.5, 0)) * 1.09 + (0.5, -0.125)

_Box = tuple[int, int, int]
"""Left, top, side."""


class CascadeDetector:
    """The LBP frontal-face cascade that comes with scikit-image, trained by OpenCV's authors.

    Always on the CPU, whatever the device setting says of models.
    """

    def __init__(self) -> None:
        self._path: Path | None = None
        self._cascade: Any = None

    @property
    def fingerprint(self) -> str:
        """Names the file; scikit-image checks its digest itself."""
        return "lbpcascade_frontalface_opencv.xml"

    @property
    def provenance(self) -> Provenance:
        """What runs: always the same."""
        return Provenance(
            model="LBP frontal cascade",
            weights=self.fingerprint,
            device="cpu",
            precision="int32",
            notes=NOTES,
        )

    @property
    def batch(self) -> Batch:
        """How many pictures it takes at a time: always the same."""
        return Batch(1, "the cascade looks at one picture")

    @property
    def is_loaded(self) -> bool:
        """Whether the next `detect` needs no loading."""
        return self._cascade is not None

    def resolve(self) -> None:
        """Find the file inside scikit-image.

        Raises:
            ConfigError: scikit-image is absent or incomplete.
        """
        if self._path is not None:
            return
        try:
            data = importlib.import_module("skimage.data")
            self._path = Path(data.lbp_frontal_face_cascade_filename())
        except (ImportError, OSError) as error:
            raise ConfigError(f"scikit-image has no frontal-face cascade: {error}") from error

    def load(self) -> None:
        """Read the cascade.

        Raises:
            ConfigError: as `resolve`.
        """
        if self.is_loaded:
            return
        self.resolve()
        try:
            feature = importlib.import_module("skimage.feature")
            self._cascade = feature.Cascade(str(self._path))
        except (ImportError, OSError) as error:
            raise ConfigError(f"scikit-image cannot read its cascade: {error}") from error
        log.info("loaded the frontal-face cascade: %s", "; ".join(NOTES))

    def unload(self) -> None:
        """Give the memory back."""
        self._cascade = None

    def move_to(self, device: str) -> None:
        """Stay on the CPU."""

    def free_memory(self) -> None:
        """Keep nothing, so that nothing is freed but what the C library holds."""
        trim()

    def detect(self, pixels: Pixels) -> list[Face]:
        """Return the faces, largest first; no face is an empty list.

        Raises:
            RetryableError: code model_error; scikit-image failed.
            OutOfMemoryError: the picture does not fit into memory once more.
        """
        with memory_watched("the cascade", HOST):
            small = shrunk(pixels, LONG_SIDE)
            short_side = min(small.shape[:2])
            if short_side < SMALLEST:
                return []
            found = self._windows(small, short_side)
        boxes = _distinct([(box["c"], box["r"], box["width"]) for box in found])
        across = pixels.shape[1] / small.shape[1]
        down = pixels.shape[0] / small.shape[0]
        return [
            _face(left * across, top * down, side * across, side * down)
            for left, top, side in boxes
        ]

    def detect_batch(self, pictures: Sequence[Pixels]) -> list[list[Face]]:
        """Return the faces of each picture, one after the other.

        Raises:
            HandlerError: as `detect`, of any of the pictures.
        """
        return [self.detect(pixels) for pixels in pictures]

    def self_test(self) -> Numbers:
        """Return the boxes in a built-in picture; see MLInference."""
        found = [box for face in self.detect(synthetic_picture(160, 160)) for box in face.bbox]
        return np.array([1.0, *found])

    def _windows(self, small: Pixels, short_side: int) -> list[dict[str, int]]:
        try:
            found: list[dict[str, int]] = self._cascade.detect_multi_scale(
                img=small,
                scale_factor=SCALE_FACTOR,
                step_ratio=1,
                min_size=(SMALLEST, SMALLEST),
                max_size=(short_side, short_side),
                min_neighbor_number=NEIGHBOURS,
                intersection_score_threshold=MERGE_OVERLAP,
            )
        except Exception as error:
            # Compiled code, no error of which is documented.
            raise RetryableError(f"the cascade failed: {error}", code="model_error") from error
        return found


def _face(x: float, y: float, width: float, height: float) -> Face:
    landmarks = (x, y) + _LANDMARKS * (width, height)
    return Face((x, y, width, height), landmarks.astype(np.float32), CONFIDENCE)


def _distinct(boxes: Sequence[_Box]) -> list[_Box]:
    """Return the boxes, largest first, without those that lie mostly in a larger one."""
    kept: list[_Box] = []
    # By place too: the cascade finds its windows in parallel, in no fixed order.
    for box in sorted(boxes, key=lambda box: (-box[2], box[1], box[0])):
        if all(_shared(box, larger) <= OVERLAP * box[2] ** 2 for larger in kept):
            kept.append(box)
    return kept


def _shared(one: _Box, other: _Box) -> int:
    width = min(one[0] + one[2], other[0] + other[2]) - max(one[0], other[0])
    height = min(one[1] + one[2], other[1] + other[2]) - max(one[1], other[1])
    return max(0, width) * max(0, height)
