"""Whatever comes over MQTT is answered: by a row, a refusal or a dead letter; never by an error."""

import asyncio
import base64
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, cast

import pytest
from hypothesis import event, given

from daemon.intake import Intake
from daemon.jobs import TaskType
from daemon.mqtt.inbox import receiver
from daemon.queue.backend import Connection
from daemon.queue.database import Database
from daemon.queue.job_queue import JobQueue
from daemon.requests import MAX_CORRELATION_BYTES, MqttRequest
from daemon.settings import QueueSettings
from daemon.topics import is_probe
from daemon.upkeep.removal import Removal
from daemon.wall_clock import epoch_ms
from daemon.worker.cancellation import Cancellation
from tests.documents import Mqtt
from tests.fuzz.answers import asked, check_topic
from tests.fuzz.messages import conversations
from tests.fuzz.profiles import effort

MAX_BYTES = 65_536


class Door:
    """Intake and cancellation over a real queue, wired as daemon/app.py does."""

    def __init__(self, path: Path) -> None:
        self._runner = asyncio.Runner()
        self.contract = Mqtt()
        self.database = Database(path)
        self._runner.run(self.database.__aenter__())
        self._queue = JobQueue(
            self.database,
            QueueSettings(max_pending=50),
            clock=epoch_ms,
            worker="w",
            worker_id="fuzz",
        )
        self._runner.run(self._queue.__aenter__())
        intake = Intake(self._queue, clock=epoch_ms, worker_id="fuzz", max_request_bytes=MAX_BYTES)
        cancellation = Cancellation(
            self._queue, stop_running=_nothing_runs, clock=epoch_ms, worker_id="fuzz"
        )
        removal = Removal(
            self._queue,
            cancellation,
            forget_vectors=_no_vectors,
            clock=epoch_ms,
            worker_id="fuzz",
        )
        self._receive = receiver(intake, cancellation, removal, lambda: cast("Any", NoHome()))

    def close(self) -> None:
        self._runner.run(self._queue.__aexit__(None, None, None))
        self._runner.run(self.database.__aexit__(None, None, None))
        self._runner.close()

    def take(self, message: MqttRequest) -> tuple[list[dict[str, Any]], int]:
        """Give it to the daemon; return what it says (outbox rows), and how many jobs came."""
        return self._runner.run(self._take(message))

    def forget(self) -> None:
        """Remove all jobs: a failure must come again from its own messages."""
        self._runner.run(self._delete("jobs"))

    def read(self, sql: str) -> list[Any]:
        return self._runner.run(self.database.read(sql))

    async def _take(self, message: MqttRequest) -> tuple[list[dict[str, Any]], int]:
        before = await self._count()
        async with asyncio.timeout(30):
            await self._receive(message)
        said = await self.database.read("SELECT * FROM outbox ORDER BY id")
        added = await self._count() - before
        await self._delete("outbox")
        return [dict(row) for row in said], added

    async def _delete(self, table: str) -> None:
        async def work(connection: Connection) -> None:
            await connection.execute(f"DELETE FROM {table}")

        await self.database.write(work)

    async def _count(self) -> int:
        return int((await self.database.read("SELECT count(*) FROM jobs"))[0][0])


async def _nothing_runs(_job_id: str) -> bool:
    return False


async def _no_vectors(_media_store_id: int) -> dict[str, int]:
    return {}


class NoHome:
    """Home Assistant is not asked for."""

    def takes(self, _topic: str) -> bool:
        return False


@pytest.fixture
def door(tmp_path: Path) -> Iterator[Door]:
    door = Door(tmp_path / "queue.db")
    yield door
    door.close()


def test_every_message_is_answered_and_none_breaks_anything(door: Door) -> None:
    seen: set[str] = set()

    @effort(quick=300)
    @given(conversations)
    def try_one(conversation: list[MqttRequest]) -> None:
        door.forget()
        # A job keeps what came with its own request.
        earlier: set[str | None] = set()
        for message in conversation:
            earlier.add(message.correlation_data)
            said, added = door.take(message)
            for row in said:
                check_topic(row["topic"])
                door.contract.check(row["topic"], row["payload"].encode())
                assert row["correlation_data"] in (None, *earlier)
            words = [_word(row) for row in said if not _is_reply(row["topic"])]
            check_answers(message, words)
            own = [row for row in said if not _is_reply(row["topic"])]
            fresh = [row for row in own if _word(row) == "accepted" and not _is_duplicate(row)]
            # `force` drops the row of the job whose place it takes.
            dropped = [row for row in own if _word(row) == "completed" and _is_superseded(row)]
            assert added == len(fresh) - len(dropped) - sum(map(_deleted, own))
            seen.update(words)
            for row in said:
                event(f"{_word(row)} {json.loads(row['payload'])['data'].get('code', '')}")
        rows = door.read("SELECT * FROM jobs")
        assert {row["task_type"] for row in rows} <= set(TaskType)
        assert all(row["reply_to"] is None or _is_reply(row["reply_to"]) for row in rows)

    try_one()

    assert seen == {"accepted", "rejected", "completed", "failed", "deleted"}
    assert [row[0] for row in door.read("PRAGMA integrity_check")] == ["ok"]


def check_answers(message: MqttRequest, words: Sequence[str]) -> None:
    """Fail unless each request was accepted or refused, and each cancel and delete answered."""
    if message.topic.startswith("inference/cancel/") and not is_probe(message.topic):
        assert words.count("rejected") + words.count("completed") == 1
    elif message.topic.startswith("inference/delete/") and not is_probe(message.topic):
        assert words.count("rejected") + words.count("deleted") == 1
    else:
        expected = asked(message.topic, message.payload, max_bytes=MAX_BYTES)
        if len(base64.b64decode(message.correlation_data or "")) > MAX_CORRELATION_BYTES:
            # Once for all of a message.
            expected = min(expected, 1)
        assert words.count("accepted") + words.count("rejected") == expected


def _is_reply(topic: str) -> bool:
    check_topic(topic)
    return topic.startswith("inference/reply/")


def _word(row: dict[str, Any]) -> str:
    topic: str = row["topic"]
    return "rejected" if topic.startswith("inference/rejected/") else topic.rpartition("/")[2]


def _is_superseded(row: dict[str, Any]) -> bool:
    told: str = json.loads(row["payload"])["data"]["error_message"]
    return told.startswith("superseded:")


def _deleted(row: dict[str, Any]) -> int:
    told = json.loads(row["payload"])
    return int(told["data"]["jobs"]) if told["event"] == "media_deleted" else 0


def _is_duplicate(row: dict[str, Any]) -> bool:
    return bool(json.loads(row["payload"]).get("duplicate"))
