"""The queue in PostgreSQL: whether it is reached, its schema, what it holds, what keeps it slow."""

import asyncio
from collections.abc import Iterator

from daemon.doctor import mends
from daemon.doctor.facts import Facts
from daemon.doctor.findings import Finding, fail, ok, warn
from daemon.errors import ConfigError
from daemon.program import program
from daemon.queue.postgresql.inspection import Inspection, inspect

PART = "database"
OLD_SECONDS = 60.0
"""A transaction that is open for longer keeps dead rows, and leases slow down by the minute."""
SLOW_EVENT_SECONDS = 60.0


def look(facts: Facts) -> Iterator[Finding]:
    """Look at the database as it is now."""
    try:
        seen = asyncio.run(inspect(facts.settings.queue.url))
    except ConfigError as error:
        mend = "check the URL, that the server runs, and what its pg_hba.conf lets in"
        yield fail(PART, error.code, error.message, mend)
        return
    yield from _schema(seen)
    yield from _oldest(seen)
    if seen.ledger:
        counts = "too many to count them here"
        if seen.states is not None:
            counts = ", ".join(f"{number} {state}" for state, number in seen.states.items())
        yield ok(PART, f"jobs: {counts or 'none'}")
        yield from _events(seen, facts)


def _schema(seen: Inspection) -> Iterator[Finding]:
    said = f"{seen.where}: PostgreSQL {seen.server}"
    found = max((row.version for row in seen.ledger), default=0)
    if seen.refusal is not None:
        mend = "run the version that made it, or a newer one; or finish what was begun"
        yield fail(PART, seen.refusal.code, f"{seen.refusal}: the daemon won't start", mend)
    elif seen.warning is not None:
        yield warn(PART, "schema_ahead", seen.warning, "run a newer inferd")
    elif not seen.ledger:
        yield ok(PART, f"{said}, no queue yet; the daemon makes it at its first start")
    elif seen.pending:
        newest = seen.pending[-1].version
        what = f"{said}, schema {found}, this version {newest}; the next start changes it"
        yield warn(PART, "schema_older", what, f"{program()} migrate, or start the daemon")
    else:
        yield ok(PART, f"{said}, schema {found}, {seen.size / 1e6:.1f} MB")


def _oldest(seen: Inspection) -> Iterator[Finding]:
    oldest = seen.oldest
    if oldest is None or oldest.seconds < OLD_SECONDS:
        return
    yield warn(
        PART,
        "old_transaction",
        f"{oldest.who} (pid {oldest.pid}, {oldest.state}) holds a transaction open for"
        f" {oldest.seconds:.0f} s: dead rows stay, and leases slow down",
        f"end it there, or here: SELECT pg_terminate_backend({oldest.pid})",
    )


def _events(seen: Inspection, facts: Facts) -> Iterator[Finding]:
    if not seen.events:
        yield ok("queue", "every event was confirmed by the broker")
        return
    said = (
        f"{seen.events} events are not confirmed by the broker, the oldest for"
        f" {seen.oldest_event_seconds:.0f} s"
    )
    if seen.refused_events:
        mend = "let the daemon's user write inference/job/+/+ and inference/reply/# (mosquitto/acl)"
        yield fail(
            "queue", "events_refused", f"{said}; it refused {seen.refused_events} of them", mend
        )
    elif seen.oldest_event_seconds <= SLOW_EVENT_SECONDS:
        yield ok("queue", said)
    elif facts.is_daemon_seen:
        mend = "see the daemons' logs for `broker`"
        yield fail("queue", "events_waiting", said, mend)
    else:
        yield warn("queue", "events_waiting", said, f"{mends.START}; it sends them then")
