"""The steps of the schema in PostgreSQL: their ledger, and what a database is refused for."""

import logging
from collections.abc import Sequence
from typing import Any

from daemon.errors import ConfigError
from daemon.queue.migration import Applied, Migration, check_ledger, released_migrations, to_ledger

log = logging.getLogger(__name__)

OLDEST_MAJOR = 15
"""The oldest that PostgreSQL's own people still mend."""
ENCODINGS = ("UTF8", "SQL_ASCII")
"""That take every text. Others refuse a letter, and with it all that came in the same commit."""
SAFE_COMMITS = (
    "SELECT set_config('synchronous_commit', 'on', false)"
    " WHERE current_setting('synchronous_commit') = 'off'"
)
"""A server or role that is set up so would break the promise of an acknowledgement."""
DIALECT = "postgresql"
PATIENCE_SECONDS = 86_400.0
"""For a step, and for whoever is before us: the connection's own limit is meant for the verbs."""
_MOVING = "inferd moves a queue here: "

_LEDGER = """
CREATE TABLE IF NOT EXISTS schema_migrations (
    version integer PRIMARY KEY, name text NOT NULL, sha256 text NOT NULL,
    applied_at bigint NOT NULL)
"""
_COLUMNS = """
SELECT table_name, column_name FROM information_schema.columns
WHERE table_schema = current_schema()
  AND table_name IN ('schema_migrations', 'jobs', 'outbox', 'pauses')
"""
# Whether it has the last column or not, and also if another daemon adds it between two looks.
_APPLIED = """
SELECT version, name, sha256, applied_at, (to_jsonb(step) ->> 'compatible_from')::integer
FROM schema_migrations AS step ORDER BY version
"""
_NOTE = """
INSERT INTO schema_migrations (version, name, sha256, applied_at)
VALUES ($1, $2, $3, (extract(epoch FROM clock_timestamp()) * 1000)::bigint)
"""
# Ledgers had no such column; the first step that has a mark to keep adds it.
_MARKED = "ALTER TABLE schema_migrations ADD COLUMN IF NOT EXISTS compatible_from integer"
_MARK = "UPDATE schema_migrations SET compatible_from = $2 WHERE version = $1"


def steps() -> list[Migration]:
    """Return the steps that this version brings, in order."""
    return released_migrations(DIALECT)


async def look(raw: Any) -> list[Applied]:
    """Return the ledger, empty where there is no queue yet; changes nothing.

    Args:
        raw: an asyncpg connection.

    Raises:
        ConfigError: the server is too old, the database cannot hold every text, or the schema is
            another program's or does not exist.
    """
    if raw.get_server_version().major < OLDEST_MAJOR:
        found = ".".join(map(str, raw.get_server_version()[:2]))
        raise ConfigError(
            f"PostgreSQL {found} is too old; {OLDEST_MAJOR} is needed", code="queue_unusable"
        )
    if (encoding := raw.get_settings().server_encoding) not in ENCODINGS:
        raise ConfigError(
            f"the database's encoding, {encoding}, lacks letters that requests may hold; create one"
            " with ENCODING 'UTF8' TEMPLATE template0",
            code="queue_unusable",
        )
    if await raw.fetchval("SELECT current_schema()") is None:
        raise ConfigError(
            "the schema that search_path names does not exist, or this user must not use it",
            code="queue_unusable",
        )
    columns = {(row[0], row[1]) for row in await raw.fetch(_COLUMNS)}
    if not columns:
        return []
    if ("schema_migrations", "sha256") not in columns:
        raise ConfigError(
            "the database holds tables of another program: give inferd one of its own, or a schema"
            " (?search_path=inferd), in INFERD_QUEUE__URL",
            code="queue_foreign",
        )
    return to_ledger(await raw.fetch(_APPLIED))


async def moving(raw: Any) -> str | None:
    """Return the id of the queue that is being moved here and is not whole yet, if one is."""
    said = await raw.fetchval("SELECT obj_description('jobs'::regclass, 'pg_class')")
    is_moving = said is not None and said.startswith(_MOVING)
    return str(said).removeprefix(_MOVING) if is_moving else None


async def mark_moving(raw: Any, installation: str | None) -> None:
    """Note that this queue is being moved here, or, with None, that it is whole."""
    said = "NULL" if installation is None else f"'{_MOVING}{installation}'"
    await raw.execute(f"COMMENT ON TABLE jobs IS {said}")


async def refuse_moving(raw: Any, where: str) -> None:
    """Leave a queue alone that is only half here.

    Raises:
        ConfigError: it is, code queue_half_moved.
    """
    if await moving(raw) is not None:
        raise ConfigError(
            f"a queue was being moved to {where} and is not whole yet: run `migrate queue` again",
            code="queue_half_moved",
        )


async def migrate(raw: Any, where: str, migrations: Sequence[Migration]) -> list[Migration]:
    """Bring the schema up to date in one transaction, all of it or nothing; return what was done.

    Of several daemons that start at once, one does it and the others wait.

    Args:
        raw: an asyncpg connection.
        where: names the database in errors, without its password.
        migrations: the steps that this version brings, in order.

    Raises:
        ConfigError: as `look`; or it is newer than this version, or a released step was changed.
    """
    if not _pending(where, await look(raw), migrations):
        return []
    async with raw.transaction():
        # A large table takes its time, and so may whoever is before us.
        await raw.execute("SET LOCAL statement_timeout = 0; SET LOCAL lock_timeout = 0")
        lock = "SELECT pg_advisory_xact_lock(hashtext(current_schema()), 0)"
        await raw.execute(lock, timeout=PATIENCE_SECONDS)
        await raw.execute(_LEDGER)
        pending = _pending(where, await look(raw), migrations)
        for step in pending:
            await raw.execute(step.sql, timeout=PATIENCE_SECONDS)
            await raw.execute(_NOTE, step.version, step.name, step.sha256)
            if step.compatible_from is not None:
                await raw.execute(_MARKED)
                await raw.execute(_MARK, step.version, step.compatible_from)
    return pending


def _pending(
    where: str, ledger: Sequence[Applied], migrations: Sequence[Migration]
) -> list[Migration]:
    applied = {row.version for row in ledger}
    if warning := check_ledger(where, ledger, migrations):
        log.warning("%s", warning)
    return [step for step in migrations if step.version not in applied]
