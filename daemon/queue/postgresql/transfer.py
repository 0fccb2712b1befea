"""Moves a SQLite queue into PostgreSQL: copies what differs, then reads both to the end.

Nobody may have the file open meanwhile, and no daemon starts on the database until it is done: a
mark on the table says so. Run again after whatever happened, it goes on where batches differ.
"""

import asyncio
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import asyncpg

from daemon.errors import ConfigError
from daemon.queue.migration import check_ledger, released_migrations, to_ledger
from daemon.queue.postgresql import schema
from daemon.queue.postgresql.hosts import NOT_USABLE, Hosts
from daemon.redaction import without_password

BATCH = 5000
"""Rows compared, and written where they differ, at a time."""
_TABLES = """
SELECT name FROM sqlite_schema
WHERE type = 'table' AND name NOT LIKE 'sqlite!_%' ESCAPE '!' AND name <> 'schema_migrations'
ORDER BY name
"""
_DAEMONS = """
SELECT count(*) FROM pg_stat_activity
WHERE datname = current_database() AND application_name = left('inferd ' || current_schema(), 63)
"""
# Events too: a queue whose jobs were pruned may still have to tell what became of them.
_IS_USED = "SELECT EXISTS (SELECT 1 FROM jobs) OR EXISTS (SELECT 1 FROM outbox)"
LEAVING_SECONDS = 2.0
"""How long the server may take to notice that a daemon has gone."""


@dataclass(slots=True)
class Moved:
    """What was moved."""

    rows: dict[str, int] = field(default_factory=dict)
    """By table: how many there are, on both sides."""
    written: int = 0
    """Rows written by this run; those that were equal already are not."""


async def transfer(
    path: Path, url: str, *, batch: int = BATCH, told: Callable[[str, int], None] | None = None
) -> Moved:
    """Make the database hold exactly what the file holds; the file is not changed.

    Args:
        path: the SQLite file, of this version's schema.
        url: of the database; its queue is empty, or what an earlier run left of the same file.
        batch: rows at a time.
        told: called with the table and how many of its rows were looked at.

    Raises:
        ConfigError: the file is absent, of another schema or open in a daemon (code
            queue_in_use); the database holds another queue (queue_not_empty), cannot be used
            (queue_unusable), or differs in the end (queue_differs).
    """
    where = without_password(url)
    try:
        raw = await Hosts(url).connect(timeout=10)
    except (ValueError, *NOT_USABLE) as error:
        said = str(error) or type(error).__name__
        raise ConfigError(
            f"cannot open the queue {where}: {said}", code="queue_unusable"
        ) from error
    try:
        await raw.execute(schema.SAFE_COMMITS)
        with _alone(path) as file:
            return await _transfer(file, raw, where, batch, told or (lambda _table, _rows: None))
    except NOT_USABLE as error:
        raise ConfigError(
            f"cannot write {where}: {error}; run this again to go on", code="queue_unusable"
        ) from error
    finally:
        await raw.close()


@contextmanager
def _alone(path: Path) -> Iterator[sqlite3.Connection]:
    """Open the file with nobody else there, until the end.

    Raises:
        ConfigError: it is absent, or somebody has it open, or it is of another schema.
    """
    if not path.is_file():
        raise ConfigError(f"there is no queue at {path}", code="queue_absent")
    with closing(sqlite3.connect(path, isolation_level=None, timeout=1)) as file:
        try:
            # Whoever has the file open in WAL mode holds a lock that this one asks for.
            file.execute("PRAGMA locking_mode = EXCLUSIVE")
            file.execute("BEGIN EXCLUSIVE")
            ledger = to_ledger(file.execute("SELECT * FROM schema_migrations"))
        except sqlite3.OperationalError as error:
            if error.sqlite_errorcode & 0xFF != sqlite3.SQLITE_BUSY:
                raise ConfigError(f"cannot read {path}: {error}", code="queue_unusable") from error
            raise ConfigError(
                f"somebody has {path} open: stop the daemons on it first", code="queue_in_use"
            ) from error
        except sqlite3.DatabaseError as error:
            raise ConfigError(f"cannot read {path}: {error}", code="queue_unusable") from error
        steps = released_migrations()
        # What this version does not know it would leave behind.
        check_ledger(path, ledger, steps, is_exact=True)
        if len(ledger) < len(steps):
            raise ConfigError(
                f"{path} is of an older version: migrate its schema first", code="schema_older"
            )
        yield file
        file.execute("ROLLBACK")
        # The file alone is the whole queue then, and may be given another name.
        file.execute("PRAGMA wal_checkpoint(TRUNCATE)")


async def _transfer(
    file: sqlite3.Connection,
    raw: Any,
    where: str,
    batch: int,
    told: Callable[[str, int], None],
) -> Moved:
    tables = [name for (name,) in file.execute(_TABLES)]
    await schema.migrate(raw, where, schema.steps())
    (source,) = file.execute("SELECT id FROM installation").fetchone()
    # Two of them at once would undo each other's work.
    if not await raw.fetchval("SELECT pg_try_advisory_lock(hashtext(current_schema()), -1)"):
        raise ConfigError(f"somebody moves a queue to {where} already", code="queue_in_use")
    mark = await schema.moving(raw)
    await _require_free(raw, where, source, mark)
    await _keep_daemons_out(raw, where, source, mark)
    moved = Moved()
    try:
        for table in tables:
            moved.written += await _level(file, raw, table, batch, told, is_check=False)
    except asyncpg.UniqueViolationError:
        # The file has changed since an earlier run: what is left of that stands in the way.
        await raw.execute(f"TRUNCATE {', '.join(tables)}")
        for table in tables:
            moved.written += await _level(file, raw, table, batch, told, is_check=False)
    for table in tables:
        if await _level(file, raw, table, batch, told, is_check=True):
            raise ConfigError(f"{table} differs at {where}: run this again", code="queue_differs")
        moved.rows[table] = file.execute(f"SELECT count(*) FROM {table}").fetchone()[0]  # noqa: S608
    await _go_on_counting(file, raw)
    await raw.execute("ANALYZE")
    await schema.mark_moving(raw, None)
    return moved


async def _require_free(raw: Any, where: str, source: str, mark: str | None) -> None:
    """Refuse a database that holds a queue, or that another one than `source` moves to."""
    if mark is None and await raw.fetchval(_IS_USED):
        if await raw.fetchval("SELECT id FROM installation") == source:
            raise ConfigError(f"this queue is at {where} already", code="queue_not_empty")
        raise ConfigError(f"{where} holds a queue already", code="queue_not_empty")
    if mark not in (None, source):
        raise ConfigError(
            f"another queue is on its way to {where}: finish that first", code="queue_not_empty"
        )


async def _go_on_counting(file: sqlite3.Connection, raw: Any) -> None:
    """Let the sequences of ids go on after the file's last ones."""
    for table in ("jobs", "outbox"):
        last = file.execute(f"SELECT max(id) FROM {table}").fetchone()[0]  # noqa: S608
        if last is not None:
            await raw.execute("SELECT setval($1::text::regclass, $2)", f"{table}_id_seq", last)


async def _keep_daemons_out(raw: Any, where: str, source: str, before: str | None) -> None:
    await schema.mark_moving(raw, source)
    # After the mark: a daemon that starts now either sees it or is seen here.
    if await _has_daemons(raw):
        await schema.mark_moving(raw, before)
        raise ConfigError(f"a daemon works on {where}: stop it first", code="queue_in_use")


async def _has_daemons(raw: Any) -> bool:
    for _ in range(int(LEAVING_SECONDS / 0.1)):
        if not await raw.fetchval(_DAEMONS):
            return False
        await asyncio.sleep(0.1)
    return True


async def _level(
    file: sqlite3.Connection,
    raw: Any,
    table: str,
    batch: int,
    told: Callable[[str, int], None],
    *,
    is_check: bool,
) -> int:
    """Write the batches of a table that differ; return how many rows these have."""
    columns = [row[1] for row in file.execute(f"PRAGMA table_info({table})")]
    listed = ", ".join(columns)
    differing = looked_at = 0
    if "id" not in columns or table == "installation":
        ours = [_plain(row) for row in file.execute(f"SELECT {listed} FROM {table}")]  # noqa: S608
        theirs = [tuple(row) for row in await raw.fetch(f"SELECT {listed} FROM {table}")]  # noqa: S608
        if sorted(ours, key=str) == sorted(theirs, key=str):
            return 0
        if not is_check:
            await _replace(raw, table, columns, ours, "true")
        return max(len(ours), len(theirs))
    after = -1
    while True:
        ours = [
            _plain(row)
            for row in file.execute(
                f"SELECT {listed} FROM {table} WHERE id > ? ORDER BY id LIMIT ?",  # noqa: S608
                (after, batch),
            )
        ]
        place = columns.index("id")
        until = ours[-1][place] if len(ours) == batch else 2**63 - 1
        within = f"id > {after} AND id <= {until}"
        theirs = [
            tuple(row)
            for row in await raw.fetch(f"SELECT {listed} FROM {table} WHERE {within} ORDER BY id")  # noqa: S608
        ]
        if ours != theirs:
            differing += max(len(ours), len(theirs))
            if not is_check:
                await _replace(raw, table, columns, ours, within)
        looked_at += len(ours)
        told(table, looked_at)
        if len(ours) < batch:
            return differing
        after = until


async def _replace(
    raw: Any, table: str, columns: list[str], rows: list[tuple[Any, ...]], within: str
) -> None:
    async with raw.transaction():
        await raw.execute(f"DELETE FROM {table} WHERE {within}")  # noqa: S608
        await raw.copy_records_to_table(table, records=rows, columns=columns)


def _plain(row: tuple[Any, ...]) -> tuple[Any, ...]:
    # An old message of an error may hold what PostgreSQL does not store.
    return tuple(
        value.replace("\0", "?") if isinstance(value, str) and "\0" in value else value
        for value in row
    )
