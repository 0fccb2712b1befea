"""`python -m bench.faces`: insightface's own detect() against ours, one at a time against batches.

With the models that are configured (INFERD_FACES__PACK, ...DETECTOR, ...RECOGNISER), or with
`--random` on networks of the published ones' shapes and random weights. All take their turns, so
that a slow spell of the machine meets all: a gain is the median of the rounds' own ratios.
"""

import argparse
import logging
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from bench.face_models import save_detector, save_recogniser
from bench.face_weights import face_weights
from bench.pictures import generated
from bench.rows import Options, Row, Side
from bench.table import show
from bench.timing import rounds_in_turns
from daemon.errors import InferdError
from daemon.settings import FacesSettings, Settings
from handlers.faces import scrfd_outputs
from handlers.faces.arcface import ArcFaceRecogniser
from handlers.faces.files import DETECTOR_NAMES, ModelFiles
from handlers.faces.onnx_vendors import open_model
from handlers.faces.scrfd_detector import INPUT_SIZE, ScrfdDetector
from handlers.inference import Pixels
from handlers.media.images import Limits, decode

FACES = (0, 1, 50, 200)
BATCHES = (1, 2, 4, 8)
PICTURES = 4
REPEAT = 5
"""A single turn is shorter than the clock is fine."""

Figures: TypeAlias = NDArray[np.float64]


class Canned:
    """A session that has its answers ready, so that only what is round it takes time."""

    def __init__(self, outputs: Sequence[NDArray[np.float32]]) -> None:
        self._outputs = list(outputs)

    def run(self, _names: object, _feeds: object) -> list[NDArray[np.float32]]:
        return self._outputs


def canned(faces: int, *, is_batched: bool) -> Canned:
    """Return the answers of a detector that sees so many faces, each by three anchors."""
    random = np.random.default_rng(faces)
    shapes = scrfd_outputs.shapes(INPUT_SIZE)
    outputs = [random.uniform(0, 0.05, shape).astype(np.float32) for shape in shapes]
    columns = INPUT_SIZE[0] // 8
    cells = random.choice(
        np.arange(columns * columns).reshape(columns, columns)[::3, ::3].ravel(),
        faces,
        replace=False,
    )
    for cell in cells:
        for row in (2 * cell, 2 * cell + 1, min(2 * cell + 2, len(outputs[0]) - 1)):
            outputs[0][row] = random.uniform(0.6, 0.95)
            outputs[3][row] = 1.2
            outputs[6][row] = random.uniform(-1, 1, 10)
    return Canned([output[None] for output in outputs] if is_batched else outputs)


def ratios(works: Sequence[Callable[[], object]], rounds: int) -> list[tuple[str, str]]:
    """Return milliseconds of processor time, and how many times as fast as the first, of each."""
    found = rounds_in_turns(works, rounds, time.process_time)
    first = found[0][1]
    return [
        (f"{np.median(seconds) * 1000:.2f}", f"{np.median(first / seconds):.2f}")
        for _, seconds in found
    ]


def round_times(
    theirs: Any, ours: ScrfdDetector, picture: Pixels, rounds: int, counts: Sequence[int]
) -> Iterator[tuple[int, Figures, Figures]]:
    """Yield faces, and milliseconds of each round of theirs and ours, besides the network's run."""
    sessions = theirs.session, ours._model.session  # noqa: SLF001 - to put another in its place
    bgr = np.ascontiguousarray(picture[:, :, ::-1])
    for count in counts:
        theirs.session = ours._model.session = canned(  # noqa: SLF001
            count, is_batched=theirs.batched
        )
        works = [
            partial(repeated, REPEAT, theirs.detect, bgr),
            partial(repeated, REPEAT, ours.detect, picture),
        ]
        (_, their_seconds), (_, our_seconds) = rounds_in_turns(works, rounds, time.process_time)
        found = len(ours.detect(picture))
        yield found, their_seconds * 1000 / REPEAT, our_seconds * 1000 / REPEAT
    theirs.session, ours._model.session = sessions  # noqa: SLF001


def round_the_model(theirs: Any, ours: ScrfdDetector, picture: Pixels, rounds: int) -> None:
    """Print what detect() costs besides the network's own run."""
    rows = [
        (
            str(found),
            f"{np.median(other):.2f}",
            f"{np.median(own):.2f}",
            f"{np.median(other / own):.2f}",
        )
        for found, other, own in round_times(theirs, ours, picture, rounds, FACES)
    ]
    height, width = picture.shape[:2]
    show(
        f"Round the detector's run, {width}x{height}: CPU milliseconds a picture",
        ("faces", "insightface", "ours", "gain"),
        rows,
    )


def repeated(times: int, work: Callable[[Any], object], argument: object) -> None:
    """Do it several times."""
    for _ in range(times):
        work(argument)


def whole(theirs: Any, ours: ScrfdDetector, pictures: Sequence[Pixels], rounds: int) -> None:
    """Print what detect() costs with the network."""
    bgr = [np.ascontiguousarray(picture[:, :, ::-1]) for picture in pictures]
    works = [
        lambda: [theirs.detect(picture) for picture in bgr],
        lambda: [ours.detect(picture) for picture in pictures],
    ]
    (their_ms, _), (our_ms, gain) = ratios(works, rounds)
    each = [f"{float(milliseconds) / len(pictures):.1f}" for milliseconds in (their_ms, our_ms)]
    show(
        f"detect() with {ours.provenance.model}: CPU milliseconds a picture",
        ("", "insightface", "ours", "gain"),
        [("detect", *each, gain)],
    )


def batches(
    settings: FacesSettings, pictures: Sequence[Pixels], rounds: int, where: Mapping[str, Any]
) -> None:
    """Print what a batch gains, and what was chosen."""
    random = np.random.default_rng(1)
    faces = [random.integers(0, 256, (112, 112, 3), dtype=np.uint8) for _ in range(max(BATCHES))]
    many = [pictures[number % len(pictures)] for number in range(max(BATCHES))]
    rows = []
    for kind, given in ((ScrfdDetector, many), (ArcFaceRecogniser, faces)):
        models = []
        for size in BATCHES:
            model = kind(settings.model_copy(update={"batch_size": size, "passes": 1}), **where)
            model.load()
            models.append(model)
        works = [
            partial(m.detect_batch if isinstance(m, ScrfdDetector) else m.embed_batch, given)
            for m in models
        ]
        name = models[0].provenance.model
        auto = kind(settings.model_copy(update={"batch_size": 0}), **where)
        auto.load()
        for model, size, (milliseconds, gain) in zip(
            models, BATCHES, ratios(works, rounds), strict=True
        ):
            ran = model.batch.told if model.batch else ""
            each = f"{float(milliseconds) / len(given):.1f}"
            rows.append((f"{name}, {size}", each, gain, ran.partition(":")[0]))
        rows.append((f"{name}, auto", "", "", auto.batch.told if auto.batch else ""))
    show(
        "One at a time against batches: CPU milliseconds each",
        ("asked for", "ms", "gain", "ran"),
        rows,
    )


def open_both(settings: Settings) -> tuple[Any, ScrfdDetector]:
    """Return insightface's detector and ours, of the same file.

    Raises:
        ConfigError: it is nowhere, or no detector.
    """
    # Round one network: insightface has no other runtime than this.
    faces = settings.faces.model_copy(update={"runtime": "onnxruntime"})
    ours = ScrfdDetector(faces, models_dir=settings.models_path, device="cpu")
    ours.load()
    files = ModelFiles(settings.faces.pack, settings.models_path, offline=True)
    named = str(settings.faces.detector or "")
    path = files.find(named, "INFERD_FACES__DETECTOR", DETECTOR_NAMES)
    theirs = open_model(path, "detection", "cpu")
    theirs.prepare(0, input_size=INPUT_SIZE, det_thresh=settings.faces.threshold)
    return theirs, ours


def measure(options: Options) -> Sequence[Row]:
    """Return the rows of section detection: detect() of insightface and ours, round one network."""
    rounds = options.pick(smallest=1, quick=5, normal=9)
    with tempfile.TemporaryDirectory(prefix="inferd-bench-") as name:
        weights = face_weights(Path(name) / "pack")
        settings = Settings.from_env(weights.environ)
        theirs, ours = open_both(settings)
        limits = Limits.from_settings(settings.images)
        picture = decode(weights.files[-1], limits).pixels()
        rows = []
        for found, other, own in round_times(theirs, ours, picture, rounds, (1, 50)):
            rows.append(_row(f"round the network, {found} faces", other, own))
        bgr = np.ascontiguousarray(picture[:, :, ::-1])
        works: list[Callable[[], object]] = [
            partial(theirs.detect, bgr),
            partial(ours.detect, picture),
        ]
        (_, their_seconds), (_, our_seconds) = rounds_in_turns(works, rounds, time.process_time)
        rows.append(_row("with the network", their_seconds * 1000, our_seconds * 1000))
        note = f"{weights.told}; sessions of both with inferd's options"
        return [replace(row, note=note) for row in rows]


def _row(name: str, theirs: Figures, ours: Figures) -> Row:
    return Row(
        section="detection",
        name=name,
        unit="core-ms a picture",
        better="less",
        ours=Side.of("inferd's detect(), what is no face is dropped first", ours),
        theirs=Side.of("insightface's detect()", theirs),
    )


def compare(settings: Settings, rounds: int) -> None:
    """Load the models, and print the tables.

    Raises:
        ConfigError: one cannot be loaded.
    """
    theirs, ours = open_both(settings)
    limits = Limits.from_settings(settings.images)
    pictures = [decode(sample.data, limits).pixels() for sample in islice(generated(), PICTURES)]
    round_the_model(theirs, ours, pictures[-1], rounds)
    whole(theirs, ours, pictures, rounds)
    where = {"models_dir": settings.models_path, "device": "cpu", "offline": True}
    batches(settings.faces.model_copy(update={"runtime": "onnxruntime"}), pictures, rounds, where)


def main(argv: list[str]) -> int:
    """Measure and print; 1 where a model or the configuration is missing."""
    parser = argparse.ArgumentParser(
        prog="python -m bench.faces",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--rounds", type=int, default=9, help="how often each is timed (9)")
    parser.add_argument("--random", action="store_true", help="random weights of the real shapes")
    arguments = parser.parse_args(argv)
    logging.basicConfig(level=logging.ERROR, format="%(message)s")
    try:
        settings = Settings.from_env(os.environ)
        with tempfile.TemporaryDirectory(prefix="inferd-bench-") as folder:
            if arguments.random:
                detector = save_detector(Path(folder) / "det_random.onnx")
                recogniser = save_recogniser(Path(folder) / "w600k_random.onnx")
                named = {"detector": detector, "recogniser": str(recogniser)}
                faces = settings.faces.model_copy(update=named)
                settings = settings.model_copy(update={"faces": faces})
            compare(settings, arguments.rounds)
    except InferdError as error:
        sys.stderr.write(f"{error}\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
