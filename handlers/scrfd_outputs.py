"""What SCRFD's outputs mean: scores, boxes and landmarks at three strides -> faces, in numpy alone.

Filter first: of 16,800 anchors only those above the threshold are decoded. To the last bit what
insightface's `detect` gives, which decodes all.
"""

from collections.abc import Sequence
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
    left, top, right, bottom = boxes[:, :4].T
    areas = (right - left + 1) * (bottom - top + 1)
    rest = np.stack((left, top, right, bottom, areas))
    places = np.arange(len(boxes))
    kept = []
    while places.size:
        kept.append(int(places[0]))
        first, rest, places = rest[:, 0], rest[:, 1:], places[1:]
        across = np.minimum(first[2], rest[2]) - np.maximum(first[0], rest[0]) + 1
        down = np.minimum(first[3], rest[3]) - np.maximum(first[1], rest[1]) + 1
        shared = np.maximum(0, across) * np.maximum(0, down)
        apart = shared / (first[4] + rest[4] - shared) <= OVERLAP
        rest, places = rest[:, apart], places[apart]
    return kept


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
