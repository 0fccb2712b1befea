"""The interface of the queue's database engines: transactions, reads, health and metrics.

The verbs are written once; `database` (SQLite) and `postgresql` run them. A statement
is known everywhere by its text in SQLite's dialect, as `statements` names it: PostgreSQL's
engine looks up its own text for it (`postgresql.statements`); a test fails where one is missing.

SQLite lets one transaction in at a time; PostgreSQL lets many run side by side, at READ COMMITTED.
So whatever is looked up first and written later within `work` must be safe with others in
between: by a row that is locked when it is looked up, a unique index (`TakenError`), a fence, or
one of the `Turn`s below.
"""

from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from enum import Enum
from types import TracebackType
from typing import Any, Protocol, Self, TypeVar

from daemon.errors import StorageError
from daemon.jobs import Clock

T = TypeVar("T")


class TakenError(StorageError):
    """A unique index refused a row, since there is another one. Nothing was written."""


@dataclass(frozen=True, slots=True)
class Vital:
    """One value of the engine itself, as /metrics shows it."""

    name: str
    help: str
    value: float
    labels: Mapping[str, str] = field(default_factory=dict)
    is_total: bool = False
    """It only rises, and starts at 0 with the process."""


class Turn(Enum):
    """What transactions of several daemons take turns for, until they end."""

    INTAKE = 1
    """To count what waits and add to it, near the limit."""
    PAUSES = 2
    """To change what is paused, which leases look at."""


class Row(Protocol):
    """One row of an answer."""

    def __getitem__(self, key: str | int, /) -> Any:
        """Return a column by its name or place."""

    def __iter__(self) -> Iterator[Any]:
        """Give the values in the order of the columns."""

    def keys(self) -> Iterable[str]:
        """Return the names of the columns."""


class Result(Protocol):
    """What a statement did."""

    @property
    def rowcount(self) -> int:
        """How many rows it changed."""


class Connection(Protocol):
    """A transaction's access to the database; only the `work` that got it may use it."""

    async def execute(self, sql: str, parameters: Iterable[Any] = ()) -> Result:
        """Run a statement; `rowcount` of what is returned says how many rows changed."""

    async def executemany(self, sql: str, parameters: Iterable[Iterable[Any]]) -> object:
        """Run a statement once for each row of parameters."""

    async def execute_fetchall(self, sql: str, parameters: Iterable[Any] = ()) -> list[Row]:
        """Return all rows of a query."""

    async def take_turn(self, turn: Turn, *, shared: bool = False) -> None:
        """Wait until no other transaction has this turn; those that share it do not wait.

        Keep it before the first look at what it guards: only later statements see what others
        committed meanwhile.
        """

    async def foreign_changes(self) -> int | None:
        """Return a number that changes with each commit of others; None where that is unknown."""

    def after_commit(self, tell: Callable[[], None]) -> None:
        """Call this, which must not raise, once this transaction is committed; else never."""


class QueueBackend(Protocol):
    """The open database; a context manager."""

    @property
    def clock(self) -> Clock | None:
        """The database's own clock, epoch ms, where several machines share the queue; else None."""

    async def __aenter__(self) -> Self:
        """Open it and bring its schema up to date."""

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Let running transactions end, then close."""

    async def write(
        self,
        work: Callable[[Connection], Awaitable[T]],
        *,
        durable: bool = False,
        is_repeatable: bool = False,
    ) -> T:
        """Run `work` as one transaction and return what it returns.

        The transaction runs to its end even if the caller is cancelled, so that an outcome that
        exists is never half written.

        Args:
            work: awaits nothing but its connection, and keeps nothing that it changed but in the
                database: where transactions got in each other's way it is run again, from its
                beginning.
            durable: the commit reaches the disk before this returns; otherwise it survives the
                death of this process, though the last ones not a power cut.
            is_repeatable: losing the commit would only cost time, since somebody does the same
                again (leases and their renewals). PostgreSQL may then lose it when the server
                dies; it keeps every other commit as `durable`.

        Raises:
            TakenError: a unique index refused a row.
            StorageError: nothing was written; or, where the connection broke at the very end,
                perhaps all of it: asking again must be safe, and is by job_id and fence.
        """

    async def read(self, sql: str, parameters: Iterable[Any] = ()) -> list[Row]:
        """Return the rows of one query, as of the latest commit.

        Raises:
            StorageError: the query failed.
        """

    async def check(self) -> None:
        """Return if the database can be written, as far as is known.

        Raises:
            StorageError: the latest writes failed, and another one does too or cannot begin.
        """

    async def vitals(self) -> list[Vital]:
        """Return what an operator needs to know of the engine itself, as it is now.

        Raises:
            StorageError: it cannot be read.
        """
