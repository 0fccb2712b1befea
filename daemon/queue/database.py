"""The SQLite engine: one connection that writes, for whole transactions, and one that reads.

Everything that changes the file goes through `Database.write`, which runs whole transactions one
after the other (sqlite_writer). A second writing or checkpointing connection in this process is
not allowed: SQLite before 3.51.3 can corrupt a WAL that two connections reset at once.
"""

import asyncio
import logging
import sqlite3
import time
from collections.abc import (
    AsyncIterator,
    Awaitable,
    Callable,
    Iterable,
    Mapping,
)
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Self, TypeVar

import aiosqlite

from daemon.errors import ConfigError, StorageError
from daemon.identity import is_dead, own_identity
from daemon.jobs import Clock
from daemon.queue.backend import Row, Vital
from daemon.queue.migration import (
    Migration,
    backup_path,
    check_ledger,
    check_tables,
    released_migrations,
    split_statements,
    to_ledger,
)
from daemon.queue.sqlite_writer import Connection, SQLiteWriter, is_busy
from daemon.wall_clock import epoch_ms

log = logging.getLogger(__name__)

T = TypeVar("T")


# UPDATE FROM 3.33, RETURNING 3.35, STRICT 3.37, ->> 3.38.
OLDEST_SQLITE = (3, 38, 0)
BUSY_TIMEOUT_MS = 10_000
PART = ".part"
"""Suffix of a copy that is being written."""
PART_SEPARATOR = "+"
"""Stands in that name for what parts the fields of its owner's identity."""


class Database:
    """The open file; a context manager."""

    clock: Clock | None = None
    """Daemons on one file share a machine, and its clock."""

    def __init__(
        self,
        path: Path,
        migrations: Iterable[Migration] | None = None,
        *,
        busy_timeout_ms: int = BUSY_TIMEOUT_MS,
    ) -> None:
        self._path = path
        self._busy_timeout_ms = busy_timeout_ms
        self._migrations = list(released_migrations() if migrations is None else migrations)
        self._writer: aiosqlite.Connection | None = None
        self._reader: aiosqlite.Connection | None = None
        self._door: SQLiteWriter | None = None

    async def __aenter__(self) -> Self:
        if sqlite3.sqlite_version_info < OLDEST_SQLITE:
            wanted = ".".join(map(str, OLDEST_SQLITE))
            raise ConfigError(f"SQLite {sqlite3.sqlite_version} is too old; {wanted} is needed")
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            self._writer = await _connect(self._path, self._busy_timeout_ms)
            await _refuse_foreign(self._writer, self._path)
            await _enter_wal(self._writer, self._busy_timeout_ms)
            await self._writer.execute("PRAGMA synchronous = NORMAL")
            await _migrate(self._writer, self._path, self._migrations)
            self._reader = await _connect(self._path, self._busy_timeout_ms)
            await self._reader.execute("PRAGMA wal_autocheckpoint = 0")
            await self._reader.execute("PRAGMA query_only = ON")
            self._door = SQLiteWriter(self._writer)
        except (OSError, sqlite3.Error) as error:
            await self.close()
            code = "queue_locked" if is_busy(error) else "queue_unusable"
            mend = _mend(error)
            raise ConfigError(
                f"cannot open the queue {self._path}: {error}{mend}", code=code
            ) from error
        except BaseException:
            # A cancelled start too: an open connection would keep its thread alive.
            await self.close()
            raise
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def close(self) -> None:
        """Let running transactions end, then close. Safe twice."""
        if self._door is not None:
            await self._door.close()
        for connection in (self._reader, self._writer):
            if connection is not None:
                await connection.close()
        self._reader = self._writer = None

    async def write(
        self,
        work: Callable[[Connection], Awaitable[T]],
        *,
        durable: bool = False,
        is_repeatable: bool = False,  # noqa: ARG002 - a commit to the log costs little here
    ) -> T:
        """Run `work` as one transaction and return what it returns.

        The transaction runs to its end even if the caller is cancelled, so that an outcome that
        exists is never half written.

        Args:
            work: gets the connection, inside BEGIN IMMEDIATE. It runs on the connection's own
                thread, perhaps with others in one commit: so it awaits nothing but the connection,
                touches nothing that the event loop changes meanwhile, and may be run again from
                its beginning, after a rollback.
            durable: the commit reaches the disk before this returns; otherwise it survives the
                death of the process, but the last ones not a power cut.
            is_repeatable: ignored by this engine.

        Raises:
            TakenError: a unique index refused a row; nothing was written.
            StorageError: nothing was written.
        """
        if self._door is None:
            raise StorageError("the queue is closed")
        return await self._door.write(work, durable=durable)

    async def check(self) -> None:
        """Return if the file can be written, as far as is known; asked only after a failure.

        Raises:
            StorageError: the latest writes failed, and another one does too or cannot begin.
        """
        if self._door is None or self._door.failure is None:
            return
        if self._door.is_busy:
            raise self._door.failure
        await self.write(_touch, durable=True)

    async def vitals(self) -> list[Vital]:
        """Return how large the file and its log are; a log that grows has a reader that stays."""
        text = "Size of the queue's file, and of its log."
        log_path = self._path.with_name(f"{self._path.name}-wal")
        sizes = await asyncio.to_thread(_sizes, {"database": self._path, "log": log_path})
        return [
            Vital("inferd_queue_file_bytes", text, size, {"file": name}) for name, size in sizes
        ]

    async def read(self, sql: str, parameters: Iterable[Any] = ()) -> list[Row]:
        """Return the rows of one query, as of the latest commit.

        Raises:
            StorageError: the query failed.
        """
        if self._reader is None:
            raise StorageError("the queue is closed")
        try:
            return list(await self._reader.execute_fetchall(sql, parameters))
        except sqlite3.Error as error:
            raise StorageError(f"cannot read the queue: {error}") from error


@asynccontextmanager
async def _transaction(connection: aiosqlite.Connection) -> AsyncIterator[None]:
    try:
        # Within the try: a cancelled BEGIN may have begun all the same.
        await connection.execute("BEGIN EXCLUSIVE")
        yield
        await connection.commit()
    except BaseException:
        # A cancellation too: a transaction left open would lock the file for everybody.
        await connection.rollback()
        raise


async def _touch(connection: Connection) -> None:
    """Write a page as it is."""
    rows = await connection.execute_fetchall("PRAGMA user_version")
    await connection.execute(f"PRAGMA user_version = {next(row[0] for row in rows)}")


def _mend(error: Exception) -> str:
    is_place = isinstance(error, OSError) or any(
        said in str(error) for said in ("unable to open", "readonly")
    )
    return "; INFERD_DATA_DIR names a folder that this user may write" if is_place else ""


async def _connect(path: Path, busy_timeout_ms: int) -> aiosqlite.Connection:
    # isolation_level None: no implicit BEGIN; `write` is the only one who begins.
    connection = await aiosqlite.connect(path, isolation_level=None)
    connection.row_factory = sqlite3.Row
    await connection.execute(f"PRAGMA busy_timeout = {busy_timeout_ms}")
    await connection.execute("PRAGMA foreign_keys = ON")
    return connection


async def _refuse_foreign(connection: aiosqlite.Connection, path: Path) -> None:
    rows = await connection.execute_fetchall("SELECT name FROM sqlite_master")
    check_tables(path, {row["name"] for row in rows})


async def _enter_wal(connection: aiosqlite.Connection, busy_timeout_ms: int) -> None:
    # The one lock that SQLite does not wait for: of two daemons that start at once on a new
    # file, the second would find it locked.
    give_up_at = time.monotonic() + busy_timeout_ms / 1000
    while True:
        try:
            await connection.execute("PRAGMA journal_mode = WAL")
        except sqlite3.OperationalError as error:
            if not is_busy(error) or time.monotonic() > give_up_at:
                raise
            await asyncio.sleep(0.02)
        else:
            return


async def _migrate(
    connection: aiosqlite.Connection, path: Path, migrations: list[Migration]
) -> None:
    """Bring the schema up to date, each step in a transaction of its own.

    Raises:
        ConfigError: the file is newer than this version, or a released step was changed.
    """
    await asyncio.to_thread(_remove_parts, path)
    async with _transaction(connection):
        await connection.execute(
            "CREATE TABLE IF NOT EXISTS schema_migrations ("
            " version INTEGER PRIMARY KEY, name TEXT NOT NULL, sha256 TEXT NOT NULL,"
            " applied_at INTEGER NOT NULL) STRICT"
        )
    rows = await connection.execute_fetchall("SELECT * FROM schema_migrations ORDER BY version")
    ledger = to_ledger(rows)
    if warning := check_ledger(path, ledger, migrations):
        log.warning("%s", warning)
    applied = {row.version for row in ledger}
    pending = [step for step in migrations if step.version not in applied]
    if applied and pending:
        await _back_up(connection, path, pending[0])
    for step in pending:
        await _apply(connection, step)


def _sizes(files: Mapping[str, Path]) -> list[tuple[str, int]]:
    return [(name, path.stat().st_size) for name, path in files.items() if path.is_file()]


def _remove_parts(path: Path) -> None:
    """Remove copies that a process had begun when it died; each is as large as the file."""
    for part in path.parent.glob(f"{path.name}.before-*{PART}"):
        owner = part.name.removesuffix(PART).rpartition(".before-")[2].partition(".")[2]
        if is_dead(owner.replace(PART_SEPARATOR, "/")):
            part.unlink(missing_ok=True)
            log.info("removed a copy that was only begun", extra={"path": str(part)})


async def _back_up(connection: aiosqlite.Connection, path: Path, step: Migration) -> None:
    """Copy the file before a step changes it; whole or not at all, and never once it is changed."""
    backup = backup_path(path, step.version)
    if await asyncio.to_thread(backup.exists):
        return
    # Under a name of our own: another daemon may do the same at the same time.
    part = path.with_name(f"{backup.name}.{own_identity().replace('/', PART_SEPARATOR)}{PART}")
    await asyncio.to_thread(part.unlink, missing_ok=True)
    await connection.execute("VACUUM INTO ?", (str(part),))
    rows = await connection.execute_fetchall(
        "SELECT 1 FROM schema_migrations WHERE version >= ?", (step.version,)
    )
    if list(rows):
        # The other daemon was first: this copy may hold the change already, its own does not.
        await asyncio.to_thread(part.unlink)
        return
    await asyncio.to_thread(part.replace, backup)
    log.info("schema changes; the queue was copied to %s first", backup)


async def _apply(connection: aiosqlite.Connection, step: Migration) -> None:
    async with _transaction(connection):
        # The ledger first: of two daemons that start at once, the second finds the row.
        cursor = await connection.execute(
            "INSERT INTO schema_migrations (version, name, sha256, applied_at)"
            " VALUES (?, ?, ?, ?) ON CONFLICT DO NOTHING",
            (step.version, step.name, step.sha256, epoch_ms()),
        )
        if cursor.rowcount == 0:
            return
        if step.compatible_from is not None:
            await _mark(connection, step.version, step.compatible_from)
        for statement in split_statements(step.sql):
            await connection.execute(statement)
        await connection.execute(f"PRAGMA user_version = {step.version}")


async def _mark(connection: aiosqlite.Connection, version: int, oldest: int) -> None:
    # Ledgers had no such column; the first step that has a mark to keep adds it.
    rows = await connection.execute_fetchall("PRAGMA table_info(schema_migrations)")
    if "compatible_from" not in {row["name"] for row in rows}:
        await connection.execute("ALTER TABLE schema_migrations ADD COLUMN compatible_from INTEGER")
    await connection.execute(
        "UPDATE schema_migrations SET compatible_from = ? WHERE version = ?", (oldest, version)
    )
