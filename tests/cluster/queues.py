"""Where a fleet's queue is: a SQLite file that the daemons share or a PostgreSQL; breaks it."""

import json
import signal
import sqlite3
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any, Protocol

from tests.cluster.hosts import Hosts
from tests.postgresql import Cluster

Rows = dict[str, Mapping[str, Any]]
"""The queue's jobs, by job_id."""


class Queue(Protocol):
    """The queue's database, as someone sees it who is none of its daemons."""

    @property
    def name(self) -> str:
        """What it is."""

    @property
    def url(self) -> str:
        """INFERD_QUEUE__URL of the daemons."""

    @property
    def ways_to_break(self) -> Mapping[str, Callable[[], None]]:
        """By what is done; it is back when the call returns."""

    def read(self) -> tuple[Rows, list[str]]:
        """Return the jobs, and the topics in the outbox."""


class File:
    """A SQLite file."""

    name = "SQLite"

    def __init__(self, path: Path) -> None:
        self._path = path
        self.url = f"sqlite:///{path}"
        self.ways_to_break: Mapping[str, Callable[[], None]] = {}

    def read(self) -> tuple[Rows, list[str]]:
        """Return the jobs, and the topics in the outbox."""
        with closing(sqlite3.connect(self._path, timeout=20)) as connection:
            connection.row_factory = sqlite3.Row
            found = connection.execute("SELECT * FROM jobs")
            rows: Rows = {row["job_id"]: dict(row) for row in found}
            return rows, [row["topic"] for row in connection.execute("SELECT topic FROM outbox")]


class Server:
    """A PostgreSQL whose data reach the disk."""

    name = "PostgreSQL"

    def __init__(self, cluster: Cluster) -> None:
        self._cluster = cluster
        cluster.psql("CREATE SCHEMA fleet")
        self.url = cluster.url_by_address("fleet")
        self.ways_to_break: Mapping[str, Callable[[], None]] = {
            "kill -9 of PostgreSQL": self._kill,
            "immediate stop of PostgreSQL": self._stop_at_once,
        }

    def read(self) -> tuple[Rows, list[str]]:
        """Return the jobs, and the topics in the outbox."""
        jobs = self._cluster.psql("SELECT row_to_json(jobs) FROM jobs", schema="fleet")
        rows: Rows = {row["job_id"]: row for row in map(json.loads, jobs.splitlines())}
        return rows, self._cluster.psql("SELECT topic FROM outbox", schema="fleet").splitlines()

    def _kill(self) -> None:
        self._cluster.kill()
        self._cluster.start()

    def _stop_at_once(self) -> None:
        self._cluster.stop(signal.SIGQUIT)
        self._cluster.start()


@contextmanager
def a_file(folder: Path, _hosts: Hosts) -> Iterator[Queue]:
    """Give a queue in a file, which daemons on one machine may share."""
    yield File(folder / "queue.db")


@contextmanager
def postgresql(_folder: Path, hosts: Hosts) -> Iterator[Queue]:
    """Give a queue in a PostgreSQL that every host reaches; without one the test skips."""
    with Cluster(fsync=True, address=hosts.outside) as cluster:
        yield Server(cluster)
