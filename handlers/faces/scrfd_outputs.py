"""What SCRFD's outputs mean: scores, boxes and landmarks at three strides -> faces, in numpy alone.

Filter first: of 16,800 anchors only those above the threshold are decoded. To the last bit what
insightface's `detect` gives, which decodes all.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

STRIDES = (8, 16, 32)
ANCHORS = 2
WIDTHS = (1, 4, 10)
"""Score, box and five landmarks: the last axis of a detector's three groups of outputs."""
OUTPUTS = len(STRIDES) * len(WIDTHS)
OVERLAP = 0.4
"""Intersection over union above which two boxes are of one face; insightface's own."""
_ROWS = 512
"""Boxes compared with all others at a time, so that thousands need not fit at once."""

Floats = NDArray[np.float32]


def shapes(input_size: tuple[int, int]) -> list[tuple[int, int]]:
    """Return [anchors, width] of each output for one picture of this width and height."""
    width, height = input_size
    return [
        ((height // stride) * (width // stride) * ANCHORS, last)
        for last in WIDTHS
        for stride in STRIDES
    ]


def by_picture(outputs: Sequence[NDArray[Any]], count: int) -> list[NDArray[Any]]:
    """Return each output as [count, anchors, width].

    Args:
        outputs: [count, anchors, width], or [rows, width] of a model that was made for one
            picture: its rows go cell by cell, and in each cell picture by picture.
        count: pictures in the batch.

    Raises:
        ValueError: an output has another number of rows.
    """
    found = []
    for output in outputs:
        if output.ndim == 2 and count > 1:  # noqa: PLR2004 - rows and width
            cells = output.reshape(-1, count, ANCHORS, output.shape[1])
            output = cells.swapaxes(0, 1)  # noqa: PLW2901 - the same numbers
        found.append(output.reshape(count, -1, output.shape[-1]))
    return found


def faces(
    outputs: Sequence[NDArray[Any]], *, input_width: int, scale: float, threshold: float
) -> tuple[Floats, Floats]:
    """Return the faces of one picture, most confident first.

    Args:
        outputs: of one picture, each [anchors, width]: scores, boxes, landmarks by stride.
        input_width: of what the model was given.
        scale: how many of its pixels one of the picture's became.
        threshold: lowest score.

    Returns:
        Float32 [n, 5]: left, top, right, bottom in pixels of the picture, and the score; and
        float32 [n, 5, 2] landmarks. What is NaN in the outputs is NaN here, and a score that is
        NaN gives a box of NaN.
    """
    boxes, landmarks = _candidates(outputs, input_width, threshold)
    boxes[:, :4] /= scale
    order = np.argsort(-boxes[:, 4], kind="stable")
    boxes, landmarks = boxes[order], landmarks[order]
    if len(boxes) > 1 and np.isfinite(boxes).all():
        kept = distinct(boxes)
        boxes, landmarks = boxes[kept], landmarks[kept]
    return boxes, (landmarks / scale).reshape(-1, 5, 2)


def distinct(boxes: Floats) -> list[int]:
    """Return which boxes remain where of those that overlap only the best is kept.

    Args:
        boxes: float32 [n, >= 4], best first, in pixels; a box from 3 to 3 is one pixel wide.
    """
    gone = np.zeros(len(boxes), bool)
    kept = []
    for place, worse in enumerate(_rivals(boxes)):
        if not gone[place]:
            kept.append(place)
            gone[worse] = True
    return kept


def _rivals(boxes: Floats) -> Iterator[NDArray[np.intp]]:
    """Yield for each box which later ones overlap it so far that they are of the same face."""
    left, top, right, bottom = np.ascontiguousarray(boxes[:, :4].T)
    areas = (right - left + 1) * (bottom - top + 1)
    for start in range(0, len(boxes), _ROWS):
        rows = slice(start, start + _ROWS)
        # Most boxes are nowhere near each other: only what touches is calculated with.
        near = (left[rows, None] < right[start:] + 1) & (left[start:] < right[rows, None] + 1)
        near &= top[rows, None] < bottom[start:] + 1
        near &= top[start:] < bottom[rows, None] + 1
        # A box without an area may divide zero by zero, which insightface takes for the same.
        near |= (areas[rows, None] <= 0) | (areas[start:] <= 0)
        one, other = np.nonzero(np.triu(near, 1))
        first, second = one + start, other + start
        across = np.minimum(right[first], right[second]) - np.maximum(left[first], left[second])
        down = np.minimum(bottom[first], bottom[second]) - np.maximum(top[first], top[second])
        shared = np.maximum(0, across + 1) * np.maximum(0, down + 1)
        with np.errstate(invalid="ignore", divide="ignore"):
            same = ~(shared / (areas[first] + areas[second] - shared) <= OVERLAP)
        found, worse = one[same], second[same]
        ends = np.searchsorted(found, np.arange(1, min(_ROWS, len(boxes) - start)))
        yield from np.split(worse, ends)


def _candidates(
    outputs: Sequence[NDArray[Any]], input_width: int, threshold: float
) -> tuple[Floats, Floats]:
    """Return boxes with scores [n, 5] and landmarks [n, 10], in pixels of the input."""
    boxes, landmarks = [], []
    for level, stride in enumerate(STRIDES):
        scores, sides, points = outputs[level :: len(STRIDES)]
        # Of NaN every comparison is false: it would be passed over.
        found = np.flatnonzero(~(scores[:, 0] < threshold))
        if not found.size:
            continue
        rows, columns = np.divmod(found // ANCHORS, input_width // stride)
        centres = np.stack((columns, rows), axis=1).astype(np.float32) * stride
        score = scores[found].astype(np.float32)
        reach = sides[found].astype(np.float32) * stride
        box = np.hstack((centres - reach[:, :2], centres + reach[:, 2:], score))
        box[np.isnan(score[:, 0])] = np.nan
        boxes.append(box)
        landmarks.append(points[found].astype(np.float32) * stride + np.tile(centres, 5))
    if not boxes:
        return np.empty((0, 5), np.float32), np.empty((0, 10), np.float32)
    return np.vstack(boxes), np.vstack(landmarks)
