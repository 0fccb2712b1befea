"""`python -m bench --only engines`: one queue under several daemons, on SQLite and on PostgreSQL.

Each daemon is a process that leases and completes by the queue's own verbs, so many jobs at a time,
as the worker does (bench/engine_race.py). Every figure of a round is taken once before the next.
PostgreSQL is a cluster of its own on this machine, with fsync, asked through its socket.
"""

import asyncio
import contextlib
import itertools
import os
import subprocess
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, TypeAlias

import pytest

from bench.engine_race import Crew, enqueue
from bench.raw_queue import RESULT, RawQueue
from bench.rows import Options, Row, Side, not_measured
from tests.postgresql import Cluster

SECTION = "engines"
ROUNDS = 3
DAEMONS = (1, 2, 4)
BATCHES = (1, 16, 64)
FINISHED_FROM = 10**9
"""Picture ids from here on belong to jobs that were finished before."""
NOTE = "claim and complete, two transactions with their events"
Found: TypeAlias = Mapping[tuple[str, int, int], Sequence[float]]
"""Jobs a second of each round by engine, batch and daemons."""


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


def measure(options: Options) -> Sequence[Row]:
    """Return daemons against one, batches, finished jobs, a forgotten transaction, both engines."""
    jobs = options.pick(smallest=64, quick=256, normal=1024, full=4096)
    finished = options.pick(smallest=1000, quick=10_000, normal=100_000, full=1_000_000)
    rounds = options.pick(smallest=1, normal=ROUNDS)
    with tempfile.TemporaryDirectory(prefix="inferd-bench-") as name, Crew(max(DAEMONS)) as crew:
        file = SQLite(Path(name))
        try:
            cluster = Cluster(fsync=True)
        except (pytest.skip.Exception, pytest.fail.Exception) as missing:
            found = _races(crew, [file], jobs, rounds)
            rows = [*_daemons(found, file), _finished(crew, file, jobs, finished, rounds)]
            return [*rows, not_measured(SECTION, "PostgreSQL", str(missing))]
        with cluster:
            server = PostgreSQL(cluster)
            found = _races(crew, [file, server], jobs, rounds)
            rows = []
            for engine in (file, server):
                rows += _daemons(found, engine)
                rows.append(_finished(crew, engine, jobs, finished, rounds))
            rows += _engines(found, server, file)
            rows.append(_forgotten(crew, server, jobs, rounds))
    return rows


def _races(crew: Crew, engines: Sequence[Engine], jobs: int, rounds: int) -> Found:
    """Let all take turns: each round has every engine, batch and number of daemons once."""
    found: dict[tuple[str, int, int], list[float]] = {}
    for _ in range(rounds):
        for batch, count, engine in itertools.product(BATCHES, DAEMONS, engines):
            speed = crew.race(engine.place(), jobs=jobs, batch=batch, daemons=count)
            found.setdefault((engine.name, batch, count), []).append(speed)
    return found


def _daemons(found: Found, engine: Engine) -> Iterator[Row]:
    for batch, count in itertools.product(BATCHES, DAEMONS[1:]):
        yield _row(
            f"{engine.name}, {batch} at a time, {count} daemons",
            Side.of(f"{count} daemons", found[engine.name, batch, count]),
            Side.of("1 daemon", found[engine.name, batch, 1]),
        )


def _finished(crew: Crew, engine: Engine, jobs: int, finished: int, rounds: int) -> Row:
    ours, theirs = [], []
    full = engine.place()
    _make(full)
    engine.add_finished(full, finished)
    for _ in range(rounds):
        ours.append(crew.race(full, jobs=jobs, batch=16, daemons=1))
        theirs.append(crew.race(engine.place(), jobs=jobs, batch=16, daemons=1))
    return _row(
        f"{engine.name}, 16 at a time, {finished:,} finished before",
        Side.of(f"{finished:,} finished jobs before", ours),
        Side.of("none", theirs),
    )


def _engines(found: Found, ours: Engine, theirs: Engine) -> Iterator[Row]:
    for batch, count in itertools.product(BATCHES, DAEMONS):
        yield _row(
            f"{batch} at a time, {count} daemon{'s' if count > 1 else ''}",
            Side.of(ours.name, found[ours.name, batch, count]),
            Side.of(theirs.name, found[theirs.name, batch, count]),
        )


def _forgotten(crew: Crew, engine: PostgreSQL, jobs: int, rounds: int) -> Row:
    """Return what a transaction that somebody left open costs: VACUUM may remove nothing."""
    ours, theirs = [], []
    for _ in range(rounds):
        place, clean = engine.place(), engine.place()
        for url in (place, clean):
            _make(url)
        with _left_open(engine.cluster, place):
            # Dead versions of rows pile up while others work.
            ours.append(crew.race(place, jobs=4 * jobs, batch=16, daemons=2))
        theirs.append(crew.race(clean, jobs=4 * jobs, batch=16, daemons=2))
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


def _make(url: str) -> None:
    asyncio.run(enqueue(url, 0))


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
