"""`migrate queue --to`: all of a SQLite queue is in PostgreSQL afterwards, and nothing else is."""

import asyncio
import os
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from daemon.errors import ConfigError
from daemon.jobs import JobState
from daemon.queue.postgresql import schema
from daemon.queue.postgresql import transfer as transfer_module
from daemon.queue.postgresql.backend import PostgresDatabase
from daemon.queue.postgresql.inspection import inspect
from daemon.queue.postgresql.transfer import transfer
from tests.postgresql import Cluster, schema_of
from tests.queue_bench import FACES, IMAGE, LEASE, NOON, open_bench

ROOT = Path(__file__).parents[2]
TABLES = ("jobs", "outbox", "pauses", "installation")


@pytest.fixture
async def path(tmp_path: Path) -> Path:
    """Return a file with a job in each state, events and a pause; no daemon has it open."""
    file = tmp_path / "queue.db"
    async with open_bench(file) as bench:
        for number in range(40):
            await bench.accept(number, reply_to="inference/reply/me/1", correlation_data="YQ==")
        leases = await bench.lease(limit=10)
        await bench.queue.complete(leases[0], {"text": 'ä "\0" \\'})
        await bench.queue.bury(leases[1], code="broken", message="nul \0, 猫 and \ud800")
        await bench.queue.retry(leases[2], run_at=NOON + 9, code="later", message="m")
        await bench.accept(1, FACES)
        kept = await bench.lease_one(FACES)
        await bench.queue.give_up_sync(kept, {"faces": []}, run_at=NOON, code="away", message="m")
        await bench.queue.pauses.pause(FACES, seconds=60)
        await bench.queue.forget(leases[0].job.job_id)
        await bench.execute(
            "UPDATE jobs SET error_message = 'nul' || char(0) WHERE status = 'error'"
        )
    return file


def held(path: Path) -> dict[str, list[tuple[Any, ...]]]:
    with closing(sqlite3.connect(path)) as file:
        return {
            table: [
                tuple(
                    value.replace("\0", "?") if isinstance(value, str) else value for value in row
                )
                for row in file.execute(f"SELECT * FROM {table} ORDER BY 1")
            ]
            for table in TABLES
        }


async def holds(url: str) -> dict[str, list[tuple[Any, ...]]]:
    async with PostgresDatabase(url) as database:
        return {
            table: [tuple(row) for row in await database.read(f"SELECT * FROM {table} ORDER BY 1")]
            for table in TABLES
        }


async def test_everything_is_there_and_nothing_else(path: Path, cluster: Cluster) -> None:
    url, before = cluster.schema(), held(path)

    moved = await transfer(path, url, batch=7)

    assert await holds(url) == before
    assert held(path) == before
    assert moved.rows["jobs"] == 40
    assert moved.rows["outbox"] == len(before["outbox"]) > 40
    assert moved.written >= sum(map(len, before.values()))


async def test_a_role_that_does_not_wait_for_the_disk_is_overruled(
    path: Path, cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The file is put away once the rows are there; they must be there for good."""
    url = cluster.schema()
    name = f"hasty_{schema_of(url)}"
    cluster.psql(f"CREATE ROLE {name} LOGIN SUPERUSER")
    cluster.psql(f"ALTER ROLE {name} SET synchronous_commit = off")
    seen = []
    copy = transfer_module._transfer

    async def look_and_copy(file: Any, raw: Any, *arguments: Any) -> Any:
        seen.append(await raw.fetchval("SHOW synchronous_commit"))
        return await copy(file, raw, *arguments)

    monkeypatch.setattr(transfer_module, "_transfer", look_and_copy)

    await transfer(path, url.replace("//inferd@", f"//{name}@"))

    assert seen == ["on"]


async def test_a_daemon_goes_on_where_the_file_ended(path: Path, cluster: Cluster) -> None:
    url = cluster.schema()
    await transfer(path, url)

    async with open_bench(url, worker="another") as bench:
        bench.clock.advance(seconds=LEASE + 1)
        # What ran when the last daemon died comes back, and is run alone.
        assert len(await bench.queue.reclaim()) == 7
        (lease, *_) = await bench.lease()
        done = await bench.queue.complete(lease, {})
        job = await bench.accept(900)
        numbers = await bench.rows("SELECT id FROM jobs WHERE job_id = ?", job.job_id)

    assert done.status is JobState.COMPLETED
    assert numbers[0][0] == 42
    assert IMAGE is done.task_type


async def test_running_it_again_after_a_break_goes_on(
    path: Path, cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    url, before = cluster.schema(), held(path)
    replace, calls = transfer_module._replace, 0

    async def breaking(*args: Any) -> None:
        nonlocal calls
        calls += 1
        if calls == 5:
            raise asyncio.CancelledError
        await replace(*args)

    monkeypatch.setattr(transfer_module, "_replace", breaking)
    with pytest.raises(asyncio.CancelledError):
        await transfer(path, url, batch=7)

    # Half a queue is no queue: a daemon would answer for jobs that it does not know.
    with pytest.raises(ConfigError) as caught:
        await holds(url)
    assert caught.value.code == "queue_half_moved"
    assert (seen := (await inspect(url)).refusal) is not None
    assert seen.code == "queue_half_moved"

    monkeypatch.undo()
    moved = await transfer(path, url, batch=7)

    assert await holds(url) == before
    assert 0 < moved.written < sum(map(len, before.values()))


async def test_what_changed_in_the_file_between_two_runs_is_moved_too(
    path: Path, cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = cluster.schema()

    with monkeypatch.context() as patch:
        patch.setattr(schema, "mark_moving", marks_then_breaks())
        with pytest.raises(KeyboardInterrupt):
            await transfer(path, url, batch=7)
    async with open_bench(path) as bench:
        (lease, *_) = await bench.lease()
        await bench.queue.complete(lease, {})
        await bench.accept(lease.job.media_store_id, force=True)
        await bench.accept(901)

    await transfer(path, url, batch=7)

    assert await holds(url) == held(path)


def marks_then_breaks() -> Any:
    mark = schema.mark_moving

    async def marking(raw: Any, installation: str | None) -> None:
        if installation is None:
            raise KeyboardInterrupt
        await mark(raw, installation)

    return marking


async def test_a_file_that_a_daemon_has_open_is_not_moved(path: Path, cluster: Cluster) -> None:
    url = cluster.schema()
    async with open_bench(path):
        with pytest.raises(ConfigError) as caught:
            await transfer(path, url)

    assert caught.value.code == "queue_in_use"
    await transfer(path, url)


async def test_a_database_with_another_queue_is_left_alone(path: Path, cluster: Cluster) -> None:
    url = cluster.schema()
    async with open_bench(url) as bench:
        await bench.accept(77)

    with pytest.raises(ConfigError) as caught:
        await transfer(path, url)

    assert caught.value.code == "queue_not_empty"
    assert cluster.psql("SELECT media_store_id FROM jobs", schema=schema_of(url)) == "77"


async def test_a_database_with_events_that_nobody_sent_yet_is_left_alone(
    path: Path, cluster: Cluster
) -> None:
    url = cluster.schema()
    async with open_bench(url) as bench:
        await bench.accept(77)
        await bench.execute("DELETE FROM jobs")

    with pytest.raises(ConfigError) as caught:
        await transfer(path, url)

    assert caught.value.code == "queue_not_empty"
    assert cluster.psql("SELECT count(*) FROM outbox", schema=schema_of(url)) == "1"


async def test_a_queue_that_is_there_already_is_not_moved_over_itself(
    path: Path, cluster: Cluster
) -> None:
    url = cluster.schema()
    await transfer(path, url)

    with pytest.raises(ConfigError, match="already") as caught:
        await transfer(path, url)

    assert caught.value.code == "queue_not_empty"


def command(*words: str, **environ: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "daemon", *words],
        cwd=ROOT,
        env={"PATH": os.environ["PATH"], "HOME": os.environ.get("HOME", "/"), **environ},
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )


async def test_the_command_moves_it_and_puts_the_file_away(path: Path, cluster: Cluster) -> None:
    url, before = cluster.schema(), held(path)

    done = command("migrate", "queue", "--to", url, INFERD_QUEUE__URL=f"sqlite:///{path}")

    assert done.returncode == 0, done.stderr
    assert "40 jobs" in done.stdout
    assert not path.exists()  # noqa: ASYNC240 - nothing else runs in this loop
    assert held(path.with_name("queue.db.moved")) == before
    shown = command("migrate", "--check", INFERD_QUEUE__URL=url)
    assert shown.returncode == 0, shown.stderr
    assert "0001  queue" in shown.stdout


async def test_what_is_wrong_with_the_url_is_told_without_its_password(path: Path) -> None:
    for url in (
        "postgresql:///x?password=s3cret",
        "mysql://me:s3cret@host/db",
        "postgresql://:s3cret@/",
    ):
        done = command("migrate", "queue", "--to", url, INFERD_QUEUE__URL=f"sqlite:///{path}")

        assert done.returncode == 78
        assert "--to" in done.stderr
        assert "s3cret" not in done.stdout + done.stderr


def test_the_schema_of_a_new_database_is_made_by_the_command(cluster: Cluster) -> None:
    url = cluster.schema()

    assert command("migrate", "--check", INFERD_QUEUE__URL=url).returncode == 1
    made = command("migrate", INFERD_QUEUE__URL=url)
    again = command("migrate", "--check", INFERD_QUEUE__URL=url)

    assert made.returncode == again.returncode == 0, made.stderr
    assert "applied now" in made.stdout


async def test_a_queue_is_not_moved_under_a_daemon_that_works_there(
    path: Path, cluster: Cluster
) -> None:
    url = cluster.schema()
    async with open_bench(url) as bench:
        with pytest.raises(ConfigError) as caught:
            await transfer(path, url)
        assert caught.value.code == "queue_in_use"
        await bench.accept(901)
        assert [tuple(row) for row in await bench.rows("SELECT count(*) FROM jobs")] == [(1,)]
    # No mark was left.
    async with PostgresDatabase(url):
        pass


async def test_a_server_that_dies_meanwhile_is_told_with_its_code(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Cluster() as mortal:

        async def dying(raw: Any, *_: Any) -> None:
            async with raw.transaction():
                mortal.kill()
                await raw.execute("SELECT 1")

        monkeypatch.setattr(transfer_module, "_replace", dying)
        with pytest.raises(ConfigError, match="run this again") as caught:
            await transfer(path, mortal.schema())

    assert caught.value.code == "queue_unusable"
