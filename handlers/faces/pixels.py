"""Pixels of faces, the one file of cv2: fitted to a detector, aligned for a recogniser, shrunk.

And OpenCV's own detector, YuNet. OpenCV loads with the first call, never with this module.
"""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from daemon.errors import ConfigError, PermanentError
from handlers.faces.alignment import FACE_SIZE, part_for, similarity
from handlers.faces.onnx_vendors import vendor
from handlers.inference import Pixels
from handlers.lanes.memory import HOST, memory_watched

_CV2_MAX_SIDE = 32766
"""OpenCV 4 addresses what it warps with 16 bits and refuses more; OpenCV 5 does not."""
_MEAN, _SCALE = np.float32(127.5), np.float32(1 / 128)
_YUNET_STRIDES = (8, 16, 32)
YUNET_OUTPUTS = {"cls": 1, "obj": 1, "bbox": 4, "kps": 10}
"""Numbers for each cell, by the first part of an output's name; the stride is the second."""
YUNET_NUMBERS = 15
"""That OpenCV gives for each face."""


def align(pixels: Pixels, landmarks: NDArray[Any]) -> Pixels:
    """Return the face as ArcFace was trained to see it: upright RGB [112, 112, 3].

    What lies beyond the picture's edge is black. Equal to insightface's `norm_crop`.

    Raises:
        PermanentError: code model_error; the landmarks are no face's.
        OutOfMemoryError: the machine has no memory left.
    """
    matrix = similarity(landmarks)
    if max(pixels.shape[:2]) > _CV2_MAX_SIDE:
        pixels, matrix = part_for(pixels, matrix)
    cv2 = vendor("cv2")
    with memory_watched("OpenCV", HOST):
        try:
            face: Pixels = cv2.warpAffine(pixels, matrix, (FACE_SIZE, FACE_SIZE), borderValue=0.0)
        except cv2.error as error:
            reason = f"a face cannot be aligned: {error}"
            raise PermanentError(reason, code="model_error") from error
    return face


def shrunk(pixels: Pixels, long_side: int) -> Pixels:
    """Return the picture with its longer side cut down to `long_side`; a smaller one as it is."""
    height, width = pixels.shape[:2]
    scale = long_side / max(height, width)
    if scale >= 1:
        return pixels
    cv2 = vendor("cv2")
    size = max(1, round(width * scale)), max(1, round(height * scale))
    # Averages whole pixels: of what is 10 times too large, any other way would see every tenth.
    small: Pixels = cv2.resize(pixels, size, interpolation=cv2.INTER_AREA)
    return small


def read_picture(path: Path) -> Pixels:
    """Return a picture that a package brings, RGB; never anybody's upload.

    Raises:
        ConfigError: it is not there, or no picture.
    """
    cv2 = vendor("cv2")
    found = cv2.imread(str(path))
    if found is None:
        raise ConfigError(f"{path} is not there, or no picture; install inferd anew (make setup)")
    rgb: Pixels = cv2.cvtColor(found, cv2.COLOR_BGR2RGB)
    return rgb


def letterboxed(pixels: Pixels, input_size: tuple[int, int]) -> tuple[Pixels, float]:
    """Fit a picture into the upper left corner of a black one, as insightface does.

    Args:
        pixels: uint8 RGB [height, width, 3].
        input_size: width and height of the black one.

    Returns:
        uint8 RGB [input height, input width, 3], and how many of its pixels one of the picture's
        became.
    """
    cv2 = vendor("cv2")
    # A sliver would be fitted to no pixel at all: it gets black beside it.
    least = math.ceil(max(pixels.shape[:2]) / min(input_size)) + 1
    height, width = (max(side, least) for side in pixels.shape[:2])
    # insightface's own arithmetic: a pixel's difference moves every box.
    ratio = height / width
    if ratio > input_size[1] / input_size[0]:
        fitted_height = input_size[1]
        fitted_width = int(fitted_height / ratio)
    else:
        fitted_width = input_size[0]
        fitted_height = int(fitted_width * ratio)
    if (height, width) != pixels.shape[:2]:
        pixels = _widened(pixels, (height, width), (fitted_width, fitted_height))
    canvas: Pixels = np.zeros((input_size[1], input_size[0], 3), np.uint8)
    canvas[:fitted_height, :fitted_width] = cv2.resize(pixels, (fitted_width, fitted_height))
    return canvas, fitted_height / height


def planes(canvases: Sequence[Pixels]) -> NDArray[np.float32]:
    """Return pictures of one size as an SCRFD takes them: float32 [n, 3, height, width].

    Equal to insightface's (x - 127.5) / 128 to the last bit: a power of two rounds nothing.

    Args:
        canvases: uint8 RGB [height, width, 3]; at least one.
    """
    cv2 = vendor("cv2")
    height, width = canvases[0].shape[:2]
    batch = np.empty((len(canvases), 3, height, width), np.float32)
    for picture, canvas in zip(batch, canvases, strict=True):
        # Seven times as fast as OpenCV's own blobFromImages.
        for plane, channel in zip(picture, cv2.split(canvas), strict=True):
            np.multiply(channel, _SCALE, out=plane)
    batch -= _MEAN * _SCALE
    return batch


def open_yunet(data: bytes, size: tuple[int, int], threshold: float) -> Any:
    """Return OpenCV's FaceDetectorYN of a model, on the CPU, for pictures of one size.

    Args:
        data: an ONNX file.
        size: width and height of the pictures, in multiples of 32.
        threshold: lowest score of a face.

    Raises:
        ConfigError: OpenCV cannot run it, or what it gives is not shaped as a YuNet's.
    """
    cv2 = vendor("cv2")
    file = np.frombuffer(data, np.uint8)
    # It warns of every model, on stderr, that it chooses by itself where that runs.
    logged = cv2.utils.logging
    level = logged.setLogLevel(logged.LOG_LEVEL_ERROR)
    try:
        expected = _yunet_shapes(size)
        net = cv2.dnn.readNetFromONNX(file)
        net.setInput(np.zeros((1, 3, size[1], size[0]), np.float32))
        found = [output.shape for output in net.forward(list(expected))]
        # FaceDetectorYN itself does not look, and would read beyond the end of smaller ones.
        if found != list(expected.values()):
            raise ConfigError(
                f"it gives {found} for {size[0]}x{size[1]} pixels, should be "
                f"{list(expected.values())}"
            )
        return cv2.FaceDetectorYN.create("onnx", file, np.empty(0, np.uint8), size, threshold)
    except cv2.error as error:
        raise ConfigError(f"OpenCV cannot run it: {error}") from error
    finally:
        logged.setLogLevel(level)


def run_yunet(detector: Any, canvas: Pixels) -> NDArray[np.float32]:
    """Return what FaceDetectorYN finds, the surest first: float32 [faces, 15].

    A row is the box's x, y, width and height, x and y of the five landmarks in our order, and the
    score, in pixels of the canvas.

    Args:
        detector: from `open_yunet`.
        canvas: uint8 RGB of the size that it was opened for.
    """
    cv2 = vendor("cv2")
    _, found = detector.detect(cv2.cvtColor(canvas, cv2.COLOR_RGB2BGR))
    rows: NDArray[np.float32] = np.empty((0, YUNET_NUMBERS), np.float32) if found is None else found
    return rows


def _yunet_shapes(size: tuple[int, int]) -> dict[str, tuple[int, ...]]:
    """Return what a YuNet gives, by the outputs' names; OpenCV asks for them by these."""
    return {
        f"{name}_{stride}": (1, (size[0] // stride) * (size[1] // stride), width)
        for name, width in YUNET_OUTPUTS.items()
        for stride in _YUNET_STRIDES
    }


def _widened(pixels: Pixels, shape: tuple[int, int], fitted: tuple[int, int]) -> Pixels:
    """Return a sliver with black beside it, its long side as `letterboxed` will fit it.

    Both at their full length would take gigabytes, of a file of 3 kB.

    Args:
        pixels: uint8 RGB [rows, columns, 3].
        shape: height and width with the black.
        fitted: width and height in the end.
    """
    cv2 = vendor("cv2")
    rows, columns = pixels.shape[:2]
    is_tall = rows > columns
    size = (columns, min(rows, fitted[1])) if is_tall else (min(columns, fitted[0]), rows)
    return np.pad(cv2.resize(pixels, size), ((0, shape[0] - rows), (0, shape[1] - columns), (0, 0)))
