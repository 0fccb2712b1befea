"""The SQLite file: one writing connection with one door to it, one reading connection.

Everything that changes the file goes through `Database.write`, which runs whole transactions one
after the other. A second writing or checkpointing connection in this process is not allowed:
SQLite before 3.51.3 can corrupt a WAL that two connections reset at once.
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
)
from contextlib import asynccontextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar

import aiosqlite

from daemon.errors import ConfigError, StorageError
from daemon.identity import is_dead, own_identity
from daemon.jobs import Clock
from daemon.migration import (
    Migration,
    backup_path,
    check_ledger,
    check_tables,
    released_migrations,
    split_statements,
)
from daemon.queue_backend import Row, TakenError, Turn

log = logging.getLogger(__name__)

T = TypeVar("T")


# UPDATE FROM 3.33, RETURNING 3.35, STRICT 3.37, ->> 3.38.
OLDEST_SQLITE = (3, 38, 0)
BUSY_TIMEOUT_MS = 10_000
PASSING = frozenset(
    {
        sqlite3.SQLITE_BUSY,
        sqlite3.SQLITE_CANTOPEN,
        sqlite3.SQLITE_FULL,
        sqlite3.SQLITE_IOERR,
        sqlite3.SQLITE_LOCKED,
        sqlite3.SQLITE_NOMEM,
        sqlite3.SQLITE_PROTOCOL,
        sqlite3.SQLITE_READONLY,
    }
)
"""What is wrong with the file, not with what was to be written."""
TAKEN = frozenset({sqlite3.SQLITE_CONSTRAINT_UNIQUE, sqlite3.SQLITE_CONSTRAINT_PRIMARYKEY})
PART = ".part"
"""End of the name of a copy that is being written."""
PART_SEPARATOR = "+"
"""Stands in that name for what parts the fields of its owner's identity."""


class Connection:
    """What a transaction sees of the file; for the thread that runs it, and no other."""

    def __init__(self, raw: sqlite3.Connection) -> None:
        self._raw = raw
        self.afterwards: list[Callable[[], None]] = []

    async def execute(self, sql: str, parameters: Iterable[Any] = ()) -> sqlite3.Cursor:
        """Run a statement; `rowcount` of what is returned says how many rows changed."""
        return self._raw.execute(sql, tuple(parameters))

    async def executemany(self, sql: str, parameters: Iterable[Iterable[Any]]) -> sqlite3.Cursor:
        """Run a statement once for each row of parameters."""
        return self._raw.executemany(sql, map(tuple, parameters))

    async def execute_fetchall(self, sql: str, parameters: Iterable[Any] = ()) -> list[Row]:
        """Return all rows of a query."""
        return self._raw.execute(sql, tuple(parameters)).fetchall()

    async def take_turn(self, turn: Turn, *, shared: bool = False) -> None:
        """Do nothing: BEGIN IMMEDIATE lets one transaction in at a time."""

    async def foreign_changes(self) -> int | None:
        """Return what changes with each commit of another connection, and with none of our own."""
        number: int = self._raw.execute("PRAGMA data_version").fetchone()[0]
        return number

    def after_commit(self, tell: Callable[[], None]) -> None:
        """Call this, which must not raise, once this transaction is committed; else never."""
        self.afterwards.append(tell)


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
        self._door = asyncio.Lock()
        self._is_durable = False
        self._failure: StorageError | None = None
        self._running: set[asyncio.Task[Any]] = set()

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
        except (OSError, sqlite3.Error) as error:
            await self.close()
            code = "queue_locked" if _is_busy(error) else "queue_unusable"
            mend = _mend(error)
            raise ConfigError(
                f"cannot open the queue {self._path}: {error}{mend}", code=code
            ) from error
        except BaseException:
            # A cancelled start too: an open connection would keep its thread alive.
            await self.close()
            raise
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Let running transactions end, then close. Safe twice."""
        if self._running:
            await asyncio.wait(self._running)
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
                thread, from begin to commit in one go, since each change of threads costs more
                than a statement: so it awaits nothing but the connection, and touches nothing
                that the event loop changes meanwhile.
            durable: the commit reaches the disk before this returns; otherwise it survives the
                death of the process, but the last ones not a power cut.
            is_repeatable: of no account here.

        Raises:
            TakenError: another row stands for one that was to be written; nothing was written.
            StorageError: nothing was written.
        """
        task = asyncio.create_task(self._transact(work, durable=durable), name="database-write")
        self._running.add(task)
        task.add_done_callback(self._ended)
        return await asyncio.shield(task)

    async def check(self) -> None:
        """Return if the file can be written, as far as is known; asked only after a failure.

        Raises:
            StorageError: the latest writes failed, and another one does too or cannot begin.
        """
        if self._failure is None:
            return
        if self._door.locked():
            raise self._failure
        await self.write(_touch, durable=True)

    def _ended(self, task: asyncio.Task[Any]) -> None:
        self._running.discard(task)
        if not task.cancelled():
            # The caller may be gone: an error nobody awaits must not be reported as lost.
            task.exception()

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

    async def _transact(self, work: Callable[[Connection], Awaitable[T]], *, durable: bool) -> T:
        async with self._door:
            if self._writer is None:
                raise StorageError("the queue is closed")
            try:
                # No public way to the connection's thread, and to what it works with.
                writer: Any = self._writer
                done: T
                done, afterwards = await writer._execute(self._run, writer._conn, work, durable)  # noqa: SLF001
            except sqlite3.IntegrityError as error:
                kind = TakenError if error.sqlite_errorcode in TAKEN else StorageError
                raise kind(f"cannot write the queue: {error}") from error
            except sqlite3.Error as error:
                failure = StorageError(
                    f"cannot write the queue: {error}", may_pass=_primary_code(error) in PASSING
                )
                if failure.may_pass:
                    self._failure = failure
                raise failure from error
            if durable:
                # Others may have had nothing to write, which always goes well.
                self._failure = None
            for tell in afterwards:
                tell()
            return done

    def _run(
        self, raw: sqlite3.Connection, work: Callable[[Connection], Awaitable[T]], durable: bool
    ) -> tuple[T, list[Callable[[], None]]]:
        """Run a transaction, and return what to call after it; on the connection's thread."""
        if durable is not self._is_durable:
            # Legal only outside a transaction. In WAL, FULL also syncs earlier commits.
            raw.execute(f"PRAGMA synchronous = {'FULL' if durable else 'NORMAL'}")
            self._is_durable = durable
        try:
            raw.execute("BEGIN IMMEDIATE")
            connection = Connection(raw)
            done = _at_once(work(connection))
            raw.commit()
        except BaseException:
            # Whatever it was: a transaction left open would lock the file for everybody.
            raw.rollback()
            raise
        return done, connection.afterwards


def _at_once(work: Awaitable[T]) -> T:
    """Return the result of something that awaits nothing which takes time."""
    steps = work.__await__()
    try:
        next(steps)
    except StopIteration as end:
        result: T = end.value
        return result
    raise RuntimeError("a transaction awaits nothing but its connection")


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


def _is_busy(error: Exception) -> bool:
    return _primary_code(error) == sqlite3.SQLITE_BUSY


def _primary_code(error: Exception) -> int | None:
    # Errors of the module itself, such as a closed connection, have no code.
    code = getattr(error, "sqlite_errorcode", None)
    return None if code is None else code & 0xFF


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
            if not _is_busy(error) or time.monotonic() > give_up_at:
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
    rows = await connection.execute_fetchall("SELECT version, sha256 FROM schema_migrations")
    applied = {row["version"]: row["sha256"] for row in rows}
    check_ledger(path, applied, migrations)
    pending = [step for step in migrations if step.version not in applied]
    if applied and pending:
        await _back_up(connection, path, pending[0])
    for step in pending:
        await _apply(connection, step)


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
            "INSERT INTO schema_migrations VALUES (?, ?, ?, ?) ON CONFLICT DO NOTHING",
            (step.version, step.name, step.sha256, time.time_ns() // 1_000_000),
        )
        if cursor.rowcount == 0:
            return
        for statement in split_statements(step.sql):
            await connection.execute(statement)
        await connection.execute(f"PRAGMA user_version = {step.version}")
