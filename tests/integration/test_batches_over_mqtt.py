"""Batches and reply topics as a client sees them: real mosquitto, SQLite, intake and outbox."""

import asyncio
import hashlib
import json
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest

from daemon import topics
from daemon.errors import StorageError
from daemon.intake import Intake
from daemon.requests import MqttRequest
from tests.broker import AsyncClient, Broker, Message
from tests.integration.test_intake_over_mqtt import (
    DEADLINE,
    REQUEST,
    Daemon,
    client_of,
    eventually,
    is_event,
    new_id,
)
from tests.queue_bench import Bench, open_bench

REPLY = "inference/reply/alice/1"
SECRET = b"\x00\xff\x01"


@pytest.fixture
def broker(tmp_path: Path) -> Iterator[Broker]:
    with Broker(tmp_path) as broker:
        yield broker


@pytest.fixture
async def bench(tmp_path: Path) -> AsyncIterator[Bench]:
    async with open_bench(tmp_path / "bench.db") as bench:
        yield bench


@pytest.fixture
def intake(bench: Bench) -> Intake:
    return Intake(bench.queue, clock=bench.clock, worker_id="w", max_request_bytes=2**20)


def batch(*entries: Any) -> bytes:
    return json.dumps({"requests": entries}).encode()


def message(payload: bytes) -> MqttRequest:
    return MqttRequest(topic=REQUEST, payload=payload)


async def settled(client: AsyncClient, daemon: Daemon, least: int) -> list[Message]:
    """Return all answers once there are so many; an own message behind them shows the end."""
    await client.wait_until(lambda received: len(received) >= least)
    await eventually(daemon, "outbox", 0)
    await client.publish("inference/reply/last")
    await client.wait_for(lambda message: message.topic == "inference/reply/last")
    return [each for each in client.received if each.topic != "inference/reply/last"]


# -- batches -----------------------------------------------------------------------------------


async def test_a_thousand_requests_in_one_message(broker: Broker, tmp_path: Path) -> None:
    ids = [new_id() for _ in range(1000)]
    async with Daemon(broker, tmp_path / "queue.db") as daemon, client_of(broker) as client:
        assert await client.publish(
            REQUEST,
            batch(*({"media_store_id": n, "job_id": each} for n, each in enumerate(ids))),
        ) in (0, 16)
        # A PUBACK of the broker to us says nothing of the daemon: its answers do.
        await client.wait_until(lambda received: len(received) >= len(ids))

        assert [each.topic for each in client.received] == [
            topics.job_event(each, "accepted") for each in ids
        ]
        assert await daemon.count("jobs") == 1000
        assert daemon.link.connects == 1


async def test_a_batch_is_one_commit(
    bench: Bench, intake: Intake, monkeypatch: pytest.MonkeyPatch
) -> None:
    writes = []
    write = bench.database.write

    async def counted(work: Any, *, durable: bool = False) -> Any:
        writes.append(durable)
        return await write(work, durable=durable)

    monkeypatch.setattr(bench.database, "write", counted)

    await intake.on_request(message(batch(*({"media_store_id": n} for n in range(1000)))))

    assert writes == [True]
    assert await bench.rows("SELECT count(*) FROM jobs") == [(1000,)]


async def test_a_batch_that_cannot_be_stored_leaves_nothing_and_is_not_confirmed(
    bench: Bench, intake: Intake
) -> None:
    await bench.execute(
        "CREATE TRIGGER full BEFORE INSERT ON jobs WHEN new.media_store_id = 900"
        " BEGIN SELECT RAISE(ABORT, 'disk'); END"
    )

    with pytest.raises(StorageError):
        await intake.on_request(message(batch(*({"media_store_id": n} for n in range(1000)))))

    assert await bench.rows("SELECT count(*) FROM jobs") == [(0,)]
    assert await bench.told() == []


async def test_a_redelivered_batch_changes_nothing(bench: Bench, intake: Intake) -> None:
    payload = batch(*({"media_store_id": n, "job_id": new_id()} for n in range(9)), {"bad": 1})
    await intake.on_request(message(payload))
    first = await bench.told()

    await intake.on_request(message(payload))

    again = (await bench.told())[len(first) :]
    assert await bench.rows("SELECT count(*) FROM jobs") == [(9,)]
    assert [each.topic for each in again] == [each.topic for each in first]
    (letter, repeated) = (
        next(each.event for each in told if "rejected" in each.topic) for told in (first, again)
    )
    assert letter["event_id"] == repeated["event_id"]
    assert {each.event.get("duplicate") for each in again} == {True, None}


async def test_each_entry_has_a_fate_of_its_own(broker: Broker, tmp_path: Path) -> None:
    good, bad, rival, expired = (new_id() for _ in range(4))
    entries = [
        {"media_store_id": 1, "job_id": good, "request_id": "good"},
        {"media_store_id": 2, "job_id": bad, "priority": 11},
        "no object",
        {"media_store_id": 1, "job_id": rival},
        {"media_store_id": 3, "job_id": "no uuid \ud800"},
        {"media_store_id": 1},
        {"media_store_id": 4, "job_id": expired, "expires_at": 1},
        {"requests": [{"media_store_id": 5}]},
        {"media_store_id": 1, "job_id": good, "request_id": "good"},
        {"media_store_id": 6},
    ]
    payload = batch(*entries)
    async with Daemon(broker, tmp_path / "queue.db") as daemon, client_of(broker) as client:
        await client.publish(REQUEST, payload)
        answers = [
            (each.topic, each.json()) for each in await settled(client, daemon, len(entries))
        ]
        assert await daemon.count("jobs") == 2

    told = {topic: event for topic, event in answers if "/job/" in topic}
    assert told[f"inference/job/{good}/accepted"]["duplicate"] is True
    for job_id, code, index in ((bad, "invalid_request", 1), (rival, "conflict", 3)):
        data = told[f"inference/job/{job_id}/rejected"]["data"]
        assert (data["code"], data["index"]) == (code, index)
    assert told[f"inference/job/{expired}/rejected"]["data"]["code"] == "expired"
    letters = {
        event["data"]["index"]: event["data"] for topic, event in answers if "/job/" not in topic
    }
    assert {index: data["code"] for index, data in letters.items()} == {
        2: "invalid_request",
        4: "invalid_request",
        5: "conflict",
        7: "invalid_request",
    }
    assert letters[2]["body"] == '"no object"'
    assert {data["sha256"] for data in letters.values()} == {hashlib.sha256(payload).hexdigest()}
    assert letters[5]["existing_job_id"] == good
    ids = [event["event_id"] for _, event in answers]
    assert len(set(ids)) == len(ids)


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({"requests": []}, "requests"),
        ({"requests": [{"media_store_id": n} for n in range(1001)]}, "requests"),
        ({"requests": {"media_store_id": 1}}, "requests"),
        ({"requests": None}, "requests"),
        ({"requests": [{"media_store_id": 1}], "priority": 1}, "priority"),
        ({"requests": [{"media_store_id": 1}], "v": 2}, "v"),
    ],
    ids=["empty", "1001", "object", "null", "more", "version"],
)
async def test_what_is_no_batch_is_one_dead_letter(
    bench: Bench, intake: Intake, body: Any, field: str
) -> None:
    payload = json.dumps(body).encode()

    await intake.on_request(message(payload))

    (told,) = await bench.told()
    assert told.topic == "inference/rejected/image_embedding"
    data = told.event["data"]
    assert (data["code"], data["field"]) == ("invalid_request", field)
    assert data["sha256"] == hashlib.sha256(payload).hexdigest()
    assert await bench.rows("SELECT count(*) FROM jobs") == [(0,)]


async def test_a_batch_over_the_byte_limit_is_one_dead_letter(bench: Bench) -> None:
    intake = Intake(bench.queue, clock=bench.clock, worker_id="w", max_request_bytes=1024)

    await intake.on_request(message(batch(*({"media_store_id": n} for n in range(100)))))

    (told,) = await bench.told()
    assert told.event["data"]["code"] == "too_large"


async def test_an_entry_nested_too_deeply_to_be_shown_harms_no_other(
    bench: Bench, intake: Intake
) -> None:
    # The deepest that can be read at all may be too deep to be written again.
    for depth in (100, 900, 1000, 5000, 20_000):
        deep = b"[" * depth + b"]" * depth
        await intake.on_request(
            message(b'{"requests": [{"media_store_id": %d}, %s]}' % (depth, deep))
        )

    told = await bench.told()
    assert told[0].name == "accepted"
    assert {each.event["data"].get("code") for each in told} <= {
        None,
        "invalid_request",
        "invalid_json",
    }


async def test_a_full_queue_takes_of_a_batch_what_fits(tmp_path: Path) -> None:
    async with open_bench(tmp_path / "q.db", max_pending=3) as bench:
        intake = Intake(bench.queue, clock=bench.clock, worker_id="w", max_request_bytes=2**20)

        await intake.on_request(message(batch(*({"media_store_id": n} for n in range(5)))))

        names = [each.event["data"].get("code", "accepted") for each in await bench.told()]
    assert names == ["accepted"] * 3 + ["queue_full"] * 2


# -- reply topics ------------------------------------------------------------------------------


async def test_every_answer_to_a_batch_goes_to_the_reply_topic_too(
    broker: Broker, tmp_path: Path
) -> None:
    other = "inference/reply/bob"
    entries = [
        {"media_store_id": 1, "job_id": new_id()},
        {"media_store_id": 1, "job_id": new_id()},
        {"media_store_id": 2, "priority": 99},
        {"media_store_id": 3, "job_id": new_id(), "reply_to": other},
    ]
    async with Daemon(broker, tmp_path / "queue.db") as daemon, client_of(broker) as client:
        await client.publish(
            REQUEST, batch(*entries), response_topic=REPLY, correlation_data=SECRET
        )
        answers = await settled(client, daemon, 2 * len(entries))

    originals = [each for each in answers if "/reply/" not in each.topic]
    copies = [each for each in answers if "/reply/" in each.topic]
    assert sorted(each.payload for each in copies) == sorted(each.payload for each in originals)
    assert [each.topic for each in copies].count(other) == 1
    assert {each.correlation_data for each in copies} == {SECRET}
    assert {each.correlation_data for each in originals} == {None}


@pytest.mark.parametrize(
    ("topic", "body", "code"),
    [
        (REQUEST, b"no JSON", "invalid_json"),
        (REQUEST, b'{"media_store_id": 1, "priority": 11}', "invalid_request"),
        (REQUEST, b'{"media_store_id": 1, "reply_to": "elsewhere"}', "invalid_request"),
        (REQUEST, b'{"requests": []}', "invalid_request"),
        (REQUEST, b'{"media_store_id": 7}', "conflict"),
        ("inference/request/make_coffee", b'{"media_store_id": 1}', "unknown_task"),
    ],
    ids=["json", "field", "reply_to", "batch", "conflict", "task"],
)
async def test_a_refusal_reaches_the_reply_topic_with_correlation_data(
    broker: Broker, tmp_path: Path, topic: str, body: bytes, code: str
) -> None:
    async with Daemon(broker, tmp_path / "queue.db") as daemon, client_of(broker) as client:
        job_id = new_id()
        await client.publish(REQUEST, {"media_store_id": 7, "job_id": job_id})
        await client.wait_for(is_event("accepted", job_id))
        await client.publish(topic, body, response_topic=REPLY, correlation_data=SECRET)
        copy = await client.wait_for(lambda each: each.topic == REPLY)
        answers = await settled(client, daemon, 3)

    assert copy.json()["data"]["code"] == code
    assert copy.correlation_data == SECRET
    letter = next(each for each in answers if "/rejected/" in each.topic)
    assert letter.payload == copy.payload
    assert len(answers) == 3


async def test_many_batches_at_once_leave_room_for_others(bench: Bench, intake: Intake) -> None:
    batches = [
        message(batch(*({"media_store_id": 1000 * k + n} for n in range(500)))) for k in range(6)
    ]
    await bench.accept(2**40)
    async with asyncio.timeout(DEADLINE), asyncio.TaskGroup() as group:
        tasks = [group.create_task(intake.on_request(each)) for each in batches]
        while not (leases := await bench.lease(limit=1)):
            pass
        # One batch at a time stands at the door: the lease did not wait for all of them.
        assert not all(task.done() for task in tasks)

    assert leases[0].job.media_store_id == 2**40
    assert await bench.rows("SELECT count(*) FROM jobs") == [(3001,)]
