"""The image embedding on a GPU: its model against the processor, fp32 and the machine's ceiling.

The ceiling is the lesser of what all cores decode and what the GPU embeds in a second. Where there
is no GPU that torch can use, the rows say that nothing was measured.
"""

import os
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from functools import partial
from pathlib import Path

import numpy as np

from bench.clip import settings_of
from bench.machine import cores
from bench.pictures import generated
from bench.rig import Took, running
from bench.rows import Options, Row, Side, not_measured
from bench.turns import Take, Told, Turns
from handlers.clip.vendors import load_vendors
from handlers.image_embedding import ImageEmbeddingInference
from handlers.media import clip_input
from handlers.media.images import Limits

SECTION = "gpu"
GROUP = "2 MP 4:2:0"
TASK = "image_embedding"
NAMES = ("model / processor", "fast precision / fp32", "inferd / processor", "inferd / ceiling")


def measure(options: Options) -> Sequence[Row]:
    """Return the rows of section gpu; they say so where there is none."""
    if not load_vendors().torch.cuda.is_available():
        return [not_measured(SECTION, name, "no GPU here") for name in NAMES]
    return measure_on("cuda", options)


def measure_on(device: str, options: Options) -> Sequence[Row]:
    """Return the rows for a device, as torch calls it."""
    rounds = options.pick(smallest=1, quick=3, normal=5)
    jobs = options.pick(smallest=4, quick=500, normal=2000)
    files = [sample.data for sample in generated(GROUP)]
    environ = {
        "INFERD_CLIP__WEIGHTS": settings_of(os.environ).clip.weights,
        "INFERD_WORKER__TASK_TYPES": TASK,
    }
    there, here = ({**environ, "INFERD_DEVICE": each} for each in (device, "cpu"))
    told: list[dict[str, Told]] = []
    whole: list[tuple[Took, Took]] = []
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="inferd-bench-")))
        (folder / "0.jpg").write_bytes(files[0])
        given: Told = {"file": str(folder / "0.jpg")}
        turns = {
            name: stack.enter_context(Turns("bench.gpu", given, environ={**os.environ, **each}))
            for name, each in (
                ("fast", there),
                ("fp32", {**there, "INFERD_CLIP__PRECISION": "fp32"}),
                ("cpu", here),
            )
        }
        rigs = [
            stack.enter_context(running(folder / name, each))
            for name, each in (("there", there), ("here", here))
        ]
        few = max(1, jobs // 10)
        ids = [
            [rig.put(files, count) for _ in range(rounds + 1)]
            for rig, count in zip(rigs, (jobs, few), strict=True)
        ]
        for number in range(rounds + 1):
            rates = {name: each.take({"pictures": few}) for name, each in turns.items()}
            took = tuple(
                rig.run([(TASK, media_store_id) for media_store_id in some.pop()])
                for rig, some in zip(rigs, ids, strict=True)
            )
            # The first is for nobody.
            if number:
                told.append(rates)
                whole.append((took[0], took[1]))
    return _rows(told, whole, jobs)


def _rows(
    told: Sequence[dict[str, Told]], whole: Sequence[tuple[Took, Took]], jobs: int
) -> list[Row]:
    ran = {name: told[0][name] for name in ("fast", "fp32", "cpu")}
    models = {
        name: Side.of(
            f"the model on {ran[name]['device']} in {ran[name]['precision']},"
            f" batches of {ran[name]['batch']}",
            [each[name]["rate"] for each in told],
        )
        for name in ran
    }
    inferd, processor = (
        Side.of(f"inferd on {name}", [took[place].rate for took in whole])
        for place, name in enumerate((ran["fast"]["device"], "the processor"))
    )
    ceiling = Side.of(
        f"the lesser of the model and of {cores()} cores that decode",
        [min(each["fast"]["rate"], each["fast"]["decode_rate"]) for each in told],
    )
    pairs = (
        (models["fast"], models["cpu"]),
        (models["fast"], models["fp32"]),
        (inferd, processor),
        (inferd, ceiling),
    )
    return [
        Row(
            section=SECTION,
            name=name,
            unit="pictures/s",
            better="more",
            ours=ours,
            theirs=theirs,
            note=f"{jobs} JPEGs of {GROUP} a round; one is decoded as inferd does it",
        )
        for name, (ours, theirs) in zip(NAMES, pairs, strict=True)
    ]


def prepare(given: Told) -> Take:
    """Load the environment's CLIP; a turn tells pictures a second of the model, and of decoding."""
    settings = settings_of(os.environ)
    model = ImageEmbeddingInference(settings=settings)
    model.load()
    limits = Limits.from_settings(settings.images)
    read = partial(
        clip_input.read,
        limits=limits,
        side=model.input_size[0],
        decoding=settings.images.decoding,
    )
    data = Path(given["file"]).read_bytes()
    size = model.batch.size if model.batch else settings.clip.batch_size
    # Each its own place in memory, as pictures have.
    batch = [np.array(read(data).pixels) for _ in range(size)]
    threads = ThreadPoolExecutor(cores())

    def take(asked: Told) -> Told:
        count = int(asked["pictures"])
        began = time.perf_counter()
        rounds = -(-count // size)
        for _ in range(rounds):
            model.infer_batch(batch)
        rate = rounds * size / (time.perf_counter() - began)
        began = time.perf_counter()
        list(threads.map(read, [data] * count))
        return {
            "rate": rate,
            "decode_rate": count / (time.perf_counter() - began),
            "batch": size,
            "device": model.provenance.device,
            "precision": model.provenance.precision,
        }

    return take
