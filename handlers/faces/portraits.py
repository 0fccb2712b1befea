"""Pictures with real faces to try a model on: the portrait that scikit-image brings, a public one.

Noise and waves say little of how a model rounds on what it was made for.
"""

import importlib.util
from functools import cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from daemon.errors import ConfigError
from handlers.faces.pixels import align, letterboxed, read_picture
from handlers.inference import Pixels

_LANDMARKS: NDArray[np.float32] = np.array(
    [[204.1, 100.6], [246.8, 103.6], [223.8, 129.2], [202.0, 139.7], [245.7, 142.3]], np.float32
)
"""Eyes, nose and corners of the mouth in the portrait, which has 512x512 pixels."""
_ROWS = (1, 2, 5)
"""Portraits in a row: heads of 150, 75 and 25 pixels, one for each stride of a detector."""


def pictures(height: int, width: int) -> list[Pixels]:
    """Return pictures of this size with one face, with four and with 25.

    Raises:
        ConfigError: scikit-image is incomplete.
    """
    portrait = _portrait()
    # Every second one looks the other way.
    pair = (portrait, portrait[:, ::-1])
    found = []
    for count in _ROWS:
        rows = [[pair[(row + column) % 2] for column in range(count)] for row in range(count)]
        mosaic = np.concatenate([np.concatenate(row, axis=1) for row in rows])
        found.append(letterboxed(mosaic, (width, height))[0])
    return found


def faces() -> list[Pixels]:
    """Return aligned faces, [112, 112, 3]: as it is, mirrored, dark, and of few pixels.

    Raises:
        ConfigError: scikit-image is incomplete.
    """
    portrait = _portrait()
    face = align(portrait, _LANDMARKS)
    small = align(np.ascontiguousarray(portrait[::4, ::4]), _LANDMARKS / 4)
    return [face, np.ascontiguousarray(face[:, ::-1]), (face // 3).astype(np.uint8), small]


@cache
def _portrait() -> Pixels:
    # Its own reader would take a second to import.
    spec = importlib.util.find_spec("skimage")
    if spec is None or spec.origin is None:
        raise ConfigError("scikit-image is not installed; install inferd with its requirements")
    return read_picture(Path(spec.origin).parent / "data" / "astronaut.png")
