"""Turns every error into its answer: a status, and JSON with `detail` and a stable `code`."""

import json
import logging
import math
from http import HTTPStatus

from aiohttp import web
from aiohttp.typedefs import Handler

from daemon.errors import (
    ChangedError,
    ConflictError,
    InferdError,
    InvalidRequestError,
    JobNotFoundError,
    ModelChangeError,
    NotFoundError,
    QueueFullError,
    RetryableError,
    StorageError,
)
from http_shim.auth import ForbiddenError, UnauthorizedError

log = logging.getLogger(__name__)

RETRY_AFTER_SECONDS = 5
"""Default of Retry-After."""

_CODES = {
    HTTPStatus.BAD_REQUEST: "bad_request",
    HTTPStatus.NOT_FOUND: "not_found",
    HTTPStatus.METHOD_NOT_ALLOWED: "method_not_allowed",
    HTTPStatus.REQUEST_TIMEOUT: "timeout",
    HTTPStatus.REQUEST_ENTITY_TOO_LARGE: "too_large",
    HTTPStatus.UNSUPPORTED_MEDIA_TYPE: "unsupported_media_type",
}


class DrainingError(InferdError):
    """The daemon is stopping and takes no more jobs; HTTP 503 with Retry-After."""

    default_code = "draining"


class ErrorResponse(web.Response):
    """An answer to an error, with its code for the metrics."""

    def __init__(
        self, body: dict[str, str], *, status: int, headers: dict[str, str] | None
    ) -> None:
        # Escaped to ASCII by default: a text from the request cannot break the encoding.
        text = json.dumps(body)
        super().__init__(text=text, status=status, headers=headers, content_type="application/json")
        self.code = body["code"]
        self.detail = body["detail"]


@web.middleware
async def answer_errors(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Turn whatever a route raises into an answer, never with a traceback or HTML."""
    try:
        return await handler(request)
    except InferdError as error:
        return error_response(error)
    except web.HTTPException as error:
        if error.status < HTTPStatus.BAD_REQUEST:
            raise
        return _refusal(error)
    except Exception as error:
        if isinstance(error, ConnectionError) and request.transport is None:
            # The client hung up before its body was complete; nobody reads the answer.
            return _refusal(web.HTTPBadRequest())
        # %r: a path may hold line breaks, which would forge log lines.
        log.exception("%s %r failed", request.method, request.path)
        return _json({"detail": "Internal Server Error", "code": "internal"}, status=500)


def error_response(error: InferdError, status: int | None = None) -> web.Response:
    """Return the answer to an error; `status` where the error alone does not determine it."""
    status = status or _status(error)
    body: dict[str, str] = {"detail": error.message, "code": error.code}
    headers: dict[str, str] = {}
    if isinstance(error, InvalidRequestError) and error.field:
        body["field"] = error.field
    if isinstance(error, ConflictError):
        body["existing_job_id"] = error.existing_job_id
    if isinstance(error, JobNotFoundError):
        body["detail"] = "Job not found"
    if status == HTTPStatus.UNAUTHORIZED:
        headers["WWW-Authenticate"] = "Bearer"
    if status == HTTPStatus.SERVICE_UNAVAILABLE:
        headers["Retry-After"] = str(_retry_after_seconds(error))
        log.warning("a request was refused: %s: %s", error.code, error.message)
    if status == HTTPStatus.INTERNAL_SERVER_ERROR:
        log.error("a request failed: %s: %s", error.code, error.message)
    return _json(body, status=status, headers=headers)


def _status(error: InferdError) -> int:
    match error:
        case InvalidRequestError():
            return 400 if error.code == "unknown_task" else 422
        case UnauthorizedError():
            return 401
        case ForbiddenError():
            return 403
        case JobNotFoundError() | NotFoundError():
            return 404
        case ConflictError() | ModelChangeError() | ChangedError():
            return 409
        case QueueFullError() | StorageError() | RetryableError() | DrainingError():
            return 503
        case _:
            return 500


def _retry_after_seconds(error: InferdError) -> int:
    seconds: float = RETRY_AFTER_SECONDS
    if isinstance(error, QueueFullError):
        seconds = error.retry_after_ms / 1000
    elif isinstance(error, RetryableError) and error.retry_after_seconds is not None:
        seconds = error.retry_after_seconds
    return max(1, math.ceil(seconds))


def _refusal(error: web.HTTPException) -> web.Response:
    """Return an HTTP error of aiohttp (no such route, body too large) in our shape."""
    code = _CODES.get(HTTPStatus(error.status), f"http_{error.status}")
    detail = HTTPStatus(error.status).phrase
    if isinstance(error, web.HTTPRequestEntityTooLarge):
        detail = "The body is larger than this server reads"
    elif error.reason and error.reason != detail:
        detail = error.reason
    headers = {"Allow": error.headers["Allow"]} if "Allow" in error.headers else {}
    return _json({"detail": detail, "code": code}, status=error.status, headers=headers)


def _json(
    body: dict[str, str], *, status: int, headers: dict[str, str] | None = None
) -> web.Response:
    return ErrorResponse(body, status=status, headers=headers)
