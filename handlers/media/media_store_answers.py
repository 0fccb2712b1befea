"""What an answer of the media store means: its bytes within bounds, or which error it is."""

import time
from email.utils import parsedate_to_datetime

import aiohttp
from aiohttp.http_exceptions import HttpProcessingError

from daemon.errors import DependencyDownError, PermanentError, RetryableError
from daemon.redaction import Redactor

_MISSING = frozenset((404, 410))
_UNKNOWN_TO_IT = 401
_FORBIDDEN = 403
_AWAY = frozenset((429, 502, 503, 504))
"""It asks for patience, or a proxy answers for it: no picture is at fault."""
_WORTH_ANOTHER_TRY = frozenset((408, 425))
_RETRY_AFTER_MAX_SECONDS = 300.0
_CHUNK_BYTES = 256 * 1024
_EXCERPT_BYTES = 300
_READ_BYTES = 8192
"""Of a refusal."""


class AnswerError(RetryableError):
    """The store is there, and its answer is of no use."""


async def read_file(
    response: aiohttp.ClientResponse, media_store_id: int, *, max_bytes: int
) -> bytes:
    """Return the body of a picture's answer.

    Raises:
        PermanentError: it is larger, code `too_large`.
        RetryableError: it is compressed, code `media_store_error`.
    """
    encoding = response.headers.get("Content-Encoding", "identity").strip().lower()
    if encoding not in ("", "identity"):
        raise RetryableError(
            f"the media store compressed file {media_store_id} ({encoding[:40]}) although"
            " identity was asked for",
            code="media_store_error",
        )
    length = response.content_length or 0
    chunks: list[bytes] = []
    received = 0
    if length <= max_bytes:
        async for chunk in response.content.iter_chunked(_CHUNK_BYTES):
            received += len(chunk)
            if received > max_bytes:
                break
            chunks.append(chunk)
    if max(length, received) > max_bytes:
        raise PermanentError(
            f"the media store's file {media_store_id} has more than {max_bytes} bytes"
            " (INFERD_MEDIA_STORE__MAX_BYTES)",
            code="too_large",
        )
    return b"".join(chunks)


async def read_head(response: aiohttp.ClientResponse, max_bytes: int) -> bytes:
    """Return the beginning of a body: this much, and at most as much again."""
    body = b""
    while len(body) < max_bytes and (more := await response.content.read(max_bytes)):
        body += more
    return body


async def error_of(response: aiohttp.ClientResponse, what: str, redact: Redactor) -> Exception:
    """Return the error that an answer without success stands for.

    Args:
        response: its body may be read for an excerpt.
        what: what was asked for, as a person calls it.
        redact: takes our secrets out of what the store says.

    Returns:
        PermanentError: code `empty`, `media_not_found` or `media_store_refused`.
        DependencyDownError: code `media_store_refused` (it does not know us) or
            `media_store_error` (it asks for patience).
        AnswerError: code `media_store_error`, for all else.
    """
    status = response.status
    if status == 204:  # noqa: PLR2004 - No Content
        return PermanentError(f"the media store has no bytes of {what}", code="empty")
    if status in _MISSING:
        return PermanentError(
            f"the media store does not know {what} ({status}: {response.url.path})",
            code="media_not_found",
        )
    hint = "check INFERD_MEDIA_STORE__TOKEN"
    if status == _UNKNOWN_TO_IT:
        return DependencyDownError(
            f"the media store does not know us (401 to {what}); {hint}",
            code="media_store_refused",
        )
    if status == _FORBIDDEN:
        return PermanentError(
            f"the media store refuses {what} ({status}); {hint}", code="media_store_refused"
        )
    retry_after = _retry_after(response.headers.get("Retry-After"))
    if status in _AWAY:
        return DependencyDownError(
            f"the media store answers {status} to {what}",
            code="media_store_error",
            retry_after_seconds=retry_after,
        )
    if 400 <= status < 500 and status not in _WORTH_ANOTHER_TRY:  # noqa: PLR2004 - our fault
        return PermanentError(
            f"the media store refuses {what} ({status}){await _excerpt(response, redact)}",
            code="media_store_refused",
        )
    return AnswerError(
        f"the media store answers {status} to {what}",
        code="media_store_error",
        retry_after_seconds=retry_after,
    )


async def _excerpt(response: aiohttp.ClientResponse, redact: Redactor) -> str:
    """Return what the store said of its refusal, printable and short; for a person."""
    try:
        # More than is shown: half a secret at the end would not be known for one.
        body = await read_head(response, _READ_BYTES)
    except (aiohttp.ClientError, HttpProcessingError, TimeoutError):
        return ""
    text = redact(body.decode(errors="replace"))
    text = "".join(c if c.isprintable() else " " for c in text).strip()[:_EXCERPT_BYTES]
    return f": {text}" if text else ""


def _retry_after(value: str | None) -> float | None:
    """Return the seconds that a Retry-After header asks for, in either form; None if unusable."""
    if not value:
        return None
    try:
        seconds = float(int(value)) if value.strip().isdecimal() else _seconds_until(value)
    except (ValueError, TypeError, OverflowError):
        return None
    return min(max(seconds, 0.0), _RETRY_AFTER_MAX_SECONDS)


def _seconds_until(date: str) -> float:
    return parsedate_to_datetime(date).timestamp() - time.time()
