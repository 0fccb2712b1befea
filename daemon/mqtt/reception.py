"""Reception: what comes over a link's connections, each message confirmed once it is durable.

What could not be stored, or comes while we stop taking, is not confirmed: the broker keeps it.
"""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from typing import Any

from daemon.errors import StorageError
from daemon.mqtt.vendor import abort, to_request
from daemon.requests import MqttRequest

log = logging.getLogger(__name__)

OnRequest = Callable[[MqttRequest], Awaitable[None]]
"""Returns once a request is durable or durably refused; raises only if it could not be stored."""
OnNews = Callable[[str, bytes, bool], bool]
"""Topic, payload, and whether it was retained; must not raise, and takes no time."""
OnMessage = Callable[[Any, str | bytes, bytes, int, dict[str, Any]], Awaitable[int]]
"""As gmqtt calls it; returns the reason code of our PUBACK."""


class Reception:
    """Hands out what comes.

    Attributes:
        on_request: gets every message that is no news.
        heard_at: when the latest request came, or the latest connection began to stand
            (monotonic seconds).
    """

    def __init__(
        self, on_request: OnRequest, on_news: OnNews, *, is_open: Callable[[], bool]
    ) -> None:
        """Take who gets what.

        Args:
            on_request: gets every message that is no news.
            on_news: gets each message first and at once; returns whether it was for it.
            is_open: whether requests are taken.
        """
        self.on_request = on_request
        self._on_news = on_news
        self._is_open = is_open
        self._handling = 0
        self._idle = asyncio.Event()
        self._idle.set()
        self.heard_at = time.monotonic()

    def begin(self) -> None:
        """Count from now on: a connection begins to stand."""
        self.heard_at = time.monotonic()

    async def wait_idle(self) -> None:
        """Return once no request is being handled."""
        await self._idle.wait()

    def of(self, client: Any, lost: asyncio.Event) -> OnMessage:
        """Return what is to be called with each message of one connection.

        Args:
            client: the connection.
            lost: set once it is over.
        """

        # Must be `async def`: gmqtt never acknowledges for any other callable. It must not raise
        # and must return a reason code, or the slot in the broker's window leaks.
        async def on_message(
            _client: Any, topic: str | bytes, payload: bytes, _qos: int, properties: dict[str, Any]
        ) -> int:
            is_retained = bool(properties.get("retain"))
            if isinstance(topic, str) and self._on_news(topic, bytes(payload), is_retained):
                return 0
            self.heard_at = time.monotonic()
            if not self._is_open():
                # Unconfirmed: the broker keeps it for the next start.
                await lost.wait()
                return 0
            self._handling += 1
            self._idle.clear()
            try:
                await self.on_request(to_request(topic, payload, properties))
            except Exception as error:
                # Not stored. Only a new connection makes the broker send it again; what is
                # acknowledged after the abort goes nowhere.
                log.error(  # noqa: TRY400 - only a bug brings its traceback
                    "a request could not be stored, dropping the connection: %s",
                    str(error) or type(error).__name__,
                    exc_info=None if isinstance(error, StorageError) else error,
                )
                abort(client)
            finally:
                self._handling -= 1
                if not self._handling:
                    self._idle.set()
            return 0

        return on_message
