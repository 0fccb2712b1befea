"""`python -m bench --only engines`: one queue under several daemons, on SQLite and on PostgreSQL.

Each daemon is a process that leases and completes by the queue's own verbs, so many jobs at a time,
as the worker does; nothing else is in it. All wait for each other, then work off what was put in.
PostgreSQL is a cluster of its own on this machine, with fsync, asked through its socket.
"""

import asyncio
import contextlib
import multiprocessing
import os
import subprocess
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import pytest

from bench.queue import now, submission
from bench.raw_queue import RESULT, RawQueue, first_picture
from bench.rows import Options, Row, Side, not_measured
from daemon.job_queue import JobQueue
from daemon.jobs import TaskType, load_json
from daemon.queue_engine import queue_database
from daemon.settings import QueueSettings, Settings
from tests.postgresql import Cluster

SECTION = "engines"
ROUNDS = 3
IMAGE = TaskType.IMAGE_EMBEDDING
DAEMONS = (1, 2, 4)
BATCHES = (1, 16, 64)
LEASE_SECONDS = 60.0
PATIENCE = 120.0
FINISHED_FROM = 10**9
"""Picture ids from here on belong to jobs that were finished before."""
NOTE = "claim and complete, two transactions with their events"


class Engine(Protocol):
    """A database of which each measurement gets an empty place."""

    name: str

    def place(self) -> str:
        """Return the URL of a new queue."""

    def add_finished(self, url: str, count: int) -> None:
        """Write finished jobs as they would stand there, by other means than ours."""


@dataclass
class SQLite:
    """Files in a folder."""

    folder: Path
    name: str = "SQLite"
    made: int = 0

    def place(self) -> str:
        """Return the URL of a new queue."""
        self.made += 1
        return f"sqlite:///{self.folder}/{self.made}.db"

    def add_finished(self, url: str, count: int) -> None:
        """Write finished jobs as they would stand there."""
        with RawQueue(Path(url.removeprefix("sqlite:///"))) as raw:
            raw.add_finished(count)


@dataclass
class PostgreSQL:
    """Schemas of a cluster."""

    cluster: Cluster
    name: str = "PostgreSQL"

    def place(self) -> str:
        """Return the URL of a new queue."""
        return self.cluster.schema()

    def add_finished(self, url: str, count: int) -> None:
        """Write finished jobs as they would stand there."""
        self.cluster.psql(_finished_jobs(count), schema=_schema(url))


@dataclass(frozen=True, slots=True)
class _Race:
    """What the processes of one measurement share."""

    start: Any
    """A barrier: all begin at once."""
    left: Any
    """Jobs that are not complete."""
    ended: Any
    """When the last one was: what a process takes to end is not counted."""


def measure(options: Options) -> Sequence[Row]:
    """Return daemons against one, batches, finished jobs, a forgotten transaction, both engines."""
    jobs = options.pick(smallest=64, quick=256, normal=1024, full=8192)
    finished = options.pick(smallest=1000, quick=10_000, normal=100_000, full=1_000_000)
    rounds = options.pick(smallest=1, normal=ROUNDS)
    with tempfile.TemporaryDirectory(prefix="inferd-bench-") as name:
        file = SQLite(Path(name))
        rows = [*_daemons(file, jobs, rounds), _finished(file, jobs, finished, rounds)]
        try:
            cluster = Cluster(fsync=True)
        except (pytest.skip.Exception, pytest.fail.Exception) as missing:
            return [*rows, not_measured(SECTION, "PostgreSQL", str(missing))]
        with cluster:
            server = PostgreSQL(cluster)
            rows += [*_daemons(server, jobs, rounds), _finished(server, jobs, finished, rounds)]
            rows += _engines(server, file, jobs, rounds)
            rows.append(_forgotten(server, jobs, rounds))
    return rows


def _daemons(engine: Engine, jobs: int, rounds: int) -> Iterator[Row]:
    for batch in BATCHES:
        turns = [
            [_speed(engine.place(), jobs, batch, count) for count in DAEMONS] for _ in range(rounds)
        ]
        one, *several = zip(*turns, strict=True)
        for count, figures in zip(DAEMONS[1:], several, strict=True):
            yield _row(
                f"{engine.name}, {batch} at a time, {count} daemons",
                Side.of(f"{count} daemons", figures),
                Side.of("1 daemon", one),
            )


def _finished(engine: Engine, jobs: int, finished: int, rounds: int) -> Row:
    ours, theirs = [], []
    full = engine.place()
    _make(full)
    engine.add_finished(full, finished)
    for _ in range(rounds):
        ours.append(_speed(full, jobs, 16, 1))
        theirs.append(_speed(engine.place(), jobs, 16, 1))
    return _row(
        f"{engine.name}, 16 at a time, {finished:,} finished before",
        Side.of(f"{finished:,} finished jobs before", ours),
        Side.of("none", theirs),
    )


def _engines(ours: Engine, theirs: Engine, jobs: int, rounds: int) -> Iterator[Row]:
    for batch in BATCHES:
        for count in (DAEMONS[0], DAEMONS[-1]):
            pairs = [
                [_speed(each.place(), jobs, batch, count) for each in (ours, theirs)]
                for _ in range(rounds)
            ]
            yield _row(
                f"{batch} at a time, {count} daemon{'s' if count > 1 else ''}",
                Side.of(ours.name, [pair[0] for pair in pairs]),
                Side.of(theirs.name, [pair[1] for pair in pairs]),
            )


def _forgotten(engine: PostgreSQL, jobs: int, rounds: int) -> Row:
    """Return what a transaction that somebody left open costs: VACUUM may remove nothing."""
    ours, theirs = [], []
    for _ in range(rounds):
        place, clean = engine.place(), engine.place()
        for url in (place, clean):
            _make(url)
        with _left_open(engine.cluster, place):
            # Dead versions of rows pile up while others work.
            ours.append(_speed(place, 4 * jobs, 16, 2))
        theirs.append(_speed(clean, 4 * jobs, 16, 2))
    return _row(
        "PostgreSQL, 16 at a time, 2 daemons, an old transaction",
        Side.of("a transaction left open all the while", ours),
        Side.of("none", theirs),
    )


@contextlib.contextmanager
def _left_open(cluster: Cluster, url: str) -> Iterator[None]:
    forgotten = subprocess.Popen(
        ["psql", "-h", str(cluster.folder), "-U", "inferd", "-d", "postgres", "-qAt"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env={**os.environ, "PGOPTIONS": f"-c search_path={_schema(url)}"},
        text=True,
    )
    assert forgotten.stdin is not None
    assert forgotten.stdout is not None
    try:
        forgotten.stdin.write("BEGIN ISOLATION LEVEL REPEATABLE READ; SELECT count(*) FROM jobs;\n")
        forgotten.stdin.flush()
        forgotten.stdout.readline()
        yield
    finally:
        forgotten.kill()
        forgotten.wait()
        forgotten.stdin.close()
        forgotten.stdout.close()


def _speed(url: str, jobs: int, batch: int, daemons: int) -> float:
    """Return how many jobs a second so many daemons lease and complete together."""
    asyncio.run(_enqueue(url, jobs))
    context = multiprocessing.get_context("spawn")
    race = _Race(context.Barrier(daemons + 1), context.Value("q", jobs), context.Value("d", 0.0))
    workers = [
        context.Process(target=_work, args=(url, batch, number, race)) for number in range(daemons)
    ]
    for worker in workers:
        worker.start()
    try:
        race.start.wait(PATIENCE)
        began = time.monotonic()
        for worker in workers:
            worker.join(PATIENCE)
        if any(worker.exitcode for worker in workers) or race.left.value:
            raise RuntimeError(
                f"{race.left.value} jobs were left, exits {[w.exitcode for w in workers]}"
            )
    finally:
        for worker in workers:
            worker.kill()
    return jobs / (float(race.ended.value) - began)


def _work(url: str, batch: int, number: int, race: "_Race") -> None:
    """Be a daemon: lease and complete until nothing is left."""
    asyncio.run(_lease_and_complete(url, batch, number, race))


async def _lease_and_complete(url: str, batch: int, number: int, race: "_Race") -> None:
    result = load_json(RESULT)
    async with _queue(url, f"host/boot/ns/{number}/1") as queue:
        race.start.wait(PATIENCE)
        while race.left.value > 0:
            leases = await queue.lease(IMAGE, batch, seconds=LEASE_SECONDS)
            await asyncio.gather(*(queue.complete(lease, result, RESULT) for lease in leases))
            with race.left.get_lock():
                race.left.value -= len(leases)
                # One clock for all processes.
                race.ended.value = max(race.ended.value, time.monotonic())


async def _enqueue(url: str, jobs: int) -> None:
    async with _queue(url, "host/boot/ns/9999/1") as queue:
        first = first_picture()
        for start in range(0, jobs, 1000):
            numbers = range(first + start, first + min(start + 1000, jobs))
            await queue.enqueue_all([submission(number) for number in numbers])


def _make(url: str) -> None:
    asyncio.run(_enqueue(url, 0))


@contextlib.asynccontextmanager
async def _queue(url: str, worker: str) -> Any:
    settings = Settings(queue=QueueSettings(url=url))
    async with (
        queue_database(settings) as database,
        JobQueue(database, QueueSettings(), clock=now, worker=worker, worker_id="bench") as queue,
    ):
        yield queue


def _finished_jobs(count: int) -> str:
    columns = (
        "job_id, task_type, media_store_id, priority, rank, created_at, started_at, completed_at,"
        " status, attempt, fence, seq, result"
    )
    job_id = "lpad(to_hex(n), 8, '0') || '-0000-7000-8000-' || lpad(to_hex(n), 12, '0')"
    return (
        f"INSERT INTO jobs ({columns})"
        f" SELECT {job_id}, 'image_embedding', n, 5, n, n, n, n, 'completed', 1, 1, 3, '{RESULT}'"
        f" FROM generate_series({FINISHED_FROM}, {FINISHED_FROM + count - 1}) AS n"
    )


def _schema(url: str) -> str:
    return url.partition("search_path=")[2].partition("&")[0]


def _row(name: str, ours: Side, theirs: Side) -> Row:
    return Row(
        section=SECTION,
        name=name,
        unit="jobs/s",
        better="more",
        ours=ours,
        theirs=theirs,
        note=NOTE,
    )
