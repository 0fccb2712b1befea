"""PostgreSQL through asyncpg: transactions over a small pool, and what becomes of their errors."""

import asyncio
import contextlib
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, Self, TypeVar

import asyncpg

from daemon.errors import ConfigError, StorageError
from daemon.queue.backend import Row, TakenError, Turn, Vital
from daemon.queue.migration import Migration
from daemon.queue.postgresql import schema
from daemon.queue.postgresql.clock import DatabaseClock, steady_ms
from daemon.queue.postgresql.hosts import Hosts
from daemon.queue.postgresql.statements import text_of
from daemon.queue.postgresql.vitals import Effort, read_vitals
from daemon.redaction import without_password

log = logging.getLogger(__name__)

T = TypeVar("T")

POOL = 8
"""Connections of one daemon, at most."""
TRIES = 5
"""How often a transaction is run that others got in the way of."""
COMMAND_SECONDS = 30.0
ACQUIRE_SECONDS = 10.0
START_SECONDS = 30.0
"""How long a start waits for a server that is not there yet."""
CLOCK_SECONDS = 10.0
"""Between two comparisons with the server's clock."""
CLOSE_SECONDS = 10.0
SERVER_SETTINGS = {
    "application_name": "inferd",
    "statement_timeout": "30s",
    "lock_timeout": "10s",
    # The verbs look again at what they waited for: a snapshot from before the wait would be wrong.
    "default_transaction_isolation": "read committed",
    # A daemon that stands still within a transaction would keep its rows, and VACUUM from all.
    "idle_in_transaction_session_timeout": "30s",
    # Its compiler costs a short statement more than it saves.
    "jit": "off",
}

_NOW = "SELECT (extract(epoch FROM clock_timestamp()) * 1000)::float8"
# By schema too: one database may hold several queues; `transfer` looks for it.
_NAMED = "SELECT set_config('application_name', left('inferd ' || current_schema(), 63), false)"
_TOUCH = "UPDATE schema_migrations SET name = name WHERE version = 1"

_PASSING_CLASSES = ("08", "28", "40", "53", "55", "57", "58")
"""Of SQLSTATE: connection, authorisation, conflict, resources, locks, intervention, system."""
_READ_ONLY = "25006"
"""What a standby says that was the primary before."""
_GONE = (
    OSError,
    TimeoutError,
    asyncpg.InterfaceError,
    # Also what a session says whose server died, if it is asked before it has noticed.
    asyncpg.InternalClientError,
    asyncpg.PostgresConnectionError,
)
_ELSEWHERE = (TimeoutError, asyncpg.ReadOnlySQLTransactionError)
"""What a server says, or does not, of which the primary has moved: it may be one for the whole
pool, and a standby's sessions would stay there."""
_HOPELESS = (
    asyncpg.InvalidAuthorizationSpecificationError,
    asyncpg.InvalidCatalogNameError,
    asyncpg.InsufficientPrivilegeError,
    asyncpg.ClientConfigurationError,
)
"""What no waiting mends at a start."""
_IN_THE_WAY = (
    asyncpg.SerializationError,
    asyncpg.DeadlockDetectedError,
    # Another daemon inserted the same meanwhile: the next run sees it.
    asyncpg.UniqueViolationError,
    # A newer daemon changed the schema under a prepared statement; asyncpg has forgotten it now.
    asyncpg.InvalidCachedStatementError,
)


@dataclass(frozen=True, slots=True)
class _Done:
    """What a statement did."""

    rowcount: int


class _Session(asyncpg.Connection):  # type: ignore[misc]  # asyncpg has no types
    """A connection that is not reset after each use: nothing here changes a session."""

    def get_reset_query(self) -> str:
        return ""


class PostgresConnection:
    """What a transaction sees of the database."""

    def __init__(self, raw: Any, begin: str) -> None:
        self._raw = raw
        self._begin = begin
        """What is still to be said before the first statement."""
        self.afterwards: list[Callable[[], None]] = []

    async def execute(self, sql: str, parameters: Iterable[Any] = ()) -> _Done:
        """Run a statement; `rowcount` of what is returned says how many rows changed."""
        await self.begin()
        status: str = await self._raw.execute(text_of(sql), *parameters)
        number = status.rpartition(" ")[2]
        return _Done(int(number) if number.isdigit() else 0)

    async def executemany(self, sql: str, parameters: Iterable[Iterable[Any]]) -> None:
        """Run a statement once for each row of parameters, in one go."""
        rows = [tuple(row) for row in parameters]
        if rows:
            await self.begin()
            await self._raw.executemany(text_of(sql), rows)

    async def execute_fetchall(self, sql: str, parameters: Iterable[Any] = ()) -> list[Row]:
        """Return all rows of a query."""
        await self.begin()
        rows: list[Row] = await self._raw.fetch(text_of(sql), *parameters)
        return rows

    async def take_turn(self, turn: Turn, *, shared: bool = False) -> None:
        """Wait until no other transaction has this turn; those that share it do not wait."""
        lock = "pg_advisory_xact_lock_shared" if shared else "pg_advisory_xact_lock"
        # By schema too: one database may hold several queues. In one message with the BEGIN.
        await self.begin(f"SELECT {lock}(hashtext(current_schema()), {turn.value:d})")

    async def begin(self, beside: str = "") -> None:
        """Begin the transaction unless it has begun; and run a statement without parameters."""
        told, self._begin = "; ".join(filter(None, (self._begin, beside))), ""
        if told:
            await self._raw.execute(told)

    async def foreign_changes(self) -> int | None:
        """Return None: PostgreSQL does not count the commits of others."""
        return None

    def after_commit(self, tell: Callable[[], None]) -> None:
        """Call this, which must not raise, once this transaction is committed; else never."""
        self.afterwards.append(tell)


class PostgresDatabase:
    """The open database; a context manager."""

    def __init__(
        self,
        url: str,
        migrations: Sequence[Migration] | None = None,
        *,
        start_seconds: float = START_SECONDS,
    ) -> None:
        self._hosts = Hosts(url)
        self._start_seconds = start_seconds
        self._where = without_password(url)
        self._is_released = migrations is None
        self._migrations = schema.steps() if migrations is None else migrations
        self._pool: Any = None
        self._failure: StorageError | None = None
        self._running: set[asyncio.Task[Any]] = set()
        self._effort = Effort()
        self._comparing: asyncio.Task[None] | None = None
        self.clock = DatabaseClock()

    async def __aenter__(self) -> Self:
        try:
            self._pool = await self._connect()
            async with self._acquired() as raw:
                done = await schema.migrate(raw, self._where, self._migrations)
                for step in done:
                    log.info("schema %d %s was applied", step.version, step.name)
                if self._is_released:
                    await schema.refuse_moving(raw, self._where)
                await self._compare(raw)
        except (*_GONE, asyncpg.PostgresError) as error:
            await self.close()
            raise ConfigError(
                f"cannot open the queue {self._where}: {_said(error)}", code="queue_unusable"
            ) from error
        except BaseException:
            # A cancelled start too: nobody else has the pool to close it.
            await self.close()
            raise
        self._comparing = asyncio.create_task(self._keep_comparing(), name="database-clock")
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def close(self) -> None:
        """Let running transactions end, then close. Safe twice."""
        if self._comparing is not None:
            self._comparing.cancel()
            await asyncio.wait([self._comparing])
            self._comparing = None
        if self._running:
            await asyncio.wait(self._running)
        pool, self._pool = self._pool, None
        if pool is not None:
            try:
                async with asyncio.timeout(CLOSE_SECONDS):
                    await pool.close()
            except (TimeoutError, *_GONE, asyncpg.PostgresError):
                pool.terminate()

    async def write(
        self,
        work: Callable[[PostgresConnection], Awaitable[T]],
        *,
        durable: bool = False,  # noqa: ARG002 - all are, but those that may be repeated
        is_repeatable: bool = False,
    ) -> T:
        """Run `work` as one transaction and return what it returns; see QueueBackend.

        Raises:
            TakenError: another row stands for one that was to be written; nothing was written.
            StorageError: nothing was written; or perhaps all, where the connection broke at the
                commit: then may_pass holds.
        """
        task = asyncio.create_task(self._write(work, is_repeatable), name="database-write")
        self._running.add(task)
        task.add_done_callback(self._ended)
        return await asyncio.shield(task)

    async def read(self, sql: str, parameters: Iterable[Any] = ()) -> list[Row]:
        """Return the rows of one query, as of the latest commit.

        Raises:
            StorageError: the query failed.
        """
        try:
            async with self._acquired() as raw:
                rows: list[Row] = await raw.fetch(text_of(sql), *parameters)
                return rows
        except (*_GONE, asyncpg.PostgresError) as error:
            raise _storage_error("read", error) from error

    async def check(self) -> None:
        """Return if the database can be written, as far as is known; asked only after a failure.

        Raises:
            StorageError: the latest writes failed, and another one does too.
        """
        if self._failure is not None:
            await self.write(_touch)

    async def vitals(self) -> list[Vital]:
        """Return how the connections stand, what waits, and what is dead.

        Raises:
            StorageError: the server cannot be asked.
        """
        try:
            async with self._acquired() as raw:
                return await read_vitals(raw, self._pool, self._effort)
        except (*_GONE, asyncpg.PostgresError) as error:
            raise _storage_error("read", error) from error

    def _ended(self, task: asyncio.Task[Any]) -> None:
        self._running.discard(task)
        if not task.cancelled():
            # The caller may be gone: an error nobody awaits must not be reported as lost.
            task.exception()

    async def _write(
        self, work: Callable[[PostgresConnection], Awaitable[T]], is_repeatable: bool
    ) -> T:
        for attempt in range(1, TRIES + 1):
            try:
                async with self._acquired() as raw:
                    done, afterwards = await _transact(raw, work, is_repeatable=is_repeatable)
                break
            except _IN_THE_WAY as error:
                self._effort.repeated += 1
                if attempt == TRIES:
                    is_taken = isinstance(error, asyncpg.UniqueViolationError)
                    kind = TakenError if is_taken else StorageError
                    raise kind(f"cannot write the queue: {error}", may_pass=not is_taken) from error
            except (*_GONE, asyncpg.PostgresError) as error:
                failure = _storage_error("write", error)
                if failure.may_pass:
                    self._failure = failure
                raise failure from error
        self._failure = None
        for tell in afterwards:
            tell()
        return done

    @asynccontextmanager
    async def _acquired(self) -> AsyncIterator[Any]:
        if self._pool is None:
            raise StorageError("the queue is closed")
        pool = self._pool
        asked_at = time.monotonic()
        try:
            raw = await pool.acquire(timeout=ACQUIRE_SECONDS)
        finally:
            # In vain, too: that is when somebody looks.
            self._effort.acquired_after(time.monotonic() - asked_at)
        try:
            yield raw
        except (*_GONE, *_ELSEWHERE) as error:
            if isinstance(error, _ELSEWHERE):
                await pool.expire_connections()
            # Nobody knows what it is in the middle of; the next one gets a new one. One that broke
            # by itself is with the pool already, and says so.
            with contextlib.suppress(asyncpg.InterfaceError):
                raw.terminate()
            raise
        finally:
            await pool.release(raw)

    async def _connect(self) -> Any:
        """Open the pool; a server that is only starting is waited for.

        Raises:
            ConfigError: the URL, the user or the database is wrong.
        """
        give_up_at = time.monotonic() + self._start_seconds
        while True:
            try:
                pool = await asyncpg.create_pool(
                    # One that is kept at all times is asked for again and again, with a traceback
                    # in the log each time, while the server is away.
                    min_size=0,
                    max_size=POOL,
                    connect=self._hosts.connect,
                    timeout=ACQUIRE_SECONDS,
                    command_timeout=COMMAND_SECONDS,
                    server_settings=SERVER_SETTINGS,
                    connection_class=_Session,
                    init=_prepare,
                )
                async with pool.acquire(timeout=ACQUIRE_SECONDS):
                    return pool
            except (*_HOPELESS, ValueError) as error:
                raise ConfigError(
                    f"cannot open the queue {self._where}: {_said(error)}", code="queue_unusable"
                ) from error
            except (*_GONE, asyncpg.PostgresError) as error:
                if time.monotonic() > give_up_at:
                    raise
                log.warning("waiting for the queue's database: %s", _said(error))
                await asyncio.sleep(1)

    async def _compare(self, raw: Any) -> None:
        asked_at = steady_ms()
        server_ms: float = await raw.fetchval(_NOW)
        self.clock.compare(server_ms, asked_at, steady_ms())

    async def _keep_comparing(self) -> None:
        while True:
            await asyncio.sleep(CLOCK_SECONDS)
            # Whoever needs the database finds out by itself that it is away.
            with contextlib.suppress(StorageError, *_GONE, asyncpg.PostgresError):
                async with self._acquired() as raw:
                    await self._compare(raw)


async def _transact(
    raw: Any, work: Callable[[PostgresConnection], Awaitable[T]], *, is_repeatable: bool
) -> tuple[T, list[Callable[[], None]]]:
    # One message to the server for all that has no parameters.
    lossy = "; SET LOCAL synchronous_commit = off" if is_repeatable else ""
    connection = PostgresConnection(raw, f"BEGIN{lossy}")
    try:
        done = await work(connection)
        await connection.begin()
        status: str = await raw.execute("COMMIT")
    except _GONE:
        # The connection is thrown away: the server rolls back, and a silent one would not answer.
        raise
    except BaseException:
        with contextlib.suppress(*_GONE, asyncpg.PostgresError):
            await raw.execute("ROLLBACK")
        raise
    if status != "COMMIT":
        raise StorageError("cannot write the queue: a statement had failed")
    return done, connection.afterwards


async def _prepare(raw: Any) -> None:
    await raw.execute(f"{schema.SAFE_COMMITS}; {_NAMED}")


async def _touch(connection: PostgresConnection) -> None:
    await connection.execute(_TOUCH)


def _storage_error(verb: str, error: BaseException) -> StorageError:
    return StorageError(f"cannot {verb} the queue: {_said(error)}", may_pass=_may_pass(error))


def _may_pass(error: BaseException) -> bool:
    state: str = getattr(error, "sqlstate", None) or ""
    if state:
        return state == _READ_ONLY or state.startswith(_PASSING_CLASSES)
    # A value that cannot be sent is an InterfaceError too.
    return isinstance(error, _GONE) and not isinstance(error, ValueError)


def _said(error: BaseException) -> str:
    return str(error) or type(error).__name__
