"""An old queue goes through `migrate` and its jobs are done; a running daemon is left alone."""

import asyncio
import os
import subprocess
import sys
import uuid
from pathlib import Path

from daemon.queue.backend import Connection
from daemon.queue.database import Database
from daemon.queue.migration import released_migrations
from tests.acceptance.rig import Daemon, MediaStore, ask, finished
from tests.broker import Broker, Client

ROOT = Path(__file__).resolve().parents[2]


def migrate(data: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "daemon", "migrate", *arguments],
        cwd=ROOT,
        env={"PATH": os.environ["PATH"], "HOME": str(data), "INFERD_DATA_DIR": str(data)},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


async def make_old_queue(path: Path, job_id: str) -> None:
    async def add(connection: Connection) -> None:
        await connection.execute(
            "INSERT INTO jobs (job_id, task_type, media_store_id, priority, rank, created_at)"
            " VALUES (?, 'face_detection', 404, 5, 0, 1)",
            (job_id,),
        )

    async with Database(path, released_migrations()[:1]) as database:
        await database.write(add)


def test_jobs_of_an_old_queue_are_done_after_migrate(tmp_path: Path) -> None:
    data = tmp_path / "data"
    old_job = str(uuid.uuid4())
    asyncio.run(make_old_queue(data / "queue.db", old_job))

    assert migrate(data, "--check").returncode == 1
    assert migrate(data).returncode == 0

    with (
        Broker(tmp_path) as broker,
        MediaStore() as store,
        Client(broker.port) as client,
    ):
        client.subscribe("inference/job/+/+")
        with Daemon(tmp_path, broker, store):
            topic = f"inference/job/{old_job}/completed"
            done = client.wait_for(lambda message: message.topic == topic).json()
            assert done["data"]["error_message"].startswith("media_not_found")


def test_migrate_beside_a_running_daemon_changes_nothing(tmp_path: Path) -> None:
    data = tmp_path / "data"
    with (
        Broker(tmp_path) as broker,
        MediaStore() as store,
        Client(broker.port) as client,
        Daemon(tmp_path, broker, store) as daemon,
    ):
        client.subscribe("inference/job/+/+")
        assert finished(client, ask(client, 1))["status"] == "error"

        for arguments in ((), ("--check",), ("--create",)):
            done = migrate(data, *arguments)
            assert (done.returncode, done.stderr) == (0, "")
            assert "to be applied" not in done.stdout

        assert finished(client, ask(client, 2))["status"] == "error"
        assert daemon.terminate() == 0
    assert not list(data.glob("*.before-*"))
