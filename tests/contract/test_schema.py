"""The file: illegal rows cannot exist, steps apply whole or not at all, PRAGMAs are really set."""

import asyncio
import multiprocessing
import sqlite3
import threading
from collections.abc import AsyncIterator, Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest

from daemon.errors import ConfigError, StorageError
from daemon.queue.backend import Connection
from daemon.queue.database import Database
from daemon.queue.migration import Migration, released_migrations, split_statements
from tests.queue_bench import DEADLINE, Bench, open_bench

FIRST = Migration(1, "first", "CREATE TABLE a (x INTEGER) STRICT;")
SECOND = Migration(2, "second", "CREATE TABLE b (y INTEGER) STRICT;\nINSERT INTO b VALUES (7);")
FULL, NORMAL = 2, 1
TRY_TO_MIGRATE = 6
"""Rounds of the race of two processes; one alone may miss it."""

LEGAL: dict[str, Any] = {
    "job_id": "550e8400-e29b-41d4-a716-446655440000",
    "task_type": "image_embedding",
    "media_store_id": 1,
    "priority": 5,
    "rank": 0,
    "created_at": 1,
}
PROCESSING = {"status": "processing", "worker": "w", "lease_until": 9}
COMPLETED = {"status": "completed", "completed_at": 2, "result": "{}"}
ERROR = {"status": "error", "completed_at": 2, "error_message": "e: m"}
SYNC_FAILED = {**COMPLETED, "status": "sync_failed", "error_message": "e: m"}


@pytest.fixture
async def bench(tmp_path: Path) -> AsyncIterator[Bench]:
    async with open_bench(tmp_path / "queue.db") as opened:
        yield opened


@pytest.fixture
def jobs(tmp_path: Path) -> Iterator[sqlite3.Connection]:
    connection = sqlite3.connect(tmp_path / "rows.db", isolation_level=None)
    connection.execute("PRAGMA synchronous = OFF")
    for step in released_migrations():
        connection.executescript(step.sql)
    yield connection
    connection.close()


@pytest.mark.parametrize("state", [{}, PROCESSING, COMPLETED, ERROR, SYNC_FAILED])
def test_a_legal_row_of_each_state_exists(jobs: sqlite3.Connection, state: dict[str, Any]) -> None:
    insert(jobs, LEGAL | state)

    assert jobs.execute("SELECT count(*) FROM jobs").fetchone() == (1,)


@pytest.mark.parametrize(
    "wrong",
    [
        {"job_id": "short"},
        {"job_id": None},
        {"task_type": ""},
        {"task_type": "x" * 65},
        {"media_store_id": -1},
        {"media_store_id": "a"},
        {"media_store_id": 1.5},
        {"media_store_id": 2.0**63},
        {"priority": -1},
        {"priority": 11},
        {"rank": None},
        {"status": "done"},
        {"status": None},
        {"created_at": None},
        {"attempt": -1},
        {"fence": -1},
        {"lost": -1},
        {"seq": -1},
        {"sync_attempt": -1},
        {"result": "not json"},
        {"worker": "w"},
        {"lease_until": 9},
        {"completed_at": 2},
        PROCESSING | {"worker": None},
        PROCESSING | {"lease_until": None},
        PROCESSING | {"completed_at": 2},
        COMPLETED | {"completed_at": None},
        COMPLETED | {"result": None},
        COMPLETED | {"lease_until": 9, "worker": "w"},
        ERROR | {"completed_at": None},
        ERROR | {"error_message": None},
        SYNC_FAILED | {"completed_at": None},
        SYNC_FAILED | {"error_message": None},
        SYNC_FAILED | {"result": None},
    ],
    ids=str,
)
def test_an_illegal_job_cannot_exist(jobs: sqlite3.Connection, wrong: dict[str, Any]) -> None:
    with pytest.raises(sqlite3.IntegrityError):
        insert(jobs, LEGAL | wrong)


@pytest.mark.parametrize("first", [{}, PROCESSING, COMPLETED])
def test_a_pair_has_one_live_or_completed_job(
    jobs: sqlite3.Connection, first: dict[str, Any]
) -> None:
    insert(jobs, LEGAL | first)

    with pytest.raises(sqlite3.IntegrityError, match=r"media_store_id, jobs\.task_type"):
        insert(jobs, LEGAL | {"job_id": "0" * 36})


@pytest.mark.parametrize("first", [ERROR, SYNC_FAILED])
def test_a_pair_whose_job_failed_may_have_another(
    jobs: sqlite3.Connection, first: dict[str, Any]
) -> None:
    insert(jobs, LEGAL | first)

    insert(jobs, LEGAL | {"job_id": "0" * 36})


@pytest.mark.parametrize(
    "wrong",
    [
        {"owner": None},
        {"topic": ""},
        {"topic": None},
        {"payload": None},
        {"created_at": None},
        {"created_at": "now"},
        {"attempt": -1},
    ],
    ids=str,
)
def test_an_illegal_event_cannot_exist(jobs: sqlite3.Connection, wrong: dict[str, Any]) -> None:
    row = {"owner": "o", "topic": "t", "payload": "{}", "created_at": 1} | wrong

    with pytest.raises(sqlite3.IntegrityError):
        insert(jobs, row, table="outbox")


@pytest.mark.parametrize(
    "wrong",
    [
        {"task_type": ""},
        {"task_type": None},
        {"task_type": "x" * 65},
        {"paused_at": None},
        {"until": "tomorrow"},
        {"resumed_at": "now"},
    ],
    ids=str,
)
def test_an_illegal_pause_cannot_exist(jobs: sqlite3.Connection, wrong: dict[str, Any]) -> None:
    with pytest.raises(sqlite3.IntegrityError):
        insert(jobs, {"task_type": "image_embedding", "paused_at": 1} | wrong, table="pauses")


def test_a_task_type_has_one_pause(jobs: sqlite3.Connection) -> None:
    insert(jobs, {"task_type": "image_embedding", "paused_at": 1}, table="pauses")

    with pytest.raises(sqlite3.IntegrityError):
        insert(jobs, {"task_type": "image_embedding", "paused_at": 2}, table="pauses")


# -- migrations --------------------------------------------------------------------------------


async def test_a_file_migrated_step_by_step_equals_a_fresh_one(tmp_path: Path) -> None:
    steps = released_migrations()

    for count in range(1, len(steps) + 1):
        await opened(tmp_path / "stepwise.db", steps[:count])
    await opened(tmp_path / "fresh.db", steps)

    assert schema(tmp_path / "stepwise.db") == schema(tmp_path / "fresh.db")


def test_released_steps_are_numbered_without_a_gap() -> None:
    steps = released_migrations()

    assert [step.version for step in steps] == list(range(1, len(steps) + 1))


async def test_the_ledger_and_user_version_tell_the_newest_step(tmp_path: Path) -> None:
    await opened(tmp_path / "queue.db", [FIRST, SECOND])

    assert query(tmp_path / "queue.db", "PRAGMA user_version") == [(2,)]
    assert query(tmp_path / "queue.db", "SELECT version, name, sha256 FROM schema_migrations") == [
        (1, "first", FIRST.sha256),
        (2, "second", SECOND.sha256),
    ]


async def test_opening_again_changes_nothing(tmp_path: Path) -> None:
    await opened(tmp_path / "queue.db", [FIRST, SECOND])
    ledger = query(tmp_path / "queue.db", "SELECT * FROM schema_migrations")

    await opened(tmp_path / "queue.db", [FIRST, SECOND])

    assert query(tmp_path / "queue.db", "SELECT * FROM schema_migrations") == ledger
    assert query(tmp_path / "queue.db", "SELECT y FROM b") == [(7,)]


async def test_an_edited_step_is_refused(tmp_path: Path) -> None:
    await opened(tmp_path / "queue.db", [FIRST, SECOND])
    edited = Migration(1, "first", FIRST.sql + " -- a comment")

    with pytest.raises(ConfigError, match=r"migration 1 of .* differs"):
        await opened(tmp_path / "queue.db", [edited, SECOND])


async def test_a_newer_file_is_refused(tmp_path: Path) -> None:
    await opened(tmp_path / "queue.db", [FIRST, SECOND])

    with pytest.raises(ConfigError, match="has schema 2, this version knows 1"):
        await opened(tmp_path / "queue.db", [FIRST])


async def test_a_step_that_fails_leaves_nothing(tmp_path: Path) -> None:
    broken = Migration(2, "broken", "CREATE TABLE b (y INTEGER);\nINSERT INTO nowhere VALUES (1);")

    with pytest.raises(ConfigError, match="nowhere"):
        await opened(tmp_path / "queue.db", [FIRST, broken])

    assert query(tmp_path / "queue.db", "PRAGMA user_version") == [(1,)]
    assert tables(tmp_path / "queue.db") == {"a", "schema_migrations"}
    assert query(tmp_path / "queue.db", "SELECT version FROM schema_migrations") == [(1,)]


async def test_a_step_that_failed_can_be_mended(tmp_path: Path) -> None:
    broken = Migration(2, "broken", "INSERT INTO nowhere VALUES (1);")
    with pytest.raises(ConfigError):
        await opened(tmp_path / "queue.db", [FIRST, broken])

    await opened(tmp_path / "queue.db", [FIRST, SECOND])

    assert query(tmp_path / "queue.db", "SELECT y FROM b") == [(7,)]


async def test_the_file_is_copied_before_it_changes(tmp_path: Path) -> None:
    await opened(tmp_path / "queue.db", [FIRST])
    write(tmp_path / "queue.db", "INSERT INTO a VALUES (42)")

    await opened(tmp_path / "queue.db", [FIRST, SECOND])

    backup = tmp_path / "queue.db.before-0002"
    assert query(backup, "SELECT x FROM a") == [(42,)]
    assert tables(backup) == {"a", "schema_migrations"}


async def test_a_new_file_is_not_copied(tmp_path: Path) -> None:
    await opened(tmp_path / "queue.db", [FIRST, SECOND])

    assert copies(tmp_path) == []


async def test_a_copy_that_was_cut_short_is_made_anew(tmp_path: Path) -> None:
    # The process died within VACUUM INTO: half a file must not pass for the backup.
    await opened(tmp_path / "queue.db", [FIRST])
    dead = tmp_path / "queue.db.before-0002.1.part"
    dead.write_bytes(b"half a copy")

    await opened(tmp_path / "queue.db", [FIRST, SECOND])

    assert query(tmp_path / "queue.db.before-0002", "PRAGMA integrity_check") == [("ok",)]


@pytest.mark.parametrize("before", [[], [FIRST]], ids=["fresh", "upgrade"])
def test_two_processes_that_migrate_at_once_both_open_the_file(
    tmp_path: Path, before: list[Migration]
) -> None:
    # Both find the step missing, and both make the backup under the same name; on a new file
    # both switch to WAL, which is the one lock that SQLite does not wait for by itself.
    context = multiprocessing.get_context("spawn")
    start = context.Barrier(2)
    answers: Any = context.Queue()
    paths = [tmp_path / f"queue-{number}.db" for number in range(TRY_TO_MIGRATE)]
    for path in paths:
        if before:
            asyncio.run(opened(path, before))

    racers = [
        context.Process(target=race, args=(paths, [FIRST, SECOND], start, answers)) for _ in "ab"
    ]
    for racer in racers:
        racer.start()
    told = [answers.get(timeout=60) for _ in racers]
    for racer in racers:
        racer.join()

    assert told == ["", ""]
    for path in paths:
        assert query(path, "SELECT y FROM b") == [(7,)]
        for backup in tmp_path.glob(f"{path.name}.before-0002"):
            assert tables(backup) == {"a", "schema_migrations"}
    assert not list(tmp_path.glob("*.part"))


def test_a_script_is_cut_at_its_statements() -> None:
    script = """-- why; this is here
CREATE TABLE a (x TEXT DEFAULT ';'); -- after; it
CREATE TRIGGER t AFTER INSERT ON a BEGIN
    UPDATE a SET x = 'y';
    DELETE FROM a;
END;

INSERT INTO a
VALUES ('--');
-- the end
"""

    statements = split_statements(script)

    assert [statement.splitlines()[-1] for statement in statements] == [
        "CREATE TABLE a (x TEXT DEFAULT ';'); -- after; it",
        "END;",
        "VALUES ('--');",
    ]


def test_a_script_that_ends_inside_a_statement_is_refused() -> None:
    with pytest.raises(ValueError, match="ends inside a statement"):
        split_statements("CREATE TABLE a (x);\nCREATE TABLE b (")


async def test_a_file_that_is_no_database_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "queue.db"
    path.write_bytes(b"this is a letter to a friend, not a database" * 100)

    with pytest.raises(ConfigError, match="cannot open the queue"):
        await opened(path, [FIRST])


async def test_a_folder_that_cannot_exist_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")

    with pytest.raises(ConfigError, match="cannot open the queue"):
        await opened(tmp_path / "file" / "queue.db", [FIRST])


# -- the door ----------------------------------------------------------------------------------


async def test_the_file_is_in_wal_mode(bench: Bench) -> None:
    assert await bench.rows("PRAGMA journal_mode") == [("wal",)]


async def test_a_durable_write_commits_with_full_synchronisation(bench: Bench) -> None:
    assert await bench.database.write(synchronous, durable=True) == FULL


async def test_another_write_commits_with_normal_synchronisation(bench: Bench) -> None:
    assert await bench.database.write(synchronous) == NORMAL


async def test_each_write_has_its_own_synchronisation_whatever_came_before(bench: Bench) -> None:
    wanted = [True, False, False, True, True, False]

    seen = await asyncio.gather(
        *(bench.database.write(synchronous, durable=durable) for durable in wanted)
    )

    assert seen == [FULL if durable else NORMAL for durable in wanted]


async def test_an_enqueue_is_committed_with_full_synchronisation(bench: Bench) -> None:
    await bench.lease()
    traced: list[str] = []
    assert bench.file._writer is not None
    await bench.file._writer.set_trace_callback(traced.append)

    await bench.accept()

    kept = [line for line in traced if line.startswith(("PRAGMA syn", "BEGIN", "COMMIT"))]
    assert kept == ["PRAGMA synchronous = FULL", "BEGIN IMMEDIATE", "COMMIT"]


async def test_the_reading_connection_cannot_write(bench: Bench) -> None:
    with pytest.raises(StorageError, match="readonly"):
        await bench.database.read("DELETE FROM jobs RETURNING id")


async def test_only_the_writing_connection_checkpoints(bench: Bench) -> None:
    # Two connections that reset the WAL at once can corrupt it, before SQLite 3.51.3.
    assert await bench.rows("PRAGMA wal_autocheckpoint") == [(0,)]


async def test_foreign_keys_and_patience_are_set(bench: Bench) -> None:
    async def pragmas(connection: Connection) -> list[int]:
        names = ("foreign_keys", "busy_timeout")
        return [
            list(await connection.execute_fetchall(f"PRAGMA {name}"))[0][0]  # noqa: RUF015
            for name in names
        ]

    assert await bench.database.write(pragmas) == [1, 10_000]


async def test_a_write_that_raises_leaves_nothing(bench: Bench) -> None:
    async def fail(connection: Connection) -> None:
        await connection.execute("CREATE TABLE half (x)")
        raise KeyError("half way")

    with pytest.raises(KeyError):
        await bench.database.write(fail)

    assert await bench.rows("SELECT name FROM sqlite_master WHERE name = 'half'") == []


async def test_a_write_whose_caller_left_is_written_whole(bench: Bench) -> None:
    begun, leave = asyncio.Event(), threading.Event()
    loop = asyncio.get_running_loop()

    async def slow(connection: Connection) -> None:
        await connection.execute("CREATE TABLE whole (x)")
        loop.call_soon_threadsafe(begun.set)
        assert leave.wait(DEADLINE)
        await connection.execute("INSERT INTO whole VALUES (1)")

    caller = asyncio.create_task(bench.database.write(slow))
    await begun.wait()
    caller.cancel()
    with pytest.raises(asyncio.CancelledError):
        await caller
    leave.set()

    await bench.execute("INSERT INTO whole VALUES (2)")
    assert await bench.rows("SELECT x FROM whole") == [(1,), (2,)]


async def test_closing_waits_for_what_is_being_written(tmp_path: Path) -> None:
    database = Database(tmp_path / "queue.db", [FIRST])
    async with database:
        begun = asyncio.Event()
        loop = asyncio.get_running_loop()

        async def slow(connection: Connection) -> None:
            loop.call_soon_threadsafe(begun.set)
            await connection.execute("INSERT INTO a VALUES (1)")

        caller = asyncio.create_task(database.write(slow))
        await begun.wait()
        caller.cancel()
    with pytest.raises(asyncio.CancelledError):
        await caller

    assert query(tmp_path / "queue.db", "SELECT x FROM a") == [(1,)]


async def test_a_cancelled_transaction_does_not_stay_open(tmp_path: Path) -> None:
    async with Database(tmp_path / "queue.db", [FIRST]) as database:

        async def add(connection: Connection) -> None:
            await connection.execute("INSERT INTO a VALUES (1)")

        for turns in range(12):
            caller = asyncio.create_task(database.write(add))
            for _ in range(turns):
                await asyncio.sleep(0)
            caller.cancel()
            await asyncio.gather(caller, return_exceptions=True)

        await database.write(add)

    # Whoever was cancelled before it asked wrote nothing, all others did.
    assert query(tmp_path / "queue.db", "SELECT count(*) FROM a") == [(12,)]


async def test_a_closed_file_says_so(tmp_path: Path) -> None:
    database = Database(tmp_path / "queue.db", [FIRST])
    async with database:
        pass

    with pytest.raises(StorageError, match="closed"):
        await database.write(synchronous)
    with pytest.raises(StorageError, match="closed"):
        await database.read("SELECT 1")
    await database.close()


async def test_a_write_sees_the_busy_file_of_another_process_as_a_storage_error(
    bench: Bench, tmp_path: Path
) -> None:
    rival = sqlite3.connect(tmp_path / "queue.db", isolation_level=None)
    assert bench.file._writer is not None
    await bench.file._writer.execute("PRAGMA busy_timeout = 1")
    rival.execute("BEGIN IMMEDIATE")

    with pytest.raises(StorageError, match="locked"):
        await bench.database.write(synchronous)

    rival.execute("ROLLBACK")
    rival.close()
    assert await bench.database.write(synchronous) == NORMAL


async def synchronous(connection: Connection) -> int:
    (row,) = await connection.execute_fetchall("PRAGMA synchronous")
    value: int = row[0]
    return value


async def opened(path: Path, steps: Iterable[Migration]) -> None:
    async with Database(path, steps):
        pass


def race(paths: list[Path], steps: list[Migration], start: Any, answers: Any) -> None:
    try:
        for path in paths:
            start.wait(30)
            asyncio.run(opened(path, steps))
    except Exception as error:  # noqa: BLE001 - told to the test
        start.abort()
        answers.put(repr(error))
    else:
        answers.put("")


def copies(folder: Path) -> list[str]:
    return [path.name for path in folder.iterdir() if "before" in path.name]


def insert(connection: sqlite3.Connection, row: dict[str, Any], table: str = "jobs") -> None:
    names = ", ".join(row)
    marks = ", ".join("?" * len(row))
    connection.execute(f"INSERT INTO {table} ({names}) VALUES ({marks})", list(row.values()))


def query(path: Path, sql: str) -> list[tuple[Any, ...]]:
    connection = sqlite3.connect(path)
    try:
        return connection.execute(sql).fetchall()
    finally:
        connection.close()


def write(path: Path, sql: str) -> None:
    connection = sqlite3.connect(path, isolation_level=None)
    connection.execute(sql)
    connection.close()


def schema(path: Path) -> list[tuple[Any, ...]]:
    return query(path, "SELECT type, name, tbl_name, sql FROM sqlite_master ORDER BY type, name")


def tables(path: Path) -> set[str]:
    found = query(path, "SELECT name FROM sqlite_master WHERE type = 'table'")
    return {name for (name,) in found if not name.startswith("sqlite_")}
