"""The link to the broker: with mqtt_vendor the only module that knows gmqtt and its sharp edges.

What it promises: a request is acknowledged only after `on_request` returned; `publish` returns
once the broker confirmed and tells its reason code; a lost connection fails every publish that
was under way, is noticed even if the peer froze, and is made anew with growing, jittered waits.
What is not confirmed is the outbox's to send again: gmqtt itself never replays anything.

Written against gmqtt 0.8 (pinned). Every connection gets a client of its own, since gmqtt's
survives a reconnect with acknowledgements, packet ids and messages of the connection before.
"""

import asyncio
import base64
import contextlib
import logging
import random
import struct
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any, TypeAlias
from urllib.parse import unquote, urlsplit

import gmqtt
from gmqtt.mqtt.constants import MQTTv50, MQTTv311

from daemon import topics
from daemon.broker_tls import broker_tls
from daemon.errors import PublishError, StorageError
from daemon.events import Message
from daemon.mqtt_vendor import (
    DISCONNECT_SECONDS,
    SentIds,
    abort,
    disconnect,
    gather_writes,
    to_request,
    watch,
)
from daemon.presence import Presence
from daemon.requests import MqttRequest
from daemon.settings import MqttSettings

log = logging.getLogger(__name__)

FIRST_WAIT_SECONDS = 0.2
LONGEST_WAIT_SECONDS = 10.0
STEADY_SECONDS = 10.0
"""A connection that ends sooner does not start the waits anew: a rival with our client_id, or a
database that cannot store, would else make us reconnect many times a second."""
WILL_DELAY_SECONDS = 5
NEVER_RECONNECT = -2
"""gmqtt reconnects once with 0 and for ever with -1."""
SPARE_IDS = 3
"""gmqtt runs out of packet ids before the broker's window is full, and SUBSCRIBE shares them."""
MOST_UNCONFIRMED = 1024
MOST_UNSENT_BYTES = 65_536
"""With more waiting for the broker, messages of QoS 0 are dropped."""
HEADER_BYTES = 512
"""Room for topic, properties and headers beside a payload."""
REFUSED = 0x80
"""Reason codes from here on are refusals."""
TAKEN_OVER = b"\x8e"
"""Reason of a DISCONNECT: somebody else connected with our client_id."""


_Outgoing: TypeAlias = tuple[str, bytes, str | None]
"""Topic, payload and correlation data in base64."""
OnRequest = Callable[[MqttRequest], Awaitable[None]]
"""Returns once a request is durable or durably refused; raises only if it could not be stored."""


OnNews = Callable[[str, bytes, bool], bool]
"""Topic, payload, and whether it was retained; must not raise, and takes no time."""
MayConnect = Callable[[], Awaitable[bool]]


class TooLargeError(PublishError):
    """The broker said at connect that it takes no packet of this size."""

    default_code = "too_large"


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
        self._needed = len(subscriptions)
        self._subscriptions = [*subscriptions, *dispensable]
        self._on_request = on_request
        self._up = asyncio.Event()
        self._presence = Presence(settings.client_id)
        self._is_worker = is_worker
        self._watched = watched
        self._on_news = on_news
        self._dropped = dropped
        self._may_connect = may_connect
        self._handling = 0
        self._idle = asyncio.Event()
        self._idle.set()
        self._client: Any = None
        self._unconfirmed: dict[int, asyncio.Future[int]] = {}
        self._sent = SentIds()
        self._window = asyncio.Semaphore(1)
        self._most_bytes = 0
        self._pubacks = 0
        self.connects = 0
        self.heard_at = time.monotonic()
        """When the latest message came, or the latest connection began to stand."""
        self.last_error: str | None = None

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
            except (OSError, TimeoutError, gmqtt.MQTTConnectError, PublishError) as error:
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

    async def settle(self) -> None:
        """Return once no message is being handled, and the broker has read what we confirmed.

        Where another client takes over our session, mosquitto drops what it has not read yet.
        """
        await self._idle.wait()
        client = self._client
        if client is None:
            return
        # What is done confirms in a later turn of the loop.
        await asyncio.sleep(0)
        read = asyncio.Event()
        client.on_unsubscribe = lambda *_: read.set()
        # Of a filter that nobody has: only its answer matters, which comes after all before it.
        client.unsubscribe(f"{topics.ROOT}/request/{topics.PROBE}/none")
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
        self, messages: Sequence[_Outgoing], *, retain: bool = False
    ) -> list[int | PublishError]:
        client, window = self._client, self._window
        if client is None:
            return [PublishError("not connected to the broker") for _ in messages]
        pubacks = self._pubacks
        sent: list[asyncio.Future[int] | PublishError] = []
        # One for all: they are sent at about the same time.
        deadline = asyncio.timeout(self._settings.publish_timeout_seconds)
        try:
            async with deadline:
                for topic, payload, correlation_data in messages:
                    properties = self._properties(correlation_data)
                    if error := self._too_large(topic, payload, properties):
                        sent.append(error)
                        continue
                    # Given back by the PUBACK or by the end of the connection, and not by whoever
                    # stops waiting: until then gmqtt's packet id is taken.
                    await window.acquire()
                    if self._client is not client:
                        window.release()
                        sent.append(PublishError("the connection was lost"))
                        continue
                    client.publish(topic, payload, qos=1, retain=retain, **properties)
                    # Nothing awaits between sending and this: the PUBACK cannot be missed.
                    confirmed = asyncio.get_running_loop().create_future()
                    self._unconfirmed[self._sent.latest] = confirmed
                    sent.append(confirmed)
                for each in sent:
                    if isinstance(each, asyncio.Future) and not each.done():
                        await asyncio.wait((each,))
        except TimeoutError:
            pass
        except BaseException:
            for each in sent:
                if isinstance(each, asyncio.Future):
                    # Nobody is left to hear that the connection was lost.
                    each.cancel()
            raise
        if deadline.expired() and self._client is client and self._pubacks == pubacks:
            log.warning("the broker confirms nothing, dropping the connection")
            abort(client)
        late = [PublishError("the broker did not confirm in time")] * (len(messages) - len(sent))
        topics_of_all = (topic for topic, _, _ in messages)
        return [_outcome(*each) for each in zip(topics_of_all, [*sent, *late], strict=True)]

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
        client = self._client
        if client is None:
            return False
        transport = client._connection._transport  # noqa: SLF001 - no public way to its buffer
        if transport.is_closing() or transport.get_write_buffer_size() > MOST_UNSENT_BYTES:
            # The broker reads too slowly: what must arrive comes first.
            return False
        properties = self._properties(correlation_data)
        if self._too_large(topic, payload, properties):
            return False
        client.publish(topic, payload, qos=0, retain=retain, **properties)
        return True

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

    def _properties(self, correlation_data: str | None) -> dict[str, bytes]:
        if correlation_data is None or self._settings.version != "5":
            return {}
        return {"correlation_data": base64.b64decode(correlation_data)}

    def _too_large(
        self, topic: str, payload: bytes, properties: dict[str, bytes]
    ) -> TooLargeError | None:
        size = len(payload) + len(topic.encode()) + sum(map(len, properties.values()))
        if size + HEADER_BYTES <= self._most_bytes:
            return None
        # gmqtt would send it, be disconnected for it, and send it again for ever.
        return TooLargeError(f"{size} bytes are more than the broker takes")

    async def _connect_once(self) -> None:
        """Connect, then return or raise when that connection is over."""
        self._presence.begin_session()
        lost = asyncio.Event()
        sent = SentIds()
        client = self._make_client(sent, lost)
        seconds = self._settings.connect_timeout_seconds
        try:
            try:
                async with asyncio.timeout(seconds):
                    await self._open(client, lost)
                    self._begin(client, sent)
                    if self._is_worker:
                        log.info("connected to the broker", extra={"broker": self._url.hostname})
                    await self._say_state("started")
            except TimeoutError:
                self._check_version(client)
                raise TimeoutError(f"no answer from the broker within {seconds:g} s") from None
            await watch(client, lost)
        except asyncio.CancelledError:
            self._presence.phase = "offline"
            if self._client is client:
                with contextlib.suppress(PublishError, TimeoutError):
                    async with asyncio.timeout(DISCONNECT_SECONDS):
                        await self._say_state("shutdown")
            raise
        finally:
            self._end()
            await disconnect(client)

    async def _open(self, client: Any, lost: asyncio.Event) -> None:
        """Connect and subscribe; gmqtt sets no end to either wait.

        Raises:
            OSError: the broker is away, or did not answer.
            gmqtt.MQTTConnectError: it refused the connection.
        """
        answered = asyncio.Event()
        granted: list[int] = []
        is_five = self._settings.version == "5"

        def on_disconnect(_client: Any, packet: Any, *_: Any) -> None:
            if isinstance(packet, bytes) and packet[:1] == TAKEN_OVER:
                log.log(
                    # A session that is no worker's is meant to change hands.
                    logging.ERROR if self._is_worker else logging.INFO,
                    "another client took our client_id %s",
                    self._settings.client_id,
                )
            lost.set()
            if self._client is client:
                self._end()
            # Neither CONNACK nor SUBACK comes any more.
            client._connack_received.set()  # noqa: SLF001 - gmqtt would wait without an end
            answered.set()

        def on_subscribe(_client: Any, _mid: int, codes: Sequence[int], _properties: Any) -> None:
            granted.extend(codes)
            answered.set()

        client.on_disconnect = on_disconnect
        client.on_subscribe = on_subscribe
        await _dial(client, self._settings)
        gather_writes(client)
        # Retained requests are refused: we want to see the flag, and not again at every
        # subscribe. A 3.1.1 broker must hang up on options that it does not know.
        options = {"retain_handling_options": 2, "retain_as_published": True} if is_five else {}
        wanted = [gmqtt.Subscription(name, qos=1, **options) for name in self._subscriptions]
        wanted += [gmqtt.Subscription(name, qos=0) for name in self._watched]
        if wanted:
            client.subscribe(wanted)
            await answered.wait()
        self._check_version(client)
        if lost.is_set():
            raise ConnectionResetError("the connection was lost before the broker let us in")
        if any(code >= REFUSED for code in granted[: self._needed]):
            raise ConnectionRefusedError(f"the broker refused to subscribe us: {granted}")
        names = [*self._subscriptions, *self._watched]
        refused = [name for name, code in zip(names, granted, strict=False) if code >= REFUSED]
        if refused:
            # An access list from before they were needed: all else goes on.
            log.warning("the broker does not let us read %s", ", ".join(refused))
        # Now that nothing falls between: what the session holds from an earlier configuration.
        self._unsubscribe(client)

    def _check_version(self, client: Any) -> None:
        """Tell of a broker without MQTT 5; gmqtt changes its mind and waits for ever.

        Raises:
            ConnectionRefusedError: it has refused our version.
        """
        spoken = client._connection_state.protocol_version  # noqa: SLF001 - no public way
        if self._settings.version == "5" and spoken != MQTTv50:
            raise ConnectionRefusedError(
                "unacceptable protocol version: the broker needs INFERD_MQTT__VERSION=3.1.1"
            )

    def _make_client(self, sent: SentIds, lost: asyncio.Event) -> Any:
        will = gmqtt.Message(
            topics.availability(self._settings.client_id),
            self._presence.will(),
            qos=1,
            retain=True,
            **(
                {"will_delay_interval": WILL_DELAY_SECONDS} if self._settings.version == "5" else {}
            ),
        )
        five = {
            "session_expiry_interval": 0xFFFFFFFF,
            "receive_maximum": self._settings.receive_maximum,
        }
        client = gmqtt.Client(
            self._settings.client_id,
            clean_session=False,
            # The default acknowledges before on_message begins.
            optimistic_acknowledgement=False,
            will_message=will if self._is_worker else None,
            persistent_storage=sent,
            logger=logging.getLogger("gmqtt"),
            **(five if self._settings.version == "5" else {}),
        )
        client.set_config({"reconnect_retries": NEVER_RECONNECT})
        handler = client._package_handler  # noqa: SLF001 - no public way to a PUBACK's reason code

        def on_puback(_command: int, packet: bytes) -> None:
            (mid,) = struct.unpack("!H", packet[:2])
            handler.id_generator.free_id(mid)
            confirmed = self._unconfirmed.pop(mid, None) if self._client is client else None
            if confirmed is None:
                return
            self._pubacks += 1
            self._window.release()
            if not confirmed.done():
                confirmed.set_result(packet[2] if len(packet) > 2 else 0)  # noqa: PLR2004 - short form

        handler._handle_puback_packet = on_puback  # noqa: SLF001 - as above

        # Must be `async def`: gmqtt never acknowledges for any other callable. It must not raise
        # and must return a reason code, or the slot in the broker's window leaks.
        async def on_message(
            _client: Any, topic: str | bytes, payload: bytes, _qos: int, properties: dict[str, Any]
        ) -> int:
            is_retained = bool(properties.get("retain"))
            if isinstance(topic, str) and self._on_news(topic, bytes(payload), is_retained):
                return 0
            self.heard_at = time.monotonic()
            if self._presence.phase != "online":
                # Unconfirmed: the broker keeps it for the next start.
                await lost.wait()
                return 0
            self._handling += 1
            self._idle.clear()
            try:
                await self._on_request(to_request(topic, payload, properties))
            except Exception as error:
                # Not stored. Only a new connection makes the broker send it again; what is
                # acknowledged after the abort goes nowhere.
                log.error(  # noqa: TRY400 - only a bug brings its traceback
                    "a request could not be stored, dropping the connection: %s",
                    _brief(error),
                    exc_info=None if isinstance(error, StorageError) else error,
                )
                abort(client)
            finally:
                self._handling -= 1
                if not self._handling:
                    self._idle.set()
            return 0

        client.on_message = on_message
        return client

    def _begin(self, client: Any, sent: SentIds) -> None:
        told = client._package_handler._connack_properties  # noqa: SLF001 - no public way
        window = told.get("receive_maximum", [65535])[0]
        self._window = asyncio.Semaphore(max(1, min(window, MOST_UNCONFIRMED) - SPARE_IDS))
        self._most_bytes = told.get("maximum_packet_size", [268_435_455])[0]
        self._sent = sent
        self._client = client
        self.connects += 1
        self.last_error = None
        self.heard_at = time.monotonic()
        self._up.set()

    def _end(self) -> None:
        self._up.clear()
        self._client = None
        for confirmed in self._unconfirmed.values():
            # Whoever waits for a slot must hear of it too.
            self._window.release()
            if not confirmed.done():
                confirmed.set_exception(PublishError("the connection was lost"))
        self._unconfirmed.clear()

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


async def end_session(settings: MqttSettings) -> None:
    """Let the broker forget a session, with all that waits in it.

    Raises:
        OSError: the broker is away, or does not let us.
    """
    client = gmqtt.Client(settings.client_id, clean_session=True)
    client.set_config({"reconnect_retries": NEVER_RECONNECT})
    # It would wait for an answer without an end.
    client.on_disconnect = lambda *_: client._connack_received.set()  # noqa: SLF001 - as above
    try:
        async with asyncio.timeout(settings.connect_timeout_seconds):
            await _dial(client, settings)
    except gmqtt.MQTTConnectError as error:
        raise ConnectionRefusedError(_brief(error)) from error
    finally:
        await disconnect(client)


async def _dial(client: Any, settings: MqttSettings) -> None:
    url = urlsplit(settings.url.get_secret_value())
    if url.username:
        password = unquote(url.password) if url.password else None
        client.set_auth_credentials(unquote(url.username), password)
    await client.connect(
        url.hostname,
        url.port or (8883 if url.scheme == "mqtts" else 1883),
        ssl=broker_tls(settings) if url.scheme == "mqtts" else False,
        keepalive=settings.keepalive_seconds,
        version=MQTTv50 if settings.version == "5" else MQTTv311,
    )


def _outcome(topic: str, sent: asyncio.Future[int] | PublishError) -> int | PublishError:
    if isinstance(sent, PublishError):
        return sent
    if not sent.done():
        # Nobody waits any more for the PUBACK, which gives the window's slot back.
        sent.cancel()
        return PublishError("the broker did not confirm in time")
    error = sent.exception()
    if error is not None:
        return error if isinstance(error, PublishError) else PublishError(str(error))
    if (code := sent.result()) >= REFUSED:
        return PublishError(f"the broker refused {topic}: 0x{code:02x}", reason_code=code)
    return code


def _brief(error: Exception) -> str:
    return str(error) or type(error).__name__
