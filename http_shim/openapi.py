"""The REST contract as an OpenAPI 3.1 document, made from the models and the described operations.

`http_shim/openapi.json` is this document, kept in step by a test (`make schemas` writes it), so
that serving it costs no more than reading a file once.
"""

from pydantic import BaseModel

from daemon.jobs import JsonObject
from daemon.requests import JobRequest
from daemon.settings import HttpSettings
from daemon.wire.schema import CONTRACT_VERSION, ref, schemas_of
from http_shim.audit_routes import MendRequest
from http_shim.auth import WRITE_PERMISSION
from http_shim.contract.answers import ErrorBody
from http_shim.contract.audit_operations import AUDIT_OPERATIONS
from http_shim.contract.codes import ERRORS
from http_shim.contract.console_operations import CONSOLE_OPERATIONS
from http_shim.contract.health_operations import HEALTH_OPERATIONS
from http_shim.contract.job_operations import JOB_OPERATIONS
from http_shim.contract.media_operations import MEDIA_OPERATIONS
from http_shim.contract.model_operations import MODEL_OPERATIONS
from http_shim.contract.openai_answers import OpenAIErrorBody
from http_shim.contract.openai_operations import OPENAI_OPERATIONS
from http_shim.contract.operations import Answer, Operation
from http_shim.contract.queue_operations import QUEUE_OPERATIONS
from http_shim.contract.search_operations import SEARCH_OPERATIONS
from http_shim.contract.vector_operations import VECTOR_OPERATIONS
from http_shim.contract.worker_operations import WORKER_OPERATIONS
from http_shim.doors.openai_requests import EmbeddingRequest
from http_shim.job_routes import RetryRequest
from http_shim.model_routes import UseRequest
from http_shim.queue_routes import PauseRequest

OPERATIONS: tuple[Operation, ...] = (
    *JOB_OPERATIONS,
    *MEDIA_OPERATIONS,
    *SEARCH_OPERATIONS,
    *AUDIT_OPERATIONS,
    *QUEUE_OPERATIONS,
    *WORKER_OPERATIONS,
    *VECTOR_OPERATIONS,
    *MODEL_OPERATIONS,
    *HEALTH_OPERATIONS,
    *CONSOLE_OPERATIONS,
    *OPENAI_OPERATIONS,
)

_INTRODUCTION = """\
Pictures into vectors and faces, asked over HTTP; the same queue as over MQTT.

Errors are `{"detail", "code"}`; `code` is a stable word. Any path may answer 404 `not_found` where
there is no such route and 405 `method_not_allowed` with `Allow`. GET routes answer HEAD as well.
What is no HTTP at all is answered 400 in plain text. Bodies are sent without Content-Encoding. Be
ready for further fields and codes. Errors of /v1 have the shape of OpenAI's."""
_HOW_TO_SHOW_WHO_ASKS = f"""\
A JWT signed with ES256, with `exp` and `sub`. Writing needs the claim `is_admin: true`, or
`permissions` with `{WRITE_PERMISSION}`. No token is needed where the daemon runs with
AUTH_DISABLED=true or TEST_MODE=true."""
_SECONDS: JsonObject = {
    "description": "Seconds to wait.",
    "schema": {"type": "integer", "minimum": 1},
}
_HEADERS: dict[int, tuple[str, JsonObject]] = {
    401: ("WWW-Authenticate", {"description": "How to come back.", "schema": {"const": "Bearer"}}),
    429: ("Retry-After", _SECONDS),
    503: ("Retry-After", _SECONDS),
}


def document() -> JsonObject:
    """Return the whole document, ready for JSON."""
    paths: dict[str, JsonObject] = {}
    for operation in OPERATIONS:
        paths.setdefault(operation.path, {})[operation.method] = _described(operation)
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "inferd over REST",
            "version": CONTRACT_VERSION,
            "summary": "Ask for jobs, look after them, search what they stored.",
            "description": _INTRODUCTION,
            "license": {"name": "MIT", "identifier": "MIT"},
        },
        "servers": [{"url": _server(), "description": "INFERD_HTTP__HOST and INFERD_HTTP__PORT."}],
        "tags": [
            {"name": "jobs", "description": "Asking for jobs, and what became of them."},
            {"name": "media", "description": "All that is known of one picture."},
            {"name": "search", "description": "The stored vectors that are nearest."},
            {"name": "queue", "description": "What waits, and pausing it."},
            {"name": "vectors", "description": "Copies of the embedded vectors, for backups."},
            {"name": "models", "description": "Which model a collection is of, and changing it."},
            {"name": "health", "description": "How the daemon is."},
            {"name": "console", "description": "What the page at / needs beside all else."},
            {"name": "openai", "description": "The embeddings of OpenAI's API, for its clients."},
        ],
        "paths": paths,
        "components": {
            "schemas": schemas_of(_models()),
            "securitySchemes": {
                "token": {
                    "type": "http",
                    "scheme": "bearer",
                    "bearerFormat": "JWT",
                    "description": _HOW_TO_SHOW_WHO_ASKS,
                }
            },
        },
    }


def _models() -> list[type[BaseModel]]:
    answered = [
        answer.model
        for operation in OPERATIONS
        for answer in operation.answers.values()
        if answer.model is not None
    ]
    asked: list[type[BaseModel]] = [
        JobRequest,
        PauseRequest,
        RetryRequest,
        MendRequest,
        UseRequest,
        EmbeddingRequest,
    ]
    return [*asked, ErrorBody, OpenAIErrorBody, *answered]


def _described(operation: Operation) -> JsonObject:
    parameters = [
        {"name": name, "in": "path", "required": True, **described}
        for name, described in operation.path_parameters.items()
    ]
    text = operation.text
    if operation.access == "write":
        text = f"{text} Needs the permission `{WRITE_PERMISSION}`.".strip()
    if operation.access == "admin":
        text = f"{text} Needs the claim `is_admin: true`.".strip()
    described: JsonObject = {
        "operationId": operation.name,
        "tags": [operation.tag],
        "summary": operation.summary,
        **({"description": text} if text else {}),
        "security": [] if operation.access == "public" else [{"token": []}],
    }
    if parameters or operation.query:
        described["parameters"] = [*parameters, *operation.query]
    if operation.body is not None:
        described["requestBody"] = operation.body
    responses = {status: _answer(answer) for status, answer in operation.answers.items()}
    for status, codes in operation.all_errors().items():
        if status in responses:
            raise ValueError(f"{operation.name} answers {status} in two ways")
        is_openai = operation.error_shape == "openai"
        responses[status] = _error(status, codes, is_openai=is_openai)
    described["responses"] = {str(status): responses[status] for status in sorted(responses)}
    return described


def _answer(answer: Answer) -> JsonObject:
    described: JsonObject = {"description": answer.text}
    if answer.headers:
        described["headers"] = {
            name: {"description": text, "schema": {"type": "string"}}
            for name, text in answer.headers.items()
        }
    if answer.model is not None:
        content: JsonObject = {"schema": ref(answer.model)}
        if answer.example is not None:
            content["example"] = answer.example
        described["content"] = {answer.media_type: content}
        for other in answer.or_as:
            described["content"][other] = {"schema": {"type": "string"}}
    elif answer.media_type is not None:
        kind = "object" if answer.media_type == "application/json" else "string"
        described["content"] = {answer.media_type: {"schema": {"type": kind}}}
    return described


def _error(status: int, codes: list[str], *, is_openai: bool) -> JsonObject:
    lines = "\n".join(f"* `{code}`: {ERRORS[code]}" for code in codes)
    narrowed: JsonObject = {"properties": {"code": {"enum": codes}}}
    example: JsonObject = {"detail": ERRORS[codes[0]], "code": codes[0]}
    model: type[BaseModel] = ErrorBody
    if is_openai:
        narrowed, model = {"properties": {"error": narrowed}}, OpenAIErrorBody
        kind = "server_error" if status >= 500 else "invalid_request_error"  # noqa: PLR2004 - HTTP
        said = {"message": ERRORS[codes[0]], "type": kind, "param": None, "code": codes[0]}
        example = {"error": said}
    schema: JsonObject = {"allOf": [ref(model), narrowed]}
    described: JsonObject = {
        "description": lines,
        "content": {"application/json": {"schema": schema, "example": example}},
    }
    if status in _HEADERS:
        name, header = _HEADERS[status]
        described["headers"] = {name: header}
    return described


def _server() -> str:
    fields = HttpSettings.model_fields
    return f"http://{fields['host'].default}:{fields['port'].default}"
