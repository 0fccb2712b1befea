"""How a GPU is fed: CUDA graphs against kernels one by one, uploads ahead, and one lane a GPU.

Pictures are ready-made squares: no decoding, no daemon. Where torch sees no GPU, the rows say that
nothing was measured.
"""

import asyncio
import os
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack
from functools import partial

import numpy as np

from bench.clip import settings_of
from bench.rows import Options, Row, Side, not_measured
from daemon.settings import Settings
from handlers.clip.cuda import CudaPasses, sizes
from handlers.clip.vendors import load_vendors
from handlers.image_embedding import ImageEmbeddingInference
from handlers.inference import Buffers, Pixels, Vector
from handlers.lanes.device import ModelRunner
from handlers.lanes.gpus import lane_devices
from handlers.lanes.lane import DeviceLane

SECTION = "gpu_passes"
OVERLAP = "uploads ahead / one after the other"
LANES = "all GPUs / one GPU"
NO_GPU = "no GPU here"


def graphs_name(size: int) -> str:
    """Return the name of the row of a batch size."""
    return f"CUDA graphs / kernel by kernel, batch {size}"


def measure(options: Options) -> Sequence[Row]:
    """Return the rows of the section; they say so where there is no GPU."""
    settings = settings_of(os.environ)
    if not load_vendors().torch.cuda.is_available():
        names = [*map(graphs_name, sizes(128)), OVERLAP, LANES]
        return [not_measured(SECTION, name, NO_GPU) for name in names]
    devices = lane_devices("cuda")
    rows = asyncio.run(_measure_lanes(settings, devices, options))
    model = ImageEmbeddingInference(None, None, settings=on(settings, devices[0]))
    model.load()
    fast, slow = model.cuda_passes(), model.cuda_passes(uses_graphs=False)
    return [*measure_passes(fast, slow, squares(model, fast.batch_size), options), *rows]


def on(settings: Settings, device: str) -> Settings:
    """Return the settings for one GPU."""
    return settings.model_copy(update={"device": "cuda:0" if device == "cuda" else device})


def squares(model: ImageEmbeddingInference, count: int) -> list[Pixels]:
    """Return noise of the model's size, each its own place in memory, as pictures have."""
    rng = np.random.default_rng(0)
    return [rng.integers(0, 256, (*model.input_size, 3), dtype=np.uint8) for _ in range(count)]


def measure_passes(
    fast: CudaPasses, slow: CudaPasses, pictures: Sequence[Pixels], options: Options
) -> list[Row]:
    """Return the ladder of batch sizes, and what uploading ahead is worth.

    Args:
        fast: with graphs.
        slow: without.
        pictures: a full batch.
        options: how long.
    """
    rounds = options.pick(smallest=1, quick=3, normal=5)
    passes = options.pick(smallest=1, quick=20, normal=100)
    rows = [
        _row(
            graphs_name(size),
            ("graphs", partial(_passes, fast.run, pictures[:size], passes)),
            ("kernel by kernel", partial(_passes, slow.run, pictures[:size], passes)),
            rounds,
        )
        for size in sizes(fast.batch_size)
    ]
    ahead = _row(
        OVERLAP,
        ("the next batch uploaded meanwhile", lambda: _ahead(fast, pictures, passes)),
        ("one after the other", lambda: _passes(fast.run, pictures, passes)),
        rounds,
    )
    return [*rows, ahead]


async def _measure_lanes(
    settings: Settings, devices: Sequence[str], options: Options
) -> Sequence[Row]:
    if len(devices) == 1:
        return [not_measured(SECTION, LANES, "one GPU here")]
    rounds = options.pick(smallest=1, quick=3, normal=5)
    count = options.pick(smallest=4, quick=2_000, normal=20_000)
    models = [ImageEmbeddingInference(None, None, settings=on(settings, each)) for each in devices]
    return [await measure_lanes(models, devices, rounds, count)]


async def measure_lanes(
    models: Sequence[ImageEmbeddingInference], devices: Sequence[str], rounds: int, count: int
) -> Row:
    """Return pictures a second of all lanes against those of the first one.

    Args:
        models: a copy for each lane.
        devices: the lanes' names.
        rounds: of the row.
        count: pictures a round.
    """
    async with AsyncExitStack() as stack:
        lanes = [await stack.enter_async_context(DeviceLane(device)) for device in devices]
        (first, lane), *others = zip(models, lanes, strict=True)
        size = max(1, count // (2 * len(devices)))
        runners = [
            await stack.enter_async_context(
                ModelRunner("clip", first, lane, others=more, max_batch=size)
            )
            for more in (others, [])
        ]
        for runner in runners:
            await runner.load()
        pictures = squares(first, min(count, 256))
        found: list[list[float]] = [[], []]
        for number in range(rounds + 1):
            for runner, figures in zip(runners, found, strict=True):
                began = time.perf_counter()
                asked = (runner.infer(pictures[at % len(pictures)]) for at in range(count))
                await asyncio.gather(*asked)
                # The first round is for nobody.
                if number:
                    figures.append(count / (time.perf_counter() - began))
    return Row(
        section=SECTION,
        name=LANES,
        unit="pictures/s",
        better="more",
        ours=Side.of(f"{len(devices)} lanes", found[0]),
        theirs=Side.of("one lane", found[1]),
        note=f"{count} squares a round, no decoding",
    )


def _row(
    name: str,
    ours: tuple[str, Callable[[], float]],
    theirs: tuple[str, Callable[[], float]],
    rounds: int,
) -> Row:
    figures: list[list[float]] = [[], []]
    for number in range(rounds + 1):
        for (_, take), found in zip((ours, theirs), figures, strict=True):
            rate = take()
            # The first round warms up, and captures.
            if number:
                found.append(rate)
    return Row(
        section=SECTION,
        name=name,
        unit="pictures/s",
        better="more",
        ours=Side.of(ours[0], figures[0]),
        theirs=Side.of(theirs[0], figures[1]),
        note="uint8 squares in memory to vectors in memory, no decoding",
    )


def _passes(run: Callable[[Buffers], Vector], pictures: Sequence[Pixels], count: int) -> float:
    began = time.perf_counter()
    for _ in range(count):
        run(pictures)
    return count * len(pictures) / (time.perf_counter() - began)


def _ahead(passes: CudaPasses, pictures: Sequence[Pixels], count: int) -> float:
    with ThreadPoolExecutor(1) as uploader:
        began = time.perf_counter()
        ready = uploader.submit(passes.upload, pictures)
        for _ in range(count):
            now, ready = ready.result(), uploader.submit(passes.upload, pictures)
            passes.run(now)
        return count * len(pictures) / (time.perf_counter() - began)
