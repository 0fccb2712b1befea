"""Decoding by format and size, up to the square that CLIP takes: inferd against Pillow's full way.

Theirs decodes every pixel and makes the square by one bicubic resize, as open_clip's preprocessing
and servers of Immich's shape do. Core-milliseconds of the process, so that a codec's own threads
are in it; both in turns on the same files.
"""

import os
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial

import numpy as np

from bench.clip import settings_of
from bench.decoding import cosine_of
from bench.immich_server import read as read_every_pixel
from bench.immich_server import square
from bench.pictures import generated, of_format
from bench.rows import Options, Row, Side
from bench.timing import rounds_in_turns
from daemon.settings import Decoding
from handlers.inference import Pixels
from handlers.media import clip_input
from handlers.media.images import Limits

SECTION = "formats"
SIDE = 224
GROUPS = ("2 MP 4:2:0", "12 MP 4:2:0", "12 MP 4:4:4", "12 MP progressive")
OTHERS = ("PNG", "HEIF", "WEBP")
"""By Pillow's names; made from the 2 MP pictures."""
LEAST_COSINE = 0.99


def measure(options: Options) -> Sequence[Row]:
    """Return the rows of section formats."""
    rounds = options.pick(smallest=1, quick=5, normal=11)
    settings = settings_of(os.environ)
    limits = Limits.from_settings(settings.images)
    decoding = settings.images.decoding
    rows = []
    for name, data in _files(is_small=options.size == "smallest"):
        works: list[Callable[[], Pixels]] = [
            partial(_ours, data, limits, decoding),
            partial(_every_pixel, data),
        ]
        (one, some), (other, others) = rounds_in_turns(works, rounds, time.process_time)
        cosine = cosine_of(one, other)
        if cosine < LEAST_COSINE:
            raise RuntimeError(f"{name}: the two squares differ, cosine {cosine:.4f}")
        rows.append(
            Row(
                section=SECTION,
                name=name,
                unit="core-ms a picture",
                better="less",
                ours=Side.of(f"inferd, decoding={decoding}", 1000 * some),
                theirs=Side.of("Pillow, every pixel, one bicubic resize", 1000 * others),
                note=f"{len(data) / 1e6:.2f} MB; cosine of the two squares {cosine:.5f}",
            )
        )
    return rows


def _files(*, is_small: bool) -> Iterator[tuple[str, bytes]]:
    """Yield a name and a file of each kind; the smallest has no 12 MP."""
    wanted = GROUPS[:1] if is_small else GROUPS
    seen = set()
    for sample in generated(*wanted):
        if sample.group in seen:
            continue
        seen.add(sample.group)
        yield f"JPEG, {sample.group}", sample.data
        if sample.group == GROUPS[0]:
            for name in OTHERS:
                yield f"{name}, {sample.group.partition(' 4')[0]}", of_format(sample.data, name)


def _ours(data: bytes, limits: Limits, decoding: Decoding) -> Pixels:
    return clip_input.read(data, limits, side=SIDE, decoding=decoding).pixels


def _every_pixel(data: bytes) -> Pixels:
    return np.asarray(square(read_every_pixel(data), SIDE))
