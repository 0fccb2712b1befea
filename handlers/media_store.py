"""Pictures in, face results out: the only file with an HTTP client.

Only a number goes from a request into the URL, so no client can make the daemon fetch from
anywhere but the configured media store. Every wait ends, and every failure is one of ours.
"""

import asyncio
import logging
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from email.utils import parsedate_to_datetime
from types import TracebackType
from typing import Self

import aiohttp
from aiohttp.http_exceptions import HttpProcessingError
from yarl import URL

from daemon.errors import (
    ConfigError,
    DependencyDownError,
    HandlerError,
    PermanentError,
    RetryableError,
)
from daemon.jobs import JsonObject, dump_json
from daemon.redaction import Redactor, secrets_of
from daemon.settings import MediaStoreSettings
from handlers.blame import Blame
from handlers.origin import NO_PREVIEW, ORIGINAL, Origin, preview_origin
from handlers.turns import Turns
from handlers.upload_form import FIELDS, TAKEN, WRONG_FIELD, form, id_in

log = logging.getLogger(__name__)

_MAX_REDIRECTS = 3
_REDIRECTS = frozenset((301, 302, 303, 307, 308))
_SAME_METHOD_REDIRECTS = frozenset((307, 308))
_MISSING = frozenset((404, 410))
_UNKNOWN_TO_IT = 401
_FORBIDDEN = 403
_AWAY = frozenset((429, 502, 503, 504))
"""It asks for patience, or a proxy answers for it: no picture is at fault."""
_WORTH_ANOTHER_TRY = frozenset((408, 425))
_NO_FILE = frozenset(("media_not_found", "empty"))
"""Codes of a picture that is not there."""
_WEB_PAGE = "text/html"
_HEAD_BYTES = 64
_RETRY_AFTER_MAX_SECONDS = 300.0
_CHUNK_BYTES = 256 * 1024
_EXCERPT_BYTES = 300
_READ_BYTES = 8192
"""Of a refusal."""
_ENTITY_BYTES = 65_536
"""Of what is said of an uploaded picture."""


@dataclass(frozen=True, slots=True)
class Media:
    """One file as the media store gave it."""

    data: bytes
    """Never empty, never more than `max_bytes`."""
    content_type: str | None
    """What the media store calls it, such as image/jpeg; a claim, not a fact."""
    origin: Origin = ORIGINAL
    """Whether it is the original or a preview."""


class MediaStoreClient:
    """Speaks to one media store; at most `concurrency` transfers at a time, others wait.

    Use it as an async context manager; it holds its connections for as long as it is open.

    Raises:
        ConfigError: on construction, where both the URL and the token name a user.
    """

    def __init__(self, settings: MediaStoreSettings) -> None:
        self._settings = settings
        self._base = URL(settings.url)
        if settings.token is not None and self._base.user is not None:
            raise ConfigError(
                "INFERD_MEDIA_STORE__URL holds a user name and INFERD_MEDIA_STORE__TOKEN is set:"
                " only one of the two can be sent"
            )
        # Some servers quote in an error the headers that they got.
        self._redact = Redactor(secrets_of(settings))
        self._slots = Turns(settings.concurrency)
        self._blame = Blame()
        self._told_of_no_preview = False
        self._open_session: aiohttp.ClientSession | None = None

    async def __aenter__(self) -> Self:
        # An answer is neither unpacked nor asked for packed: a small body cannot become a huge one.
        headers = {"Accept-Encoding": "identity", "User-Agent": "inferd"}
        if self._settings.token is not None:
            headers["Authorization"] = f"Bearer {self._settings.token.get_secret_value()}"
        self._open_session = aiohttp.ClientSession(
            auto_decompress=False,
            # The turns limit transfers; a limit here would count waiting as connecting.
            connector=aiohttp.TCPConnector(limit=0),
            cookie_jar=aiohttp.DummyCookieJar(),
            headers=headers,
            timeout=aiohttp.ClientTimeout(
                total=None,
                connect=self._settings.connect_timeout_seconds,
                sock_read=self._settings.read_timeout_seconds,
            ),
            trust_env=False,
        )
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Close the connections. Safe twice and before opening."""
        session, self._open_session = self._open_session, None
        if session is not None:
            await session.close()

    @property
    def address(self) -> str:
        """Where it is, without the user and password that the URL may hold."""
        return str(self._base.with_user(None)).rstrip("/")

    async def fetch(self, media_store_id: int) -> Media:
        """Return the bytes of one picture file: its preview where the settings say so.

        A picture without a preview (404, 410, 204, or no bytes) comes as its original.

        Raises:
            PermanentError: code `media_not_found`, `media_store_refused`,
                `media_store_redirected`, `too_large` or `empty`.
            DependencyDownError: code `media_store_unreachable`; or, where the store fails
                whatever it is asked for, `media_store_refused` (it does not know us) or a code of
                RetryableError.
            RetryableError: code `media_store_error` or `media_store_timeout`. Both bring the
                store's Retry-After, at most 300 s.
        """
        try:
            media = await self._fetch(media_store_id)
        except DependencyDownError:
            raise
        except RetryableError as error:
            raise await self._judged(error, media_store_id) from error
        except PermanentError:
            self._blame.worked()
            raise
        self._blame.worked()
        return media

    async def _judged(self, error: RetryableError, media_store_id: int) -> RetryableError:
        """Return who is at fault: this picture, or a store that serves none for now."""
        if self._blame.failed(media_store_id):
            return _away(f"{error.message}; so it did for every other picture before", error)
        if not isinstance(error, _AnswerError):
            # It broke off or fell silent: perhaps it is gone, and this picture was in transit.
            try:
                await self.check()
            except DependencyDownError as down:
                return down
            except RetryableError as silent:
                return _away(silent.message, silent)
        return error

    async def _fetch(self, media_store_id: int) -> Media:
        if self._settings.variant == "original":
            return await self._fetch_file(self._settings.file_path, media_store_id)
        try:
            return await self._fetch_file(
                self._settings.preview_path, media_store_id, is_preview=True
            )
        except PermanentError as error:
            if error.code not in _NO_FILE:
                raise
        media = await self._fetch_file(self._settings.file_path, media_store_id)
        # Once: the results themselves tell each such picture.
        if not self._told_of_no_preview:
            self._told_of_no_preview = True
            log.warning(
                "the media store has no preview of picture %d: its original is used, and so is"
                " that of every other without one; check INFERD_MEDIA_STORE__PREVIEW_PATH",
                media_store_id,
            )
        return replace(media, origin=NO_PREVIEW)

    async def _fetch_file(
        self, template: str, media_store_id: int, *, is_preview: bool = False
    ) -> Media:
        url = self._url(template, media_store_id)
        async with self._slots, self._answer("GET", url) as response:
            if response.status != 200:  # noqa: PLR2004 - OK
                await self._raise_for_status(response, f"picture {media_store_id}")
            data = await self._read(response, media_store_id)
            said = response.headers.get("Content-Type", "")
            origin = preview_origin(response.headers) if is_preview else ORIGINAL
        if not data:
            raise PermanentError(f"the media store's file {media_store_id} is empty", code="empty")
        kind = said.partition(";")[0].strip().lower()[:100] or None
        if kind == _WEB_PAGE and data[:_HEAD_BYTES].lstrip(b"\xef\xbb\xbf \t\r\n")[:1] == b"<":
            raise _AnswerError(
                f"the media store answers picture {media_store_id} with a web page (text/html);"
                " check INFERD_MEDIA_STORE__URL, and whether it is under maintenance",
                code="media_store_error",
            )
        return Media(data, kind, origin)

    async def upload(self, data: bytes, filename: str, content_type: str) -> int:
        """Put a picture into the store; return its media_store_id there.

        A store that has it already and says so with its id is as good as one that takes it.

        Args:
            data: the file.
            filename: its name, which also becomes its label.
            content_type: such as image/jpeg.

        Raises:
            PermanentError: code `media_store_refused` or `media_store_redirected`.
            DependencyDownError: as `post_face_results`.
            RetryableError: code `media_store_error` or `media_store_timeout`.
        """
        url = URL(self._settings.url + self._settings.upload_path)
        for field in FIELDS:
            body, kind = form(field, data, filename, content_type)
            headers = {"Content-Type": kind}
            async with self._slots, self._answer("POST", url, body, headers) as response:
                if response.status in WRONG_FIELD and field != FIELDS[-1]:
                    continue
                if response.status not in TAKEN:
                    await self._raise_for_status(response, "an upload")
                media_store_id = id_in(await _read_head(response, _ENTITY_BYTES))
            if media_store_id is None:
                break
            return media_store_id
        raise PermanentError(
            "the media store took an upload and named no usable id; check"
            " INFERD_MEDIA_STORE__UPLOAD_PATH",
            code="media_store_refused",
        )

    async def post_face_results(
        self, media_store_id: int, job_id: str, results: JsonObject
    ) -> None:
        """Deliver the face results of one job; the job_id makes a repeat harmless.

        Raises:
            PermanentError: code `media_not_found`, `media_store_refused` or
                `media_store_redirected`.
            DependencyDownError: code `media_store_unreachable`, `media_store_refused` (it does
                not know us) or `media_store_error` (it asks for patience).
            RetryableError: code `media_store_error` or `media_store_timeout`.
        """
        url = self._url(self._settings.results_path, media_store_id)
        body = dump_json({"job_id": job_id, **results}).encode()
        headers = {"Content-Type": "application/json", "Idempotency-Key": job_id}
        async with self._slots, self._answer("POST", url, body, headers) as response:
            if not 200 <= response.status < 300:  # noqa: PLR2004 - any success
                await self._raise_for_status(response, f"face results of {media_store_id}")

    async def check(self) -> None:
        """Return if the media store answers at all, whatever it says; for health.

        Raises:
            DependencyDownError: code `media_store_unreachable`.
            RetryableError: code `media_store_timeout` or `media_store_error`; it is there, but
                does not speak HTTP within twice the connect timeout.
        """
        limit = 2 * self._settings.connect_timeout_seconds
        async with (
            self._errors_translated(limit),
            self._session.get(self._base, allow_redirects=False),
        ):
            pass

    @property
    def _session(self) -> aiohttp.ClientSession:
        if self._open_session is None:
            raise RuntimeError("the media store client is not open")
        return self._open_session

    def _url(self, template: str, media_store_id: int) -> URL:
        return URL(self._settings.url + template.replace("{id}", f"{media_store_id:d}"))

    @asynccontextmanager
    async def _answer(
        self,
        method: str,
        url: URL,
        body: bytes | None = None,
        headers: dict[str, str] | None = None,
    ) -> AsyncIterator[aiohttp.ClientResponse]:
        """Give the first answer that is no redirect; the body of the `async with` is timed too."""
        async with self._errors_translated(self._settings.total_timeout_seconds):
            for _ in range(_MAX_REDIRECTS + 1):
                async with self._session.request(
                    method, url, data=body, headers=headers, allow_redirects=False
                ) as response:
                    if response.status not in _REDIRECTS:
                        yield response
                        return
                    url = self._redirected(response, url)
            raise PermanentError(
                f"the media store redirects more than {_MAX_REDIRECTS} times",
                code="media_store_redirected",
            )

    def _redirected(self, response: aiohttp.ClientResponse, url: URL) -> URL:
        """Return where to ask instead; never another host, where the token would go along."""
        said = response.headers.get("Location", "")
        try:
            target = url.join(URL(said))
            is_ours = bool(said) and target.origin() == self._base.origin()
        except ValueError:
            is_ours = False
        if not is_ours:
            raise PermanentError(
                f"the media store redirects to {self._redact(said)[:200]!r}, which is not"
                f" {self._base.origin()}; check INFERD_MEDIA_STORE__URL",
                code="media_store_redirected",
            )
        if response.method != "GET" and response.status not in _SAME_METHOD_REDIRECTS:
            raise PermanentError(
                f"the media store answers {response.status} to a {response.method}: following it"
                " would not deliver the results; check INFERD_MEDIA_STORE__RESULTS_PATH",
                code="media_store_redirected",
            )
        return target.with_user(self._base.user).with_password(self._base.password)

    async def _read(self, response: aiohttp.ClientResponse, media_store_id: int) -> bytes:
        limit = self._settings.max_bytes
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
        if length <= limit:
            async for chunk in response.content.iter_chunked(_CHUNK_BYTES):
                received += len(chunk)
                if received > limit:
                    break
                chunks.append(chunk)
        if max(length, received) > limit:
            raise PermanentError(
                f"the media store's file {media_store_id} has more than {limit} bytes"
                " (INFERD_MEDIA_STORE__MAX_BYTES)",
                code="too_large",
            )
        return b"".join(chunks)

    async def _raise_for_status(self, response: aiohttp.ClientResponse, what: str) -> None:
        status = response.status
        if status == 204:  # noqa: PLR2004 - No Content
            raise PermanentError(f"the media store has no bytes of {what}", code="empty")
        if status in _MISSING:
            raise PermanentError(
                f"the media store does not know {what} ({status}: {response.url.path})",
                code="media_not_found",
            )
        hint = "check INFERD_MEDIA_STORE__TOKEN"
        if status == _UNKNOWN_TO_IT:
            raise DependencyDownError(
                f"the media store does not know us (401 to {what}); {hint}",
                code="media_store_refused",
            )
        if status == _FORBIDDEN:
            raise PermanentError(
                f"the media store refuses {what} ({status}); {hint}", code="media_store_refused"
            )
        retry_after = _retry_after(response.headers.get("Retry-After"))
        if status in _AWAY:
            raise DependencyDownError(
                f"the media store answers {status} to {what}",
                code="media_store_error",
                retry_after_seconds=retry_after,
            )
        if 400 <= status < 500 and status not in _WORTH_ANOTHER_TRY:  # noqa: PLR2004 - our fault
            raise PermanentError(
                f"the media store refuses {what} ({status}){await self._excerpt(response)}",
                code="media_store_refused",
            )
        raise _AnswerError(
            f"the media store answers {status} to {what}",
            code="media_store_error",
            retry_after_seconds=retry_after,
        )

    async def _excerpt(self, response: aiohttp.ClientResponse) -> str:
        """Return what the store said of its refusal, printable and short; for a person."""
        try:
            # More than is shown: half a secret at the end would not be known for one.
            body = await _read_head(response, _READ_BYTES)
        except (aiohttp.ClientError, HttpProcessingError, TimeoutError):
            return ""
        text = self._redact(body.decode(errors="replace"))
        text = "".join(c if c.isprintable() else " " for c in text).strip()[:_EXCERPT_BYTES]
        return f": {text}" if text else ""

    def _reason(self, error: Exception) -> str:
        return self._redact(f"{type(error).__name__}: {error}")[:_EXCERPT_BYTES]

    @asynccontextmanager
    async def _errors_translated(self, limit_seconds: float) -> AsyncIterator[None]:
        where = f"{self._base.origin()}"
        try:
            async with asyncio.timeout(limit_seconds):
                yield
        except HandlerError:
            raise
        except (aiohttp.ClientSSLError, aiohttp.ServerFingerprintMismatch) as error:
            raise DependencyDownError(
                f"no trusted connection to the media store at {where}: {self._reason(error)};"
                " check INFERD_MEDIA_STORE__URL, and that this machine trusts the store's"
                " certificate (SSL_CERT_FILE)",
                code="media_store_unreachable",
            ) from error
        except (aiohttp.ClientConnectorError, aiohttp.ConnectionTimeoutError) as error:
            raise DependencyDownError(
                f"cannot reach the media store at {where}: {self._reason(error)};"
                " check that it runs, and INFERD_MEDIA_STORE__URL",
                code="media_store_unreachable",
            ) from error
        except TimeoutError as error:
            raise RetryableError(
                f"the media store at {where} did not finish its answer in time",
                code="media_store_timeout",
            ) from error
        except (aiohttp.ClientError, HttpProcessingError, OSError, ValueError) as error:
            raise RetryableError(
                f"the media store at {where} broke off or broke HTTP: {self._reason(error)}",
                code="media_store_error",
            ) from error


class _AnswerError(RetryableError):
    """The store is there, and its answer is of no use."""


async def _read_head(response: aiohttp.ClientResponse, max_bytes: int) -> bytes:
    """Return the beginning of a body: this much, and at most as much again."""
    body = b""
    while len(body) < max_bytes and (more := await response.content.read(max_bytes)):
        body += more
    return body


def _away(message: str, error: RetryableError) -> DependencyDownError:
    return DependencyDownError(
        message, code=error.code, retry_after_seconds=error.retry_after_seconds
    )


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
