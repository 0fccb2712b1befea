"""ScrfdDetector: RetinaFace's family (SCRFD) through insightface's model zoo, runs of ONNX Runtime.

insightface reads the file; what goes in and what comes out is ours, and equal to its `detect`.
"""

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from daemon.errors import ConfigError, PermanentError
from handlers.downloads import weights
from handlers.faces import portraits, scrfd_outputs
from handlers.faces.agreement import faces_differ
from handlers.faces.face import Face
from handlers.faces.files import DETECTOR_NAMES
from handlers.faces.onnx_model import OnnxModel, Opened
from handlers.faces.onnx_vendors import actual_device, open_model
from handlers.faces.pixels import letterboxed, planes
from handlers.faces.runtime_choice import Probe
from handlers.inference import Numbers, Pixels, Provenance
from handlers.lanes.self_test import synthetic_picture

INPUT_SIZE = (640, 640)
"""Width and height the picture is fitted into: one pass, no second resolution."""
_CHANNELS = 3


class ScrfdDetector(OnnxModel):
    """Finds faces. Boxes are those of insightface's `FaceAnalysis` prepared for 640x640."""

    kind = "the detector"

    @property
    def fingerprint(self) -> str:
        """File and digest; known after `resolve`."""
        if self._path is None:
            raise RuntimeError("the fingerprint is known after resolve()")
        return f"{self._path.name}:{self._digest[:16]}"

    def resolve(self) -> None:
        """Find the file, downloading the pack where it is absent.

        Raises:
            ConfigError: it is nowhere, or the runtime that is demanded is.
        """
        if self._path is not None:
            return
        self._choice.check_installed()
        named = str(self._faces.detector or "")
        path = self._files.find(named, "INFERD_FACES__DETECTOR", DETECTOR_NAMES)
        self._digest = weights.sha256(path)
        self._path = path

    def detect(self, pixels: Pixels) -> list[Face]:
        """Return the faces, most confident first; no face is an empty list.

        Raises:
            RetryableError: code model_error; the runtime failed.
            PermanentError: code model_error; the model gave no numbers.
            OutOfMemoryError: the picture does not fit.
        """
        return self.detect_batch([pixels])[0]

    def detect_batch(self, pictures: Sequence[Pixels]) -> list[list[Face]]:
        """Return the faces of each picture; several in a run where the model bears it and it pays.

        Raises:
            HandlerError: as `detect`, of any of the pictures.
        """
        return self._in_passes(self._detect, pictures)

    def self_test(self) -> Numbers:
        """Return all that the network gives for a built-in picture, before any threshold.

        Raises:
            RetryableError: code model_error; the runtime failed.
            OutOfMemoryError: there is no room for it.
        """
        width, height = self._model.input_size
        with self._running():
            outputs = _run(self._model, [synthetic_picture(height, width)])
        return np.concatenate([output.astype(np.float64).ravel() for output in outputs])

    def _detect(self, pictures: Sequence[Pixels]) -> list[list[Face]]:
        with self._running():
            fitted = [letterboxed(pixels, self._model.input_size) for pixels in pictures]
            outputs = _run(self._model, [canvas for canvas, _ in fitted])
            found = [
                scrfd_outputs.faces(
                    [output[number] for output in outputs],
                    input_width=self._model.input_size[0],
                    scale=scale,
                    threshold=self._faces.threshold,
                )
                for number, (_, scale) in enumerate(fitted)
            ]
        return [_faces(boxes, landmarks) for boxes, landmarks in found]

    def _open(self, device: str) -> Opened:
        path = self._path
        if path is None:
            raise RuntimeError("resolve() found nothing")
        self._check_unchanged(path)
        model = open_model(path, "detection", device)
        _check(path, model)
        model.prepare(0, input_size=INPUT_SIZE)
        _try(path, model)
        width, height = model.input_size
        side = (height, width)
        ran_on = actual_device(model.session, device, require_gpu=self._require_gpu)

        def run(canvases: list[Pixels]) -> list[NDArray[Any]]:
            return _run(model, canvases)

        probe = Probe(
            side,
            partial(portraits.pictures, *side),
            partial(faces_differ, input_width=width, threshold=self._faces.threshold),
        )
        runtime = self._choose_runtime(model, run, ran_on, probe)
        provenance = Provenance(
            model=f"SCRFD {path.stem}",
            weights=path.name,
            device=ran_on,
            precision=runtime.precision,
            runtime=runtime.name,
            notes=()
            if (width, height) == INPUT_SIZE
            else (f"the model is fixed to an input of {width}x{height}",),
        )
        batch = self._choose_batch(model, run, runtime, ran_on, side)
        # Asked, it lets go of the session that it was made with, which another may have replaced.
        _ = model.resolution_sessions
        return Opened(model, provenance, batch)


def _run(model: Any, canvases: Sequence[Pixels]) -> list[NDArray[Any]]:
    """Return the outputs for pictures of the model's size, each [n, anchors, width]."""
    blob = planes(canvases)
    outputs = model.session.run(model.output_names, {model.input_name: blob})
    return scrfd_outputs.by_picture(outputs, len(canvases))


def _faces(boxes: NDArray[np.float32], landmarks: NDArray[np.float32]) -> list[Face]:
    if not (np.isfinite(boxes).all() and np.isfinite(landmarks).all()):
        raise PermanentError("the detector gave NaN", code="model_error")
    return [
        Face((left, top, right - left, bottom - top), points, score)
        for (left, top, right, bottom, score), points in zip(boxes.tolist(), landmarks, strict=True)
    ]


def _check(path: Path, model: Any) -> None:
    count = len(model.output_names)
    if count != scrfd_outputs.OUTPUTS:
        without = "; it has no landmarks, without which no face can be aligned"
        raise ConfigError(
            f"{path} has {count} outputs, a detector with five landmarks has "
            f"{scrfd_outputs.OUTPUTS} (score, box, landmarks at strides 8, 16, 32)"
            f"{without if count in (6, 10) else ''}"
        )
    channels = model.input_shape[1]
    if isinstance(channels, int) and channels != _CHANNELS:
        raise ConfigError(f"{path} takes pictures of {channels} channels, should be 3")


def _try(path: Path, model: Any) -> None:
    """Run a black picture through the model and compare the shapes it really gives."""
    width, height = model.input_size
    black = np.zeros((1, _CHANNELS, height, width), dtype=np.float32)
    try:
        outputs = model.session.run(model.output_names, {model.input_name: black})
    except Exception as error:
        # As in `open_model`.
        raise ConfigError(f"{path} does not run on {width}x{height} pixels: {error}") from error
    expected = scrfd_outputs.shapes((width, height))
    # A model that takes batches has one more axis in front.
    found = [output.shape[-2:] for output in outputs]
    if found != expected:
        raise ConfigError(f"{path} gives {found} for {width}x{height} pixels, should be {expected}")
