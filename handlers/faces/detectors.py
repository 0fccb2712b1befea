"""Detector, whatever is behind it, and which of the backends the settings mean."""

from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

from daemon.errors import ConfigError
from daemon.settings import Settings
from handlers.faces.cascade import CascadeDetector
from handlers.faces.face import Face
from handlers.faces.files import CASCADE, DETECTOR_NAMES, YUNET, ModelFiles, find_yunet
from handlers.faces.onnx_vendors import output_names
from handlers.faces.pixels import YUNET_OUTPUTS
from handlers.faces.scrfd_detector import ScrfdDetector
from handlers.faces.yunet_detector import YunetDetector
from handlers.inference import Batch, Model, Numbers, Pixels, Provenance

_OLD_YUNET = {"conf", "iou", "loc"}
"""Outputs of the YuNets before 2023, which no OpenCV since 4.8 reads."""


class Detector(Model, Protocol):
    """What finds faces, whatever is behind it. Every method blocks."""

    @property
    def batch(self) -> Batch | None:
        """How many pictures it runs at a time; known after `load`."""

    def detect_batch(self, pictures: Sequence[Pixels]) -> list[list[Face]]:
        """Return the faces of each; a failure is a HandlerError, never an empty list."""

    def self_test(self) -> Numbers:
        """Return what a built-in picture gives, before any threshold where there is one."""


def make_detector(settings: Settings) -> Detector:
    """Return the configured detector; nothing is looked for yet."""
    faces = settings.faces
    if faces.detector is not None:
        return NamedDetector(settings)
    if faces.pack == CASCADE:
        return CascadeDetector()
    return _yunet(settings) if faces.pack == YUNET else _scrfd(settings)


class NamedDetector:
    """The file that INFERD_FACES__DETECTOR names: its outputs say which detector reads it."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._chosen: Detector | None = None

    @property
    def fingerprint(self) -> str:
        """File and digest; known after `resolve`."""
        return self._backend.fingerprint

    @property
    def provenance(self) -> Provenance:
        """What really runs; known after `load`."""
        return self._backend.provenance

    @property
    def batch(self) -> Batch | None:
        """How many pictures it runs at a time; known after `load`."""
        return None if self._chosen is None else self._chosen.batch

    @property
    def is_loaded(self) -> bool:
        """Whether it may be run without loading."""
        return self._chosen is not None and self._chosen.is_loaded

    def resolve(self) -> None:
        """Find the file, and what reads it.

        Raises:
            ConfigError: it is nowhere, or of a layout that nothing here reads.
        """
        if self._chosen is not None:
            return
        path = _named(self._settings)
        outputs = set(output_names(path))
        if outputs == _OLD_YUNET:
            raise ConfigError(
                f"{path} is a YuNet of 2022 or before, which OpenCV no longer reads: take "
                "face_detection_yunet_2023mar.onnx (python -m daemon models pull yunet)"
            )
        is_yunet = {f"{name}_8" for name in YUNET_OUTPUTS} <= outputs
        chosen: Detector = _yunet(self._settings) if is_yunet else _scrfd(self._settings)
        chosen.resolve()
        self._chosen = chosen

    def load(self) -> None:
        """Load the file; ConfigError where it is not what it should be."""
        self.resolve()
        self._backend.load()

    def unload(self) -> None:
        """Give the memory back."""
        if self._chosen is not None:
            self._chosen.unload()

    def move_to(self, device: str) -> None:
        """Run there from now on; see MLInference."""
        self.resolve()
        self._backend.move_to(device)

    def free_memory(self) -> None:
        """Give back what is kept only to be faster."""
        if self._chosen is not None:
            self._chosen.free_memory()

    def detect_batch(self, pictures: Sequence[Pixels]) -> list[list[Face]]:
        """Return the faces of each; a failure is a HandlerError, never an empty list."""
        return self._backend.detect_batch(pictures)

    def self_test(self) -> Numbers:
        """Return what a built-in picture gives."""
        return self._backend.self_test()

    @property
    def _backend(self) -> Detector:
        if self._chosen is None:
            raise RuntimeError("which detector it is is known after resolve()")
        return self._chosen


def _named(settings: Settings) -> Path:
    faces = settings.faces
    files = ModelFiles(faces.pack, settings.models_path, offline=settings.offline)
    return files.find(str(faces.detector), "INFERD_FACES__DETECTOR", DETECTOR_NAMES)


def _yunet(settings: Settings) -> YunetDetector:
    def find() -> Path:
        if settings.faces.detector is not None:
            return _named(settings)
        return find_yunet(settings.models_path, offline=settings.offline)

    return YunetDetector(find, settings.faces.threshold)


def _scrfd(settings: Settings) -> ScrfdDetector:
    return ScrfdDetector(
        settings.faces,
        models_dir=settings.models_path,
        device=settings.device,
        require_gpu=settings.require_gpu,
        offline=settings.offline,
    )
