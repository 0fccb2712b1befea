"""`migrate` for a queue in PostgreSQL: brings its schema up to date, and shows its ledger."""

import asyncio
import sys
from datetime import UTC, datetime

from daemon.queue.postgresql import schema
from daemon.queue.postgresql.backend import PostgresDatabase
from daemon.queue.postgresql.inspection import Inspection, inspect

BEHIND = 1
"""Exit code: --check found steps to apply."""


def migrate_server(url: str, *, check: bool) -> int:
    """Migrate, unless only `check` is wanted; return the exit code.

    Raises:
        ConfigError: it cannot be reached, or this version cannot serve it.
    """
    before = asyncio.run(inspect(url, counts=False))
    if before.refusal is not None:
        raise before.refusal
    if check:
        _show(before, "to be applied")
        return BEHIND if before.pending else 0
    if before.pending:
        asyncio.run(_migrate(url))
    fresh = {step.version for step in before.pending}
    _show(asyncio.run(inspect(url, counts=False)), "", fresh)
    return 0


async def _migrate(url: str) -> None:
    async with PostgresDatabase(url):
        pass


def _show(seen: Inspection, waits: str, fresh: set[int] | None = None) -> None:
    version = max((row.version for row in seen.ledger), default=0)
    newest = schema.steps()[-1].version
    sys.stdout.write(f"{seen.where}: schema {version}, this version's is {newest}\n")
    for row in seen.ledger:
        when = datetime.fromtimestamp(row.applied_at / 1000, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        note = "applied now" if fresh and row.version in fresh else ""
        if row.version > newest:
            note = "unknown to this version"
        sys.stdout.write(f"  {row.version:04}  {row.name:<12}  {when:<20}  {note}".rstrip() + "\n")
    for step in seen.pending:
        sys.stdout.write(f"  {step.version:04}  {step.name:<12}  {'-':<20}  {waits}\n")
