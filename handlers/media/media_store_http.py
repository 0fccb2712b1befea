"""HTTP to the media store and to nowhere else: connections, redirects, a timeout for every wait.

No redirect leads to another host, where the token would go along, and every error of the HTTP
client is told as one of ours.
"""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

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
from daemon.redaction import Redactor, secrets_of
from daemon.settings import MediaStoreSettings

_MAX_REDIRECTS = 3
_REDIRECTS = frozenset((301, 302, 303, 307, 308))
_SAME_METHOD_REDIRECTS = frozenset((307, 308))
_REASON_LENGTH = 300


class MediaStoreHttp:
    """The connections to one media store.

    Attributes:
        redact: takes our secrets out of what the store or an error says.

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
        self.redact = Redactor(secrets_of(settings))
        self._open_session: aiohttp.ClientSession | None = None

    def open(self) -> None:
        """Be ready to connect; needs a running event loop."""
        # An answer is neither unpacked nor asked for packed: a small body cannot become a huge one.
        headers = {"Accept-Encoding": "identity", "User-Agent": "inferd"}
        if self._settings.token is not None:
            headers["Authorization"] = f"Bearer {self._settings.token.get_secret_value()}"
        self._open_session = aiohttp.ClientSession(
            auto_decompress=False,
            # The client's turns limit transfers; a limit here would count waiting as connecting.
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

    async def close(self) -> None:
        """Close the connections. Safe twice and before opening."""
        session, self._open_session = self._open_session, None
        if session is not None:
            await session.close()

    @property
    def address(self) -> str:
        """Where it is, without the user and password that the URL may hold."""
        return str(self._base.with_user(None)).rstrip("/")

    async def check(self) -> None:
        """Return if the media store answers at all, whatever it says.

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

    @asynccontextmanager
    async def answer(
        self,
        method: str,
        path: str,
        body: bytes | None = None,
        headers: dict[str, str] | None = None,
    ) -> AsyncIterator[aiohttp.ClientResponse]:
        """Give the first answer that is no redirect; the body of the `async with` is timed too.

        Args:
            method: GET or POST.
            path: what follows the configured URL.
            body: what is sent.
            headers: beside those that go with every request.

        Raises:
            PermanentError: code `media_store_redirected`.
            DependencyDownError: code `media_store_unreachable`.
            RetryableError: code `media_store_error` or `media_store_timeout`.
        """
        url = URL(self._settings.url + path)
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

    @property
    def _session(self) -> aiohttp.ClientSession:
        if self._open_session is None:
            raise RuntimeError("the media store client is not open")
        return self._open_session

    def _redirected(self, response: aiohttp.ClientResponse, url: URL) -> URL:
        said = response.headers.get("Location", "")
        try:
            target = url.join(URL(said))
            is_ours = bool(said) and target.origin() == self._base.origin()
        except ValueError:
            is_ours = False
        if not is_ours:
            raise PermanentError(
                f"the media store redirects to {self.redact(said)[:200]!r}, which is not"
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

    def _reason(self, error: Exception) -> str:
        return self.redact(f"{type(error).__name__}: {error}")[:_REASON_LENGTH]

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
