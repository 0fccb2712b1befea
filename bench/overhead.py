"""`python -m bench --only overhead`: what the machinery takes of a job beside fetch and model.

The daemon is the real one; its handlers do nothing and return a result of the real shape. All of
it is counted: intake over MQTT, queue, leases, events in the outbox and their publication.
"""

import asyncio
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from bench.free_rig import FreeRig, free_rig
from bench.raw_queue import RawQueue
from bench.rows import Options, Row, Side
from daemon.queue.database import Database

SECTION = "overhead"
ROUNDS = 3
BATCH = 16
"""Jobs that the other side claims and completes at a time."""
PAUSE_SECONDS = 0.02
"""Between two single jobs, so that each finds the daemon idle."""


def measure(options: Options) -> Sequence[Row]:
    """Return the processor time of a job, and how long a single one takes on an idle daemon."""
    jobs = options.pick(smallest=50, quick=500, normal=1000)
    singles = options.pick(smallest=5, quick=20, normal=50)
    with tempfile.TemporaryDirectory(prefix="inferd-bench-") as name, free_rig(Path(name)) as rig:
        made = Path(name) / "raw.db"
        asyncio.run(_make(made))
        rig.core_ms(jobs)
        figures = [(rig.core_ms(jobs), _raw_core_ms(made, jobs)) for _ in range(ROUNDS)]
        waits = _waits(rig, singles)
    ones, trips = zip(*waits, strict=True)
    slow = (
        f"95 of 100 within {np.percentile(ones, 95):.1f} ms;"
        f" of the bare messages {np.percentile(trips, 95):.1f} ms"
    )
    return [
        Row(
            section=SECTION,
            name="all machinery of a job",
            unit="core ms",
            better="less",
            ours=Side.of("inferd, handlers that cost nothing", [ours for ours, _ in figures]),
            theirs=Side.of("sqlite3 alone: its rows", [theirs for _, theirs in figures]),
            note="the other side has no broker, no JSON, no checks and no events to publish",
        ),
        Row(
            section=SECTION,
            name="one job on an idle daemon, request to completed event",
            unit="ms",
            better="less",
            ours=Side.of("inferd, handlers that cost nothing", ones),
            theirs=Side.of("a bare message over the same broker and back", trips),
            note=slow,
        ),
    ]


def _waits(rig: FreeRig, count: int) -> list[tuple[float, float]]:
    found = []
    for _ in range(count + 1):
        time.sleep(PAUSE_SECONDS)
        one = rig.milliseconds_of_one()
        time.sleep(PAUSE_SECONDS)
        found.append((one, rig.round_trip_ms()))
    # The first finds everything cold.
    return found[1:]


def _raw_core_ms(path: Path, jobs: int) -> float:
    with RawQueue(path) as raw:
        began = time.thread_time()
        raw.enqueue(jobs)
        done = 0
        while done < jobs:
            done += raw.work(BATCH)
        raw.forget_events()
        return (time.thread_time() - began) * 1000 / jobs


async def _make(path: Path) -> None:
    async with Database(path):
        pass
