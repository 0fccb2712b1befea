"""Face models by OpenVINO against the same by ONNX Runtime, in turns, as many passes as at work.

Rows of section faces, where OpenVINO is installed and not ruled out by INFERD_FACES__RUNTIME.
"""

import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from bench.rows import Row, Side
from bench.timing import rounds_in_turns
from daemon.errors import ConfigError
from daemon.settings import FacesSettings
from handlers.faces import openvino_session
from handlers.faces.arcface import ArcFaceRecogniser
from handlers.faces.pixels import align
from handlers.faces.scrfd_detector import ScrfdDetector
from handlers.inference import Pixels

SECTION = "faces"
MOST = 16
T = TypeVar("T", ScrfdDetector, ArcFaceRecogniser)


def measure(
    faces: FacesSettings, pictures: Sequence[Pixels], *, rounds: int, told: str
) -> list[Row]:
    """Return a row for each of the two models that OpenVINO may run; none where it may not.

    Args:
        faces: which detector and recogniser.
        pictures: with faces.
        rounds: how often each is timed.
        told: of which weights.
    """
    if faces.runtime == "onnxruntime" or not openvino_session.is_installed():
        return []
    usual = _opened(ScrfdDetector, faces, "onnxruntime")
    found = zip(pictures, usual.detect_batch(pictures), strict=True)
    aligned = [align(pixels, face.landmarks) for pixels, seen in found for face in seen][:MOST]
    knows = _opened(ArcFaceRecogniser, faces, "onnxruntime")
    rows = partial(_rows, faces=faces, rounds=rounds, told=told)
    return [
        *rows(usual, ScrfdDetector.detect_batch, pictures, unit="pictures/s"),
        *rows(knows, ArcFaceRecogniser.embed_batch, aligned, unit="faces/s"),
    ]


def _opened(kind: type[T], faces: FacesSettings, runtime: str) -> T:
    chosen = faces.model_copy(update={"runtime": runtime})
    model = kind(chosen, models_dir=Path(), device="cpu", offline=True)
    model.load()
    return model


def _rows(
    usual: T,
    work: Callable[[T, Sequence[Pixels]], Any],
    given: Sequence[Pixels],
    *,
    faces: FacesSettings,
    unit: str,
    rounds: int,
    told: str,
) -> list[Row]:
    if not given:
        return []
    try:
        other = _opened(type(usual), faces, "openvino")
    except ConfigError:
        # Its answers differ, as those of a quantised one do: nobody would run it so.
        return []
    works = [partial(work, model, given) for model in (other, usual)]
    (_, by_other), (_, by_usual) = rounds_in_turns(works, rounds, time.perf_counter)
    ran, was = other.provenance, usual.provenance
    return [
        Row(
            section=SECTION,
            name=f"{ran.model} by OpenVINO / ONNX Runtime",
            unit=unit,
            better="more",
            ours=Side.of(f"{ran.runtime}, {ran.precision}", len(given) / np.array(by_other)),
            theirs=Side.of(f"ONNX Runtime, {was.precision}", len(given) / np.array(by_usual)),
            note=f"the model alone, {other.batch.told if other.batch else ''}; {told}",
        )
    ]
