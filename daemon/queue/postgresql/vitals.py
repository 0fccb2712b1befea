"""What an operator needs to know of PostgreSQL under the queue: connections, waits, dead rows."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from daemon.queue.backend import Vital

# What keeps VACUUM from dead rows, whoever holds it, in whichever program, as far as we may see it.
OLDEST = """
SELECT extract(epoch FROM clock_timestamp() - xact_start)::float8 AS seconds, pid,
       coalesce(nullif(application_name, ''), usename::text, 'unknown') AS who, state
FROM pg_stat_activity
WHERE datname = current_database() AND pid <> pg_backend_pid() AND xact_start IS NOT NULL
  AND (backend_xmin IS NOT NULL OR backend_xid IS NOT NULL)
  AND backend_type = 'client backend'
ORDER BY xact_start LIMIT 1
"""
_TABLES = """
SELECT relname, n_live_tup, n_dead_tup, pg_total_relation_size(relid)
FROM pg_stat_user_tables
WHERE schemaname = current_schema() AND relname IN ('jobs', 'outbox') ORDER BY relname
"""
_BLOCKED = """
SELECT count(*) FROM pg_stat_activity
WHERE datname = current_database() AND wait_event_type = 'Lock'
  AND application_name = left('inferd ' || current_schema(), 63)
"""


@dataclass(slots=True)
class Effort:
    """What this daemon's transactions had to wait for and to do again, since it started."""

    acquired: int = 0
    acquire_seconds: float = 0.0
    repeated: int = 0

    def acquired_after(self, seconds: float) -> None:
        """Count a connection that was waited for so long."""
        self.acquired += 1
        self.acquire_seconds += seconds


async def read_vitals(raw: Any, pool: Any, effort: Effort) -> list[Vital]:
    """Return the values of now.

    Args:
        raw: an asyncpg connection out of the pool; it counts as idle.
        pool: the asyncpg pool.
        effort: of this daemon.
    """
    oldest = await raw.fetchrow(OLDEST)
    tables = await raw.fetch(_TABLES)
    blocked = await raw.fetchval(_BLOCKED)
    return [
        *_of_pool(pool, effort),
        Vital(
            "inferd_postgresql_oldest_transaction_seconds",
            "For how long a transaction of any program keeps dead rows; 0 if none does.",
            0.0 if oldest is None else max(0.0, oldest["seconds"]),
        ),
        Vital(
            "inferd_postgresql_blocked_sessions",
            "Sessions of all daemons on this queue that wait for another one's lock.",
            blocked,
        ),
        *(
            Vital(name, text, value, {"table": table})
            for table, live, dead, size in tables
            for name, text, value in (
                ("inferd_postgresql_live_rows", "Rows, as the server estimates.", live),
                ("inferd_postgresql_dead_rows", "Dead rows that VACUUM has not removed.", dead),
                ("inferd_postgresql_table_bytes", "Size of a table with its indexes.", size),
            )
        ),
    ]


def _of_pool(pool: Any, effort: Effort) -> Iterator[Vital]:
    idle = pool.get_idle_size() + 1
    for state, number in (("busy", pool.get_size() - idle), ("idle", idle)):
        text = "Connections of this daemon."
        yield Vital("inferd_postgresql_connections", text, number, {"state": state})
    yield Vital(
        "inferd_postgresql_connections_max",
        "Connections of this daemon at most.",
        pool.get_max_size(),
    )
    for name, text, value in (
        ("acquires", "Connections that were asked for.", effort.acquired),
        ("acquire_seconds", "How long they were waited for, in all.", effort.acquire_seconds),
        ("repeats", "Transactions run again, since others got in their way.", effort.repeated),
    ):
        yield Vital(f"inferd_postgresql_{name}", text, value, is_total=True)
