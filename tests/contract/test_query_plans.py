"""The plan of every statement: hot ones use their index, whatever the number of finished jobs."""

import inspect
import json
import re
import sqlite3
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from daemon import outbox
from daemon.queue import statements
from daemon.queue.migration import released_migrations

FINISHED = 4000
BY_JOB_ID = "SEARCH jobs USING INDEX sqlite_autoindex_jobs_1 (job_id=?)"
BY_ROWID = "SEARCH jobs USING INTEGER PRIMARY KEY (rowid=?)"
PAUSE_BY_TASK = "SEARCH pauses USING PRIMARY KEY (task_type=?)"
OUTBOX_BY_ROWID = "SEARCH outbox USING INTEGER PRIMARY KEY (rowid=?)"

# Each statement of the queue and the one way it may reach its rows.
PLANS = {
    "FIND": [BY_JOB_ID],
    "FIND_JOBS": [BY_JOB_ID],
    "FIND_PAIRS": ["SEARCH jobs USING INDEX jobs_pair (media_store_id=? AND task_type=?)"],
    "INSERT": [],
    "SUPERSEDE_SYNC": [
        BY_ROWID,
        "SEARCH jobs USING INDEX jobs_unsynced_pair (media_store_id=? AND task_type=?)",
    ],
    "COUNT_EVENTS": [BY_JOB_ID],
    "ANNOUNCE": [],
    "PROMOTE": ["SEARCH jobs USING INDEX jobs_delayed (run_at>? AND run_at<?)"],
    "LEASE": [
        BY_ROWID,
        PAUSE_BY_TASK,
        "SEARCH jobs USING INDEX jobs_ready (task_type=?)",
        PAUSE_BY_TASK,
    ],
    "NEXT_RANK": ["SEARCH jobs USING INDEX jobs_ready (task_type=?)"],
    "NEXT_MOMENT": [
        "SEARCH jobs USING INDEX jobs_delayed (run_at>?)",
        "SEARCH pauses USING PRIMARY KEY",
    ],
    # Walks its own small index in order: the first row that fits is the one.
    "LEASE_SUSPECT": [
        BY_ROWID,
        "SCAN jobs USING INDEX jobs_suspect",
        "SCAN pauses",
        PAUSE_BY_TASK,
    ],
    "HAS_SUSPECT": ["SCAN jobs USING INDEX jobs_suspect", "SCAN pauses"],
    "RENEW": [BY_JOB_ID],
    "SETTLE": [BY_JOB_ID],
    "SETTLE_ONE": [BY_JOB_ID],
    "HASTEN_JOBS": ["SEARCH jobs USING INDEX jobs_delayed (run_at>?)"],
    "HASTEN_SYNCS": ["SEARCH jobs USING INDEX jobs_unsynced (run_at>?)"],
    "HASTEN_EVENTS": ["SEARCH outbox USING INDEX outbox_delayed (run_at>?)"],
    "SHORTEN_LEASES": ["SEARCH jobs USING INDEX jobs_leased (lease_until>?)"],
    "FIND_EXPIRED": ["SEARCH jobs USING INDEX jobs_leased (lease_until<?)"],
    "FIND_WORKERS": ["SCAN jobs USING INDEX jobs_leased"],
    "FIND_HELD_BY": ["SCAN jobs USING INDEX jobs_leased"],
    "CANCEL": [BY_JOB_ID],
    "REQUEUE": [BY_JOB_ID],
    "FIND_FAILED": [
        (
            "SEARCH jobs USING COVERING INDEX jobs_failed"
            " (error_code=? AND task_type=? AND (completed_at,status)>(?,?) AND completed_at<?)"
        )
    ],
    "REQUEUE_ALL": [BY_ROWID],
    "FIND_MEDIA": [
        BY_ROWID,
        "SEARCH jobs USING INDEX jobs_pair (media_store_id=?)",
        "SEARCH jobs USING INDEX jobs_failed_media (media_store_id=?)",
    ],
    "NEWEST_ROW": ["SEARCH jobs"],
    "FIND_ROW": ["SEARCH jobs USING COVERING INDEX sqlite_autoindex_jobs_1 (job_id=?)"],
    # What stands so, and never what is completed.
    "STANDS_PENDING": [
        "SCAN jobs USING INDEX jobs_ready",
        "SCAN jobs USING INDEX jobs_suspect",
        "SEARCH jobs USING INDEX jobs_delayed (run_at>?)",
    ],
    "STANDS_PROCESSING": ["SCAN jobs USING INDEX jobs_leased"],
    "STANDS_IN_ERROR": ["SCAN jobs USING COVERING INDEX jobs_failed"],
    "STANDS_IN_SYNC_FAILED": ["SCAN jobs USING COVERING INDEX jobs_failed"],
    "FORGET_ALL": [BY_JOB_ID],
    "FORGET": [BY_JOB_ID],
    "DROP": [BY_JOB_ID],
    "DUE_SYNC": ["SEARCH jobs USING INDEX jobs_unsynced (run_at>? AND run_at<?)"],
    "CLAIM_SYNC": [BY_JOB_ID],
    "HEAL": [BY_JOB_ID],
    "DELAY_SYNC": [BY_JOB_ID],
    "COUNT_PENDING": [
        "SCAN jobs USING INDEX jobs_ready",
        "SEARCH jobs USING INDEX jobs_delayed (run_at>?)",
        "SCAN jobs USING INDEX jobs_suspect",
    ],
    "PRUNE": [
        BY_ROWID,
        "SEARCH jobs USING INDEX jobs_finished (completed_at>? AND completed_at<?)",
    ],
    "LATEST": ["SEARCH jobs USING INDEX jobs_finished (completed_at>?)"],
    # What failed, never what went well.
    "COUNT_FAILURES": ["SCAN jobs USING COVERING INDEX jobs_failed"],
    "FAILURE_TOLD": ["SEARCH jobs USING INDEX jobs_failed (error_code=? AND task_type=?)"],
    # Asked now and then by health and metrics: counts what is unpublished, not what is finished.
    "COUNT_LIVE": [
        "SCAN jobs USING INDEX jobs_ready",
        "SEARCH jobs USING INDEX jobs_delayed (run_at>?)",
        "SCAN jobs USING INDEX jobs_suspect",
        "SCAN jobs USING INDEX jobs_leased",
        "SEARCH jobs USING INDEX jobs_unsynced (run_at>?)",
        BY_ROWID,
        "SCAN outbox",
        # The oldest event: the first row of the table, and no more.
        "SCAN outbox",
    ],
    "COUNT_TASKS": [
        f"{PAUSE_BY_TASK} LEFT-JOIN",
        "SEARCH jobs USING INDEX jobs_ready (task_type=?)",
        "SEARCH jobs USING INDEX jobs_delayed (run_at>?)",
        "SCAN jobs USING INDEX jobs_suspect",
        "SCAN jobs USING INDEX jobs_leased",
    ],
    "PAUSE": [],
    "RESUME": [PAUSE_BY_TASK],
    # As many rows as there are task types.
    "FIND_PAUSES": ["SCAN pauses"],
    # From owner to owner; of each the first old event.
    "FIND_OWNERS": [
        "SEARCH outbox USING INDEX outbox_ready",
        "SEARCH outbox USING INDEX outbox_ready (owner>?)",
        "SEARCH outbox USING INDEX outbox_delayed (run_at>?)",
    ],
    "FIND_OLD_OWNERS": [
        "SEARCH outbox USING INDEX outbox_ready",
        "SEARCH outbox USING INDEX outbox_ready (owner>?)",
        "SEARCH outbox USING INDEX outbox_ready (owner=?)",
        "SEARCH outbox USING INDEX outbox_delayed (run_at>?)",
    ],
    "ADOPT": [
        OUTBOX_BY_ROWID,
        "SEARCH outbox USING INDEX outbox_ready (owner=?)",
    ],
    "ADOPT_DELAYED": ["SEARCH outbox USING INDEX outbox_delayed (run_at>?)"],
}
OUTBOX_PLANS = {
    "NEXT": ["SEARCH outbox USING INDEX outbox_ready (owner=? AND id>?)"],
    "HAS_DUE": ["SEARCH outbox USING COVERING INDEX outbox_delayed (run_at>? AND run_at<?)"],
    "PROMOTE": ["SEARCH outbox USING INDEX outbox_delayed (run_at>? AND run_at<?)"],
    "SHORTEN": [OUTBOX_BY_ROWID],
    "CONFIRM": [OUTBOX_BY_ROWID],
    "DELAY": [OUTBOX_BY_ROWID],
}
SELDOM = {"FIND_WORKERS", "FIND_OWNERS", "FIND_OLD_OWNERS"}
SQL = re.compile(r"\s*(WITH|SELECT|INSERT|UPDATE|DELETE)\b")


@pytest.fixture(scope="module")
def full(tmp_path_factory: pytest.TempPathFactory) -> Iterator[sqlite3.Connection]:
    connection = a_file(tmp_path_factory.mktemp("plans") / "queue.db", FINISHED)
    yield connection
    connection.close()


@pytest.mark.parametrize("name", PLANS)
def test_statement_of_the_queue_reaches_its_rows_by_its_index(
    full: sqlite3.Connection, name: str
) -> None:
    assert reaches(full, getattr(statements, name)) == PLANS[name]


@pytest.mark.parametrize("name", OUTBOX_PLANS)
def test_statement_of_the_outbox_reaches_its_rows_by_its_index(
    full: sqlite3.Connection, name: str
) -> None:
    assert reaches(full, getattr(outbox, name)) == OUTBOX_PLANS[name]


@pytest.mark.parametrize(
    "statement",
    [
        *(getattr(statements, name) for name in sorted(PLANS.keys() - SELDOM)),
        *(getattr(outbox, name) for name in OUTBOX_PLANS),
    ],
)
def test_no_statement_that_runs_often_sorts(full: sqlite3.Connection, statement: str) -> None:
    assert not [line for line in plan(full, statement) if "TEMP B-TREE" in line]


def test_every_statement_is_held_to_a_plan() -> None:
    named = {name: set(plans) for name, plans in (("statements", PLANS), ("outbox", OUTBOX_PLANS))}

    assert {"statements": sql_names(statements), "outbox": sql_names(outbox)} == named


@pytest.mark.parametrize(
    ("statement", "parameters"),
    [
        (statements.LEASE, ("w", 1, 2, "image_embedding", 8)),
        (statements.PROMOTE, (1,)),
        (statements.FIND_EXPIRED, (1,)),
        (statements.HAS_SUSPECT, (json.dumps(["image_embedding"]), 1)),
        (statements.LEASE_SUSPECT, ("w", 1, 2, json.dumps(["image_embedding"]))),
        (statements.DUE_SYNC, (1, json.dumps(["face_detection"]), 8)),
        (statements.COUNT_PENDING, (1000,)),
        (statements.COUNT_LIVE, ()),
        (statements.COUNT_TASKS, (json.dumps(["image_embedding", "face_detection"]), 1)),
        (statements.SUPERSEDE_SYNC, (json.dumps([[1, "image_embedding"]]),)),
    ],
)
def test_finished_jobs_cost_a_statement_nothing(
    full: sqlite3.Connection, tmp_path: Path, statement: str, parameters: tuple[Any, ...]
) -> None:
    empty = a_file(tmp_path / "empty.db", 0)

    steps = steps_of(full, statement, parameters), steps_of(empty, statement, parameters)

    empty.close()
    # Steps of SQLite's own machine, counted one by one: no clock is asked.
    assert steps[0] <= steps[1] + 20


@pytest.mark.parametrize(
    ("statement", "parameters", "owners"),
    [
        (statements.FIND_OWNERS, (), {"ours", "dead", "refused"}),
        (statements.FIND_OLD_OWNERS, ("ours", 5), {"dead"}),
    ],
)
def test_who_has_events_is_found_for_the_same_however_many_they_are(
    tmp_path: Path, statement: str, parameters: tuple[Any, ...], owners: set[str]
) -> None:
    steps = []
    for waiting in (3, 1000):
        connection = a_file(tmp_path / f"{waiting}.db", 0)
        insert = "INSERT INTO outbox (owner, topic, payload, created_at, run_at) VALUES (?,?,?,?,?)"
        for owner in ("ours", "dead"):
            connection.executemany(insert, [(owner, "t", "{}", 1, None)] * waiting)
        connection.execute(insert, ("refused", "t", "{}", 9, 1))
        assert {row[0] for row in connection.execute(statement, parameters)} == owners
        steps.append(steps_of(connection, statement, parameters))
        connection.close()

    assert steps[1] <= steps[0] + 20


def test_jobs_that_wait_cost_the_lease_of_a_paused_task_type_nothing(tmp_path: Path) -> None:
    steps = []
    for waiting in (1, 1000):
        connection = a_file(tmp_path / f"{waiting}.db", 0)
        connection.executemany(
            "INSERT INTO jobs (job_id, task_type, media_store_id, priority, rank, created_at)"
            " VALUES (?, 'image_embedding', ?, 5, 0, 1)",
            [(f"{number:036}", number) for number in range(waiting)],
        )
        connection.execute(statements.PAUSE, ("image_embedding", 1, None))
        parameters = ("w", 1, 2, "image_embedding", 8)
        steps.append(steps_of(connection, statements.LEASE, parameters))
        connection.close()

    assert steps[1] <= steps[0] + 20


def a_file(path: Path, finished: int) -> sqlite3.Connection:
    connection = sqlite3.connect(path, isolation_level=None)
    connection.execute("PRAGMA synchronous = OFF")
    for step in released_migrations():
        connection.executescript(step.sql)
    connection.execute("BEGIN")
    rows = [
        (
            f"{number:036}",
            ("image_embedding", "face_detection")[number % 2],
            number,
            ("completed", "error", "sync_failed")[number % 3],
        )
        for number in range(finished)
    ]
    connection.executemany(
        "INSERT INTO jobs (job_id, task_type, media_store_id, priority, rank, status, created_at,"
        " completed_at, result, error_message) VALUES (?, ?, ?, 5, 0, ?, 1, 2, '{}', 'e: m')",
        rows,
    )
    connection.execute("COMMIT")
    return connection


def plan(connection: sqlite3.Connection, statement: str) -> list[str]:
    numbered = re.findall(r"\?(\d+)", statement)
    count = len(set(numbered)) if numbered else statement.count("?")
    rows = connection.execute(f"EXPLAIN QUERY PLAN {statement}", [None] * count)
    return [row[3] for row in rows]


def reaches(connection: sqlite3.Connection, statement: str) -> list[str]:
    """Return the lines of a plan that touch our tables."""
    lines = plan(connection, statement)
    return [line for line in lines if re.match(r"(SCAN|SEARCH) (jobs|outbox|pauses)\b", line)]


def sql_names(module: Any) -> set[str]:
    return {
        name
        for name, value in inspect.getmembers(module)
        if name.isupper() and isinstance(value, str) and SQL.match(value)
    }


def steps_of(connection: sqlite3.Connection, statement: str, parameters: tuple[Any, ...]) -> int:
    steps = 0

    def count() -> int:
        nonlocal steps
        steps += 1
        return 0

    connection.execute("BEGIN")
    counting: Callable[[], int] = count
    connection.set_progress_handler(counting, 1)
    try:
        connection.execute(statement, parameters).fetchall()
    finally:
        connection.set_progress_handler(None, 1)
        connection.execute("ROLLBACK")
    return steps
