"""What a client may ask: the body of a request, from bytes to a checked JobRequest."""

import json
import re
from dataclasses import dataclass
from typing import Annotated, Any, NoReturn

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    WithJsonSchema,
)

from daemon.errors import InvalidRequestError
from daemon.jobs import MAX_MEDIA_STORE_ID, JsonObject, TaskType
from daemon.topics import MAX_REPLY_BYTES, ROOT, UUID, is_job_id, is_reply_topic

MAX_REQUEST_ID = 256
MAX_BATCH = 1000
"""Requests in one message."""
MAX_CORRELATION_BYTES = 1024
"""MQTT 5 allows 65,535; each request of a message keeps them, and so does each of its answers."""
MAX_TIME_MS = 2**53
"""Times beyond it are not exact in every client's JSON."""

_CONTROL = r"\x00-\x1f\x7f-\x9f"
_NOT_PLAIN = re.compile(rf"[{_CONTROL}\ud800-\udfff]")


def _media_store_id(value: Any) -> Any:
    """Accept an int, or its plain decimal text as the origin's clients send it."""
    if isinstance(value, str) and value.isascii() and value.isdigit() and len(value) <= 19:  # noqa: PLR2004 - digits of 2**63
        return int(value)
    return value


def _job_id(value: Any) -> Any:
    if isinstance(value, str) and not is_job_id(value):
        raise ValueError("must be a UUID such as 550e8400-e29b-41d4-a716-446655440000")
    return value


def _reply_topic(value: Any) -> Any:
    if isinstance(value, str) and not is_reply_topic(value):
        raise ValueError("must be a topic below inference/reply/, without wildcards")
    return value


def _text(value: Any) -> Any:
    # Control characters could forge log lines; lone surrogates cannot be written at all.
    if isinstance(value, str) and not is_plain_text(value):
        raise ValueError("must be Unicode text without control characters")
    return value


def is_plain_text(text: str) -> bool:
    """Whether a text can be stored, logged and sent: no control characters, no surrogates."""
    return _NOT_PLAIN.search(text) is None


@dataclass(frozen=True, slots=True)
class MqttRequest:
    """A message to a request topic, unparsed."""

    topic: str
    payload: bytes
    is_retained: bool = False
    response_topic: str | None = None
    correlation_data: str | None = None
    """In base64."""


# What the validators above check, as far as JSON Schema can say it. `not` stands beside a pattern
# for readers whose `$` lets a line break follow.
_MEDIA_STORE_ID: JsonObject = {
    "anyOf": [
        {"type": "integer", "minimum": 0, "maximum": MAX_MEDIA_STORE_ID},
        {"type": "string", "pattern": "^[0-9]{1,19}$", "not": {"pattern": "[^0-9]"}},
    ]
}
_JOB_ID: JsonObject = {"type": "string", "pattern": f"^{UUID}$", "maxLength": 36}
_REQUEST_ID: JsonObject = {
    "type": "string",
    "maxLength": MAX_REQUEST_ID,
    "not": {"pattern": f"[{_CONTROL}]"},
}
_REPLY_TO: JsonObject = {
    "type": "string",
    "pattern": f"^{ROOT}/reply(/[^/+#${_CONTROL}]+)+$",
    "maxLength": MAX_REPLY_BYTES,
    "not": {"pattern": f"[{_CONTROL}]"},
}


class JobRequest(BaseModel):
    """The body of `inference/request/{task_type}` and of POST /job/{task_type}.

    Unknown fields are refused: a misspelt option must not become a silent default.
    """

    model_config = ConfigDict(
        extra="forbid",
        frozen=True,
        strict=True,
        json_schema_extra={"examples": [{"media_store_id": 12345, "priority": 7}]},
    )

    media_store_id: Annotated[
        int,
        BeforeValidator(_media_store_id),
        Field(ge=0, le=MAX_MEDIA_STORE_ID),
        WithJsonSchema(_MEDIA_STORE_ID),
    ] = Field(
        description="The picture's id in the media store; its decimal text will do, up to 2**63-1."
    )
    priority: int = Field(5, ge=0, le=10, description="0 (last) to 10 (first).")
    job_id: Annotated[str, BeforeValidator(_job_id), WithJsonSchema(_JOB_ID)] | None = Field(
        None,
        description="A UUID made by the client: a repeat of it makes no second job. Without one "
        "the daemon makes it.",
    )
    request_id: (
        Annotated[
            str,
            BeforeValidator(_text),
            Field(max_length=MAX_REQUEST_ID),
            WithJsonSchema(_REQUEST_ID),
        ]
        | None
    ) = Field(
        None,
        description="The client's own word, echoed in every event; no control characters, no lone "
        "surrogates.",
    )
    expires_at: int | None = Field(
        None,
        ge=0,
        le=MAX_TIME_MS,
        description="Epoch milliseconds; what has not begun by then is not done any more.",
    )
    force: bool = Field(
        False,
        description="Take the place of the job that this picture and task has, unless that one "
        "is being processed.",
    )
    reply_to: (
        Annotated[
            str,
            BeforeValidator(_text),
            BeforeValidator(_reply_topic),
            WithJsonSchema(_REPLY_TO),
        ]
        | None
    ) = Field(
        None,
        description="Over MQTT: a topic below `inference/reply/` for copies of all answers and "
        "events, of at most 256 bytes of UTF-8. It goes before the MQTT 5 response topic.",
    )
    v: int | None = Field(None, ge=1, le=1, description="Version of the envelope.")


def parse_task_type(text: str) -> TaskType:
    """Return the task type.

    Raises:
        InvalidRequestError: code unknown_task.
    """
    try:
        return TaskType(text)
    except ValueError:
        known = ", ".join(TaskType)
        raise InvalidRequestError(
            f"task_type must be one of {known}", code="unknown_task", field="task_type"
        ) from None


def parse_json(body: bytes) -> JsonObject:
    """Return the JSON object in a body; NaN, repeated names and broken UTF-8 are refused.

    Raises:
        InvalidRequestError: code invalid_json, or invalid_request where it is no object.
    """
    try:
        value = json.loads(
            body.decode("utf-8"), parse_constant=_refuse_constant, object_pairs_hook=_unambiguous
        )
    except (ValueError, RecursionError) as error:
        # ValueError covers broken UTF-8, bad JSON and integers of thousands of digits.
        raise InvalidRequestError(
            f"the body is not JSON: {_brief(error)}", code="invalid_json"
        ) from None
    if not isinstance(value, dict):
        raise InvalidRequestError("the body must be a JSON object")
    return value


def parse_batch(body: JsonObject) -> list[Any] | None:
    """Return the entries of `{"requests": [...]}`, unchecked; None for a single request.

    Raises:
        InvalidRequestError: it is a batch, but not of 1 to MAX_BATCH entries and nothing else.
    """
    if "requests" not in body:
        return None
    entries = body["requests"]
    other = sorted(body.keys() - {"requests", "v"})
    if other:
        raise InvalidRequestError(
            f"{_printable(other[0])} is not a field of a batch", field=_printable(other[0])
        )
    if type(version := body.get("v", 1)) is not int or version != 1:
        raise InvalidRequestError("v: must be 1", field="v")
    if not isinstance(entries, list) or not 1 <= len(entries) <= MAX_BATCH:
        raise InvalidRequestError(
            f"requests must be a list of 1 to {MAX_BATCH} requests", field="requests"
        )
    return entries


def parse_request(body: JsonObject) -> JobRequest:
    """Return the checked request.

    Raises:
        InvalidRequestError: code invalid_request; names the first field at fault, and carries
            the job_id and request_id where those are usable.
    """
    try:
        return JobRequest.model_validate(body)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        field = str(first["loc"][0]) if first["loc"] else None
        job_id, request_id = body.get("job_id"), body.get("request_id")
        raise InvalidRequestError(
            _explain(field, first["type"], first["msg"]),
            field=_printable(field),
            job_id=job_id if isinstance(job_id, str) and is_job_id(job_id) else None,
            request_id=request_id if _is_request_id(request_id) else None,
        ) from None


def is_missing_or_mistyped(body: JsonObject, field: str | None) -> bool:
    """Whether HTTP answers 422, not 400: only a priority that is a number out of range is a 400."""
    priority = body.get("priority")
    is_number = isinstance(priority, int) and not isinstance(priority, bool)
    return not (field == "priority" and is_number)


def _is_request_id(value: Any) -> bool:
    return isinstance(value, str) and len(value) <= MAX_REQUEST_ID and is_plain_text(value)


def _explain(field: str | None, kind: str, message: str) -> str:
    name = "the body" if field is None else _printable(field)
    if kind == "missing":
        return f"{name} is missing"
    if kind == "extra_forbidden":
        return f"{name} is not a field of a request"
    return f"{name}: {message.removeprefix('Value error, ')}"


def _printable(text: str | None) -> str | None:
    if text is None:
        return None
    return text.encode("ascii", "backslashreplace").decode()[:64]


def _unambiguous(pairs: list[tuple[str, Any]]) -> JsonObject:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a name stands twice in one object")
    return found


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")


def _brief(error: Exception) -> str:
    if isinstance(error, UnicodeDecodeError):
        return "broken UTF-8"
    if isinstance(error, RecursionError):
        return "nested too deeply"
    return str(error)
