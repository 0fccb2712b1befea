"""`python -m bench.clip`: open_clip's own layers against ours, in fp32 and in bf16, by batch size.

The weights are those of the environment (INFERD_CLIP__MODEL, INFERD_CLIP__WEIGHTS, INFERD_DEVICE);
untrained where none are named. All take their turns on the same pictures, so that a slow spell of
the machine meets all: a gain is the median of the rounds' own ratios.
"""

import argparse
import logging
import os
import sys
import time
from collections.abc import Mapping, Sequence
from functools import partial
from itertools import islice
from typing import Any

import numpy as np

from bench.pictures import generated
from bench.rows import Options, Row, Side
from bench.table import show
from bench.timing import rounds_in_turns
from daemon.errors import InferdError
from daemon.settings import Settings
from handlers.clip.image_tower import ClipModel
from handlers.clip.precision import least_cosine
from handlers.clip.vendors import load_vendors, reduced_precision
from handlers.inference import Pixels
from handlers.media import clip_input
from handlers.media.images import Limits

BATCH_SIZES = (1, 8, 16)
PHOTOS = 3


class StockClip(ClipModel):
    """The same weights in open_clip's layers, as whoever imports open_clip runs them."""

    def _take(self, model: Any) -> Any:
        return model.visual


def crops_of(settings: Settings, side: int, count: int) -> Pixels:
    """Return uint8 [count, side, side, 3]: a few photos, each moved about."""
    limits = Limits.from_settings(settings.images)
    photos = [
        clip_input.read(sample.data, limits, side=side, decoding="exact").pixels
        for sample in islice(generated(), PHOTOS)
    ]
    return np.stack([np.roll(photos[n % PHOTOS], 29 * n, (0, 1)) for n in range(count)])


def load(kind: type[ClipModel], settings: Settings, precision: str) -> ClipModel:
    """Return a loaded tower.

    Raises:
        ConfigError: it cannot be loaded, or does not run in that precision.
    """
    model = kind(
        model=settings.clip.model,
        weights=settings.clip.weights,
        models_dir=settings.models_path,
        device=settings.device,
        offline=settings.offline,
        precision=precision,
        batch_size=settings.clip.batch_size,
    )
    model.load()
    return model


def measure(options: Options) -> Sequence[Row]:
    """Return the rows of section clip: ours in the fast precision, against fp32 and open_clip."""
    rounds = options.pick(smallest=1, quick=5, normal=5, full=21)
    settings = settings_of({**os.environ, "INFERD_DEVICE": "cpu"})
    kinds = ((StockClip, "fp32"), (ClipModel, "fp32"), (ClipModel, "bf16"))
    models = [load(kind, settings, precision) for kind, precision in kinds]
    crops = crops_of(settings, models[0].input_size[0], max(BATCH_SIZES))
    has_bf16 = reduced_precision("cpu") is not None
    note = "" if has_bf16 else "this processor has no bf16: inferd would choose fp32"
    rows = []
    for size in BATCH_SIZES[-1:] if options.size == "smallest" else BATCH_SIZES:
        works = [partial(model.encode_crops, list(crops[:size])) for model in models]
        (one, stock), (exact, ours), (fewer, fast) = rounds_in_turns(
            works, rounds, time.process_time
        )
        sides = [
            Side.of(what, 1000 * seconds / size)
            for what, seconds in (
                ("open_clip's layers, fp32", stock),
                ("inferd's layers, fp32", ours),
                ("inferd's layers, bf16", fast),
            )
        ]
        for name, place, other, cosine in (
            ("fast precision / fp32", 2, 1, least_cosine(exact, fewer)),
            ("fast precision / open_clip", 2, 0, least_cosine(one, fewer)),
            ("fp32 / open_clip", 1, 0, least_cosine(one, exact)),
        ):
            told = f"cosine {cosine:.6f} at least"
            rows.append(
                Row(
                    section="clip",
                    name=f"{name}, batch {size}",
                    unit="core-ms a picture",
                    better="less",
                    ours=sides[place],
                    theirs=sides[other],
                    note="; ".join(filter(None, (told, note))),
                )
            )
    return rows


def compare(settings: Settings, rounds: int) -> None:
    """Load all, and print the table.

    Raises:
        ConfigError: one cannot be loaded.
    """
    stock = load(StockClip, settings, "fp32")
    exact, reduced = (load(ClipModel, settings, precision) for precision in ("fp32", "bf16"))
    device = stock.provenance.device
    threads = load_vendors().torch.get_num_threads()
    print(
        f"model: {stock.model}, weights {stock.provenance.weights}, on {device},"
        f" {threads} threads, {reduced_precision(device) or 'no reduced precision'} in hardware"
    )
    crops = crops_of(settings, stock.input_size[0], max(BATCH_SIZES))
    # Other programs disturb the processor time of all our threads least; a GPU's is not in it.
    clock, unit = (time.process_time, "CPU ") if device == "cpu" else (time.perf_counter, "")
    rows = []
    for size in BATCH_SIZES:
        models = (stock, exact, reduced)
        works = [partial(model.encode_crops, list(crops[:size])) for model in models]
        (one, times), (ours, exact_times), (fewer, reduced_times) = rounds_in_turns(
            works, rounds, clock
        )
        rows.append(
            (
                str(size),
                *(
                    f"{np.median(each) * 1000 / size:.1f}"
                    for each in (times, exact_times, reduced_times)
                ),
                f"{np.median(np.divide(times, exact_times)):.2f}",
                f"{np.median(np.divide(times, reduced_times)):.2f}",
                f"{least_cosine(one, ours):.7f}",
                f"{least_cosine(one, fewer):.7f}",
            )
        )
    show(
        f"CLIP's image tower: {unit}milliseconds a picture, medians of {rounds} rounds",
        (
            "batch",
            "open_clip",
            "ours, fp32",
            "ours, bf16",
            "gain, fp32",
            "gain, bf16",
            "cosine, fp32",
            "cosine, bf16",
        ),
        rows,
    )
    for model in (stock, exact, reduced):
        model.unload()
    print("\nauto, as it is calibrated at the load:")
    print(f"{load(ClipModel, settings, 'auto').provenance.precision}")


def settings_of(environ: Mapping[str, str]) -> Settings:
    """Return the environment's settings, or those that need no weights.

    Raises:
        ConfigError: the environment is wrong.
    """
    defaults = {"INFERD_CLIP__WEIGHTS": "untrained", "INFERD_OFFLINE": "true"}
    return Settings.from_env({**defaults, **environ})


def main(argv: list[str]) -> int:
    """Measure and print; 1 where the model or the configuration is missing."""
    parser = argparse.ArgumentParser(
        prog="python -m bench.clip",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--rounds", type=int, default=9, help="how often each is timed (9)")
    arguments = parser.parse_args(argv)
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    # The calibration's figures.
    logging.getLogger("handlers.clip.arithmetic").setLevel(logging.INFO)
    try:
        compare(settings_of(os.environ), max(1, arguments.rounds))
    except InferdError as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
