"""Who listens to the queue hears what the outbox got: once it is committed, and never else."""

from pathlib import Path

import pytest

from daemon.errors import StorageError
from daemon.events import Message
from daemon.intake import Intake
from daemon.jobs import TaskType
from daemon.queue.announcer import Announcer
from daemon.queue.backend import Connection
from daemon.queue.database import Database
from daemon.queue.job_queue import JobQueue
from daemon.requests import parse_request
from daemon.settings import QueueSettings
from tests.queue_bench import NOON

MOST = 1_048_576


async def test_what_the_broker_gets_is_heard_in_the_same_words(tmp_path: Path) -> None:
    heard: list[Message] = []
    async with (
        Database(tmp_path / "queue.db") as database,
        JobQueue(
            database,
            QueueSettings(),
            clock=lambda: NOON,
            worker="w",
            worker_id="w",
            listener=heard.extend,
        ) as queue,
    ):
        intake = Intake(queue, clock=lambda: NOON, worker_id="w", max_request_bytes=MOST)
        await intake.submit(TaskType.IMAGE_EMBEDDING, parse_request({"media_store_id": 1}))
        (lease,) = await queue.lease(TaskType.IMAGE_EMBEDDING, 1, seconds=30)
        await queue.bury(lease, code="internal", message="it broke")
        rows = await database.read("SELECT topic, payload FROM outbox ORDER BY id")

    assert len(rows) == 4
    assert [(row["topic"], row["payload"]) for row in rows] == [
        (each.topic, each.payload) for each in heard
    ]


async def test_what_is_rolled_back_is_never_heard(tmp_path: Path) -> None:
    heard: list[str] = []
    async with Database(tmp_path / "queue.db") as database:

        async def fail(connection: Connection) -> None:
            connection.after_commit(lambda: heard.append("of the failure"))
            await connection.execute("INSERT INTO nowhere VALUES (1)")

        async def work(connection: Connection) -> None:
            connection.after_commit(lambda: heard.append("of the work"))
            await connection.execute("PRAGMA user_version")

        with pytest.raises(StorageError):
            await database.write(fail)
        await database.write(work)

    assert heard == ["of the work"]


async def test_what_was_to_be_told_of_a_failure_is_never_heard(tmp_path: Path) -> None:
    heard: list[Message] = []
    announcer = Announcer(owner="w", worker_id="w", clock=lambda: NOON, listener=heard.extend)
    message = Message("a", "{}")
    async with Database(tmp_path / "queue.db") as database:

        async def fail(connection: Connection) -> None:
            await announcer.write(connection, [message])
            await connection.execute("INSERT INTO nowhere VALUES (1)")

        with pytest.raises(StorageError):
            await database.write(fail)
        assert heard == []
        await database.write(lambda connection: announcer.write(connection, [message]))

    assert heard == [message]
