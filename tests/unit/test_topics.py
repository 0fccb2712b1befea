"""The topic grammar: only safe words become part of a topic."""

import pytest

from daemon.jobs import TaskType
from daemon.topics import (
    PROBE,
    availability,
    dead_letter,
    is_cancel,
    is_job_id,
    is_probe,
    is_reply_topic,
    job_event,
    requested_task,
)

ID = "550e8400-e29b-41d4-a716-446655440000"


@pytest.mark.parametrize("text", [ID, ID.upper(), "550E8400-e29b-41d4-a716-446655440000"])
def test_a_uuid_of_either_case_is_a_job_id(text: str) -> None:
    assert is_job_id(text)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "+",
        "#",
        ID + "\n",
        ID + " ",
        " " + ID,
        ID[:-1],
        ID + "0",
        ID.replace("-", ""),
        "{" + ID + "}",
        "urn:uuid:" + ID,
        ID[:-1] + "+",
        ID[:-1] + "/",
        ID[:-1] + "#",
        ID[:-1] + "g",
        ID[:-1] + "٣",
        "x" * 36,
    ],
)
def test_nothing_else_is_a_job_id(text: str) -> None:
    assert not is_job_id(text)


@pytest.mark.parametrize(
    "text",
    [
        "inference/reply/me",
        "inference/reply/me/7/a b",
        "inference/reply/ü",
        "inference/reply/" + "x" * 240,
    ],
)
def test_a_topic_below_reply_may_be_answered_to(text: str) -> None:
    assert is_reply_topic(text)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "inference/reply",
        "inference/reply/",
        "inference/reply//a",
        "inference/reply/a/",
        "inference/replyx/a",
        "/inference/reply/a",
        "Inference/reply/a",
        "inference/job/550e8400-e29b-41d4-a716-446655440000/completed",
        "inference/reply/../request/image_embedding/+",
        "inference/reply/+",
        "inference/reply/#",
        "inference/reply/a+b",
        "inference/reply/a#",
        "inference/reply/$SYS",
        "inference/reply/a\x00b",
        "inference/reply/a\n",
        "inference/reply/a\x7f",
        "inference/reply/a\x85b",
        "inference/reply/\ud800",
        "inference/reply/\ufdd0",
        "inference/reply/\ufdef",
        "inference/reply/\ufffe",
        "inference/reply/\U0010ffff",
        "inference/reply/" + "x" * 241,
        "inference/reply/" + "ü" * 121,
    ],
)
def test_nothing_else_may_be_answered_to(text: str) -> None:
    assert not is_reply_topic(text)


def test_the_documented_topics() -> None:
    assert job_event(ID, "completed") == f"inference/job/{ID}/completed"
    assert availability("inferd-a") == "inference/worker/inferd-a/availability"
    assert dead_letter("image_embedding") == "inference/rejected/image_embedding"


@pytest.mark.parametrize("task", ["", "+", "#", "a/b", "A", "ü", "a\x00", "a" * 65, "9", "\ud800"])
def test_a_dead_letter_never_carries_a_clients_odd_word(task: str) -> None:
    assert dead_letter(task) == "inference/rejected/unknown"


@pytest.mark.parametrize(
    ("topic", "task"),
    [
        ("inference/request/image_embedding", "image_embedding"),
        ("inference/request/nonsense", "nonsense"),
        ("inference/request/", None),
        ("inference/request", None),
        ("inference/request/a/b", None),
        ("inference/requests/a", None),
        ("x/inference/request/a", None),
        ("", None),
    ],
)
def test_the_task_is_the_last_level_of_a_request(topic: str, task: str | None) -> None:
    assert requested_task(topic) == task


@pytest.mark.parametrize("kind", ["request", "cancel"])
def test_a_probe_is_no_request_and_no_job(kind: str) -> None:
    assert is_probe(f"inference/{kind}/{PROBE}")
    assert not is_job_id(PROBE)
    assert PROBE not in set(TaskType)


@pytest.mark.parametrize(
    "topic",
    [
        "inference/request/image_embedding",
        f"inference/request/{PROBE}/x",
        f"inference/job/{PROBE}",
        f"{PROBE}",
        f"inference/cancel/{ID}",
    ],
)
def test_nothing_else_is_a_probe(topic: str) -> None:
    assert not is_probe(topic)


@pytest.mark.parametrize(
    ("topic", "expected"),
    [
        ("inference/cancel/", True),
        ("inference/cancel/x", True),
        ("inference/request/cancel", False),
        ("inference/cancelled/x", False),
    ],
)
def test_a_cancel_of_nothing_is_a_cancel(topic: str, expected: bool) -> None:
    # The filter inference/cancel/+ takes an empty level too; its answer is a cancel's.
    assert is_cancel(topic) is expected
