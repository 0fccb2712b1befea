"""What schema the queue's file has, and what this version would do to it; changes nothing."""

import contextlib
import sqlite3
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from daemon.errors import ConfigError
from daemon.queue.migration import (
    Applied,
    Migration,
    backup_path,
    check_ledger,
    check_tables,
    to_ledger,
)


@dataclass(frozen=True, slots=True)
class Step:
    """One step of a file's schema."""

    number: int
    name: str
    applied_at: int | None
    """Epoch milliseconds; None while it is to be applied."""


@dataclass(frozen=True, slots=True)
class Schema:
    """The steps of one file, and the copies that were made before some of them."""

    path: Path
    steps: Sequence[Step]
    """Applied or to be applied, in order; some may be unknown to this version."""
    copies: Sequence[Path]
    refusal: ConfigError | None
    """Why this version cannot serve the file."""
    warning: str | None = None
    """Why it should not for long."""

    @property
    def version(self) -> int:
        """Number of the newest step applied, 0 where the file is new."""
        return max((step.number for step in self.steps if step.applied_at is not None), default=0)

    @property
    def is_new(self) -> bool:
        """Whether there is no queue yet."""
        return self.version == 0

    @property
    def pending(self) -> list[Step]:
        """What is to be applied."""
        return [step for step in self.steps if step.applied_at is None]


def read_schema(path: Path, migrations: Sequence[Migration]) -> Schema:
    """Return the state of a file that may be absent, or in use by daemons of any version.

    It is also read from end to end, to find damage before a step copies it.

    Args:
        path: the SQLite file.
        migrations: the steps that this version brings, in order.

    Raises:
        ConfigError: it cannot be read, code queue_unusable; it is damaged, code queue_damaged;
            it is another program's, code queue_foreign.
    """
    ledger: list[Applied] = []
    if path.exists():
        ledger = _read(path)
    refusal = warning = None
    try:
        warning = check_ledger(path, ledger, migrations)
    except ConfigError as error:
        refusal = error
    steps = [Step(row.version, row.name, row.applied_at) for row in ledger]
    applied = {step.number for step in steps}
    steps += [
        Step(each.version, each.name, None) for each in migrations if each.version not in applied
    ]
    copies = [backup_path(path, step.number) for step in steps]
    kept = [copy for copy in copies if copy.is_file()]
    return Schema(path, steps, kept, refusal, warning)


def _read(path: Path) -> list[Applied]:
    wal = path.with_name(f"{path.name}-wal")
    is_open = wal.exists()
    try:
        return _read_ledger(path, is_open=is_open)
    except ConfigError as error:
        if is_open or error.code != "queue_damaged" or not wal.exists():
            raise
        # A daemon opened the file while we read it as one that nobody changes.
        return _read_ledger(path, is_open=True)


def _read_ledger(path: Path, *, is_open: bool) -> list[Applied]:
    try:
        with _reading(path, is_open=is_open) as connection:
            names = {name for (name,) in connection.execute("SELECT name FROM sqlite_master")}
            check_tables(path, names)
            faults = [said for (said,) in connection.execute("PRAGMA quick_check(3)")]
            if faults != ["ok"]:
                raise _damaged(path, "; ".join(faults))
            if not names:
                return []
            return to_ledger(connection.execute("SELECT * FROM schema_migrations ORDER BY version"))
    except sqlite3.DatabaseError as error:
        code = getattr(error, "sqlite_errorcode", sqlite3.SQLITE_ERROR) & 0xFF
        if code in {sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB}:
            raise _damaged(path, str(error)) from error
        raise ConfigError(
            f"cannot read the queue {path}: {error}", code="queue_unusable"
        ) from error


def _damaged(path: Path, what: str) -> ConfigError:
    return ConfigError(
        f"{path} is damaged, or no SQLite file ({what}): stop the daemons, move it and its -wal"
        " away, and put a copy in its place, if there is one",
        code="queue_damaged",
    )


@contextlib.contextmanager
def _reading(path: Path, *, is_open: bool) -> Iterator[sqlite3.Connection]:
    # Where nobody has it open, SQLite would make a -wal and a -shm of ours beside it and leave
    # them there; `immutable` keeps it from that.
    options = "mode=ro" if is_open else "mode=ro&immutable=1"
    connection = sqlite3.connect(f"{path.absolute().as_uri()}?{options}", uri=True)
    try:
        yield connection
    finally:
        connection.close()
