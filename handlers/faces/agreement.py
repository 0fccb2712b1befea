"""Whether another runtime answers as the usual one does: faces within a tolerance, or vectors.

Each returns what is wrong as a part of a sentence, empty where nothing is.
"""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from handlers.faces import scrfd_outputs
from handlers.faces.batches import FARTHEST, Answers

LEAST_COSINE = 0.9999
"""Of a face's vector with that of the usual runtime."""
SCORE = 0.02
"""Most that a face's score may differ. In bf16 det_500m's differed by 0.005 on photos."""
OVERLAP = 0.95
"""Least intersection over union of a face's boxes; 0.99 in bf16, once 0.96."""
LANDMARK = 0.02
"""Farthest that a landmark may move, as a part of the box's longer side; 0.006 in bf16."""


def faces_differ(
    expected: Sequence[Answers], found: Sequence[Answers], *, input_width: int, threshold: float
) -> str:
    """Compare what a detector gives in two ways, by the faces that it means.

    Where it sees no face at all its numbers themselves must be equal but for rounding.

    Args:
        expected: for each picture its outputs [1, anchors, width], as the usual runtime has them.
        found: the same of the other one.
        input_width: of the pictures, in pixels.
        threshold: lowest score of a face.
    """
    seen = 0
    for one, other in zip(expected, found, strict=True):
        # A face just above the threshold here may be just below it there.
        ours, theirs = (
            scrfd_outputs.faces(
                [output[0] for output in outputs],
                input_width=input_width,
                scale=1,
                threshold=threshold - SCORE,
            )
            for outputs in (one, other)
        )
        for these, those in ((ours, theirs), (theirs, ours)):
            sure = np.flatnonzero(~(these[0][:, 4] < threshold))
            seen += len(sure)
            for number in sure:
                if fault := _face_differs(these[0][number], these[1][number], *those):
                    return fault
    return "" if seen else _numbers_differ(expected, found)


def vectors_differ(expected: Sequence[Answers], found: Sequence[Answers]) -> str:
    """Compare what a recogniser gives in two ways.

    Args:
        expected: for each face its vector, [[1, dimension]], as the usual runtime has it.
        found: the same of the other one.
    """
    cosines = [
        _cosine(one[0].ravel(), other[0].ravel())
        for one, other in zip(expected, found, strict=True)
    ]
    # numpy's, which passes NaN on.
    least = float(np.min(cosines))
    if least >= LEAST_COSINE:
        return ""
    return f"a face's vector has cosine {least:.5f}, should be {LEAST_COSINE}"


def _face_differs(
    box: NDArray[np.float32],
    points: NDArray[np.float32],
    boxes: NDArray[np.float32],
    landmarks: NDArray[np.float32],
) -> str:
    if not len(boxes):
        return f"a face of score {box[4]:.2f} is one runtime's only"
    overlaps = [_overlap(box, each) for each in boxes]
    nearest = int(np.argmax(overlaps))
    other = boxes[nearest]
    side = float(max(box[2] - box[0], box[3] - box[1]))
    moved = float(np.abs(points - landmarks[nearest]).max()) / side if side > 0 else math.nan
    score = abs(float(box[4] - other[4]))
    # Written so that NaN fails.
    if not overlaps[nearest] >= OVERLAP:
        return f"a face's boxes overlap by {overlaps[nearest]:.3f}, should by {OVERLAP}"
    if not score <= SCORE:
        return f"a face's score differs by {score:.3f}, may by {SCORE}"
    if not moved <= LANDMARK:
        return f"a landmark moved by {moved:.1%} of its face, may by {LANDMARK:.0%}"
    return ""


def _overlap(one: NDArray[np.float32], other: NDArray[np.float32]) -> float:
    """Return intersection over union of two boxes, left, top, right, bottom."""
    width = min(one[2], other[2]) - max(one[0], other[0])
    height = min(one[3], other[3]) - max(one[1], other[1])
    shared = float(max(width, 0) * max(height, 0))
    areas = [float((each[2] - each[0]) * (each[3] - each[1])) for each in (one, other)]
    union = sum(areas) - shared
    return shared / union if union > 0 else math.nan


def _numbers_differ(expected: Sequence[Answers], found: Sequence[Answers]) -> str:
    apart = [
        float(np.linalg.norm(one.astype(np.float64) - other)) / (float(np.linalg.norm(one)) or 1.0)
        for outputs, others in zip(expected, found, strict=True)
        for one, other in zip(outputs, others, strict=True)
    ]
    farthest = float(np.max(apart))
    if farthest <= FARTHEST:
        return ""
    return f"it sees no face to compare, and its numbers differ by {farthest:.2%}"


def _cosine(one: NDArray[Any], other: NDArray[Any]) -> float:
    first, second = one.astype(np.float64), other.astype(np.float64)
    lengths = float(np.linalg.norm(first) * np.linalg.norm(second))
    return float(first @ second) / lengths if lengths else math.nan
