"""`python -m bench --only previews`: what it does to results that previews are looked at.

Accuracy on real photos (INFERD_TEST_ASSETS, or `python -m bench.previews FOLDER`), where previews
are made as the small media store makes them; bytes and decoding on generated pictures of 12
megapixels. CLIP's squares are compared as pixels, which needs no weights, and as vectors of the
configured weights. Vectors and boxes of the original are the truth, whatever a person would say.
"""

import argparse
import os
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import numpy as np

from bench.calibration import PREVIEW_640, PREVIEW_1440
from bench.clip import settings_of
from bench.decoding import cosine_of
from bench.face_weights import FaceWeights, face_weights
from bench.pictures import generated
from bench.rows import Better, Options, Row, Side
from bench.table import show, spread
from bench.timing import in_turns
from daemon.settings import Settings
from handlers.face_detection import FaceDetectionInference
from handlers.face_embedding import FaceEmbeddingInference
from handlers.faces.face import Face
from handlers.faces.pixels import align
from handlers.image_embedding import ImageEmbeddingInference
from handlers.inference import Pixels, Vector
from handlers.media import clip_input
from handlers.media.image_resizing import fit, to_jpeg
from handlers.media.images import Limits, decode
from handlers.media.origin import Origin, frame_of

SECTION = "previews"
SIDES = {PREVIEW_1440: 1440, PREVIEW_640: 640}
LIMITS = Limits(max_pixels=100_000_000, background=(255, 255, 255))
SQUARE = 224
GROUP = "12 MP 4:2:0"


@dataclass
class Effect:
    """What one size of previews does to the photos."""

    bytes_original: int = 0
    bytes_preview: int = 0
    shrunk: int = 0
    """Photos that are larger than a preview may be."""
    squares: list[float] = field(default_factory=list)
    """Cosine of CLIP's squares of preview and original, as pixels."""
    vectors: list[float] = field(default_factory=list)
    """The same of CLIP's vectors."""
    faces: int = 0
    """In the originals."""
    found: int = 0
    """Of those."""
    extra: int = 0
    boxes: list[float] = field(default_factory=list)
    """Farthest edge of a face's box, in per cent of the box's larger side."""
    overlaps: list[float] = field(default_factory=list)
    """Intersection over union of a face's boxes."""
    persons: list[float] = field(default_factory=list)
    """Cosine of a face's vectors."""


@dataclass(frozen=True)
class Looked:
    """What the models make of one file."""

    square: Pixels
    vector: Vector
    faces: Sequence[Face]
    """In pixels of the original."""
    persons: Sequence[Vector]


class Models:
    """CLIP, detector and recogniser, asked as the daemon asks them."""

    def __init__(self, weights: FaceWeights) -> None:
        """Load them.

        Raises:
            ConfigError: one cannot be loaded.
        """
        self._clip = ImageEmbeddingInference(settings=settings_of(os.environ))
        faces = Settings.from_env({**weights.environ, "INFERD_DEVICE": "cpu"})
        self._detector = FaceDetectionInference(settings=faces)
        self._recogniser = FaceEmbeddingInference(settings=faces)
        for model in (self._clip, self._detector, self._recogniser):
            model.load()
        self.clip_told = f"CLIP {self._clip.provenance.weights}"

    def look(self, data: bytes, origin: Origin) -> Looked:
        """Return what a file gives."""
        square = clip_input.read(data, LIMITS, side=SQUARE, decoding="fast").pixels
        pixels = decode(data, LIMITS).pixels()
        frame = frame_of(origin, pixels.shape[1], pixels.shape[0])
        faces = self._detector.infer(pixels)
        return Looked(
            square,
            self._clip.infer(square),
            [frame.place(face) for face in faces],
            [self._recogniser.infer(align(pixels, face.landmarks)) for face in faces],
        )


def preview_of(data: bytes, side: int) -> tuple[bytes, Origin]:
    """Return a preview as the small media store makes it, and what it tells of it."""
    picture = decode(data, LIMITS, min_side=side)
    size = (picture.width, picture.height)
    return to_jpeg(fit(picture, side)), Origin(is_preview=True, size=size)


def effects(files: Sequence[bytes], models: Models) -> dict[str, Effect]:
    """Return the effect of each size of previews on all files."""
    found = {name: Effect() for name in SIDES}
    for data in files:
        original = models.look(data, Origin())
        for name, side in SIDES.items():
            preview, origin = preview_of(data, side)
            effect = found[name]
            effect.bytes_original += len(data)
            effect.bytes_preview += len(preview)
            effect.shrunk += origin.size is not None and max(origin.size) > side
            _compare(effect, original, models.look(preview, origin))
    return found


def _compare(effect: Effect, original: Looked, seen: Looked) -> None:
    effect.squares.append(cosine_of(original.square, seen.square))
    effect.vectors.append(float(original.vector @ seen.vector))
    effect.faces += len(original.faces)
    rest = dict(enumerate(seen.faces))
    for face, person in zip(original.faces, original.persons, strict=True):
        overlaps = {index: overlap(face, each) for index, each in rest.items()}
        nearest = max(overlaps, key=lambda index: overlaps[index], default=None)
        if nearest is None or overlaps[nearest] < 0.5:  # noqa: PLR2004 - as detectors are judged
            continue
        twin = rest.pop(nearest)
        effect.found += 1
        effect.overlaps.append(overlaps[nearest])
        shift = float(np.abs(_edges(face) - _edges(twin)).max())
        effect.boxes.append(100 * shift / max(face.bbox[2:]))
        effect.persons.append(float(person @ seen.persons[nearest]))
    effect.extra += len(rest)


def overlap(one: Face, other: Face) -> float:
    """Return the intersection of two boxes over their union: 0 to 1."""
    (left, top, right, bottom), (x0, y0, x1, y1) = _edges(one), _edges(other)
    width, height = min(right, x1) - max(left, x0), min(bottom, y1) - max(top, y0)
    shared = max(0.0, width) * max(0.0, height)
    whole = (right - left) * (bottom - top) + (x1 - x0) * (y1 - y0) - shared
    return float(shared / whole) if whole > 0 else 0.0


def _edges(face: Face) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
    x, y, width, height = face.bbox
    return np.array([x, y, x + width, y + height])


def measure(options: Options) -> Sequence[Row]:
    """Return the rows of section previews."""
    rounds = options.pick(smallest=1, quick=3, normal=3)
    with tempfile.TemporaryDirectory(prefix="inferd-bench-") as folder:
        weights = face_weights(Path(folder) / "pack")
        everything = len(weights.files)
        files = weights.files[: options.pick(smallest=2, quick=8, normal=12, full=everything)]
        models = Models(weights)
        found = effects(files, models)
    told = f"{len(files)} pictures; faces: {weights.told}; {models.clip_told}"
    rows = [row for name in SIDES for row in _effect_rows(name, found[name], told)]
    return [*rows, *_costs(rounds)]


def _effect_rows(name: str, effect: Effect, told: str) -> list[Row]:
    def row(what: str, unit: str, ours: Sequence[float], theirs: Sequence[float]) -> Row:
        return Row(
            section=SECTION,
            name=f"{what}: {name} / original",
            unit=unit,
            better="more",
            ours=Side.of(name, ours),
            theirs=Side.of("original, and itself", theirs),
            note=told,
        )

    rows = [
        row("CLIP's square", "cosine of pixels", effect.squares, [1.0]),
        row("CLIP's vector", "cosine", effect.vectors, [1.0]),
        row("faces found", "faces", [effect.found], [effect.faces]),
    ]
    if effect.found:
        rows += [
            row("face boxes", "overlap", effect.overlaps, [1.0]),
            row("face vectors", "cosine", effect.persons, [1.0]),
        ]
    return rows


def _costs(rounds: int) -> list[Row]:
    """Return bytes and decoding of generated pictures, as originals and as previews."""
    files = [sample.data for sample in generated(GROUP)]
    rows = []
    for name, side in SIDES.items():
        previews = [preview_of(data, side)[0] for data in files]
        squares = partial(clip_input.read, limits=LIMITS, side=SQUARE, decoding="fast")
        whole = partial(decode, limits=LIMITS)
        figures: dict[tuple[str, str, Better], tuple[list[float], list[float]]] = {
            ("bytes fetched", "bytes", "less"): (
                [float(len(data)) for data in previews],
                [float(len(data)) for data in files],
            )
        }
        for what, read in (("decoding for CLIP", squares), ("decoding for faces", whole)):
            ours, theirs = [], []
            for small, large in zip(previews, files, strict=True):
                (_, mine), (_, other) = in_turns(
                    [partial(read, small), partial(read, large)], rounds
                )
                ours.append(mine)
                theirs.append(other)
            figures[what, "core-ms", "less"] = ours, theirs
        rows += [
            Row(
                section=SECTION,
                name=f"{what}: {name} / original",
                unit=unit,
                better=better,
                ours=Side.of(name, ours),
                theirs=Side.of(GROUP, theirs),
                note=f"{len(files)} pictures of {GROUP}",
            )
            for (what, unit, better), (ours, theirs) in figures.items()
        ]
    return rows


def main(argv: list[str]) -> int:
    """Print the table of docs/scaling.md for a folder of photos."""
    parser = argparse.ArgumentParser(
        prog="python -m bench.previews",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("folder", type=Path, nargs="?", help="of JPEGs; else the tests' photos")
    arguments = parser.parse_args(argv)
    with tempfile.TemporaryDirectory(prefix="inferd-bench-") as scratch:
        weights = face_weights(Path(scratch) / "pack")
        files = weights.files
        if arguments.folder is not None:
            files = [path.read_bytes() for path in sorted(arguments.folder.rglob("*.jpg"))]
        models = Models(weights)
        found = effects(files, models)
    print(f"{len(files)} pictures; faces: {weights.told}; {models.clip_told}")
    show(
        "Previews against originals; min / median / max",
        (
            *("", "shrunk", "bytes", "square, cosine", "CLIP, cosine"),
            *("faces", "extra", "overlap", "box, %", "face, cosine"),
        ),
        [
            (
                name,
                str(effect.shrunk),
                f"{effect.bytes_preview / effect.bytes_original:.3f}",
                spread(effect.squares, 4),
                spread(effect.vectors, 4),
                f"{effect.found} of {effect.faces}",
                str(effect.extra),
                spread(effect.overlaps, 3),
                spread(effect.boxes, 1),
                spread(effect.persons, 3),
            )
            for name, effect in found.items()
        ],
    )
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
