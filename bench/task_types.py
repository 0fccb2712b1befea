"""All task types in one daemon: what stages take of a job, and what the same pictures share.

Shares are those of single jobs, one after the other in a system that is idle else: with many, each
stage's time holds the waiting for its turn. Then three task types are wanted of the same pictures
at once, and, in turns with that, as many jobs of which each has a picture of its own.
"""

import os
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from bench.clip import settings_of
from bench.face_weights import face_weights
from bench.rig import Rig, Took, running
from bench.rows import Options, Row, Side

SECTION = "task_types"
TASKS = ("image_embedding", "face_detection", "face_embedding")
TIMED = ("image_embedding", "face_embedding")


def measure(options: Options) -> Sequence[Row]:
    """Return the rows of section task_types."""
    with tempfile.TemporaryDirectory(prefix="inferd-bench-") as name:
        folder = Path(name)
        weights = face_weights(folder / "pack")
        environ = {
            **weights.environ,
            "INFERD_CLIP__WEIGHTS": settings_of(os.environ).clip.weights,
            "INFERD_WORKER__TASK_TYPES": ",".join(TASKS),
            "INFERD_DEVICE": "cpu",
        }
        with running(folder / "stack", environ) as rig:
            singles = options.pick(smallest=2, quick=8, normal=16)
            note = f"faces: {weights.told}"
            rows = [
                row
                for task in TIMED
                for row in _shares(rig, task, rig.put(weights.files, singles + 1), note)
            ]
            return [*rows, *_together(rig, weights.files, options, note)]


def _shares(rig: Rig, task: str, ids: Sequence[int], note: str) -> list[Row]:
    """Return a row for each stage of single jobs, and one for what is no stage."""
    stages: dict[str, list[float]] = {}
    wholes = []
    # The first is for nobody.
    for place, media_store_id in enumerate(ids):
        began = time.perf_counter()
        (event,) = rig.run([(task, media_store_id)]).events
        whole = (time.perf_counter() - began) * 1000
        timings = event["data"]["result"]["inference"]["timings_ms"]
        if place:
            wholes.append(whole)
            for stage, milliseconds in timings.items():
                stages.setdefault(stage, []).append(milliseconds)
            rest = whole - sum(timings.values())
            stages.setdefault("queue, wire, events", []).append(rest)
    rows = []
    for stage, figures in stages.items():
        share = 100 * float(np.median(np.divide(figures, wholes)))
        rows.append(
            Row(
                section=SECTION,
                name=f"{task}: {stage}",
                unit="ms of a single job",
                better="less",
                ours=Side.of(stage, figures),
                theirs=Side.of("the whole job, request to completed event", wholes),
                note=f"{share:.1f} % of the job; {note}",
            )
        )
    return rows


def _together(rig: Rig, files: Sequence[bytes], options: Options, note: str) -> list[Row]:
    """Return what it gains that three jobs want the same picture."""
    rounds = options.pick(smallest=1, quick=2, normal=3, full=7)
    pictures = options.pick(smallest=2, quick=6, normal=12)
    shared: list[Took] = []
    apart: list[Took] = []
    for number in range(rounds + 1):
        same = rig.put(files, pictures)
        others = [(task, each) for task in TASKS for each in rig.put(files, pictures)]
        one = rig.run([(task, each) for task in TASKS for each in same])
        two = rig.run(others)
        # The first is for nobody.
        if number:
            shared.append(one)
            apart.append(two)
    told = f"{pictures} pictures, {pictures * len(TASKS)} jobs a round; {note}"
    same_pictures = "three task types of the same pictures, all at once"
    own_pictures = "as many jobs, each of a picture of its own"
    return [
        Row(
            section=SECTION,
            name="same pictures / apart",
            unit="jobs/s",
            better="more",
            ours=Side.of(same_pictures, [took.rate for took in shared]),
            theirs=Side.of(own_pictures, [took.rate for took in apart]),
            note=told,
        ),
        Row(
            section=SECTION,
            name="same pictures / apart, daemon",
            unit="core-ms a job",
            better="less",
            ours=Side.of(same_pictures, [took.core_ms("daemon") for took in shared]),
            theirs=Side.of(own_pictures, [took.core_ms("daemon") for took in apart]),
            note=told,
        ),
    ]
