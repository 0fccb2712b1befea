"""The one event shape, to the letter, and where events go."""

import hashlib
import json
import uuid
from dataclasses import replace
from typing import Any

import pytest

from daemon.errors import InvalidRequestError
from daemon.events import (
    NAMESPACE,
    Event,
    Message,
    job_messages,
    progress_messages,
    rejection_messages,
    removal_messages,
    terminal_events,
    terminal_messages,
)
from daemon.jobs import Job, JobState, TaskType, dump_json, dump_result

ID = "550E8400-e29b-41d4-a716-446655440000"
JOB = Job(
    job_id=ID,
    task_type=TaskType.FACE_DETECTION,
    media_store_id=123,
    priority=7,
    status=JobState.COMPLETED,
    created_at=1,
    started_at=2,
    completed_at=3,
    result={"faces": []},
    request_id="mine",
    attempt=2,
    seq=4,
)


def body(message: Message) -> Any:
    return json.loads(message.payload)


def test_an_event_is_exactly_the_documented_envelope() -> None:
    (message,) = job_messages(Event.COMPLETED, JOB, worker_id="w", now=9)

    event = body(message)
    assert message.topic == f"inference/job/{ID}/completed"
    assert str(uuid.UUID(event.pop("event_id")))
    assert event == {
        "v": 1,
        "event": "job_completed",
        "seq": 4,
        "timestamp": 9,
        "job_id": ID,
        "request_id": "mine",
        "worker_id": "w",
        "status": "completed",
        "data": {
            "job_id": ID,
            "task_type": "face_detection",
            "media_store_id": 123,
            "status": "completed",
            "priority": 7,
            "created_at": 1,
            "started_at": 2,
            "completed_at": 3,
            "error_message": None,
            "result": {"faces": []},
        },
    }


def test_the_same_event_has_the_same_id_whenever_and_by_whom_it_is_sent() -> None:
    (first,) = job_messages(Event.COMPLETED, JOB, worker_id="w", now=9)
    (again,) = job_messages(Event.COMPLETED, JOB, worker_id="other", now=99)

    assert body(first)["event_id"] == body(again)["event_id"]


def test_the_id_of_an_event_is_the_uuid5_of_its_name() -> None:
    events = [
        (job_messages(event, replace(JOB, seq=seq), worker_id="w", now=9)[0], event, seq)
        for event in Event
        for seq in range(100)
    ]

    for message, event, seq in events:
        name = f"{ID}:1:{seq}:{event.value}"
        assert body(message)["event_id"] == str(uuid.uuid5(NAMESPACE, name))


@pytest.mark.parametrize(
    ("event", "changes"),
    [
        (Event.FAILED, {}),
        (Event.COMPLETED, {"seq": 5}),
        (Event.COMPLETED, {"job_id": ID.lower()}),
        (Event.COMPLETED, {"created_at": 2}),
    ],
)
def test_another_event_has_another_id(event: Event, changes: dict[str, Any]) -> None:
    (first,) = job_messages(Event.COMPLETED, JOB, worker_id="w", now=9)
    (other,) = job_messages(event, replace(JOB, **changes), worker_id="w", now=9)

    assert body(first)["event_id"] != body(other)["event_id"]


@pytest.mark.parametrize("state", JobState)
def test_terminal_states_make_as_many_events_as_seq_rises(state: JobState) -> None:
    expected = {JobState.COMPLETED: 1, JobState.ERROR: 2, JobState.SYNC_FAILED: 2}

    assert terminal_events(state) == expected.get(state, 0)
    if state.is_terminal:
        messages = terminal_messages(replace(JOB, status=state), worker_id="w", now=9)
        assert len(messages) == expected[state]


@pytest.mark.parametrize("state", [JobState.ERROR, JobState.SYNC_FAILED])
def test_a_failure_is_told_as_completed_first(state: JobState) -> None:
    job = replace(JOB, status=state, error_code="c", error_message="c: m")

    completed, failed = terminal_messages(job, worker_id="w", now=9)

    assert (completed.topic.rpartition("/")[2], body(completed)["seq"]) == ("completed", 3)
    assert (failed.topic.rpartition("/")[2], body(failed)["seq"]) == ("failed", 4)
    assert body(completed)["status"] == body(failed)["status"] == state.value


def test_an_event_goes_to_the_reply_topic_too() -> None:
    job = replace(JOB, reply_to="inference/reply/me", correlation_data="YQ==")

    own, reply = job_messages(Event.COMPLETED, job, worker_id="w", now=9)

    assert (own.correlation_data, reply.correlation_data) == (None, "YQ==")
    assert (reply.topic, reply.payload) == ("inference/reply/me", own.payload)


def test_a_result_is_shown_once_the_job_is_over() -> None:
    waiting = replace(JOB, status=JobState.PENDING, completed_at=None)

    assert waiting.to_wire()["result"] is None
    assert JOB.to_wire()["result"] == {"faces": []}


ODD = 'a "quote", a \\ and \n, é 😀'


@pytest.mark.parametrize(
    "job",
    [
        JOB,
        replace(JOB, request_id=None, started_at=None, media_store_id=2**63 - 1),
        replace(JOB, status=JobState.PENDING, completed_at=None, error_message="c: m"),
        replace(JOB, status=JobState.ERROR, error_message=ODD, result=None, request_id=ODD),
        replace(JOB, status=JobState.SYNC_FAILED, error_message=ODD, result={"é": [0.1, ODD]}),
        replace(JOB, result={}),
    ],
)
def test_a_job_in_an_event_is_as_in_an_answer_whether_its_result_is_text_already_or_not(
    job: Job,
) -> None:
    known = None if job.result is None else dump_result(job.result)
    for text in (None, known):
        (message,) = job_messages(Event.STARTED, job, worker_id=ODD, now=9, result_text=text)

        event = body(message)
        assert (event["worker_id"], event["request_id"]) == (ODD, job.request_id)
        assert list(event["data"].items()) == list(job.to_wire().items())
        assert message.payload == dump_json(event)


def test_what_else_an_event_says_stands_beside_its_job() -> None:
    (message,) = job_messages(Event.ACCEPTED, JOB, worker_id="w", now=9, extra={"duplicate": False})

    assert list(body(message))[-2:] == ["data", "duplicate"]
    assert body(message)["duplicate"] is False


def test_an_error_is_shown_once_the_job_is_over() -> None:
    waiting = replace(JOB, status=JobState.PENDING, error_message="c: m")
    failed = replace(JOB, status=JobState.ERROR, error_message="c: m")

    assert waiting.to_wire()["error_message"] is None
    assert failed.to_wire()["error_message"] == "c: m"


def rejected(job_id: str | None, **fields: Any) -> Message:
    arguments: dict[str, Any] = {
        "code": "conflict",
        "message": "m",
        "topic_task": "face_detection",
        "body": b"\xffbody" + b"x" * 300,
        "request_id": None,
        "worker_id": "w",
        "now": 9,
    }
    (message,) = rejection_messages(job_id=job_id, **arguments | fields)
    return message


def test_a_rejection_names_what_is_wrong() -> None:
    error = InvalidRequestError("priority: too much", field="priority")

    message = rejected(ID, error=error)

    assert message.topic == f"inference/job/{ID}/rejected"
    assert body(message)["data"] == {
        "code": "invalid_request",
        "message": "priority: too much",
        "field": "priority",
    }


def test_a_dead_letter_shows_what_came() -> None:
    message = rejected(None)

    data = body(message)["data"]
    assert message.topic == "inference/rejected/face_detection"
    assert data["sha256"] == hashlib.sha256(b"\xffbody" + b"x" * 300).hexdigest()
    assert data["body"] == "�body" + "x" * 195


def test_a_rejection_without_a_wait_has_no_such_key() -> None:
    assert body(rejected(ID))["data"] == {"code": "conflict", "message": "m"}


def test_a_redelivered_request_repeats_its_rejection() -> None:
    first, again = body(rejected(ID)), body(rejected(ID, now=99))

    assert first["event_id"] == again["event_id"]


@pytest.mark.parametrize("changes", [{"code": "queue_full"}, {"topic_task": "image_embedding"}])
def test_another_reason_or_task_is_another_event(changes: dict[str, Any]) -> None:
    assert body(rejected(ID))["event_id"] != body(rejected(ID, **changes))["event_id"]


def test_the_first_entry_of_a_batch_has_a_place_too() -> None:
    assert body(rejected(ID, index=0))["data"]["index"] == 0


@pytest.mark.parametrize("changes", [{"seq": 5}, {"created_at": 2}, {"job_id": ID.lower()}])
def test_the_same_stage_of_another_attempt_or_job_is_another_event(changes: dict[str, Any]) -> None:
    ids = {
        body(message)["event_id"]
        for job in (JOB, JOB, replace(JOB, **changes))
        for message in progress_messages(job, "infer", fraction=0.6, worker_id="w", now=9)
    }

    assert len(ids) == 2


def test_each_removal_of_a_picture_is_an_event_of_its_own() -> None:
    told = [removal_messages(7, {"jobs": 0}, worker_id="w", now=9) for _ in range(2)]

    assert len({body(message)["event_id"] for (message,) in told}) == 2


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_what_is_no_json_is_never_written(value: float) -> None:
    with pytest.raises(ValueError, match="not JSON compliant"):
        dump_json({"a": [value]})


@pytest.mark.parametrize("result", [None, [], "{}", 1])
def test_a_result_is_an_object(result: Any) -> None:
    with pytest.raises(TypeError):
        dump_result(result)


def test_a_result_with_a_lone_surrogate_is_refused() -> None:
    with pytest.raises(ValueError, match="surrogates"):
        dump_result({"a": "\ud800"})
