"""Where a case keeps its queue, a SQLite file or PostgreSQL, seen past the daemon's own code."""

import asyncio
import json
import sqlite3
import time
from collections.abc import Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any, Protocol

from daemon.queue.database import Database
from daemon.queue.postgresql.backend import PostgresDatabase
from tests.postgresql import Cluster, schema_of

LEAVING_SECONDS = 30.0
"""How long whoever hangs on a daemon may take to notice that it has gone."""
Rows = dict[str, Mapping[str, Any]]
"""The queue's jobs, by job_id."""


class Queue(Protocol):
    """One queue, with this version's schema once it was made."""

    @property
    def url(self) -> str:
        """INFERD_QUEUE__URL of the daemons."""

    def make(self, statements: Sequence[str]) -> None:
        """Give it this version's schema, and what it is to hold."""

    def jobs(self) -> Rows:
        """Return its jobs."""

    def unsent(self) -> list[str]:
        """Return the topics in its outbox."""

    def damage(self) -> list[str]:
        """Return what is wrong with it as a database."""


class File:
    """A SQLite file."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self.url = f"sqlite:///{path}"

    def make(self, statements: Sequence[str]) -> None:
        """Give it this version's schema, and what it is to hold."""

        async def open_it() -> None:
            async with Database(self._path):
                pass

        asyncio.run(open_it())
        with closing(sqlite3.connect(self._path)) as connection, connection:
            for each in statements:
                connection.execute(each)

    def jobs(self) -> Rows:
        """Return its jobs."""
        with closing(sqlite3.connect(self._path)) as connection:
            connection.row_factory = sqlite3.Row
            rows = connection.execute("SELECT * FROM jobs")
            return {row["job_id"]: dict(row) for row in rows}

    def unsent(self) -> list[str]:
        """Return the topics in its outbox."""
        with closing(sqlite3.connect(self._path)) as connection:
            return [topic for (topic,) in connection.execute("SELECT topic FROM outbox")]

    def damage(self) -> list[str]:
        """Return what SQLite finds in the file."""
        with closing(sqlite3.connect(self._path)) as connection:
            sound = [said for (said,) in connection.execute("PRAGMA integrity_check")]
            return [] if sound == ["ok"] else sound


class Server:
    """A schema of a PostgreSQL that is the case's own."""

    def __init__(self, cluster: Cluster) -> None:
        self._cluster = cluster
        self.url = cluster.schema()

    def make(self, statements: Sequence[str]) -> None:
        """Give it this version's schema, and what it is to hold."""

        async def open_it() -> None:
            async with PostgresDatabase(self.url):
                pass

        asyncio.run(open_it())
        self._ask(";\n".join(statements))

    def jobs(self) -> Rows:
        """Return its jobs."""
        rows = map(json.loads, self._ask("SELECT row_to_json(jobs) FROM jobs").splitlines())
        return {row["job_id"]: row for row in rows}

    def unsent(self) -> list[str]:
        """Return the topics in its outbox."""
        return self._ask("SELECT topic FROM outbox").splitlines()

    def damage(self) -> list[str]:
        """Return the sessions that dead daemons left, which may hold a transaction open."""
        ends_at = time.monotonic() + LEAVING_SECONDS
        while left := self._ask(
            "SELECT pid, state, query FROM pg_stat_activity WHERE datname = current_database()"
            f" AND application_name = 'inferd {schema_of(self.url)}'"
        ).splitlines():
            if time.monotonic() > ends_at:
                break
            time.sleep(0.05)
        return left

    def _ask(self, sql: str) -> str:
        return self._cluster.psql(sql, schema=schema_of(self.url))
