"""Connects to the queue's server: of a URL's several hosts to the one that is the primary.

asyncpg asks them one after the other too, but within one time limit for all: a first host that is
silent, as one is that lost its power, would use it up, each time.
"""

import asyncio
import logging
from collections.abc import Mapping
from typing import Any
from urllib.parse import parse_qs, urlsplit

import asyncpg

from daemon.settings.urls import postgresql_servers

log = logging.getLogger(__name__)

NOT_USABLE = (
    OSError,
    TimeoutError,
    # Also what leaving a transaction raises where its connection is gone.
    asyncpg.InterfaceError,
    asyncpg.InternalClientError,
    asyncpg.PostgresError,
)
"""What asyncpg raises where a server cannot be used, whether it is away, silent or says so."""
_DECISIVE = ("default_transaction_isolation", "default_transaction_read_only")
"""Without these, and without the URL's search_path, something would be silently wrong."""


class Hosts:
    """The servers of a URL, and which of them was the primary last."""

    def __init__(self, url: str) -> None:
        """Take the URL, which has been validated."""
        self._url = url
        self._servers = postgresql_servers(url)
        self._latest: int | None = None
        places = parse_qs(urlsplit(url).query).get("search_path")
        self._named = {"search_path": places[-1]} if places else {}

    async def connect(
        self,
        _dsn: None = None,
        *,
        timeout: float,  # noqa: ASYNC109 - asyncpg's own name
        **options: Any,
    ) -> Any:
        """Return a connection to the only host, or to that of several that takes writes.

        Args:
            _dsn: what a pool gives first.
            timeout: seconds for all hosts together; a look at the session may take as long again.
            options: what asyncpg's `connect` takes.

        Raises:
            OSError, TimeoutError, asyncpg.PostgresError, asyncpg.InterfaceError,
                asyncpg.InternalClientError: the only host cannot be used.
            ConnectionError: none of several can; it says why of each.
            asyncpg.PostgresError: none can, and this is what one of them answered.
            asyncpg.ClientConfigurationError: the session is not as it was asked for.
            ValueError: the URL is wrong.
        """
        if len(self._servers) == 1:
            raw = await asyncpg.connect(self._url, timeout=timeout, **options)
        else:
            raw = await self._connect_to_primary(timeout, options)
        try:
            async with asyncio.timeout(timeout):
                await self._check(raw, options.get("server_settings") or {})
        except BaseException:
            raw.terminate()
            raise
        return raw

    async def _check(self, raw: Any, wanted: Mapping[str, str]) -> None:
        """Let nothing be written where a pooler has dropped what was asked of the session.

        Raises:
            asyncpg.ClientConfigurationError: it has.
        """
        asked = {**self._named, **{name: wanted[name] for name in _DECISIVE if name in wanted}}
        for name, value in asked.items():
            found: str = await raw.fetchval("SELECT current_setting($1)", name)
            if found != value:
                raise asyncpg.ClientConfigurationError(
                    f"{name} is {found!r}, not {value!r} as asked for: connect to the server"
                    " itself, not to a pooler that ignores startup parameters"
                )

    async def _connect_to_primary(self, timeout: float, options: Mapping[str, Any]) -> Any:  # noqa: ASYNC109 - as above
        failures: dict[str, Exception] = {}
        for place in sorted(range(len(self._servers)), key=lambda each: each != self._latest):
            host, port = self._servers[place]
            try:
                raw = await asyncpg.connect(
                    self._url,
                    host=host,
                    port=port,
                    target_session_attrs="primary",
                    # The last one's share must end before the caller's own patience does.
                    timeout=timeout / (len(self._servers) + 1),
                    **options,
                )
            except asyncpg.ClientConfigurationError:
                # The URL is wrong, whichever host is asked.
                raise
            except NOT_USABLE as error:
                failures[host if port is None else f"{host}:{port}"] = error
                continue
            if place != self._latest:
                level = logging.INFO if self._latest is None else logging.WARNING
                log.log(level, "the queue's primary is %s now", host)
                self._latest = place
            return raw
        for failure in failures.values():
            if isinstance(failure, asyncpg.PostgresError):
                raise failure
        said = "; ".join(f"{host}: {_said(error)}" for host, error in failures.items())
        raise ConnectionError(f"no host of the queue's URL is a primary: {said}")


def _said(error: Exception) -> str:
    if isinstance(error, asyncpg.TargetServerAttributeNotMatched):
        return "it is a standby"
    return str(error) or type(error).__name__
