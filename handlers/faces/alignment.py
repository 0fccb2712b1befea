"""Where eyes, nose and mouth belong in the picture of a face that ArcFace takes: plain geometry."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from daemon.errors import PermanentError
from handlers.inference import Pixels

FACE_SIZE = 112
ALIGNMENT = "arcface-align-v1"
"""Part of the fingerprint: vectors of differently aligned faces are not comparable."""
TEMPLATE: NDArray[np.float64] = np.array(
    [
        [38.2946, 51.6963],
        [73.5318, 51.5014],
        [56.0252, 71.7366],
        [41.5493, 92.3655],
        [70.7299, 92.2041],
    ]
)
"""Where ArcFace was trained to find eyes, nose and mouth corners in its 112x112 pixels."""


def similarity(landmarks: NDArray[Any]) -> NDArray[np.float64]:
    """Return [2, 3]: the turn, scale and shift that bring landmarks nearest to TEMPLATE.

    Umeyama's least squares; a turn with a scale is one complex number in the plane. insightface
    asks scikit-image for the same, through a call that warns and is about to go.

    Raises:
        PermanentError: code model_error; the points are not finite, or all the same.
    """
    source = np.asarray(landmarks, dtype=np.float64) @ (1, 1j)
    target = TEMPLATE @ (1, 1j)
    centred = source - source.mean()
    spread = np.vdot(centred, centred).real
    if not np.isfinite(spread) or spread <= 0:
        raise PermanentError("the landmarks of a face are not points", code="model_error")
    turn = np.vdot(centred, target - target.mean()) / spread
    shift = target.mean() - turn * source.mean()
    return np.array([[turn.real, -turn.imag, shift.real], [turn.imag, turn.real, shift.imag]])


def part_for(pixels: Pixels, matrix: NDArray[np.float64]) -> tuple[Pixels, NDArray[np.float64]]:
    """Return the part of the picture that `matrix` draws from, and the matrix for that part."""
    corners = np.array([[0, 0], [FACE_SIZE, 0], [0, FACE_SIZE], [FACE_SIZE, FACE_SIZE]])
    sources = (corners - matrix[:, 2]) @ np.linalg.inv(matrix[:, :2]).T
    limits = pixels.shape[1], pixels.shape[0]
    left, top = (int(low) for low in np.clip(sources.min(axis=0) - 2, 0, np.subtract(limits, 1)))
    right, bottom = (int(high) for high in np.clip(sources.max(axis=0) + 3, 1, limits))
    shifted = matrix.copy()
    shifted[:, 2] += matrix[:, :2] @ (left, top)
    part = pixels[top : max(bottom, top + 1), left : max(right, left + 1)]
    return np.ascontiguousarray(part), shifted
