"""YunetDetector: OpenCV's YuNet, a detector whose published weights may be used commercially."""

import logging
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from daemon.errors import ConfigError, PermanentError, RetryableError
from handlers.downloads import weights
from handlers.faces.face import Face
from handlers.faces.onnx_vendors import precision
from handlers.faces.pixels import letterboxed, open_yunet, run_yunet
from handlers.inference import Batch, Numbers, Pixels, Provenance
from handlers.lanes.memory import HOST, memory_watched, trim
from handlers.lanes.self_test import synthetic_picture

log = logging.getLogger(__name__)

INPUT_SIZE = (640, 640)
"""Width and height the picture is fitted into, as for the other detectors."""
NOTES = (f"made for faces of 10 to 300 pixels in a picture of {INPUT_SIZE[0]}x{INPUT_SIZE[1]}",)
_TESTED = 1000
"""Most boxes that a self-test looks at."""
_BOX = slice(0, 4)
_LANDMARKS = slice(4, 14)
_SCORE = 14


class YunetDetector:
    """Finds faces through cv2.FaceDetectorYN.

    Always on the CPU, whatever the device setting says: OpenCV's wheels know no GPU, and the model
    is small.
    """

    def __init__(self, find: Callable[[], Path], threshold: float) -> None:
        """Take what returns the file, or raises ConfigError, and the lowest score of a face."""
        self._find = find
        self._threshold = threshold
        self._path: Path | None = None
        self._digest = ""
        self._net: Any = None
        self._provenance: Provenance | None = None

    @property
    def fingerprint(self) -> str:
        """File and digest; known after `resolve`."""
        if self._path is None:
            raise RuntimeError("the fingerprint is known after resolve()")
        return f"{self._path.name}:{self._digest[:16]}"

    @property
    def provenance(self) -> Provenance:
        """What really runs; known after `load`."""
        if self._provenance is None:
            raise RuntimeError("the provenance is known after load()")
        return self._provenance

    @property
    def batch(self) -> Batch:
        """How many pictures it takes at a time: always the same."""
        return Batch(1, "OpenCV's detector looks at one picture")

    @property
    def is_loaded(self) -> bool:
        """Whether the next `detect` needs no loading."""
        return self._net is not None

    def resolve(self) -> None:
        """Find the file, downloading the published one where it is absent.

        Raises:
            ConfigError: it is nowhere.
        """
        if self._path is None:
            path = self._find()
            self._digest = weights.sha256(path)
            self._path = path

    def load(self) -> None:
        """Read the file, check its layout, and run it once.

        Raises:
            ConfigError: no such file, or a model of another layout.
            OutOfMemoryError: there is no room for it.
        """
        if self.is_loaded:
            return
        self.resolve()
        path = self._path
        if path is None:
            raise RuntimeError("resolve() found nothing")
        began = time.monotonic()
        if weights.sha256(path) != self._digest:
            raise ConfigError(
                f"{path} changed since it was found: results of two models must not mix; "
                "start again"
            )
        try:
            with memory_watched("the detector", HOST):
                net = open_yunet(path.read_bytes(), INPUT_SIZE, self._threshold)
                ran_in = precision(path)
        except OSError as error:
            raise ConfigError(f"cannot read {path}: {error.strerror or error}") from error
        except ConfigError as error:
            raise ConfigError(f"{path} is no YuNet that OpenCV can run: {error.message}") from error
        self._provenance = Provenance(
            model=f"YuNet {path.stem}",
            weights=path.name,
            device=HOST,
            precision=ran_in,
            notes=NOTES,
        )
        self._net = net
        took = time.monotonic() - began
        log.info("loaded %s (%s) on %s in %.1f s; %s", path, ran_in, HOST, took, self.batch.told)

    def unload(self) -> None:
        """Give the memory back."""
        self._net = None
        trim()

    def move_to(self, device: str) -> None:
        """Stay on the CPU."""

    def free_memory(self) -> None:
        """Give back what the C library holds."""
        trim()

    def detect(self, pixels: Pixels) -> list[Face]:
        """Return the faces, most confident first; no face is an empty list.

        Raises:
            RetryableError: code model_error; OpenCV failed.
            PermanentError: code model_error; the model gave no numbers.
            OutOfMemoryError: the picture does not fit into memory once more.
        """
        with self._running():
            canvas, scale = letterboxed(pixels, INPUT_SIZE)
            found = run_yunet(self._net, canvas)
        if not np.isfinite(found).all():
            raise PermanentError("the detector gave NaN or infinity", code="model_error")
        found[:, : _LANDMARKS.stop] /= scale
        return [
            Face(
                (float(row[0]), float(row[1]), float(row[2]), float(row[3])),
                row[_LANDMARKS].reshape(5, 2),
                float(row[_SCORE]),
            )
            for row in found
        ]

    def detect_batch(self, pictures: Sequence[Pixels]) -> list[list[Face]]:
        """Return the faces of each picture, one after the other.

        Raises:
            HandlerError: as `detect`, of any of the pictures.
        """
        return [self.detect(pixels) for pixels in pictures]

    def self_test(self) -> Numbers:
        """Return the surest boxes in a built-in picture, whatever their scores; see MLInference."""
        width, height = INPUT_SIZE
        kept = self._net.getScoreThreshold(), self._net.getNMSThreshold(), self._net.getTopK()
        self._net.setScoreThreshold(0)
        self._net.setNMSThreshold(1)
        self._net.setTopK(_TESTED)
        try:
            with self._running():
                found = run_yunet(self._net, synthetic_picture(height, width))
        finally:
            self._net.setScoreThreshold(kept[0])
            self._net.setNMSThreshold(kept[1])
            self._net.setTopK(kept[2])
        found[:, : _LANDMARKS.stop] /= width
        # Each column by itself: which of two boxes is surer may be a matter of rounding.
        return np.sort(found, axis=0).astype(np.float64).ravel()

    @contextmanager
    def _running(self) -> Iterator[None]:
        """Turn what a run raises into errors of ours."""
        with memory_watched("the detector", HOST):
            try:
                yield
            except Exception as error:
                # cv2.error, which no other file may know, and whatever its code raises.
                reason = f"the detector failed: {error}"
                raise RetryableError(reason, code="model_error") from error
