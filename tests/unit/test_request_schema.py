"""The schema of a request refuses what the daemon refuses, and takes what it takes."""

import json
from typing import Any

import pytest

from daemon.errors import InvalidRequestError
from daemon.requests import MAX_BATCH, parse_batch, parse_json, parse_request
from tests.documents import Mqtt

ID = "550e8400-e29b-41d4-a716-446655440000"


def daemon_takes(payload: bytes) -> bool:
    """Whether intake would take it, or at least every entry of a batch."""
    try:
        body = parse_json(payload)
        batch = parse_batch(body)
        for entry in [body] if batch is None else batch:
            if not isinstance(entry, dict):
                return False
            parse_request(entry)
    except InvalidRequestError:
        return False
    return True


def schema_takes(payload: bytes) -> bool:
    return any(not wrong for wrong in Mqtt().refusals("request", payload).values())


def request(**fields: Any) -> bytes:
    return json.dumps({"media_store_id": 1} | fields).encode()


GOOD = [
    request(),
    request(media_store_id=0),
    request(media_store_id=2**63 - 1),
    request(media_store_id="12345"),
    request(media_store_id="007"),
    request(media_store_id=str(2**63 - 1)),
    request(priority=0),
    request(priority=10),
    request(job_id=ID),
    request(job_id=ID.upper()),
    request(job_id=None),
    request(request_id=""),
    request(request_id="mine \U0001f600 ü"),
    request(request_id="x" * 256),
    request(request_id=None),
    request(expires_at=0),
    request(expires_at=2**53),
    request(expires_at=None),
    request(force=True),
    request(reply_to="inference/reply/alice/1"),
    request(reply_to="inference/reply/ü"),
    request(reply_to=None),
    request(v=1),
    request(v=None),
    json.dumps({"requests": [{"media_store_id": 1}]}).encode(),
    json.dumps({"requests": [{"media_store_id": 1}] * MAX_BATCH, "v": 1}).encode(),
]

BAD_BATCHES: list[dict[str, Any]] = [
    {"requests": []},
    {"requests": [{"media_store_id": 1}] * (MAX_BATCH + 1)},
    {"requests": {}},
    {"requests": [1]},
    {"requests": [{}]},
    {"requests": [{"media_store_id": 1}], "priority": 7},
    {"requests": [{"media_store_id": 1}], "v": 2},
    {"requests": [{"media_store_id": 1}], "v": None},
    {"requests": [{"media_store_id": 1}], "v": True},
    {"requests": [{"requests": [{"media_store_id": 1}]}]},
]
BAD = [
    b"",
    b"hello",
    b"{}",
    b"[]",
    b"null",
    b'"a"',
    b'{"priority": 7}',
    *(
        request(media_store_id=value)
        for value in (
            *(None, "", -1, "-1", "+1", " 1", "1\n", "1.0", "1e3", "0x10", "1_000", "\u0663"),
            *("\u00b2", "abc", 1.5, True, [1], {"id": 1}, 2**63, 10**400, "9" * 20),
        )
    ),
    *(request(priority=value) for value in (11, -1, "7", 1.5, True, None, [7], 10**400)),
    *(
        request(job_id=value)
        for value in (
            *("", "+", "#", 1, ID + "\n", ID + " ", ID[:-1], ID + "0", ID[:-1] + "g"),
            *(ID.replace("-", ""), "urn:uuid:" + ID, [ID]),
        )
    ),
    *(request(request_id=value) for value in ("x" * 257, "a\nb", "a\n", "\x00", "\x7f", "\x9f", 1)),
    *(request(expires_at=value) for value in (-1, 2**53 + 1, "1", 1.5, True)),
    *(request(force=value) for value in ("true", 1, None)),
    *(
        request(reply_to=value)
        for value in (
            *("", "inference/reply", "inference/reply/", "inference/reply//a", "a/b", 1),
            *("inference/reply/+", "inference/reply/#", "inference/reply/a+b"),
            *("inference/reply/$SYS", "inference/reply/a\x00b", "inference/reply/a\n"),
            *("inference/replyx/a", "/inference/reply/a", "inference/reply/" + "x" * 241),
        )
    ),
    *(request(v=value) for value in (0, 2, "1", True)),
    request(prioritty=7),
    request(**{"": 1}),
    *(json.dumps(batch).encode() for batch in BAD_BATCHES),
]

BEYOND_JSON_SCHEMA = {
    "an integer written as a float": b'{"media_store_id": 1.0}',
    "a priority written as a float": request(priority=7.0),
    "a name that stands twice": b'{"media_store_id": 1, "media_store_id": 2}',
    "a text that is a larger number": request(media_store_id=str(2**63)),
    "a lone surrogate": b'{"media_store_id": 1, "request_id": "\\ud800"}',
    "256 characters of more bytes": request(reply_to="inference/reply/" + "ü" * 121),
    "a noncharacter in a topic": request(reply_to="inference/reply/\ufdd0"),
}
"""What the schema takes and the daemon refuses; the fields' descriptions say so where they can."""


@pytest.mark.parametrize("payload", GOOD, ids=lambda each: str(each[:60]))
def test_both_take_a_good_request(payload: bytes) -> None:
    assert daemon_takes(payload)
    assert schema_takes(payload)


@pytest.mark.parametrize("payload", BAD, ids=lambda each: str(each[:60]))
def test_both_refuse_a_bad_request(payload: bytes) -> None:
    assert not daemon_takes(payload)
    assert not schema_takes(payload)


@pytest.mark.parametrize("payload", BEYOND_JSON_SCHEMA.values(), ids=list(BEYOND_JSON_SCHEMA))
def test_what_json_schema_cannot_say_only_the_daemon_refuses(payload: bytes) -> None:
    assert not daemon_takes(payload)
    assert schema_takes(payload)
