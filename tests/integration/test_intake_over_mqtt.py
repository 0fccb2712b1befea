"""From a client's PUBLISH to its answer: real mosquitto, SQLite, intake, outbox and link.

Wired as daemon/app.py does, without the worker; paho is the client. Every test has a broker of its
own, since all daemons listen to the same request topics.
"""

import asyncio
import contextlib
import hashlib
import json
import sqlite3
import time
import uuid
from asyncio import Task
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Self

import pytest
from pydantic import SecretStr

from daemon import topics
from daemon.identity import own_identity
from daemon.intake import Intake
from daemon.mqtt.link import MqttLink
from daemon.outbox import Outbox
from daemon.queue.database import BUSY_TIMEOUT_MS, Database
from daemon.queue.job_queue import JobQueue
from daemon.requests import MAX_CORRELATION_BYTES
from daemon.settings import MqttSettings, QueueSettings
from tests.broker import AsyncClient, Broker, Message, Version
from tests.waiting import until

DEADLINE = 30.0
REQUEST = "inference/request/image_embedding"
EVENTS = ("inference/job/+/+", "inference/rejected/+", "inference/reply/#")
both = pytest.mark.parametrize("version", ["5", "3.1.1"])


class Daemon:
    """What takes requests and tells of them; everything but the worker."""

    def __init__(
        self,
        broker: Broker,
        path: Path,
        *,
        version: Version = "5",
        busy_timeout_ms: int = BUSY_TIMEOUT_MS,
    ) -> None:
        self._stack = contextlib.AsyncExitStack()
        self._settings = MqttSettings(
            url=SecretStr(broker.url), client_id="inferd-test", version=version
        )
        self.database = Database(path, busy_timeout_ms=busy_timeout_ms)
        self.link: MqttLink
        self.outbox: Outbox
        self.relaying: Task[None]

    async def __aenter__(self) -> Self:
        stack = await self._stack.__aenter__()
        await stack.enter_async_context(self.database)
        name, worker_id = own_identity(), self._settings.client_id
        queue = await stack.enter_async_context(
            JobQueue(
                self.database, QueueSettings(), clock=epoch_ms, worker=name, worker_id=worker_id
            )
        )
        intake = Intake(
            queue,
            clock=epoch_ms,
            worker_id=worker_id,
            max_request_bytes=self._settings.max_request_bytes,
        )
        self.link = MqttLink(
            self._settings, subscriptions=[topics.REQUEST_FILTER], on_request=intake.on_request
        )
        self.outbox = Outbox(
            self.database, self.link, queue.message_ready, owner=name, clock=epoch_ms
        )
        stack.push_async_callback(ended, asyncio.create_task(self.link.run()))
        self.relaying = asyncio.create_task(self.outbox.run())
        stack.push_async_callback(lambda: ended(self.relaying))
        async with asyncio.timeout(DEADLINE):
            await self.link.wait_up()
        return self

    async def __aexit__(self, *details: object) -> None:
        await self._stack.aclose()

    async def restart_relay(self) -> None:
        await ended(self.relaying)
        self.relaying = asyncio.create_task(self.outbox.run())

    async def count(self, table: str) -> int:
        return int((await self.database.read(f"SELECT count(*) FROM {table}"))[0][0])


async def ended(task: Task[None]) -> None:
    """Cancel a task and wait for its end; whatever else ended it is raised."""
    task.cancel()
    async with asyncio.timeout(DEADLINE):
        with contextlib.suppress(asyncio.CancelledError):
            await task


def epoch_ms() -> int:
    return time.time_ns() // 1_000_000


def new_id() -> str:
    return str(uuid.uuid4())


def is_event(name: str, job_id: str) -> Callable[[Message], bool]:
    return lambda message: message.topic == f"inference/job/{job_id}/{name}"


async def ask(client: AsyncClient, body: Mapping[str, Any], **options: Any) -> str:
    """Publish a request with a new job_id unless it has one, and return the job_id."""
    job_id: str = body.get("job_id") or new_id()
    await client.publish(REQUEST, {**body, "job_id": job_id}, **options)
    return job_id


@pytest.fixture
def broker(tmp_path: Path) -> Iterator[Broker]:
    with Broker(tmp_path) as broker:
        yield broker


@contextlib.asynccontextmanager
async def client_of(broker: Broker, version: Version = "5") -> AsyncIterator[AsyncClient]:
    async with AsyncClient(broker.port, version=version) as client:
        for topic in EVENTS:
            await client.subscribe(topic)
        yield client


# -- what is accepted ------------------------------------------------------------------------------


@both
async def test_request_is_stored_and_accepted(
    broker: Broker, tmp_path: Path, version: Version
) -> None:
    async with (
        Daemon(broker, tmp_path / "queue.db", version=version) as daemon,
        client_of(broker, version) as client,
    ):
        body = {"media_store_id": "12345", "priority": 7, "request_id": "bild ☃", "v": 1}
        job_id = await ask(client, body)

        message = await client.wait_for(is_event("accepted", job_id))

        assert (message.qos, message.is_retained) == (1, False)
        event = message.json()
        data = event.pop("data")
        assert abs(event.pop("timestamp") - epoch_ms()) < 60_000
        assert uuid.UUID(event.pop("event_id")).version == 5
        assert event == {
            "v": 1,
            "event": "job_accepted",
            "seq": 1,
            "job_id": job_id,
            "request_id": "bild ☃",
            "worker_id": "inferd-test",
            "status": "pending",
            "duplicate": False,
        }
        created_at = data.pop("created_at")
        assert abs(created_at - epoch_ms()) < 60_000
        assert data == {
            "job_id": job_id,
            "task_type": "image_embedding",
            "media_store_id": 12345,
            "status": "pending",
            "priority": 7,
            "started_at": None,
            "completed_at": None,
            "error_message": None,
            "result": None,
        }
        assert await daemon.count("jobs") == 1


async def test_request_without_a_job_id_gets_one(broker: Broker, tmp_path: Path) -> None:
    async with Daemon(broker, tmp_path / "queue.db"), client_of(broker) as client:
        await client.publish(REQUEST, {"media_store_id": 1})
        message = await client.wait_for()
    assert message.event == "accepted"
    assert topics.is_job_id(message.json()["job_id"])
    assert message.json()["data"]["priority"] == 5


@both
async def test_repeated_request_is_a_duplicate(
    broker: Broker, tmp_path: Path, version: Version
) -> None:
    async with (
        Daemon(broker, tmp_path / "queue.db", version=version) as daemon,
        client_of(broker, version) as client,
    ):
        job_id, told = new_id(), []
        for _ in range(3):
            await ask(client, {"media_store_id": 1, "job_id": job_id})
            told.append((await client.wait_for(is_event("accepted", job_id))).json())

        assert [event["duplicate"] for event in told] == [False, True, True]
        assert [event["seq"] for event in told] == [1, 2, 3]
        assert len({event["event_id"] for event in told}) == 3
        assert await daemon.count("jobs") == 1


async def test_request_waits_in_the_broker_while_the_daemon_is_away(
    broker: Broker, tmp_path: Path
) -> None:
    async with client_of(broker) as client:
        async with Daemon(broker, tmp_path / "queue.db"):
            pass
        job_id = await ask(client, {"media_store_id": 1})
        async with Daemon(broker, tmp_path / "queue.db"):
            await client.wait_for(is_event("accepted", job_id))


# -- reply topics ----------------------------------------------------------------------------------


async def test_response_topic_gets_a_copy_with_correlation_data(
    broker: Broker, tmp_path: Path
) -> None:
    async with Daemon(broker, tmp_path / "queue.db"), client_of(broker) as client:
        reply, secret = "inference/reply/älice/r1", b"\x00\xff\x01"
        job_id = await ask(
            client, {"media_store_id": 1}, response_topic=reply, correlation_data=secret
        )
        copy = await client.wait_for(lambda message: message.topic == reply)
        original = await client.wait_for(is_event("accepted", job_id))
    assert copy.payload == original.payload
    assert copy.correlation_data == secret
    assert original.correlation_data is None


@both
async def test_reply_to_in_the_body_works_for_every_client(
    broker: Broker, tmp_path: Path, version: Version
) -> None:
    async with (
        Daemon(broker, tmp_path / "queue.db", version=version),
        client_of(broker, version) as client,
    ):
        deep = "inference/reply" + "/a" * 120
        for number, reply in enumerate(("inference/reply/alice/r1", deep)):
            job_id = await ask(client, {"media_store_id": number, "reply_to": reply})
            copy = await client.wait_for(
                lambda message: message.topic.startswith("inference/reply/")
            )
            assert (copy.topic, copy.json()["job_id"]) == (reply, job_id)


@pytest.mark.parametrize(
    "reply",
    [
        "inference/job/00000000-0000-4000-8000-000000000000/completed",
        "inference/replyx/a",
        "elsewhere",
        "inference/reply",
        "inference/reply/",
        "inference/reply/$SYS",
        "inference/reply/" + "a" * 300,
    ],
)
async def test_response_topic_outside_the_reply_tree_is_rejected(
    broker: Broker, tmp_path: Path, reply: str
) -> None:
    async with Daemon(broker, tmp_path / "queue.db") as daemon, client_of(broker) as client:
        await client.subscribe("elsewhere")
        job_id = await ask(client, {"media_store_id": 1}, response_topic=reply)
        rejected = await only_answer(client, daemon)
    assert rejected.topic == f"inference/job/{job_id}/rejected"
    data = rejected.json()["data"]
    assert (data["code"], data["field"]) == ("invalid_request", "reply_to")


@pytest.mark.parametrize(
    "reply",
    [
        "inference/job/00000000-0000-4000-8000-000000000000/completed",
        "inference/reply/+",
        "inference/reply/a/#",
        "inference/reply/a\n",
        "inference/reply/a\x00",
        # mosquitto hangs up on whoever publishes to one of these, and an event is sent again
        # until it is confirmed: one request would keep the daemon off the broker for ever.
        "inference/reply/a\x80",
        "inference/reply/a\x9f",
        "inference/reply/a\ufffe",
        "inference/reply/a\uffff",
        "inference/reply/a\ufdd0",
        "inference/reply/a\U0001ffff",
        "inference/reply/a\U0010fffe",
        "inference/reply/a\ud800",
    ],
    ids=ascii,
)
async def test_reply_to_that_no_broker_takes_is_rejected(
    broker: Broker, tmp_path: Path, reply: str
) -> None:
    async with Daemon(broker, tmp_path / "queue.db") as daemon, client_of(broker) as client:
        job_id = await ask(client, {"media_store_id": 1, "reply_to": reply})
        rejected = await only_answer(client, daemon)
        assert daemon.link.connects == 1
    assert rejected.topic == f"inference/job/{job_id}/rejected"
    data = rejected.json()["data"]
    assert (data["code"], data["field"]) == ("invalid_request", "reply_to")


async def test_answer_that_the_broker_does_not_take_holds_up_no_other(tmp_path: Path) -> None:
    with Broker(tmp_path, max_packet_size=MAX_CORRELATION_BYTES + 400) as broker:
        async with Daemon(broker, tmp_path / "queue.db") as daemon, client_of(broker) as client:
            # Small enough to come in, too large beside an event.
            job_id = await ask(
                client,
                {"media_store_id": 1},
                response_topic="inference/reply/a/b",
                correlation_data=bytes(MAX_CORRELATION_BYTES),
            )
            await client.wait_for(is_event("accepted", job_id))
            other = await ask(client, {"media_store_id": 2})
            await client.wait_for(is_event("accepted", other))
            assert daemon.link.connects == 1
            assert not daemon.relaying.done()
            assert not [each for each in client.received if "/reply/" in each.topic]


# -- what is not -----------------------------------------------------------------------------------


async def only_answer(client: AsyncClient, daemon: Daemon) -> Message:
    """Return the one answer to the one bad request before; a good one shows that no more comes."""
    marker = await ask(client, {"media_store_id": 2**63 - 1})
    await client.wait_for(is_event("accepted", marker))
    await eventually(daemon, "outbox", 0)
    # All is with the broker, and what it has for us comes before this.
    last = "inference/reply/last"
    await client.publish(last)
    await client.wait_for(lambda message: message.topic == last)
    others = [m for m in client.received if marker not in m.topic and m.topic != last]
    assert len(others) == 1, others
    assert await daemon.count("jobs") == 1
    return others[0]


async def test_other_live_job_of_the_pair_is_a_conflict(broker: Broker, tmp_path: Path) -> None:
    async with Daemon(broker, tmp_path / "queue.db") as daemon, client_of(broker) as client:
        first = await ask(client, {"media_store_id": 1})
        await client.wait_for(is_event("accepted", first))

        second = await ask(client, {"media_store_id": 1, "request_id": "again"})
        rejected = (await client.wait_for(is_event("rejected", second))).json()
        assert (rejected["event"], rejected["status"]) == ("job_rejected", "rejected")
        assert (rejected["seq"], rejected["request_id"]) == (0, "again")
        assert rejected["data"]["code"] == "conflict"
        assert rejected["data"]["existing_job_id"] == first

        # The same id for another picture is no repeat.
        await ask(client, {"media_store_id": 2, "job_id": first})
        rejected = (await client.wait_for(is_event("rejected", first))).json()
        assert rejected["data"]["code"] == "conflict"
        assert rejected["data"]["existing_job_id"] == first

        # Who chose no job_id has no topic of its own.
        await client.publish(REQUEST, {"media_store_id": 1})
        letter = await client.wait_for(lambda message: "/rejected/" in message.topic)
        assert letter.topic == "inference/rejected/image_embedding"
        assert letter.json()["data"]["existing_job_id"] == first
        assert await daemon.count("jobs") == 1


ID = "550e8400-e29b-41d4-a716-446655440000"


def with_id(text: str) -> bytes:
    return f'{{"job_id": "{ID}", {text}}}'.encode()


@both
@pytest.mark.parametrize(
    ("body", "code", "field"),
    [
        (with_id('"media_store_id": 1, "priority": 11'), "invalid_request", "priority"),
        (with_id('"media_store_id": 1, "priority": -1'), "invalid_request", "priority"),
        (with_id('"media_store_id": 1, "priority": "7"'), "invalid_request", "priority"),
        (with_id('"media_store_id": 1, "priority": 7.0'), "invalid_request", "priority"),
        (with_id('"media_store_id": 1, "priority": true'), "invalid_request", "priority"),
        (with_id('"media_store_id": 1, "priority": null'), "invalid_request", "priority"),
        (with_id('"priority": 7'), "invalid_request", "media_store_id"),
        (with_id('"media_store_id": null'), "invalid_request", "media_store_id"),
        (with_id('"media_store_id": -1'), "invalid_request", "media_store_id"),
        (with_id('"media_store_id": 1.5'), "invalid_request", "media_store_id"),
        (with_id('"media_store_id": 1e400'), "invalid_request", "media_store_id"),
        (with_id('"media_store_id": "1; --"'), "invalid_request", "media_store_id"),
        (with_id('"media_store_id": [1]'), "invalid_request", "media_store_id"),
        (with_id(f'"media_store_id": {2**63}'), "invalid_request", "media_store_id"),
        (with_id(f'"media_store_id": {10**100}'), "invalid_request", "media_store_id"),
        (with_id(f'"media_store_id": 1, "priority": {10**100}'), "invalid_request", "priority"),
        (with_id(f'"media_store_id": 1, "expires_at": {2**64}'), "invalid_request", "expires_at"),
        (with_id('"media_store_id": 1, "expires_at": 1'), "expired", "expires_at"),
        (with_id('"media_store_id": 1, "prioritty": 1'), "invalid_request", "prioritty"),
        (with_id('"media_store_id": 1, "v": 2'), "invalid_request", "v"),
        (with_id('"media_store_id": 1, "force": "yes"'), "invalid_request", "force"),
        (with_id('"media_store_id": 1, "request_id": "a\\nb"'), "invalid_request", "request_id"),
        (with_id('"media_store_id": 1, "request_id": "\\ud800"'), "invalid_request", "request_id"),
    ],
    ids=lambda value: ascii(value)[-40:] if isinstance(value, bytes) else None,
)
async def test_bad_request_with_a_job_id_is_rejected(  # noqa: PLR0917 - fixtures and a table
    broker: Broker, tmp_path: Path, version: Version, body: bytes, code: str, field: str
) -> None:
    async with (
        Daemon(broker, tmp_path / "queue.db", version=version) as daemon,
        client_of(broker, version) as client,
    ):
        await client.publish(REQUEST, body)
        rejected = await only_answer(client, daemon)
    assert rejected.topic == f"inference/job/{ID}/rejected"
    event = rejected.json()
    assert (event["event"], event["job_id"], event["seq"]) == ("job_rejected", ID, 0)
    assert (event["data"]["code"], event["data"]["field"]) == (code, field)
    assert event["data"]["message"]


@pytest.mark.parametrize(
    ("body", "code", "field"),
    [
        (b"", "invalid_json", None),
        (b"{", "invalid_json", None),
        (b'{"media_store_id": \xff}', "invalid_json", None),
        (b'{"request_id": "\xc3\x28", "media_store_id": 1}', "invalid_json", None),
        (b"\xef\xbb\xbf{}", "invalid_json", None),
        (b"\x00" * 300, "invalid_json", None),
        (b'{"media_store_id": NaN}', "invalid_json", None),
        (b'{"media_store_id": -Infinity}', "invalid_json", None),
        (b'{"media_store_id": ' + b"9" * 5000 + b"}", "invalid_json", None),
        (b"[" * 100_000, "invalid_json", None),
        (b'{"a":' * 100_000, "invalid_json", None),
        (b"[]", "invalid_request", None),
        (b'[{"media_store_id": 1}]', "invalid_request", None),
        (b"1", "invalid_request", None),
        (b"null", "invalid_request", None),
        (b'"text"', "invalid_request", None),
        (b"{}", "invalid_request", "media_store_id"),
        (b'{"media_store_id": 1, "priority": 11}', "invalid_request", "priority"),
        (b'{"media_store_id": 1, "job_id": "a/+/b"}', "invalid_request", "job_id"),
        (b'{"media_store_id": 1, "job_id": "#"}', "invalid_request", "job_id"),
        (b'{"media_store_id": 1, "job_id": "../etc"}', "invalid_request", "job_id"),
        (b'{"media_store_id": 1, "job_id": 7}', "invalid_request", "job_id"),
        (b'{"media_store_id": 1, "job_id": ""}', "invalid_request", "job_id"),
        (f'{{"media_store_id": 1, "job_id": "{ID}\\n"}}'.encode(), "invalid_request", "job_id"),
        (f'{{"media_store_id": 1, "job_id": "{{{ID}}}"}}'.encode(), "invalid_request", "job_id"),
        (b'{"media_store_id": 1, "\\ud800": 1}', "invalid_request", None),
        (b'{"media_store_id": 1, "expires_at": 1}', "expired", "expires_at"),
    ],
    ids=lambda value: ascii(value[:40]) if isinstance(value, bytes) else None,
)
async def test_bad_request_without_a_job_id_becomes_a_dead_letter(
    broker: Broker, tmp_path: Path, body: bytes, code: str, field: str | None
) -> None:
    async with Daemon(broker, tmp_path / "queue.db") as daemon, client_of(broker) as client:
        await client.publish(REQUEST, body)
        letter = await only_answer(client, daemon)
    assert letter.topic == "inference/rejected/image_embedding"
    event = letter.json()
    assert (event["event"], event["job_id"]) == ("job_rejected", None)
    assert (event["data"]["code"], event["data"].get("field")) == (code, field)
    assert event["data"]["sha256"] == hashlib.sha256(body).hexdigest()
    assert event["data"]["body"] == body[:200].decode("utf-8", "replace")


async def test_body_of_two_megabytes_becomes_a_dead_letter(broker: Broker, tmp_path: Path) -> None:
    body = json.dumps({"media_store_id": 1, "job_id": ID, "request_id": "x" * 2_000_000}).encode()
    async with Daemon(broker, tmp_path / "queue.db") as daemon, client_of(broker) as client:
        await client.publish(REQUEST, body)
        letter = await only_answer(client, daemon)
        assert daemon.link.connects == 1
    assert letter.topic == "inference/rejected/image_embedding"
    assert letter.json()["data"]["code"] == "too_large"
    assert len(letter.payload) < 2000


@both
@pytest.mark.parametrize(
    ("task", "letter"), [("make_coffee", "make_coffee"), ("Größe ☃", "unknown"), ("$x", "unknown")]
)
async def test_unknown_task_type_is_rejected(
    broker: Broker, tmp_path: Path, version: Version, task: str, letter: str
) -> None:
    async with (
        Daemon(broker, tmp_path / "queue.db", version=version) as daemon,
        client_of(broker, version) as client,
    ):
        await client.publish(f"inference/request/{task}", {"media_store_id": 1})
        dead = await client.wait_for()
        assert dead.topic == f"inference/rejected/{letter}"
        assert dead.json()["data"]["code"] == "unknown_task"

        body = {"media_store_id": 1, "job_id": ID, "request_id": "r"}
        await client.publish(f"inference/request/{task}", body)
        rejected = await client.wait_for()
        assert rejected.topic == f"inference/job/{ID}/rejected"
        assert rejected.json()["data"]["code"] == "unknown_task"
        assert rejected.json()["request_id"] == "r"
        assert await daemon.count("jobs") == 0


async def test_retained_request_is_rejected(broker: Broker, tmp_path: Path) -> None:
    async with Daemon(broker, tmp_path / "queue.db") as daemon, client_of(broker) as client:
        await ask(client, {"media_store_id": 1, "job_id": ID}, retain=True)
        rejected = await only_answer(client, daemon)
    assert rejected.topic == f"inference/job/{ID}/rejected"
    assert rejected.json()["data"]["code"] == "retained_request"


async def test_repeated_rejection_is_the_same_event(broker: Broker, tmp_path: Path) -> None:
    async with Daemon(broker, tmp_path / "queue.db"), client_of(broker) as client:
        letters = []
        for _ in range(2):
            await client.publish(REQUEST, b"no JSON")
            letters.append((await client.wait_for()).json())
    assert letters[0]["event_id"] == letters[1]["event_id"]


# -- when something fails --------------------------------------------------------------------------


async def test_thousand_requests_survive_a_relay_that_dies(broker: Broker, tmp_path: Path) -> None:
    wanted = {new_id(): number for number in range(1000)}
    async with Daemon(broker, tmp_path / "queue.db") as daemon, client_of(broker) as client:
        for job_id, number in wanted.items():
            client.sync.send(REQUEST, {"media_store_id": number, "job_id": job_id})
        for step in (1, 200, 400, 600):
            await client.wait_until(lambda received, most=step: len(received) >= most)  # type: ignore[misc]
            await daemon.restart_relay()
        # The link dies too, in the middle of publishing.
        daemon.link._client._connection._transport.abort()
        await client.wait_until(
            lambda received: {message.json()["job_id"] for message in received} >= set(wanted)
        )
        assert await daemon.count("jobs") == 1000
    assert {message.event for message in client.received} == {"accepted"}
    first = [m.json()["job_id"] for m in client.received if not m.json()["duplicate"]]
    assert set(first) == set(wanted)


async def test_events_wait_for_the_broker(broker: Broker, tmp_path: Path) -> None:
    async with Daemon(broker, tmp_path / "queue.db") as daemon, client_of(broker) as client:
        await ended(daemon.relaying)
        job_id = await ask(client, {"media_store_id": 1})
        await eventually(daemon, "jobs", 1)
        broker.restart()
        await until(lambda: daemon.link.is_up and daemon.link.connects > 1)
        # The client has subscribed anew: its own session, and what came for it, ended with it.
        await until(lambda: client.sync._connects > 1)
        await client.subscribe(EVENTS[0])
        await daemon.restart_relay()
        await client.wait_for(is_event("accepted", job_id))
        await eventually(daemon, "outbox", 0)


async def eventually(daemon: Daemon, table: str, rows: int) -> None:
    async with asyncio.timeout(DEADLINE):
        while await daemon.count(table) != rows:  # noqa: ASYNC110 - a row rings no bell
            await asyncio.sleep(0.005)


async def test_request_is_not_confirmed_while_the_database_is_locked(
    broker: Broker, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with (
        Daemon(broker, tmp_path / "queue.db", busy_timeout_ms=20) as daemon,
        client_of(broker) as client,
    ):
        with contextlib.closing(
            sqlite3.connect(tmp_path / "queue.db", isolation_level=None)
        ) as other:
            other.execute("BEGIN IMMEDIATE")
            jobs = [await ask(client, {"media_store_id": number}) for number in range(20)]
            # It was tried, refused, and came again.
            await until(lambda: caplog.text.count("could not be stored") >= 2 * len(jobs))
            assert await daemon.count("jobs") == 0
            assert client.received == []
            other.execute("ROLLBACK")
        for job_id in jobs:
            await client.wait_for(is_event("accepted", job_id))
        assert await daemon.count("jobs") == len(jobs)


async def test_request_is_not_confirmed_while_the_disk_is_full(
    broker: Broker, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with Daemon(broker, tmp_path / "queue.db") as daemon, client_of(broker) as client:
        writer = daemon.database._writer
        assert writer is not None
        await writer.execute("PRAGMA max_page_count = 1")  # no further page: full as it is
        padding = "x" * 200
        jobs = [
            await ask(client, {"media_store_id": number, "request_id": padding})
            for number in range(100)
        ]
        await until(lambda: "could not be stored" in caplog.text)
        await writer.execute("PRAGMA max_page_count = 1000000")
        await client.wait_until(
            lambda received: {message.json()["job_id"] for message in received} == set(jobs)
        )
        assert await daemon.count("jobs") == len(jobs)
    assert {message.event for message in client.received} == {"accepted"}
