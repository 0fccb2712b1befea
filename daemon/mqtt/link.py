"""The link to the broker, reconnected when it is lost: requests in, events out, availability.

What it promises: a request is acknowledged only after `on_request` returned; `publish` returns
once the broker confirmed and tells its reason code; a lost connection fails every publish that
was under way, is noticed even if the peer froze, and is made anew with growing, jittered waits.
What is not confirmed is the outbox's to send again: gmqtt itself never replays anything.
"""

import asyncio
import contextlib
import logging
import random
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any
from urllib.parse import urlsplit

from daemon import topics
from daemon.errors import PublishError
from daemon.events import Message
from daemon.mqtt.client import (
    ConnectRefusedError,
    Filters,
    check_version,
    make_client,
    open_client,
)
from daemon.mqtt.presence import Presence
from daemon.mqtt.reception import OnNews, OnRequest, Reception
from daemon.mqtt.sender import Outgoing, Sender
from daemon.mqtt.vendor import DISCONNECT_SECONDS, SentIds, abort, disconnect, watch
from daemon.settings import MqttSettings

log = logging.getLogger(__name__)

FIRST_WAIT_SECONDS = 0.2
LONGEST_WAIT_SECONDS = 10.0
STEADY_SECONDS = 10.0
"""A connection that ends sooner does not start the waits anew: a rival with our client_id, or a
database that cannot store, would else make us reconnect many times a second."""

MayConnect = Callable[[], Awaitable[bool]]


class MqttLink:
    """The connection to the broker; outbox, progress and worker_topics say what they need of it."""

    def __init__(
        self,
        settings: MqttSettings,
        *,
        subscriptions: Sequence[str],
        on_request: OnRequest,
        watched: Sequence[str] = (),
        on_news: OnNews = lambda _topic, _payload, _is_retained: False,
        dropped: Sequence[str] = (),
        is_worker: bool = True,
        dispensable: Sequence[str] = (),
        may_connect: MayConnect | None = None,
    ) -> None:
        """Wire it up.

        Args:
            settings: where the broker is, and who we are there.
            subscriptions: filters whose messages wait for us while we are away.
            on_request: gets every message that is no news.
            dispensable: further such filters, of which a broker may refuse us some.
            watched: filters whose retained messages are wanted at each connect, QoS 0.
            on_news: gets each message first and at once; returns whether it was for it.
            dropped: filters that our session may still hold, and must not.
            is_worker: whether it tells the availability of a worker, and leaves its will.
            may_connect: asked before each connect; False ends `run`.
        """
        self._settings = settings
        self._url = urlsplit(settings.url.get_secret_value())
        self._filters = Filters(subscriptions, dispensable, watched)
        self._up = asyncio.Event()
        self._presence = Presence(settings.client_id)
        self._reception = Reception(
            on_request, on_news, is_open=lambda: self._presence.phase == "online"
        )
        self._is_worker = is_worker
        self._dropped = dropped
        self._may_connect = may_connect
        self._client: Any = None
        self._sender: Sender | None = None
        self.connects = 0
        self.last_error: str | None = None

    @property
    def heard_at(self) -> float:
        """When the latest request came, or the latest connection began to stand (monotonic)."""
        return self._reception.heard_at

    @property
    def is_up(self) -> bool:
        """Whether the latest connection stands and is subscribed."""
        return self._up.is_set()

    async def wait_up(self) -> None:
        """Return once the link is up."""
        await self._up.wait()

    async def run(self) -> None:
        """Connect, subscribe and reconnect until cancelled; then say offline and disconnect."""
        wait = FIRST_WAIT_SECONDS
        while self._may_connect is None or await self._may_connect():
            connects, began = self.connects, time.monotonic()
            try:
                await self._connect_once()
            except (OSError, TimeoutError, ConnectRefusedError, PublishError) as error:
                self.last_error = _brief(error)
                host, port = self._url.hostname, self._url.port
                log.warning(
                    "the broker is away: %s; INFERD_MQTT__URL says %s",
                    self.last_error,
                    host if port is None else f"{host}:{port}",
                )
            if self.connects > connects and time.monotonic() - began >= STEADY_SECONDS:
                wait = FIRST_WAIT_SECONDS
            await asyncio.sleep(wait * random.uniform(0.5, 1))  # noqa: S311 - spreads load
            wait = min(wait * 2, LONGEST_WAIT_SECONDS)

    async def drain(self) -> None:
        """Confirm no further requests and say so; the broker keeps what comes meanwhile."""
        self._presence.phase = "draining"
        if self.is_up:
            with contextlib.suppress(PublishError):
                await self._say_state("shutdown")

    async def finish(self, timeout_seconds: float) -> bool:
        """Drain, and return whether what came before is stored and confirmed by then."""
        try:
            async with asyncio.timeout(timeout_seconds):
                await self.drain()
                await self.settle()
        except TimeoutError:
            return False
        return True

    async def settle(self) -> None:
        """Return once no message is being handled, and the broker has read what we confirmed.

        Where another client takes over our session, mosquitto drops what it has not read yet.
        """
        await self._reception.wait_idle()
        client = self._client
        if client is None:
            return
        # What is done confirms in a later turn of the loop.
        await asyncio.sleep(0)
        read = asyncio.Event()
        # Of a filter that nobody has: only its answer matters, which comes after all before it.
        asked = client.unsubscribe(f"{topics.ROOT}/request/{topics.PROBE}/none")

        def on_unsubscribe(_client: Any, packet_id: int, _codes: object) -> None:
            if packet_id == asked:
                read.set()

        client.on_unsubscribe = on_unsubscribe
        await read.wait()

    async def tell_paused(self, until: Mapping[str, int | None], *, is_all: bool) -> None:
        """Say which task types are paused, now and again at each connect.

        Args:
            until: by task type the end of its pause, in epoch milliseconds; None where it has none.
            is_all: whether nothing is left that this daemon works on; requests are taken still.

        Raises:
            PublishError: nobody heard.
        """
        self._presence.pause(until, is_all=is_all)
        if self.is_up:
            await self._say_state("paused" if until else "resumed")

    async def publish(
        self,
        topic: str,
        payload: bytes,
        *,
        retain: bool = False,
        correlation_data: str | None = None,
    ) -> int:
        """Send with QoS 1 and return the PUBACK's reason code, below 0x80.

        Raises:
            TooLargeError: the broker does not take it.
            PublishError: not connected, not confirmed in time, or refused (with reason_code).
        """
        (outcome,) = await self._publish([(topic, payload, correlation_data)], retain=retain)
        if isinstance(outcome, PublishError):
            raise outcome
        return outcome

    async def publish_all(self, messages: Sequence[Message]) -> list[int | PublishError]:
        """Send with QoS 1, in order; return for each what `publish` returns or raises."""
        return await self._publish(
            [(each.topic, each.payload.encode(), each.correlation_data) for each in messages]
        )

    async def _publish(
        self, messages: Sequence[Outgoing], *, retain: bool = False
    ) -> list[int | PublishError]:
        if self._sender is None:
            return [PublishError("not connected to the broker") for _ in messages]
        return await self._sender.publish(messages, retain=retain)

    def send(
        self,
        topic: str,
        payload: bytes,
        *,
        retain: bool = False,
        correlation_data: str | None = None,
    ) -> bool:
        """Send with QoS 0, or drop it where that is not possible at once; never raises.

        Returns:
            Whether it was sent; whether it came is not known.
        """
        if self._sender is None:
            return False
        return self._sender.send(topic, payload, retain=retain, correlation_data=correlation_data)

    def drop(self, filters: Sequence[str]) -> None:
        """Unsubscribe, now and at each connect to come."""
        if filters == self._dropped:
            return
        self._dropped = filters
        if self._client is not None:
            self._unsubscribe(self._client)

    def _unsubscribe(self, client: Any) -> None:
        for name in self._dropped:
            client.unsubscribe(name)

    async def _connect_once(self) -> None:
        """Connect, then return or raise when that connection is over."""
        self._presence.begin_session()
        lost = asyncio.Event()
        sent = SentIds()
        will = self._presence.will() if self._is_worker else None
        client = make_client(self._settings, sent, will=will)
        client.on_message = self._reception.of(client, lost)
        sender = Sender(client, sent, self._settings)
        seconds = self._settings.connect_timeout_seconds
        # After a clean end the broker keeps our will back, and an `online` of before would stay.
        is_clean = not self._is_worker
        try:
            try:
                async with asyncio.timeout(seconds):
                    await self._open(client, lost)
                    self._begin(client, sender)
                    if self._is_worker:
                        log.info("connected to the broker", extra={"broker": self._url.hostname})
                    await self._say_state("started")
            except TimeoutError:
                check_version(client, self._settings)
                raise TimeoutError(f"no answer from the broker within {seconds:g} s") from None
            await watch(client, lost)
        except asyncio.CancelledError:
            self._presence.phase = "offline"
            if self._client is client:
                with contextlib.suppress(PublishError, TimeoutError):
                    async with asyncio.timeout(DISCONNECT_SECONDS):
                        await self._say_state("shutdown")
                        is_clean = True
            raise
        finally:
            self._end()
            if not is_clean:
                abort(client)
            await disconnect(client)

    async def _open(self, client: Any, lost: asyncio.Event) -> None:
        def on_lost() -> None:
            if self._client is client:
                self._end()

        def on_connect(_client: Any, is_known: int, *_: Any) -> None:
            if self.connects and self._filters.needed and not is_known:
                log.warning(
                    "the broker has forgotten our session, and with it what was asked while we "
                    "were away: clients hear no `accepted`, and have to ask again"
                )

        client.on_connect = on_connect
        await open_client(
            client,
            self._settings,
            self._filters,
            lost=lost,
            on_lost=on_lost,
            # A session that is no worker's is meant to change hands.
            taken_over_level=logging.ERROR if self._is_worker else logging.INFO,
        )
        # Now that nothing falls between: what the session holds from an earlier configuration.
        self._unsubscribe(client)

    def _begin(self, client: Any, sender: Sender) -> None:
        sender.begin()
        self._sender = sender
        self._client = client
        self.connects += 1
        self.last_error = None
        self._reception.begin()
        self._up.set()

    def _end(self) -> None:
        self._up.clear()
        self._client = None
        if self._sender is not None:
            self._sender.end()
            self._sender = None

    async def _say_state(self, reason: str) -> None:
        """Tell the retained availability; on the way to an end the reason is always that.

        A later call never says an earlier state: the phase only goes forward, nothing awaits
        between reading it and queueing for the window, and the window is first come, first served.

        Raises:
            PublishError: the connection is of no use; a broker that only refuses is not that bad.
        """
        if not self._is_worker:
            return
        topic, state = topics.availability(self._settings.client_id), self._presence.state
        said = self._presence.describe(reason)
        try:
            await self.publish(topic, said, retain=True)
        except PublishError as error:
            if error.reason_code is None:
                raise
            log.error("nobody hears that we are %s: %s", state, error.message)  # noqa: TRY400 - the broker's word says it all


def _brief(error: Exception) -> str:
    return str(error) or type(error).__name__
