"""What the engines tell of themselves to /metrics: true, and of the state at that moment."""

import asyncio
from pathlib import Path
from types import SimpleNamespace

import pytest

from daemon.errors import StorageError
from daemon.queue.backend import Connection, QueueBackend
from daemon.queue.database import Database
from daemon.queue.postgresql.backend import PostgresDatabase
from tests.postgresql import Cluster, schema_of
from tests.queue_bench import DEADLINE, open_bench


async def values(database: QueueBackend) -> dict[str, float]:
    """Return the values by name and label."""
    return {
        ".".join([each.name.removeprefix("inferd_"), *each.labels.values()]): each.value
        for each in await database.vitals()
    }


async def test_a_file_tells_its_size_and_that_of_its_log(tmp_path: Path) -> None:
    async with open_bench(tmp_path / "queue.db") as bench:
        await bench.accept()

        told = await values(bench.database)

        assert told == {
            "queue_file_bytes.database": (tmp_path / "queue.db").stat().st_size,
            "queue_file_bytes.log": (tmp_path / "queue.db-wal").stat().st_size,
        }
        assert told["queue_file_bytes.log"] > 0


async def test_a_server_tells_of_connections_waits_and_dead_rows(cluster: Cluster) -> None:
    url = cluster.schema()
    async with open_bench(url) as bench:
        await bench.accept()
        cluster.psql("ANALYZE jobs", schema=schema_of(url))

        told = await values(bench.database)

        assert told["postgresql_connections_max"] == 8
        assert told["postgresql_connections.busy"] == 0
        assert told["postgresql_connections.idle"] >= 1
        assert told["postgresql_acquires"] >= 2
        assert told["postgresql_acquire_seconds"] > 0
        assert told["postgresql_blocked_sessions"] == 0
        assert told["postgresql_repeats"] == 0
        # The session that wrote the row counts it once more where it reports only after ANALYZE.
        assert told["postgresql_live_rows.jobs"] in {1, 2}
        assert told["postgresql_table_bytes.jobs"] > 8192
        assert told["postgresql_table_bytes.outbox"] > 8192


async def test_a_server_tells_of_transactions_that_stay_and_of_who_waits_for_them(
    cluster: Cluster,
) -> None:
    begun, may_end = asyncio.Event(), asyncio.Event()

    async def stay(connection: Connection) -> None:
        await connection.execute("UPDATE jobs SET priority = 1")
        begun.set()
        await may_end.wait()

    async def follow(connection: Connection) -> None:
        await connection.execute("UPDATE jobs SET priority = 2")

    async with asyncio.timeout(DEADLINE), open_bench(cluster.schema()) as bench:
        await bench.accept()
        staying = asyncio.create_task(bench.database.write(stay))
        await begun.wait()
        following = asyncio.create_task(bench.database.write(follow))
        while (  # noqa: ASYNC110 - a fact of the server, which rings no bell
            told := await values(bench.database)
        )["postgresql_blocked_sessions"] == 0:
            await asyncio.sleep(0.01)

        assert told["postgresql_blocked_sessions"] == 1
        assert told["postgresql_connections.busy"] == 2
        assert told["postgresql_oldest_transaction_seconds"] > 0
        may_end.set()
        await asyncio.gather(staying, following)


async def test_a_transaction_that_was_run_again_is_counted(cluster: Cluster) -> None:
    tries = 0

    async def collide(connection: Connection) -> None:
        nonlocal tries
        tries += 1
        if tries == 1:
            await connection.execute("DO $$ BEGIN RAISE EXCEPTION USING ERRCODE = '40001'; END $$")

    async with open_bench(cluster.schema()) as bench:
        await bench.database.write(collide)

        assert (await values(bench.database))["postgresql_repeats"] == 1


async def test_a_server_that_is_closed_tells_nothing(cluster: Cluster) -> None:
    async with PostgresDatabase(cluster.schema()) as database:
        pass

    with pytest.raises(StorageError):
        await database.vitals()


async def test_a_file_that_is_not_there_yet_has_no_size(tmp_path: Path) -> None:
    assert await Database(tmp_path / "queue.db").vitals() == []


async def test_a_connection_that_was_waited_for_in_vain_counts_too(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def refuse(*, timeout: float) -> None:  # noqa: ASYNC109 - asyncpg's own name
        raise TimeoutError

    async with open_bench(cluster.schema()) as bench:
        before = (await values(bench.database))["postgresql_acquires"]
        with monkeypatch.context() as patched:
            patched.setattr(bench.database, "_pool", SimpleNamespace(acquire=refuse))
            with pytest.raises(StorageError):
                await bench.database.read("SELECT 1")

        # That one, and the one that tells it.
        assert (await values(bench.database))["postgresql_acquires"] >= before + 2
