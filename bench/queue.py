"""`python -m bench --only queue`: the queue's transactions per second, beside `sqlite3` alone.

Intake is asked over MQTT of a daemon whose handlers cost nothing and which is paused: from the
first request to the last `accepted` event, each durable (FULL, commits shared by what comes
together). Claim and complete are done in this process, as the worker does them.
"""

import asyncio
import tempfile
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

from bench.free_rig import free_rig
from bench.raw_queue import RESULT, RawQueue, first_picture
from bench.rows import Options, Row, Side
from daemon.intake import new_job_id
from daemon.jobs import Job, JobState, TaskType, load_json
from daemon.queue.admission import Submission
from daemon.queue.database import Database
from daemon.queue.job_queue import JobQueue
from daemon.settings import QueueSettings
from daemon.wall_clock import epoch_ms

SECTION = "queue"
ROUNDS = 3
IMAGE = TaskType.IMAGE_EMBEDDING
MANY = 1000
"""Requests of a message, rows of a transaction."""


def measure(options: Options) -> Sequence[Row]:
    """Return intake, one by one and in batches, and the cycle at few and at many finished jobs."""
    singles = options.pick(smallest=20, quick=200, normal=1000)
    batches = options.pick(smallest=1, quick=2, normal=5)
    finished = options.pick(smallest=100, quick=10_000, normal=200_000, full=1_000_000)
    jobs = options.pick(smallest=32, quick=200, normal=800)
    return [*_intake(singles, batches), *_cycles([0, finished], jobs)]


def _intake(singles: int, batches: int) -> list[Row]:
    with tempfile.TemporaryDirectory(prefix="inferd-bench-") as name, free_rig(Path(name)) as rig:
        rig.pause()
        made = Path(name) / "raw.db"
        asyncio.run(_make(made))
        with RawQueue(made) as raw:

            def ours(count: int, size: int) -> float:
                return count / rig.seconds_to_accept(count, size)

            def theirs(count: int, size: int) -> float:
                began = time.perf_counter()
                for _ in range(count // size):
                    raw.enqueue(size)
                return count / (time.perf_counter() - began)

            one = _in_turns(lambda: ours(singles, 1), lambda: theirs(singles, 1))
            many = batches * MANY
            thousand = _in_turns(lambda: ours(many, MANY), lambda: theirs(many, MANY))
    note = "ours: MQTT request to accepted event; theirs: rows inserted, a commit for {}"
    return [
        _row("intake, one request a message", one, note.format("each")),
        _row(f"intake, {MANY} requests a message", thousand, note.format(MANY)),
    ]


def _cycles(finished: Sequence[int], jobs: int) -> list[Row]:
    rows = []
    for count in finished:
        with tempfile.TemporaryDirectory(prefix="inferd-bench-") as name:
            ours, theirs = Path(name) / "ours.db", Path(name) / "theirs.db"
            for path in (ours, theirs):
                asyncio.run(_make(path))
                with RawQueue(path) as raw:
                    raw.add_finished(count)
            for batch in (1, 16):
                figures = _in_turns(
                    partial(_our_cycle, ours, jobs, batch), partial(_raw_cycle, theirs, jobs, batch)
                )
                rows.append(
                    _row(
                        f"claim and complete, {batch} at a time, {count:,} finished before",
                        figures,
                        "two transactions, with their events",
                    )
                )
    return rows


def _in_turns(ours: Callable[[], float], theirs: Callable[[], float]) -> tuple[Side, Side]:
    figures = [(ours(), theirs()) for _ in range(ROUNDS)]
    return (
        Side.of("inferd", [each for each, _ in figures]),
        Side.of("sqlite3 alone, one thread", [each for _, each in figures]),
    )


def _row(name: str, sides: tuple[Side, Side], note: str) -> Row:
    return Row(
        section=SECTION,
        name=name,
        unit="jobs/s",
        better="more",
        ours=sides[0],
        theirs=sides[1],
        note=note,
    )


async def _make(path: Path) -> None:
    async with Database(path):
        pass


def _our_cycle(path: Path, jobs: int, batch: int) -> float:
    return asyncio.run(_cycle(path, jobs, batch))


async def _cycle(path: Path, jobs: int, batch: int) -> float:
    """Return jobs a second of the queue's own verbs, as the worker calls them."""
    with RawQueue(path) as raw:
        raw.forget_events()
    result = load_json(RESULT)
    async with (
        Database(path) as database,
        JobQueue(
            database, QueueSettings(), clock=epoch_ms, worker="host/boot/ns/1/1", worker_id="bench"
        ) as queue,
    ):
        first = first_picture()
        asked = [submission(first + number) for number in range(jobs)]
        await queue.enqueue_all(asked)
        done, began = 0, time.perf_counter()
        while done < jobs:
            leases = await queue.lease(IMAGE, batch, seconds=30)
            await asyncio.gather(*(queue.complete(lease, result, RESULT) for lease in leases))
            done += len(leases)
        return jobs / (time.perf_counter() - began)


def _raw_cycle(path: Path, jobs: int, batch: int) -> float:
    with RawQueue(path) as raw:
        raw.forget_events()
        raw.enqueue(jobs)
        done, began = 0, time.perf_counter()
        while done < jobs:
            done += raw.work(batch)
        return jobs / (time.perf_counter() - began)


def submission(media_store_id: int) -> Submission:
    """Return a request for a job of a picture, as intake makes it."""
    return Submission(
        job=Job(
            job_id=new_job_id(),
            task_type=IMAGE,
            media_store_id=media_store_id,
            priority=5,
            status=JobState.PENDING,
            created_at=epoch_ms(),
        )
    )
