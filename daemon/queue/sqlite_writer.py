"""SQLite's writing connection: whole transactions; those that wait together share a commit.

A change of threads and a commit each cost more than a statement. So a transaction runs on the
connection's own thread from begin to commit, and what was asked for meanwhile is written in one:
if that fails, each part is written alone, so that none fails for its neighbour's fault.
"""

import asyncio
import sqlite3
from collections import deque
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeAlias, TypeVar

from daemon.errors import StorageError
from daemon.queue.backend import Row, TakenError, Turn

T = TypeVar("T")

MOST = 32
"""Transactions that share a commit, at most: all of them wait for the last."""
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


_Work: TypeAlias = Callable[[Connection], Awaitable[Any]]


@dataclass(frozen=True, slots=True)
class _Asked:
    work: _Work
    durable: bool
    outcome: asyncio.Future[Any]


@dataclass(frozen=True, slots=True)
class _Done:
    """What a committed transaction returned, and whom it is to be told."""

    value: Any
    afterwards: Sequence[Callable[[], None]]


class SQLiteWriter:
    """Writes in the order in which it is asked; on one event loop.

    Args:
        connection: aiosqlite's, in autocommit, with `synchronous` NORMAL; closed by its owner
            after `close`.
    """

    def __init__(self, connection: Any) -> None:
        self.connection = connection
        self.failure: StorageError | None = None
        """Why the latest writes failed, if the file was to blame."""
        self._waiting: deque[_Asked] = deque()
        self._is_busy = False
        self._is_closed = False
        self._idle = asyncio.Event()
        self._idle.set()
        self._is_durable = False
        """How the connection synchronises now; the thread's own."""

    @property
    def is_busy(self) -> bool:
        """Whether something is being written."""
        return self._is_busy

    async def close(self) -> None:
        """Return once all that was asked for is written; from now on nothing is taken."""
        self._is_closed = True
        await self._idle.wait()

    async def write(self, work: Callable[[Connection], Awaitable[T]], *, durable: bool) -> T:
        """Run `work` as a transaction, to its end even if the caller is cancelled.

        Raises:
            TakenError, StorageError: nothing was written; see QueueBackend.
        """
        if self._is_closed:
            raise StorageError("the queue is closed")
        outcome: asyncio.Future[T] = asyncio.get_running_loop().create_future()
        self._waiting.append(_Asked(work, durable, outcome))
        if not self._is_busy:
            self._begin()
        return await outcome

    def _begin(self) -> None:
        """Let the thread write what waits, as far as it is equally durable."""
        first = self._waiting.popleft()
        group = [first]
        while self._waiting and len(group) < MOST and self._waiting[0].durable is first.durable:
            group.append(self._waiting.popleft())
        self._is_busy = True
        self._idle.clear()
        loop = asyncio.get_running_loop()
        # No public way to the connection's thread, and to what it works with. Without a future, so
        # that the loop hears of the end at once, instead of once more for it.
        run = partial(self._run_and_tell, loop, self.connection._conn, group)  # noqa: SLF001
        self.connection._tx.put_nowait((None, run))  # noqa: SLF001

    def _run_and_tell(
        self, loop: asyncio.AbstractEventLoop, raw: sqlite3.Connection, group: Sequence[_Asked]
    ) -> None:
        """Write a group and tell the loop; on the connection's thread."""
        outcomes: Sequence[_Done | BaseException]
        try:
            outcomes = self._run(raw, group)
        except BaseException as error:  # noqa: BLE001 - carried to the callers
            outcomes = [error] * len(group)
        loop.call_soon_threadsafe(self._over, group, outcomes)

    def _over(self, group: Sequence[_Asked], outcomes: Sequence[_Done | BaseException]) -> None:
        if self._waiting:
            # Whoever is told below can only ask after this.
            self._begin()
        else:
            self._is_busy = False
            self._idle.set()
        for asked, outcome in zip(group, outcomes, strict=True):
            self._tell(asked, outcome)

    def _tell(self, asked: _Asked, outcome: _Done | BaseException) -> None:
        if isinstance(outcome, _Done):
            if asked.durable:
                # Others may have had nothing to write, which always goes well.
                self.failure = None
            for tell in outcome.afterwards:
                # Before the caller goes on; one that raises all the same must hold up nobody.
                asyncio.get_running_loop().call_soon(tell)
            if not asked.outcome.done():
                asked.outcome.set_result(outcome.value)
            return
        error = _told(outcome)
        if isinstance(error, StorageError) and error.may_pass:
            self.failure = error
        if not asked.outcome.done():
            asked.outcome.set_exception(error)
            # The caller may be gone: an error nobody awaits must not be reported as lost.
            asked.outcome.exception()

    def _run(self, raw: sqlite3.Connection, group: Sequence[_Asked]) -> list[_Done | BaseException]:
        """Write a group; on the connection's thread."""
        try:
            return [*self._commit(raw, group)]
        except BaseException as error:  # noqa: BLE001 - carried to the callers
            # A file that is locked or full is so for all, and each would wait for it anew.
            if len(group) == 1 or _primary_code(error) in PASSING:
                return [error] * len(group)
        return [outcome for asked in group for outcome in self._run(raw, [asked])]

    def _commit(self, raw: sqlite3.Connection, group: Sequence[_Asked]) -> list[_Done]:
        durable = group[0].durable
        if durable is not self._is_durable:
            # Legal only outside a transaction. In WAL, FULL also syncs earlier commits.
            raw.execute(f"PRAGMA synchronous = {'FULL' if durable else 'NORMAL'}")
            self._is_durable = durable
        done = []
        try:
            raw.execute("BEGIN IMMEDIATE")
            for asked in group:
                connection = Connection(raw)
                value = _at_once(asked.work(connection))
                done.append(_Done(value, connection.afterwards))
            raw.commit()
        except BaseException:
            # Whatever it was: a transaction left open would lock the file for everybody.
            raw.rollback()
            raise
        return done


def _at_once(work: Awaitable[T]) -> T:
    """Return the result of something that awaits nothing which takes time."""
    steps = work.__await__()
    try:
        next(steps)
    except StopIteration as end:
        result: T = end.value
        return result
    raise RuntimeError("a transaction awaits nothing but its connection")


def _told(error: BaseException) -> BaseException:
    """Return what the caller of a transaction that failed is told."""
    told: StorageError
    if isinstance(error, sqlite3.IntegrityError):
        kind = TakenError if error.sqlite_errorcode in TAKEN else StorageError
        told = kind(f"cannot write the queue: {error}")
    elif isinstance(error, sqlite3.Error):
        told = StorageError(
            f"cannot write the queue: {error}", may_pass=_primary_code(error) in PASSING
        )
    else:
        return error
    told.__cause__ = error
    return told


def is_busy(error: BaseException) -> bool:
    """Whether another process keeps the file locked."""
    return _primary_code(error) == sqlite3.SQLITE_BUSY


def _primary_code(error: BaseException) -> int | None:
    # Errors of the module itself, such as a closed connection, have no code.
    code = getattr(error, "sqlite_errorcode", None)
    return None if code is None else code & 0xFF
