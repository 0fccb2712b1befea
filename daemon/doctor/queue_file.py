"""The queue's file: opened read-only, its schema, its soundness, what it holds.

A reader of SQLite's WAL waits for nobody and holds up nobody; nothing here writes, migrates,
leases or checkpoints. Every statement is interrupted once its time is up.
"""

import sqlite3
import time
from collections.abc import Iterator
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from daemon.doctor import mends, waiting
from daemon.doctor.facts import Facts
from daemon.doctor.findings import Finding, fail, ok, warn
from daemon.errors import ConfigError
from daemon.identity import is_alive
from daemon.program import program
from daemon.queue import statements as sql
from daemon.queue.migration import Applied, check_ledger, released_migrations, to_ledger
from daemon.wall_clock import epoch_ms

PART = "database"
BUSY_SECONDS = 2.0
COUNT_SECONDS = 5.0
CHECK_SECONDS = 10.0
STEPS = 10_000
"""Of SQLite's machine between two looks at the clock."""
POLL = "GET /job/{job_id} tells the same meanwhile"
SLOW_EVENT_SECONDS = 60.0
"""An event that waits longer than that is not just on its way."""


def look(facts: Facts) -> Iterator[Finding]:
    """Look at the file as it is now; at the server, where the queue is there."""
    if facts.settings.queue.is_postgresql:
        from daemon.doctor import queue_server  # noqa: PLC0415 - asyncpg

        yield from queue_server.look(facts)
        return
    path = facts.settings.queue_path
    if not path.exists():
        yield ok(PART, f"{path} is not there yet; the daemon makes it at its first start")
        return
    try:
        with closing(_open(path)) as file:
            yield from _schema(file, path)
            yield from _soundness(file, path)
            yield from _contents(file, facts)
    except sqlite3.Error as error:
        yield fail(
            PART,
            "database_unreadable",
            f"{path}: {error}",
            "check its owner and rights, and that it is SQLite's; a copy from before the latest"
            f" change of the schema may lie beside it ({path.name}.before-*)",
        )


def _open(path: Path) -> sqlite3.Connection:
    # Without a log nobody has it open, and a reader need not make one.
    is_at_rest = not path.with_name(f"{path.name}-wal").exists()
    mode = "mode=ro&immutable=1" if is_at_rest else "mode=ro"
    file = sqlite3.connect(
        f"{path.absolute().as_uri()}?{mode}",
        uri=True,
        timeout=BUSY_SECONDS,
        isolation_level=None,
        check_same_thread=False,
    )
    file.row_factory = sqlite3.Row
    file.execute("PRAGMA query_only = ON")
    return file


def _ask(
    file: sqlite3.Connection, statement: str, *values: Any, seconds: float = COUNT_SECONDS
) -> list[sqlite3.Row]:
    ends_at = time.monotonic() + seconds
    file.set_progress_handler(lambda: time.monotonic() > ends_at, STEPS)
    try:
        return file.execute(statement, values).fetchall()
    finally:
        file.set_progress_handler(None, 0)


def _has_table(file: sqlite3.Connection, name: str) -> bool:
    return bool(_ask(file, "SELECT 1 FROM sqlite_schema WHERE type = 'table' AND name = ?", name))


def _schema(file: sqlite3.Connection, path: Path) -> Iterator[Finding]:
    steps = released_migrations()
    newest = steps[-1].version
    ledger: list[Applied] = []
    if _has_table(file, "schema_migrations"):
        ledger = to_ledger(_ask(file, "SELECT * FROM schema_migrations"))
    found = max((row.version for row in ledger), default=0)
    try:
        warning = check_ledger(path, ledger, steps)
    except ConfigError as error:
        if error.code == "schema_newer":
            mend = "run a newer inferd, or take a copy from before"
            yield fail(PART, error.code, f"{error}: the daemon refuses to start", mend)
        else:
            mend = "run the version that made the file"
            yield fail(PART, "schema_differs", f"{error}: the daemon won't start", mend)
        return
    if warning is not None:
        yield warn(PART, "schema_ahead", warning, "run a newer inferd")
    elif found < newest:
        what = f"{path} has schema {found}, this version {newest}; the next start changes it"
        mend = f"{program()} migrate (or start the daemon), which keeps a copy beside it"
        yield warn(PART, "schema_older", what, mend)
    else:
        size = path.stat().st_size / 1e6
        yield ok(PART, f"{path}: schema {found}, {size:.1f} MB")


def _soundness(file: sqlite3.Connection, path: Path) -> Iterator[Finding]:
    try:
        said = [row[0] for row in _ask(file, "PRAGMA quick_check(3)", seconds=CHECK_SECONDS)]
    except sqlite3.OperationalError as error:
        if error.sqlite_errorcode != sqlite3.SQLITE_INTERRUPT:
            raise
        yield ok(PART, f"not looked through to its end: it takes more than {CHECK_SECONDS:g} s")
        return
    if said == ["ok"]:
        yield ok(PART, "sound (quick_check)")
        return
    mend = (
        "stop the daemon, copy the file, then: sqlite3"
        f" {path} '.recover' | sqlite3 recovered.db; check the disk"
    )
    yield fail(PART, "database_corrupt", f"{path} is damaged: {'; '.join(said)}", mend)


def _contents(file: sqlite3.Connection, facts: Facts) -> Iterator[Finding]:
    if not (_has_table(file, "jobs") and _has_table(file, "outbox")):
        return
    now = epoch_ms()
    facts.has_live_process |= any(
        is_alive(row["worker"])
        for row in _ask(file, "SELECT DISTINCT worker FROM jobs WHERE status = 'processing'")
    )
    yield from _states(file)
    live = _ask(file, sql.COUNT_LIVE)[0]
    yield from waiting.judge(_waiting(file, live, now), facts)
    yield from _undelivered(file, live["undelivered"], facts)
    yield from _outbox(file, live, now, facts)


def _states(file: sqlite3.Connection) -> Iterator[Finding]:
    try:
        rows = _ask(file, "SELECT status, count(*) AS n FROM jobs GROUP BY status ORDER BY status")
    except sqlite3.OperationalError as error:
        if error.sqlite_errorcode != sqlite3.SQLITE_INTERRUPT:
            raise
        yield ok(PART, f"its jobs are too many to count within {COUNT_SECONDS:g} s")
        return
    counts = ", ".join(f"{row['n']} {row['status']}" for row in rows)
    yield ok(PART, f"jobs: {counts or 'none'}")


def _waiting(file: sqlite3.Connection, live: sqlite3.Row, now: int) -> waiting.Waiting:
    if not live["pending"]:
        return waiting.Waiting(pending=0, processing=live["processing"], oldest_seconds=0)
    by_task = _ask(
        file, "SELECT task_type, count(*) AS n FROM jobs WHERE status = 'pending' GROUP BY 1"
    )
    put_off = _ask(
        file,
        "SELECT error_code, count(*) AS n FROM jobs WHERE status = 'pending'"
        " AND run_at IS NOT NULL AND error_code IS NOT NULL GROUP BY 1",
    )
    return waiting.Waiting(
        pending=live["pending"],
        processing=live["processing"],
        oldest_seconds=_age(live["oldest_pending"], now),
        by_task={row["task_type"]: row["n"] for row in by_task},
        paused=_paused(file, now),
        put_off={row["error_code"]: row["n"] for row in put_off},
    )


def _paused(file: sqlite3.Connection, now: int) -> dict[str, str]:
    if not _has_table(file, "pauses"):
        return {}
    rows = _ask(
        file,
        "SELECT task_type, until FROM pauses WHERE resumed_at IS NULL"
        " AND (until IS NULL OR until > ?)",
        now,
    )
    return {row["task_type"]: _until(row["until"]) for row in rows}


def _until(end: int | None) -> str:
    if end is None:
        return ""
    try:
        return f" until {datetime.fromtimestamp(end / 1000, UTC):%Y-%m-%d %H:%M:%S} UTC"
    except (OverflowError, ValueError, OSError):
        return " for ever"


def _undelivered(file: sqlite3.Connection, offered: int, facts: Facts) -> Iterator[Finding]:
    rows = _ask(
        file,
        "SELECT error_code, count(*) AS n FROM jobs WHERE status = 'sync_failed'"
        " GROUP BY 1 ORDER BY 2 DESC",
    )
    if not rows:
        return
    reasons = ", ".join(f"{row['n']} {row['error_code']}" for row in rows)
    yield warn(
        "queue",
        "undelivered",
        f"the media store did not take the face results of {sum(row['n'] for row in rows)} jobs"
        f" ({reasons}); {offered} are still offered",
        f"see the media store's lines, and {facts.settings.media_store.results_path} there; those"
        " that are offered heal by themselves, for the others: POST /job/{job_id}/retry",
    )


def _outbox(
    file: sqlite3.Connection, live: sqlite3.Row, now: int, facts: Facts
) -> Iterator[Finding]:
    count, age = live["outbox"], _age(live["oldest_event"], now)
    if not count:
        yield ok("queue", "every event was confirmed by the broker")
        return
    refused = _ask(file, "SELECT count(*) AS n FROM outbox WHERE attempt > 0")[0]["n"]
    said = f"{count} events are not confirmed by the broker, the oldest for {age:.0f} s"
    if refused:
        mend = "let the daemon's user write inference/job/+/+ and inference/reply/# (mosquitto/acl)"
        yield fail("queue", "events_refused", f"{said}; it refused {refused} of them", mend)
    elif age <= SLOW_EVENT_SECONDS:
        yield ok("queue", said)
    elif facts.is_broker_up is False:
        yield fail(
            "queue",
            "events_waiting",
            f"{said}: it is away",
            f"see the broker's lines above; {POLL}",
        )
    elif not facts.is_daemon_seen:
        mend = f"{mends.START}; it sends them then"
        yield warn("queue", "events_waiting", f"{said}: no daemon is there to send them", mend)
    else:
        mend = f"see the daemon's log for `broker`, then restart it; {POLL}"
        yield fail("queue", "events_waiting", said, mend)


def _age(since: int | None, now: int) -> float:
    return 0.0 if since is None else max(0, now - since) / 1000
