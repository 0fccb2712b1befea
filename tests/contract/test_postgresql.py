"""PostgreSQL as the queue's engine: its dialect, its schema, and what becomes of us without it."""

import asyncio
import inspect
import json
import os
import re
import signal
import sqlite3
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import asyncpg
import pytest

from daemon.cli.migrate_server import migrate_server
from daemon.doctor import queue_server
from daemon.doctor.facts import Facts
from daemon.doctor.findings import Verdict
from daemon.errors import ConfigError, LeaseLostError, StorageError
from daemon.jobs import JobState
from daemon.queue import installation, job_ledger, outbox_statements, roles, statements
from daemon.queue.backend import Connection
from daemon.queue.migration import Migration, released_migrations
from daemon.queue.postgresql import inspection, schema
from daemon.queue.postgresql.backend import PostgresDatabase
from daemon.queue.postgresql.clock import DatabaseClock
from daemon.queue.postgresql.statements import TEXTS, text_of
from daemon.settings import Settings
from tests.postgresql import Cluster, schema_of
from tests.queue_bench import DEADLINE, IMAGE, Bench, open_bench, until

FINISHED = 20_000
SQL = re.compile(r"\s*(WITH|SELECT|INSERT|UPDATE|DELETE)\b")
ID = "550e8400-e29b-41d4-a716-446655440000"
FIRST = Migration(1, "first", "CREATE TABLE a (x integer); CREATE TABLE c (x integer)")
SECOND = Migration(2, "second", "CREATE TABLE b (y integer); INSERT INTO b VALUES (7)")

# The one way in which each hot statement may reach its rows, whatever its parameters.
PLANS = {
    "LEASE": {"jobs_ready", "jobs_pkey", "pauses_pkey"},
    "LEASE_SUSPECT": {"jobs_suspect", "jobs_pkey", "pauses_pkey"},
    "HAS_SUSPECT": {"jobs_suspect"},
    "PROMOTE": {"jobs_delayed", "jobs_pkey"},
    "NEXT_RANK": {"jobs_ready"},
    "RENEW": {"jobs_job_id_key", "jobs_leased"},
    "SETTLE": {"jobs_job_id_key", "jobs_leased"},
    "SETTLE_ONE": {"jobs_job_id_key", "jobs_leased"},
    "FIND": {"jobs_job_id_key"},
    "FIND_JOBS": {"jobs_job_id_key"},
    "FIND_PAIRS": {"jobs_pair"},
    "SUPERSEDE_SYNC": {"jobs_unsynced_pair", "jobs_unsynced"},
    "COUNT_EVENTS": {"jobs_job_id_key"},
    "FIND_EXPIRED": {"jobs_leased"},
    "FIND_HELD_BY": {"jobs_leased"},
    "DUE_SYNC": {"jobs_unsynced"},
    "PRUNE": {"jobs_finished", "jobs_pkey"},
    "FIND_FAILED": {"jobs_failed"},
    "FAILURE_TOLD": {"jobs_failed", "jobs_failed_media"},
    "REQUEUE_ALL": {"jobs_pkey", "jobs_pair"},
    "FORGET_ALL": {"jobs_job_id_key"},
    "LATEST": {"jobs_finished"},
    "FIND_ROW": {"jobs_job_id_key"},
    "STANDS_PENDING": {"jobs_ready", "jobs_suspect", "jobs_delayed"},
    "STANDS_PROCESSING": {"jobs_leased"},
    "STANDS_IN_ERROR": {"jobs_failed", "jobs_failed_media"},
    "STANDS_IN_SYNC_FAILED": {"jobs_failed", "jobs_failed_media"},
    "HASTEN_JOBS": {"jobs_delayed"},
    "HASTEN_SYNCS": {"jobs_unsynced"},
}


def named(*modules: Any) -> dict[str, str]:
    return {
        f"{module.__name__}.{name}": value
        for module in modules
        for name, value in inspect.getmembers(module)
        if name.isupper() and isinstance(value, str) and SQL.match(value)
    }


STATEMENTS = named(statements, outbox_statements, roles, installation, job_ledger)


# -- the dialect -----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def place(cluster: Cluster) -> str:
    return cluster.schema()


@pytest.fixture
async def raw(place: str) -> AsyncIterator[Any]:
    async with PostgresDatabase(place):
        pass
    connection = await asyncpg.connect(place)
    yield connection
    await connection.close()


@pytest.mark.parametrize("name", STATEMENTS)
async def test_every_statement_is_understood(raw: Any, name: str) -> None:
    await raw.prepare(text_of(STATEMENTS[name]))


@pytest.mark.parametrize("name", STATEMENTS)
async def test_every_statement_takes_as_many_parameters_as_in_sqlite(raw: Any, name: str) -> None:
    text = STATEMENTS[name]
    numbers = [int(number) for number in re.findall(r"\?(\d+)", text)]
    expected = max(numbers, default=text.count("?"))

    prepared = await raw.prepare(text_of(text))

    assert len(prepared.get_parameters()) == expected


def test_no_statement_of_this_dialect_is_left_over() -> None:
    assert set(TEXTS) <= set(STATEMENTS.values())


async def test_both_engines_have_the_same_tables_with_the_same_columns(raw: Any) -> None:
    rows = await raw.fetch(
        "SELECT table_name, column_name FROM information_schema.columns"
        " WHERE table_schema = current_schema()"
    )
    with closing(sqlite3.connect(":memory:")) as file:
        for step in released_migrations():
            file.executescript(step.sql)
        names = [
            name
            for (name,) in file.execute("SELECT name FROM sqlite_schema WHERE type = 'table'")
            if not name.startswith("sqlite_")
        ]
        ours = {
            (table, row[1])
            for table in names
            for row in file.execute(f"PRAGMA table_info({table})")
        }

    found = {(row[0], row[1]) for row in rows if row[0] != "schema_migrations"}
    assert found == ours


@pytest.fixture(scope="module")
def full(cluster: Cluster) -> str:
    """Return the name of a schema with many finished jobs and a few of each other kind."""
    url = cluster.schema()

    async def create() -> None:
        async with PostgresDatabase(url):
            pass

    asyncio.run(create())
    name = schema_of(url)
    columns = (
        "job_id, task_type, media_store_id, priority, rank, created_at, status, run_at, lost,"
        " worker, lease_until, completed_at, result, error_code, error_message"
    )
    kinds = {
        "pending": ("NULL", "0", "NULL", "NULL", "NULL", "NULL", "NULL"),
        "processing": ("NULL", "0", "'w'", "9", "NULL", "NULL", "NULL"),
        "completed": ("NULL", "0", "NULL", "NULL", "n", "'{}'", "NULL"),
        "error": ("NULL", "0", "NULL", "NULL", "n", "NULL", "'e: m'"),
        "sync_failed": ("n", "0", "NULL", "NULL", "n", "'{}'", "'e: m'"),
    }
    counts = {"pending": 2000, "processing": 200, "completed": FINISHED, "error": 3000}
    counts["sync_failed"] = 1000
    start = 0
    for status, (run_at, lost, worker, until_, ended, result, message) in kinds.items():
        cluster.psql(
            f"INSERT INTO jobs ({columns}) SELECT lpad(n::text, 36, '0'),"
            f" (ARRAY['image_embedding', 'face_detection'])[1 + n % 2], n, 5, n, 1, '{status}',"
            f" {run_at}, {lost}, {worker}, {until_}, {ended}, {result},"
            f" CASE WHEN '{status}' IN ('error', 'sync_failed') THEN 'e' END, {message}"
            f" FROM generate_series({start + 1}, {start + counts[status]}) AS n",
            schema=name,
        )
        start += counts[status]
    cluster.psql("VACUUM ANALYZE jobs", schema=name)
    return url


@pytest.mark.parametrize("name", PLANS)
async def test_a_hot_statement_reaches_its_rows_by_its_index(full: str, name: str) -> None:
    connection = await asyncpg.connect(full)
    try:
        # What a long-lived daemon runs: planned once, for parameters that nobody knows yet.
        await connection.execute("SET plan_cache_mode = force_generic_plan")
        prepared = await connection.prepare(text_of(getattr(statements, name)))
        nulls = ", ".join("NULL" for _ in prepared.get_parameters())
        plan = await connection.fetchval(
            f"EXPLAIN (FORMAT JSON) EXECUTE {prepared.get_name()}({nulls})"
        )
    finally:
        await connection.close()

    nodes = list(walk(json.loads(plan)[0]["Plan"]))
    assert [node for node in nodes if node.get("Relation Name") == "jobs" and seq(node)] == []
    indexes = {node["Index Name"] for node in nodes if "Index Name" in node}
    assert indexes
    assert indexes <= PLANS[name]


def walk(node: dict[str, Any]) -> Iterator[dict[str, Any]]:
    yield node
    for child in node.get("Plans", []):
        yield from walk(child)


def seq(node: dict[str, Any]) -> bool:
    return bool(node["Node Type"] == "Seq Scan")


async def test_a_renewal_touches_no_index(cluster: Cluster) -> None:
    # A dead entry in each index for each renewal of each job would be what slows the leases.
    async with open_bench(cluster.schema()) as bench:
        await bench.accept()
        lease = await bench.lease_one()
        before = await bench.rows("SELECT ctid::text FROM jobs")

        await bench.queue.renew([lease], seconds=60)

        assert await bench.rows("SELECT ctid::text FROM jobs") != before
        updated = "SELECT pg_stat_get_xact_tuples_hot_updated('jobs'::regclass)"

        async def renew(connection: Connection) -> int:
            # What was told of before is not always sent off by now.
            so_far = int((await connection.execute_fetchall(updated))[0][0])
            held = json.dumps([[lease.job.job_id, lease.fence]])
            await connection.execute(statements.RENEW, (1, held))
            return int((await connection.execute_fetchall(updated))[0][0]) - so_far

        assert await bench.database.write(renew) == 1


# -- the schema ------------------------------------------------------------------------------------


async def opened(url: str, *steps: Migration) -> None:
    async with PostgresDatabase(url, steps, start_seconds=0):
        pass


async def test_steps_are_applied_once_and_noted(cluster: Cluster) -> None:
    url = cluster.schema()
    await opened(url, FIRST)
    await opened(url, FIRST, SECOND)
    await opened(url, FIRST, SECOND)

    name = schema_of(url)
    assert cluster.psql("SELECT y FROM b", schema=name) == "7"
    assert cluster.psql("SELECT version, name FROM schema_migrations", schema=name) == (
        "1|first\n2|second"
    )


async def test_a_step_that_fails_leaves_nothing_of_any(cluster: Cluster) -> None:
    url = cluster.schema()
    broken = Migration(3, "broken", "CREATE TABLE d (x integer); SELECT nonsense")

    with pytest.raises(ConfigError, match="nonsense"):
        await opened(url, FIRST, SECOND, broken)

    found = "SELECT count(*) FROM information_schema.tables WHERE table_schema = current_schema()"
    assert cluster.psql(found, schema=schema_of(url)) == "0"


async def test_daemons_that_start_at_once_make_the_schema_once(cluster: Cluster) -> None:
    url = cluster.schema()

    await asyncio.gather(*(opened(url, *schema.steps()) for _ in range(6)))

    found = cluster.psql("SELECT count(*) FROM schema_migrations", schema=schema_of(url))
    assert found == str(len(schema.steps()))


async def test_a_newer_schema_is_refused(cluster: Cluster) -> None:
    url = cluster.schema()
    await opened(url, FIRST, SECOND)

    with pytest.raises(ConfigError) as caught:
        await opened(url, FIRST)

    assert caught.value.code == "schema_newer"


async def test_a_released_step_that_was_changed_is_refused(cluster: Cluster) -> None:
    url = cluster.schema()
    await opened(url, FIRST)

    with pytest.raises(ConfigError) as caught:
        await opened(url, Migration(1, "first", "SELECT 1"))

    assert caught.value.code == "schema_changed"


@pytest.mark.parametrize(
    "table", ["jobs (id integer)", "schema_migrations (version varchar)"], ids=["jobs", "ledger"]
)
async def test_tables_of_another_program_are_left_alone(cluster: Cluster, table: str) -> None:
    url = cluster.schema()
    cluster.psql(f"CREATE TABLE {table}", schema=schema_of(url))

    with pytest.raises(ConfigError) as caught:
        await opened(url, *schema.steps())

    assert caught.value.code == "queue_foreign"


async def test_a_schema_that_does_not_exist_is_told(cluster: Cluster) -> None:
    with pytest.raises(ConfigError, match="search_path"):
        await opened(cluster.url("nowhere"), FIRST)


async def test_a_database_that_lacks_letters_is_refused(cluster: Cluster) -> None:
    # One request_id in Japanese would fail all requests of its commit, again and again.
    cluster.psql(
        "CREATE DATABASE latin ENCODING 'LATIN1' TEMPLATE template0 LC_COLLATE 'C' LC_CTYPE 'C'"
    )

    with pytest.raises(ConfigError, match="LATIN1") as caught:
        await opened(cluster.url().replace("/postgres?", "/latin?"), FIRST)

    assert caught.value.code == "queue_unusable"


@pytest.mark.parametrize(
    ("there", "wrong"), [("/postgres?", "/nobodys?"), ("inferd@", "nobody:s3cret@")]
)
async def test_what_is_wrong_at_a_start_is_told_without_the_password(
    cluster: Cluster, there: str, wrong: str
) -> None:
    url = cluster.schema().replace(there, wrong)

    with pytest.raises(ConfigError, match=r"nobody") as caught:
        async with PostgresDatabase(url, start_seconds=60):
            pass

    assert caught.value.code == "queue_unusable"
    assert "s3cret" not in str(caught.value)


async def test_a_server_that_does_not_answer_is_given_up(tmp_path: Path) -> None:
    url = f"postgresql://me:s3cret@/db?host={tmp_path}"

    with pytest.raises(ConfigError) as caught:
        async with PostgresDatabase(url, start_seconds=0):
            pass

    assert caught.value.code == "queue_unusable"
    assert "s3cret" not in str(caught.value)


# -- looking at it ---------------------------------------------------------------------------------


def test_a_queue_that_is_too_large_to_be_counted_is_a_sound_one(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = cluster.schema()
    asyncio.run(opened(url, *schema.steps()))
    monkeypatch.setattr(inspection, "COUNT_SECONDS", 0.1)
    monkeypatch.setattr(inspection, "_STATES", "SELECT 'pending', count(pg_sleep(60))")
    settings = Settings.from_env({"INFERD_QUEUE__URL": url})

    found = list(queue_server.look(Facts(settings=settings, task_types=[])))

    assert [each.verdict for each in found] == [Verdict.OK] * len(found)
    assert "jobs: too many to count them here" in [each.found for each in found]


def test_a_schema_is_migrated_and_shown_without_counting_jobs(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = cluster.schema()
    monkeypatch.setattr(inspection, "_STATES", "SELECT nonsense")

    assert migrate_server(url, check=False) == 0
    assert migrate_server(url, check=True) == 0


# -- the clock -------------------------------------------------------------------------------------


async def test_the_clock_is_the_servers(cluster: Cluster) -> None:
    began = time.monotonic()
    async with PostgresDatabase(cluster.schema()) as database:
        # It is off by half of what the first answer took to come, which was no longer than this.
        off = (time.monotonic() - began) * 500 + 100
        now = "SELECT (extract(epoch FROM clock_timestamp()) * 1000)::bigint"
        before = (await database.read(now))[0][0]
        told = database.clock()
        after = (await database.read(now))[0][0]

    assert before - off <= told <= after + off


def test_the_server_is_taken_to_have_looked_halfway() -> None:
    clock = DatabaseClock()

    clock.compare(5_000_000.0, 100.0, 300.0)

    assert clock.compare(5_000_100.0, 300.0, 300.0) == 0


def test_an_answer_that_took_long_does_not_move_the_clock() -> None:
    # When the server looked nobody knows: a daemon that stood still meanwhile asked long before.
    clock = DatabaseClock()
    clock.compare(5_000_000.0, 100.0, 100.0)

    assert clock.compare(5_000_000.0, 100.0, 100.0 + 60_000) == 0
    assert clock.compare(5_060_500.0, 60_100.0, 60_100.0) == 500


def test_a_clock_that_knows_nothing_yet_takes_even_an_answer_that_took_long() -> None:
    clock = DatabaseClock()

    assert clock.compare(5_000_000.0, 100.0, 100.0 + 60_000) != 0


# -- without the server ----------------------------------------------------------------------------


@pytest.fixture
def mortal() -> Iterator[Cluster]:
    """Return a server of the test's own, which keeps what it acknowledged."""
    with Cluster(fsync=True) as opened_:
        yield opened_


async def test_what_was_accepted_survives_the_death_of_the_server(mortal: Cluster) -> None:
    url = mortal.schema()
    async with open_bench(url) as bench:
        await asyncio.gather(*(bench.accept(number) for number in range(50)))
        lease = await bench.lease_one()
        await bench.queue.complete(lease, {"a": 1})

        mortal.kill()
        mortal.start()

        await until(lambda: is_back(bench), "it connects again")
        assert (await bench.queue.get(lease.job.job_id)).result == {"a": 1}
        assert await bench.rows("SELECT count(*) FROM jobs") == [(50,)]
        assert await bench.rows("SELECT status, count(*) FROM jobs GROUP BY 1 ORDER BY 1") == [
            ("completed", 1),
            ("pending", 49),
        ]


async def test_without_its_server_nothing_is_acknowledged_and_health_says_so(
    mortal: Cluster,
) -> None:
    async with open_bench(mortal.schema()) as bench:
        await bench.accept(1, job_id=ID)
        lease = await bench.lease_one()
        mortal.kill()

        for refused in (bench.ask(2), bench.queue.complete(lease, {}), bench.lease()):
            with pytest.raises(StorageError) as caught:
                await refused
            assert caught.value.may_pass
        with pytest.raises(StorageError):
            await bench.queue.check()

        mortal.start()
        await until(lambda: is_back(bench), "it connects again")
        assert isinstance(await bench.queue.check(), dict)
        await bench.accept(2)


async def test_a_settle_that_was_cut_off_can_be_repeated(mortal: Cluster) -> None:
    # Whether its commit was written nobody can know then: both must be right.
    async with open_bench(mortal.schema()) as bench:
        await bench.accept(1, job_id=ID)
        lease = await bench.lease_one()
        settling = asyncio.create_task(bench.queue.complete(lease, {}))
        await asyncio.sleep(0)
        mortal.kill()
        await asyncio.wait([settling])
        mortal.start()
        await until(lambda: is_back(bench), "it connects again")

        was_written = (await bench.queue.get(ID)).status is JobState.COMPLETED
        if was_written:
            with pytest.raises(LeaseLostError):
                await bench.queue.complete(lease, {})
        elif (await bench.row(ID))["fence"] == lease.fence:
            await bench.queue.complete(lease, {})

        told = [each.name for each in await bench.told(ID)]
        assert told.count("completed") == (await bench.queue.get(ID)).status.is_terminal


async def test_a_server_that_falls_silent_costs_one_wait_and_not_one_for_each_connection(
    cluster: Cluster,
) -> None:
    async with PostgresDatabase(cluster.schema()) as database, asyncio.timeout(DEADLINE):
        met, silent = asyncio.Barrier(3), set[int]()

        async def meet(connection: Connection) -> None:
            silent.add(await backend_of(connection))
            await met.wait()

        async def give_up(connection: Connection) -> None:
            async with asyncio.timeout(0.1):
                await connection.execute("SELECT 1")

        await asyncio.gather(*(database.write(meet) for _ in range(3)))
        try:
            for pid in silent:
                os.kill(pid, signal.SIGSTOP)
            with pytest.raises(StorageError) as caught:
                await database.write(give_up)
            fresh = await database.write(backend_of)
        finally:
            for pid in silent:
                os.kill(pid, signal.SIGCONT)

    assert caught.value.may_pass
    assert fresh not in silent


async def test_sessions_of_a_server_that_only_reads_by_now_are_left(cluster: Cluster) -> None:
    # As a standby's are that was the primary: the next connection may find the new one.
    async with PostgresDatabase(cluster.schema(), [FIRST]) as database:

        async def write(connection: Connection) -> None:
            await connection.execute("INSERT INTO a VALUES (1)")

        async def read_only(connection: Connection) -> None:
            await connection.execute("SET SESSION CHARACTERISTICS AS TRANSACTION READ ONLY")

        await database.write(read_only)
        with pytest.raises(StorageError, match="read-only") as caught:
            await database.write(write)
        await database.write(write)

    assert caught.value.may_pass


async def test_a_session_that_was_ended_is_not_told_as_an_error_of_ours(cluster: Cluster) -> None:
    async def end(connection: Connection) -> None:
        pid = await backend_of(connection)
        cluster.psql(f"SELECT pg_terminate_backend({pid})")
        await connection.execute("SELECT 1")

    async with PostgresDatabase(cluster.schema()) as database:
        with pytest.raises(StorageError) as caught:
            await database.write(end)

    assert caught.value.may_pass
    # As one that was closed, not as one that is not to be used any more.
    assert "pool" not in str(caught.value)


async def backend_of(connection: Connection) -> int:
    return int((await connection.execute_fetchall("SELECT pg_backend_pid()"))[0][0])


async def is_back(bench: Bench) -> bool:
    try:
        await bench.lease(IMAGE, 0)
    except StorageError:
        return False
    return True


async def test_a_daemon_that_stands_still_in_a_transaction_holds_nobody_up_for_ever(
    cluster: Cluster,
) -> None:
    # The server ends such a session by itself; its limit is asked for, not awaited.
    async with PostgresDatabase(cluster.schema()) as database:
        rows = await database.read(
            "SELECT name, setting FROM pg_settings WHERE name IN ('statement_timeout',"
            " 'lock_timeout', 'idle_in_transaction_session_timeout') ORDER BY name"
        )

    assert {row[0]: int(row[1]) for row in rows} == {
        "idle_in_transaction_session_timeout": 30_000,
        "lock_timeout": 10_000,
        "statement_timeout": 30_000,
    }


async def test_a_role_with_another_isolation_is_overruled(cluster: Cluster) -> None:
    # What a transaction waited for would not be seen: limits and pauses would not hold.
    url = cluster.schema()
    name = f"serial_{schema_of(url)}"
    cluster.psql(f"CREATE ROLE {name} LOGIN SUPERUSER")
    cluster.psql(f"ALTER ROLE {name} SET default_transaction_isolation = 'serializable'")

    async def setting(connection: Connection) -> str:
        return str((await connection.execute_fetchall("SHOW transaction_isolation"))[0][0])

    async with PostgresDatabase(url.replace("//inferd@", f"//{name}@")) as database:
        assert await database.write(setting) == "read committed"


async def test_a_value_that_cannot_be_stored_is_no_reason_to_wait(cluster: Cluster) -> None:
    async with open_bench(cluster.schema()) as bench:
        for value in ("a\0b", 2**70):

            async def work(connection: Connection, value: object = value) -> None:
                await connection.execute("INSERT INTO pauses VALUES (?, ?, 1, 1)", (value, value))

            with pytest.raises(StorageError) as caught:
                await bench.database.write(work)
            assert not caught.value.may_pass
        await bench.database.check()


async def test_a_step_of_a_newer_daemon_costs_an_older_one_no_result(cluster: Cluster) -> None:
    url = cluster.schema()
    async with open_bench(url) as bench:
        for number in (1, 2):
            await bench.accept(number)
        first, second = await bench.lease()
        await bench.queue.complete(first, {})
        cluster.psql("ALTER TABLE jobs ADD COLUMN later integer", schema=schema_of(url))

        assert (await bench.queue.complete(second, {})).status is JobState.COMPLETED
        await bench.accept(3)
        assert len(await bench.lease()) == 1


async def test_a_step_may_take_longer_than_any_statement_of_the_verbs(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("daemon.queue.postgresql.backend.COMMAND_SECONDS", 1.4)

    await opened(cluster.schema(), Migration(1, "slow", "SELECT pg_sleep(1.5)"))
