"""`python -m bench.decoding [FOLDER]`: what fast decoding of JPEGs gains, and what it changes.

First for embeddings, as the daemon does it (INFERD_IMAGES__DECODING). Then for faces, where the
daemon always decodes every pixel: the table says what scaled decoding would do to the faces.

Models are those of the environment (INFERD_FACES__PACK, INFERD_CLIP__WEIGHTS, ...); without any,
the cascade and untrained weights, which every installation has.
"""

import argparse
import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import numpy as np

from bench.pictures import Sample, generated, of_folder, size_class
from bench.scaled_faces import ScaledFaces
from bench.table import show, spread
from bench.timing import in_turns
from daemon.errors import InferdError
from daemon.settings import Settings
from handlers.image_embedding import ImageEmbeddingInference
from handlers.inference import Pixels
from handlers.media import clip_input
from handlers.media.images import Limits


@dataclass
class Row:
    """What the pictures of one group took, and how far the two ways are apart."""

    exact_ms: list[float] = field(default_factory=list)
    fast_ms: list[float] = field(default_factory=list)
    pixels: list[float] = field(default_factory=list)
    """Cosine of the squares, round mid-grey."""
    vectors: list[float] = field(default_factory=list)
    """Cosine of the embeddings."""


class Embeddings:
    """CLIP, and what was measured so far."""

    def __init__(self, settings: Settings, rounds: int) -> None:
        """Load the model.

        Raises:
            ConfigError: it cannot be loaded.
        """
        self._rounds = rounds
        self._limits = Limits.from_settings(settings.images)
        self.model = ImageEmbeddingInference(settings=settings)
        self.model.load()
        self._rows: dict[str, Row] = {}

    def measure(self, sample: Sample) -> None:
        """Read a JPEG both ways.

        Raises:
            PermanentError: it is damaged, or too large.
        """
        side = self.model.input_size[0]
        read = partial(clip_input.read, sample.data, self._limits, side=side)
        ways = partial(read, decoding="exact"), partial(read, decoding="fast")
        (one, exact_ms), (other, fast_ms) = in_turns(ways, self._rounds)
        first, second = self.model.infer_batch([one.pixels, other.pixels])
        row = self._rows.setdefault(sample.group or size_class(one.width, one.height), Row())
        row.exact_ms.append(exact_ms)
        row.fast_ms.append(fast_ms)
        row.pixels.append(cosine_of(one.pixels, other.pixels))
        row.vectors.append(float(first @ second))

    def show(self, *, by_name: bool) -> None:
        """Print the table, in the order of the groups' names or as they came."""
        rows = self._rows.items()
        show(
            "Embedding: decode and crop, CPU milliseconds a picture; cosines as min / median / max",
            ("pictures", "n", "exact", "fast", "exact/fast", "cosine, pixels", "cosine, vectors"),
            [
                (
                    group,
                    str(len(row.pixels)),
                    f"{np.mean(row.exact_ms):.1f}",
                    f"{np.mean(row.fast_ms):.1f}",
                    f"{sum(row.exact_ms) / sum(row.fast_ms):.2f}",
                    spread(row.pixels, 5),
                    spread(row.vectors, 6),
                )
                for group, row in (sorted(rows, key=lambda item: item[0]) if by_name else rows)
            ],
        )


def cosine_of(one: Pixels, other: Pixels) -> float:
    """Return the cosine of two pictures of one size, round mid-grey."""
    a, b = one.astype(float).ravel() - 127.5, other.astype(float).ravel() - 127.5
    length = np.sqrt((a @ a) * (b @ b))
    return float(a @ b / length) if length else 1.0


def settings_of(environ: Mapping[str, str]) -> Settings:
    """Return the environment's settings, or those that need no weights.

    Raises:
        ConfigError: the environment is wrong.
    """
    defaults = {"INFERD_CLIP__WEIGHTS": "untrained", "INFERD_OFFLINE": "true"}
    if not any(name.startswith("INFERD_FACES__") for name in environ):
        defaults |= {"INFERD_FACES__PACK": "cascade", "INFERD_FACES__RECOGNISER": "untrained"}
    return Settings.from_env({**defaults, **environ})


def main(argv: list[str]) -> int:
    """Measure and print; 1 where a model or the configuration is missing."""
    parser = argparse.ArgumentParser(
        prog="python -m bench.decoding",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("folder", nargs="?", type=Path, help="JPEGs to take instead of made ones")
    parser.add_argument("--rounds", type=int, default=3, help="the least of so many counts (3)")
    arguments = parser.parse_args(argv)
    rounds = max(1, arguments.rounds)
    try:
        settings = settings_of(os.environ)
        embeddings, faces = Embeddings(settings, rounds), ScaledFaces(settings, rounds)
    except InferdError as error:
        print(error, file=sys.stderr)
        return 1
    for model in (embeddings.model, *faces.models):
        print(f"model: {model.provenance.model}, weights {model.provenance.weights}")
    for sample in of_folder(arguments.folder) if arguments.folder else generated():
        try:
            embeddings.measure(sample)
            faces.measure(sample.data)
        except InferdError as error:
            print(f"{sample.name}: {error}", file=sys.stderr)
    embeddings.show(by_name=bool(arguments.folder))
    faces.show()
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
