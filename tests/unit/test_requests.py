"""Bad input gets one named refusal; good input is kept as it came."""

import json
from typing import Any

import pytest

from daemon.errors import InvalidRequestError
from daemon.jobs import TaskType
from daemon.requests import (
    JobRequest,
    is_missing_or_mistyped,
    parse_json,
    parse_request,
    parse_task_type,
)

ID = "550E8400-e29b-41d4-a716-446655440000"


def refusal(body: dict[str, Any]) -> InvalidRequestError:
    with pytest.raises(InvalidRequestError) as caught:
        parse_request(body)
    return caught.value


def asked(**fields: Any) -> JobRequest:
    return parse_request({"media_store_id": 1} | fields)


# -- bytes -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b" ",
        b"{",
        b"hello",
        b"{'a': 1}",
        b'{"a": 1,}',
        b'{"a": 1} {"b": 2}',
        b'{"a": NaN}',
        b'{"a": Infinity}',
        b'{"a": -Infinity}',
        b'{"a": "\xff"}',
        b'\xef\xbb\xbf{"a": 1}',
        '{"a": 1}'.encode("utf-16"),
        b'{"a": "line\nbreak"}',
        b'{"media_store_id": ' + b"9" * 5000 + b"}",
        b"[" * 100_000,
        b'{"a":' * 100_000,
        b'{"media_store_id": 1, "media_store_id": 2}',
        b'{"a": {"b": 1, "b": 1}}',
    ],
    ids=lambda body: repr(body[:24]),
)
def test_what_is_no_unambiguous_json_is_refused(body: bytes) -> None:
    with pytest.raises(InvalidRequestError) as caught:
        parse_json(body)

    assert caught.value.code == "invalid_json"
    assert len(caught.value.message) < 300


@pytest.mark.parametrize("body", [b"[]", b"[1]", b'"a"', b"7", b"null", b"true"])
def test_what_is_no_object_is_refused(body: bytes) -> None:
    with pytest.raises(InvalidRequestError, match="must be a JSON object") as caught:
        parse_json(body)

    assert caught.value.code == "invalid_request"


@pytest.mark.parametrize("body", [b"[" * 100_000, b'{"a": "\xff"}'])
def test_a_refusal_hides_no_cause(body: bytes) -> None:
    with pytest.raises(InvalidRequestError) as caught:
        parse_json(body)

    assert caught.value.__cause__ is None
    assert caught.value.__suppress_context__


@pytest.mark.parametrize(
    ("body", "why"),
    [(b"[" * 100_000, "nested too deeply"), (b'{"a": "hunter2 \xff"}', "broken UTF-8")],
    ids=["deep", "UTF-8"],
)
def test_what_no_decoder_says_in_few_words_is_told_in_our_own(body: bytes, why: str) -> None:
    with pytest.raises(InvalidRequestError) as caught:
        parse_json(body)

    assert caught.value.message == f"the body is not JSON: {why}"


# -- fields ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("media_store_id", None),
        ("media_store_id", ""),
        ("media_store_id", -1),
        ("media_store_id", "-1"),
        ("media_store_id", "+1"),
        ("media_store_id", " 1"),
        ("media_store_id", "1.0"),
        ("media_store_id", "1e3"),
        ("media_store_id", "0x10"),
        ("media_store_id", "1_000"),
        ("media_store_id", "٣"),
        ("media_store_id", "²"),
        ("media_store_id", "abc"),
        ("media_store_id", 1.0),
        ("media_store_id", 1.5),
        ("media_store_id", True),
        ("media_store_id", [1]),
        ("media_store_id", {"id": 1}),
        ("media_store_id", 2**63),
        ("media_store_id", 10**400),
        ("media_store_id", str(2**63)),
        ("media_store_id", "9" * 5000),
        ("priority", 11),
        ("priority", -1),
        ("priority", "7"),
        ("priority", 7.0),
        ("priority", True),
        ("priority", None),
        ("priority", [7]),
        ("priority", 10**400),
        ("job_id", ""),
        ("job_id", 7),
        ("job_id", "job-1"),
        ("job_id", ID[:-1] + "+"),
        ("job_id", ID[:-1] + "/"),
        ("job_id", ID + "\n"),
        ("job_id", "\ud800" * 36),
        ("request_id", 7),
        ("request_id", "x" * 257),
        ("request_id", "a\nb"),
        ("request_id", "a\x00"),
        ("request_id", "\x85"),
        ("request_id", "\ud800"),
        ("expires_at", -1),
        ("expires_at", "2030-01-01"),
        ("expires_at", 1.5),
        ("expires_at", True),
        ("expires_at", 2**53 + 1),
        ("force", 1),
        ("force", "true"),
        ("force", None),
        ("reply_to", 7),
        ("reply_to", "elsewhere/me"),
        ("reply_to", "inference/reply/+"),
        ("reply_to", "inference/reply/a\nb"),
        ("reply_to", "inference/reply/\ud800"),
        ("v", 2),
        ("v", "1"),
        ("v", 0),
    ],
    ids=lambda value: repr(value)[:32],
)
def test_a_wrong_value_is_refused_by_the_name_of_its_field(field: str, value: Any) -> None:
    error = refusal({"media_store_id": 1, field: value})

    assert (error.code, error.field) == ("invalid_request", field)
    assert error.message.startswith(f"{field}: ")
    assert len(error.message) < 300


def test_a_missing_picture_is_refused() -> None:
    error = refusal({})

    assert (error.field, error.message) == ("media_store_id", "media_store_id is missing")


@pytest.mark.parametrize("name", ["prio", "", "Priority", "x" * 5000, "a\nb", "日本"])
def test_an_unknown_field_is_named(name: str) -> None:
    error = refusal({"media_store_id": 1, name: 1})

    assert error.field is not None
    assert error.message == f"{error.field} is not a field of a request"
    assert len(error.field) <= 64
    assert error.field.isascii()
    if name.isascii() and len(name) < 64:
        assert error.field == name


def test_a_name_that_is_no_text_is_refused() -> None:
    error = refusal({"media_store_id": 1, "\ud800": 1})

    assert error.field is None
    assert error.message.startswith("the body: ")


def test_nothing_of_a_wrong_value_is_echoed() -> None:
    error = refusal({"media_store_id": "hunter2", "job_id": "hunter2", "priority": "hunter2"})

    assert "hunter2" not in error.message


def test_a_refusal_carries_the_ids_that_are_usable() -> None:
    error = refusal({"job_id": ID, "request_id": "mine", "priority": 11})

    assert (error.job_id, error.request_id) == (ID, "mine")


@pytest.mark.parametrize("wrong", [7, "x", "\ud800", None, [], ID + "\n"])
@pytest.mark.parametrize("word", [["a"], "x" * 257, "a\nb"])
def test_a_refusal_carries_no_id_that_is_not_usable(wrong: Any, word: Any) -> None:
    error = refusal({"job_id": wrong, "request_id": word, "priority": 11})

    assert (error.job_id, error.request_id) == (None, None)


@pytest.mark.parametrize(
    ("given", "kept"),
    [(0, 0), (1, 1), ("1", 1), ("007", 7), (2**63 - 1, 2**63 - 1), (str(2**63 - 1), 2**63 - 1)],
)
def test_a_media_store_id_is_an_int_or_its_decimal_text(given: Any, kept: int) -> None:
    assert asked(media_store_id=given).media_store_id == kept


def test_a_job_id_is_kept_letter_by_letter() -> None:
    assert asked(job_id=ID).job_id == ID


@pytest.mark.parametrize("priority", [0, 10])
def test_the_ends_of_the_priorities_are_allowed(priority: int) -> None:
    assert asked(priority=priority).priority == priority


def test_only_the_picture_must_be_told() -> None:
    request = asked()

    assert request.model_dump() == {
        "media_store_id": 1,
        "priority": 5,
        "job_id": None,
        "request_id": None,
        "expires_at": None,
        "force": False,
        "reply_to": None,
        "v": None,
    }


@pytest.mark.parametrize("field", ["job_id", "request_id", "expires_at", "reply_to", "v"])
def test_what_may_be_missing_may_be_null(field: str) -> None:
    assert getattr(asked(**{field: None}), field) is None


def test_a_request_id_may_be_any_plain_text() -> None:
    assert asked(request_id="Grüße 🙂 / + #").request_id == "Grüße 🙂 / + #"


@pytest.mark.parametrize("text", list(TaskType))
def test_every_task_type_is_known(text: str) -> None:
    assert parse_task_type(text) == text


@pytest.mark.parametrize("text", ["", "IMAGE_EMBEDDING", "image_embedding ", "video", "\ud800"])
def test_an_unknown_task_type_is_refused_with_the_known_ones(text: str) -> None:
    with pytest.raises(InvalidRequestError, match="image_embedding, face_detection") as caught:
        parse_task_type(text)

    assert (caught.value.code, caught.value.field) == ("unknown_task", "task_type")


@pytest.mark.parametrize(
    ("body", "is_422"),
    [
        ({"media_store_id": 1, "priority": 11}, False),
        ({"media_store_id": 1, "priority": -1}, False),
        ({"media_store_id": 1, "priority": "7"}, True),
        ({"media_store_id": 1, "priority": True}, True),
        ({"priority": 5}, True),
        ({"media_store_id": "x", "priority": 5}, True),
    ],
)
def test_http_tells_a_number_out_of_range_from_a_wrong_type(
    body: dict[str, Any], *, is_422: bool
) -> None:
    assert is_missing_or_mistyped(body, refusal(body).field) is is_422


def test_a_request_as_documented_is_taken() -> None:
    body = parse_json(
        json.dumps(
            {
                "media_store_id": 123,
                "priority": 7,
                "job_id": ID,
                "request_id": "r",
                "expires_at": 2**53,
                "force": True,
                "reply_to": "inference/reply/me/1",
            }
        ).encode()
    )

    assert parse_request(body).force
