"""ServerErrors: what it means that a call of a Qdrant server failed, and what is told of it.

httpx and grpc are named here only because qdrant_client lets their errors through.
"""

import httpx
from grpc.aio import AioRpcError  # type: ignore[import-untyped] # ships no types
from qdrant_client.common.client_exceptions import ResourceExhaustedResponse
from qdrant_client.http.exceptions import ResponseHandlingException, UnexpectedResponse

from daemon.errors import DependencyDownError, RetryableError
from daemon.redaction import Redactor

_AWAY = frozenset({502, 503, 504})
"""What a proxy answers for a server that is away."""
_NOT_FOUND = 404
_SERVER_ERRORS = 500
"""From here on it is the server that failed."""


class MissingError(RetryableError):
    """There is no such collection."""


class ServerErrors:
    """Tells a server that is away, silent or broken from one that refuses what it was asked.

    The first is a DependencyDownError: the points it was given are sound, so none of them is at
    fault. What it refuses (HTTP 4xx) is a plain RetryableError.

    Attributes:
        where: the server, in words.
    """

    def __init__(self, where: str, *, timeout_seconds: int, api_key: str | None) -> None:
        self.where = where
        self._timeout = timeout_seconds
        # Proxies may quote in an error the headers that they got.
        self._redact = Redactor([api_key or ""])

    def meaning(self, error: Exception) -> RetryableError:
        """Return what is to be raised in an error's place."""
        match error:
            case UnexpectedResponse():
                return self._refused(error)
            case AioRpcError():
                return self._rpc_failed(error)
            case ResponseHandlingException():
                return self._unanswered(error.source)
            case ResourceExhaustedResponse():
                return DependencyDownError(
                    f"{self.where} is overloaded: {self._redact(str(error))}",
                    code="vector_store_error",
                    retry_after_seconds=float(error.retry_after_s),
                )
            case TimeoutError():
                return self._failed(f"did not answer within {self._timeout} s")
            case _:
                return self._failed(f"gave no usable answer: {self._redact(str(error))}")

    def _refused(self, error: UnexpectedResponse) -> RetryableError:
        status = error.status_code
        if status in {401, 403}:
            return self._unauthorized()
        if status in _AWAY:
            return self._unreachable(f"HTTP {status}")
        said = self._redact(error.content.decode(errors="replace"))[:300]
        if status is None or status >= _SERVER_ERRORS:
            return self._failed(f"answered HTTP {status}: {said}")
        kind = MissingError if status == _NOT_FOUND else RetryableError
        return kind(f"{self.where} answered HTTP {status}: {said}", code="vector_store_error")

    def _unanswered(self, source: Exception) -> RetryableError:
        match source:
            case httpx.ConnectTimeout():
                return self._unreachable(f"no connection within {self._timeout} s")
            case httpx.TimeoutException():
                return self._failed(f"did not answer within {self._timeout} s")
            case httpx.TransportError():
                return self._unreachable(str(source) or type(source).__name__)
            case _:
                return self._failed("gave an answer that is not Qdrant's; is the URL right?")

    def _rpc_failed(self, error: AioRpcError) -> RetryableError:
        details = self._redact(error.details() or "")
        match error.code().name:
            case "UNAUTHENTICATED" | "PERMISSION_DENIED":
                return self._unauthorized()
            case "UNAVAILABLE":
                return self._unreachable(
                    f"{details}; if only its HTTP port is open, INFERD_QDRANT__GRPC_PORT=0"
                )
            case "DEADLINE_EXCEEDED":
                return self._failed(f"did not answer within {self._timeout} s")
            case "NOT_FOUND" | "INVALID_ARGUMENT" | "ALREADY_EXISTS" as name:
                kind = MissingError if name == "NOT_FOUND" else RetryableError
                return kind(f"{self.where} answered {name}: {details}", code="vector_store_error")
            case name:
                return self._failed(f"answered {name}: {details}")

    def _unauthorized(self) -> DependencyDownError:
        return DependencyDownError(
            f"{self.where} refuses the API key: check INFERD_QDRANT__API_KEY",
            code="vector_store_unauthorized",
        )

    def _unreachable(self, why: str) -> DependencyDownError:
        return DependencyDownError(
            f"{self.where} can't be reached: {why}", code="vector_store_unreachable"
        )

    def _failed(self, what: str) -> DependencyDownError:
        return DependencyDownError(f"{self.where} {what}", code="vector_store_error")
