"""Looks at a queue in PostgreSQL and changes nothing: for the doctor, and for `migrate --check`."""

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from daemon.errors import ConfigError
from daemon.queue.migration import Applied, Migration, check_ledger
from daemon.queue.postgresql import schema
from daemon.queue.postgresql.hosts import NOT_USABLE, Hosts
from daemon.queue.postgresql.vitals import OLDEST
from daemon.redaction import without_password

SECONDS = 10.0
COUNT_SECONDS = 10.0
"""For the jobs: where there are many millions, they are not worth more."""
_SIZE = "SELECT coalesce(pg_total_relation_size(to_regclass('jobs')), 0)"
_STATES = "SELECT status, count(*) FROM jobs GROUP BY status ORDER BY status"
_EVENTS = """
SELECT count(*), count(*) FILTER (WHERE attempt > 0),
       coalesce((extract(epoch FROM clock_timestamp()) * 1000)::bigint - min(created_at), 0)
FROM outbox
"""


@dataclass(frozen=True, slots=True)
class OldTransaction:
    """The transaction that has been open for longest."""

    seconds: float
    pid: int
    """Of the server's process, for pg_terminate_backend."""
    who: str
    state: str


@dataclass(frozen=True, slots=True)
class Inspection:
    """One look at the database."""

    where: str
    """The URL without its password."""
    server: str
    """Its version, such as 15.18."""
    ledger: Sequence[Applied]
    pending: Sequence[Migration]
    refusal: ConfigError | None
    """Why this version cannot serve it."""
    warning: str | None
    """Why it should not for long."""
    size: int
    """Bytes of the jobs and their indexes."""
    states: dict[str, int] | None
    """How many jobs there are by state; None where they were too many, or nobody asked."""
    events: int
    """Events that the broker has not confirmed."""
    refused_events: int
    oldest_event_seconds: float
    oldest: OldTransaction | None


async def inspect(url: str, *, counts: bool = True) -> Inspection:
    """Return what the database holds, which daemons may be using meanwhile.

    Args:
        url: of the database.
        counts: whether jobs and events are counted.

    Raises:
        ConfigError: it cannot be reached or read, code queue_unusable; or it is another
            program's, code queue_foreign.
    """
    where = without_password(url)
    try:
        raw = await Hosts(url).connect(
            timeout=SECONDS,
            command_timeout=SECONDS,
            server_settings={"default_transaction_read_only": "on"},
        )
        try:
            return await _inspect(raw, where, counts=counts)
        finally:
            await raw.close(timeout=SECONDS)
    except (ValueError, *NOT_USABLE) as error:
        said = str(error) or type(error).__name__
        raise ConfigError(
            f"cannot read the queue {where}: {said}", code="queue_unusable"
        ) from error


async def _inspect(raw: Any, where: str, *, counts: bool) -> Inspection:
    ledger = await schema.look(raw)
    steps = schema.steps()
    refusal = warning = None
    try:
        warning = check_ledger(where, ledger, steps)
        if ledger:
            await schema.refuse_moving(raw, where)
    except ConfigError as error:
        refusal = error
    applied = {row.version for row in ledger}
    states: dict[str, int] | None = None
    events = (0, 0, 0)
    if ledger and counts:
        with contextlib.suppress(TimeoutError):
            states = {row[0]: row[1] for row in await raw.fetch(_STATES, timeout=COUNT_SECONDS)}
        events = await raw.fetchrow(_EVENTS)
    oldest = await raw.fetchrow(OLDEST)
    return Inspection(
        where=where,
        server=".".join(map(str, raw.get_server_version()[:2])),
        ledger=ledger,
        pending=[step for step in steps if step.version not in applied],
        refusal=refusal,
        warning=warning,
        size=await raw.fetchval(_SIZE),
        states=states,
        events=events[0],
        refused_events=events[1],
        oldest_event_seconds=max(0, events[2]) / 1000,
        oldest=None if oldest is None else OldTransaction(*oldest),
    )
