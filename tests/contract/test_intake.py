"""One way in: whatever comes is durably accepted or durably refused, and never raises."""

import base64
import json
import uuid
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, TypeAlias

import pytest

from daemon.errors import ConflictError, InvalidRequestError, QueueFullError, StorageError
from daemon.intake import Intake, new_job_id
from daemon.jobs import JsonObject, TaskType
from daemon.requests import MAX_CORRELATION_BYTES, JobRequest, MqttRequest
from daemon.topics import is_job_id
from tests.queue_bench import NOON, Bench, Told, open_bench

ID = "550E8400-e29b-41d4-a716-446655440000"
TOPIC = "inference/request/image_embedding"
LARGEST = 2048
Door: TypeAlias = Callable[[Intake, JsonObject], Awaitable[object]]


@pytest.fixture
def intake(bench: Bench) -> Intake:
    return an_intake(bench)


def an_intake(bench: Bench) -> Intake:
    return Intake(
        bench.queue, clock=bench.clock, worker_id="inferd-test", max_request_bytes=LARGEST
    )


async def send(
    intake: Intake, bench: Bench, body: Any, topic: str = TOPIC, **properties: Any
) -> list[Told]:
    """Hand over one message and return what was told of it."""
    before = len(await bench.told())
    payload = body if isinstance(body, bytes) else json.dumps(body).encode()
    await intake.on_request(MqttRequest(topic=topic, payload=payload, **properties))
    return (await bench.told())[before:]


async def by_message(intake: Intake, asked: JsonObject) -> None:
    await intake.on_request(MqttRequest(topic=TOPIC, payload=json.dumps(asked).encode()))


async def in_a_batch(intake: Intake, asked: JsonObject) -> None:
    await by_message(intake, {"requests": [asked]})


async def over_rest(intake: Intake, asked: JsonObject) -> None:
    await intake.submit(TaskType.IMAGE_EMBEDDING, JobRequest(**asked))


through_each_door = pytest.mark.parametrize("door", [by_message, in_a_batch, over_rest])


@through_each_door
async def test_all_that_is_asked_gets_through(bench: Bench, intake: Intake, door: Door) -> None:
    await bench.accept(7)
    asked = {"job_id": ID, "priority": 9, "request_id": "mine", "expires_at": NOON + 1}

    await door(intake, {"media_store_id": 7, "force": True, **asked})

    rows = await bench.rows(f"SELECT media_store_id, {', '.join(asked)} FROM jobs")
    assert rows == [(7, *asked.values())]


@through_each_door
async def test_a_repeat_that_comes_after_its_time_is_a_duplicate_still(
    bench: Bench, intake: Intake, door: Door
) -> None:
    # It was told `rejected` of a job that was accepted, and may be done by now.
    asked = {"media_store_id": 7, "job_id": ID, "expires_at": NOON + 1000}
    await door(intake, asked)
    bench.clock.advance(seconds=1)

    await door(intake, asked)

    told = await bench.told()
    assert [(each.name, each.event["duplicate"]) for each in told] == [
        ("accepted", False),
        ("accepted", True),
    ]


async def test_a_good_request_is_accepted(bench: Bench, intake: Intake) -> None:
    (told,) = await send(intake, bench, {"media_store_id": 7, "job_id": ID, "priority": 9})

    assert told.topic == f"inference/job/{ID}/accepted"
    assert told.event["data"]["priority"] == 9


async def test_a_request_without_a_job_id_gets_one(bench: Bench, intake: Intake) -> None:
    (told,) = await send(intake, bench, {"media_store_id": 7})

    assert is_job_id(told.event["job_id"])


async def test_a_redelivered_request_is_a_duplicate(bench: Bench, intake: Intake) -> None:
    body = {"media_store_id": 7, "job_id": ID}
    await send(intake, bench, body)

    (told,) = await send(intake, bench, body)

    assert told.event["duplicate"] is True
    assert await bench.rows("SELECT count(*) FROM jobs") == [(1,)]


@pytest.mark.parametrize(
    ("body", "code"),
    [
        (b"", "invalid_json"),
        (b"\xff\xfe", "invalid_json"),
        (b"[]", "invalid_request"),
        (b'{"media_store_id": NaN}', "invalid_json"),
        (b"x" * (LARGEST + 1), "too_large"),
        (b"[" * LARGEST, "invalid_json"),
        ({}, "invalid_request"),
        ({"media_store_id": 1, "priority": 11}, "invalid_request"),
        ({"media_store_id": 1, "job_id": ID[:-1] + "+"}, "invalid_request"),
        ({"media_store_id": 1, "job_id": ID[:-1] + "/"}, "invalid_request"),
        ({"media_store_id": 1, "job_id": "\ud800"}, "invalid_request"),
        ({"media_store_id": 1, "expires_at": NOON}, "expired"),
    ],
    ids=lambda value: repr(value)[:32],
)
async def test_a_bad_request_is_a_dead_letter(
    bench: Bench, intake: Intake, body: Any, code: str
) -> None:
    (told,) = await send(intake, bench, body)

    assert told.topic == "inference/rejected/image_embedding"
    assert told.event["data"]["code"] == code
    assert "sha256" in told.event["data"]
    assert await bench.rows("SELECT count(*) FROM jobs") == [(0,)]


@pytest.mark.parametrize(
    ("changes", "properties", "code"),
    [
        ({"priority": "7"}, {}, "invalid_request"),
        ({"expires_at": NOON - 1}, {}, "expired"),
        ({}, {"is_retained": True}, "retained_request"),
        ({}, {"response_topic": "somewhere/else"}, "invalid_request"),
        ({}, {"response_topic": "inference/reply/\ud800"}, "invalid_request"),
        ({}, {"topic": "inference/request/video"}, "unknown_task"),
    ],
)
async def test_a_bad_request_with_a_job_id_is_answered_on_its_topic(
    bench: Bench, intake: Intake, changes: dict[str, Any], properties: dict[str, Any], code: str
) -> None:
    body = {"media_store_id": 1, "job_id": ID, "request_id": "mine"} | changes

    (told,) = await send(intake, bench, body, **properties)

    assert told.topic == f"inference/job/{ID}/rejected"
    assert (told.event["data"]["code"], told.event["request_id"]) == (code, "mine")


@pytest.mark.parametrize("word", ["video", "a/b", "+", "", "ü", "\ufffd", "x" * 500])
async def test_an_unknown_task_makes_no_odd_topic(bench: Bench, intake: Intake, word: str) -> None:
    (told,) = await send(intake, bench, {"media_store_id": 1}, f"inference/request/{word}")

    assert told.topic in ("inference/rejected/unknown", "inference/rejected/video")


async def test_a_refusal_is_told_once_however_often_the_request_comes(
    bench: Bench, intake: Intake
) -> None:
    first = await send(intake, bench, b"nonsense")
    again = await send(intake, bench, b"nonsense")

    assert first[0].event["event_id"] == again[0].event["event_id"]


async def test_large_correlation_data_is_refused_once_for_all_of_a_message(
    bench: Bench, intake: Intake
) -> None:
    # MQTT's 64 KiB, kept for each of 1,000 requests and for each of their answers, were 170 MB.
    told = await send(
        intake,
        bench,
        {"requests": [{"media_store_id": 1}, {"media_store_id": 2}]},
        response_topic="inference/reply/me",
        correlation_data=base64.b64encode(bytes(MAX_CORRELATION_BYTES + 1)).decode(),
    )

    assert [each.name for each in told] == ["image_embedding", "me"]
    assert told[0].event["data"]["field"] == "correlation_data"
    assert await bench.rows("SELECT count(*) FROM jobs") == [(0,)]


async def test_correlation_data_of_the_largest_size_is_taken(bench: Bench, intake: Intake) -> None:
    largest = base64.b64encode(bytes(MAX_CORRELATION_BYTES)).decode()

    (told,) = await send(intake, bench, {"media_store_id": 1}, correlation_data=largest)

    assert told.name == "accepted"
    assert await bench.rows("SELECT correlation_data FROM jobs") == [(largest,)]


async def test_the_response_topic_and_correlation_data_are_honoured(
    bench: Bench, intake: Intake
) -> None:
    told = await send(
        intake,
        bench,
        {"media_store_id": 1, "job_id": ID},
        response_topic="inference/reply/me",
        correlation_data="YWJj",
    )

    assert [(each.topic, each.correlation_data) for each in told] == [
        (f"inference/job/{ID}/accepted", None),
        ("inference/reply/me", "YWJj"),
    ]


async def test_the_body_may_name_the_reply_topic_for_mqtt_3(bench: Bench, intake: Intake) -> None:
    told = await send(intake, bench, {"media_store_id": 1, "reply_to": "inference/reply/me"})

    assert told[-1].topic == "inference/reply/me"


async def test_of_two_reply_topics_a_refusal_goes_to_the_bodys(
    bench: Bench, intake: Intake
) -> None:
    body = {"media_store_id": "x", "reply_to": "inference/reply/body"}

    told = await send(intake, bench, body, response_topic="inference/reply/property")

    assert [each.topic for each in told[1:]] == ["inference/reply/body"]


async def test_a_request_that_cannot_be_stored_is_not_acknowledged(
    bench: Bench, intake: Intake
) -> None:
    # What every engine refuses alike, amid the transaction.
    await bench.execute("ALTER TABLE outbox RENAME TO elsewhere")

    for body in (b'{"media_store_id": 1}', b"nonsense"):
        with pytest.raises(StorageError):
            await intake.on_request(MqttRequest(topic=TOPIC, payload=body))


# -- REST --------------------------------------------------------------------------------------


async def test_a_rest_request_is_accepted_with_its_job(bench: Bench, intake: Intake) -> None:
    accepted = await intake.submit(TaskType.FACE_DETECTION, JobRequest(media_store_id=3))

    assert await bench.queue.get(accepted.job.job_id) == accepted.job


async def test_a_rest_conflict_names_the_job_in_the_way(bench: Bench, intake: Intake) -> None:
    await intake.submit(TaskType.FACE_DETECTION, JobRequest(media_store_id=3, job_id=ID))

    with pytest.raises(ConflictError) as caught:
        await intake.submit(TaskType.FACE_DETECTION, JobRequest(media_store_id=3))

    assert caught.value.existing_job_id == ID


async def test_a_rest_request_that_expired_is_refused(intake: Intake) -> None:
    with pytest.raises(InvalidRequestError) as caught:
        await intake.submit(TaskType.FACE_DETECTION, JobRequest(media_store_id=3, expires_at=NOON))

    assert (caught.value.code, caught.value.field) == ("expired", "expires_at")


async def test_a_rest_request_to_a_full_queue_says_when_to_come_back(tmp_path: Path) -> None:
    async with open_bench(tmp_path / "q.db", max_pending=1) as bench:
        intake = an_intake(bench)
        await intake.submit(TaskType.FACE_DETECTION, JobRequest(media_store_id=1))

        with pytest.raises(QueueFullError) as caught:
            await intake.submit(TaskType.FACE_DETECTION, JobRequest(media_store_id=2))

    assert caught.value.retry_after_ms > 0


def test_our_job_ids_are_uuids_of_version_7_that_rise_with_time() -> None:
    ids = [new_job_id() for _ in range(1000)]

    assert len(set(ids)) == 1000
    assert {uuid.UUID(each).version for each in ids} == {7}
    assert {uuid.UUID(each).variant for each in ids} == {uuid.RFC_4122}
    assert [each[:13] for each in ids] == sorted(each[:13] for each in ids)
