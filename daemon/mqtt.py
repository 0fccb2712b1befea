"""The link to the broker: the only module that knows gmqtt, and hides its sharp edges.

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
import uuid
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any, Literal, NoReturn, TypeAlias
from urllib.parse import unquote, urlsplit

import gmqtt
from gmqtt.mqtt.constants import MQTTv50, MQTTv311

from daemon import topics
from daemon.broker_tls import broker_tls
from daemon.errors import PublishError, StorageError
from daemon.events import Message
from daemon.jobs import JsonObject, dump_json
from daemon.requests import MqttRequest
from daemon.settings import MqttSettings

log = logging.getLogger(__name__)

FIRST_WAIT_SECONDS = 0.2
LONGEST_WAIT_SECONDS = 10.0
STEADY_SECONDS = 10.0
"""A connection that ends sooner does not start the waits anew: a rival with our client_id, or a
database that cannot store, would else make us reconnect many times a second."""
DISCONNECT_SECONDS = 1.0
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
    ) -> None:
        self._settings = settings
        self._url = urlsplit(settings.url.get_secret_value())
        self._subscriptions = subscriptions
        self._on_request = on_request
        self._up = asyncio.Event()
        self._phase: Literal["online", "draining", "offline"] = "online"
        self._paused: dict[str, int | None] = {}
        self._is_all_paused = False
        self._session_id = ""
        self._client: Any = None
        self._unconfirmed: dict[int, asyncio.Future[int]] = {}
        self._sent = _SentIds()
        self._window = asyncio.Semaphore(1)
        self._most_bytes = 0
        self._pubacks = 0
        self.connects = 0
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
        while True:
            connects, began = self.connects, time.monotonic()
            try:
                await self._connect_once()
            except (OSError, TimeoutError, gmqtt.MQTTConnectError, PublishError) as error:
                self.last_error = _brief(error)
                log.warning("the broker is away: %s", self.last_error)
            if self.connects > connects and time.monotonic() - began >= STEADY_SECONDS:
                wait = FIRST_WAIT_SECONDS
            await asyncio.sleep(wait * random.uniform(0.5, 1))  # noqa: S311 - spreads load
            wait = min(wait * 2, LONGEST_WAIT_SECONDS)

    async def drain(self) -> None:
        """Confirm no further requests and say so; the broker keeps what comes meanwhile."""
        self._phase = "draining"
        if self.is_up:
            with contextlib.suppress(PublishError):
                await self._say_state("shutdown")

    async def tell_paused(self, until: Mapping[str, int | None], *, is_all: bool) -> None:
        """Say which task types are paused, now and again at each connect.

        Args:
            until: by task type the end of its pause, in epoch milliseconds; None where it has none.
            is_all: whether nothing is left that this daemon works on; requests are taken still.

        Raises:
            PublishError: nobody heard.
        """
        self._paused, self._is_all_paused = dict(until), is_all
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
            _abort(client)
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
        self._session_id = str(uuid.uuid4())
        lost = asyncio.Event()
        sent = _SentIds()
        client = self._make_client(sent, lost)
        seconds = self._settings.connect_timeout_seconds
        try:
            try:
                async with asyncio.timeout(seconds):
                    await self._open(client, lost)
                    self._begin(client, sent)
                    log.info("connected to the broker", extra={"broker": self._url.hostname})
                    await self._say_state("started")
            except TimeoutError:
                self._check_version(client)
                raise TimeoutError(f"no answer from the broker within {seconds:g} s") from None
            await _watch(client, lost)
        except asyncio.CancelledError:
            self._phase = "offline"
            if self._client is client:
                with contextlib.suppress(PublishError, TimeoutError):
                    async with asyncio.timeout(DISCONNECT_SECONDS):
                        await self._say_state("shutdown")
            raise
        finally:
            self._end()
            await _disconnect(client)

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
                log.error("another client took our client_id %s", self._settings.client_id)
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
        await client.connect(
            self._url.hostname,
            self._url.port or (8883 if self._url.scheme == "mqtts" else 1883),
            ssl=broker_tls(self._settings) if self._url.scheme == "mqtts" else False,
            keepalive=self._settings.keepalive_seconds,
            version=MQTTv50 if is_five else MQTTv311,
        )
        _gather_writes(client)
        # Retained requests are refused: we want to see the flag, and not again at every
        # subscribe. A 3.1.1 broker must hang up on options that it does not know.
        options = {"retain_handling_options": 2, "retain_as_published": True} if is_five else {}
        client.subscribe(
            [gmqtt.Subscription(name, qos=1, **options) for name in self._subscriptions]
        )
        await answered.wait()
        self._check_version(client)
        if lost.is_set():
            raise ConnectionResetError("the connection was lost before the broker let us in")
        if any(code >= REFUSED for code in granted):
            raise ConnectionRefusedError(f"the broker refused to subscribe us: {granted}")

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

    def _make_client(self, sent: "_SentIds", lost: asyncio.Event) -> Any:
        will = gmqtt.Message(
            topics.availability(self._settings.client_id),
            self._describe("offline", "connection_lost"),
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
            will_message=will,
            persistent_storage=sent,
            logger=logging.getLogger("gmqtt"),
            **(five if self._settings.version == "5" else {}),
        )
        client.set_config({"reconnect_retries": NEVER_RECONNECT})
        if self._url.username:
            password = unquote(self._url.password) if self._url.password else None
            client.set_auth_credentials(unquote(self._url.username), password)
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
            if self._phase != "online":
                # Unconfirmed: the broker keeps it for the next start.
                await lost.wait()
                return 0
            try:
                await self._on_request(_request(topic, payload, properties))
            except Exception as error:
                # Not stored. Only a new connection makes the broker send it again; what is
                # acknowledged after the abort goes nowhere.
                log.error(  # noqa: TRY400 - only a bug brings its traceback
                    "a request could not be stored, dropping the connection: %s",
                    _brief(error),
                    exc_info=None if isinstance(error, StorageError) else error,
                )
                _abort(client)
            return 0

        client.on_message = on_message
        return client

    def _begin(self, client: Any, sent: "_SentIds") -> None:
        told = client._package_handler._connack_properties  # noqa: SLF001 - no public way
        window = told.get("receive_maximum", [65535])[0]
        self._window = asyncio.Semaphore(max(1, min(window, MOST_UNCONFIRMED) - SPARE_IDS))
        self._most_bytes = told.get("maximum_packet_size", [268_435_455])[0]
        self._sent = sent
        self._client = client
        self.connects += 1
        self.last_error = None
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

    @property
    def _state(self) -> str:
        return "paused" if self._phase == "online" and self._is_all_paused else self._phase

    async def _say_state(self, reason: str) -> None:
        """Tell the retained availability; on the way to an end the reason is always that.

        A later call never says an earlier state: the phase only goes forward, nothing awaits
        between reading it and queueing for the window, and the window is first come, first served.

        Raises:
            PublishError: the connection is of no use; a broker that only refuses is not that bad.
        """
        topic, state = topics.availability(self._settings.client_id), self._state
        said = self._describe(state, reason if self._phase == "online" else "shutdown")
        try:
            await self.publish(topic, said, retain=True)
        except PublishError as error:
            if error.reason_code is None:
                raise
            log.error("nobody hears that we are %s: %s", state, error.message)  # noqa: TRY400 - the broker's word says it all

    def _describe(self, state: str, reason: str) -> bytes:
        paused: JsonObject = {}
        if self._paused and state != "offline":
            paused = {"paused": list(self._paused), "paused_until": self._paused}
        return dump_json(
            {
                "v": 1,
                "worker_id": self._settings.client_id,
                "state": state,
                "reason": reason,
                "session_id": self._session_id,
                "timestamp": time.time_ns() // 1_000_000,
                **paused,
            }
        ).encode()


class _SentIds:
    """gmqtt's `persistent_storage`: tells the id of what was just sent and never replays.

    It is truthy on purpose: gmqtt replaces a falsy one by its own.
    """

    is_empty = True

    def __init__(self) -> None:
        self.latest = 0

    def push_message(self, mid: int, _package: bytes) -> None:
        self.latest = mid

    def remove_message_by_mid(self, mid: int) -> None:
        """PUBACKs are handled by the link."""

    def clear(self) -> None:
        """A session that was not resumed: the outbox sends again."""

    def get_all(self) -> list[tuple[int, bytes]]:
        return []

    async def wait_empty(self) -> None:
        """Nothing is ever waited for."""


def _request(topic: str | bytes, payload: bytes, properties: dict[str, Any]) -> MqttRequest:
    correlation = properties.get("correlation_data", [None])[0]
    return MqttRequest(
        topic=topic if isinstance(topic, str) else topic.decode("utf-8", "replace"),
        payload=bytes(payload),
        is_retained=bool(properties.get("retain")),
        response_topic=properties.get("response_topic", [None])[0],
        correlation_data=None
        if correlation is None
        else base64.b64encode(bytes(correlation)).decode(),
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


class _GatheringTransport:
    """Gives what is written in one turn of the loop to the transport at once.

    gmqtt writes packet by packet: a system call each, and one more for the broker to read it.
    """

    def __init__(self, transport: asyncio.Transport) -> None:
        self._transport = transport
        self._parts: list[bytes] = []
        self._size = 0

    def write(self, data: bytes) -> None:
        if not self._parts:
            asyncio.get_running_loop().call_soon(self._flush)
        self._parts.append(data)
        self._size += len(data)

    def _flush(self) -> None:
        parts, self._parts, self._size = self._parts, [], 0
        if parts and not self._transport.is_closing():
            self._transport.write(b"".join(parts))

    def close(self) -> None:
        self._flush()
        self._transport.close()

    def get_write_buffer_size(self) -> int:
        return self._size + self._transport.get_write_buffer_size()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)


def _gather_writes(client: Any) -> None:
    connection = client._connection  # noqa: SLF001 - no public way to its transport
    gathering = _GatheringTransport(connection._transport)  # noqa: SLF001 - as above
    connection._transport = gathering  # noqa: SLF001 - as above
    connection._protocol._transport = gathering  # noqa: SLF001 - as above


def _abort(client: Any) -> None:
    connection = client._connection  # noqa: SLF001 - close() would flush, which may never end
    if connection is not None:
        connection._transport.abort()  # noqa: SLF001 - as above


async def _watch(client: Any, lost: asyncio.Event) -> NoReturn:
    """Stay while the connection stands.

    gmqtt's own heartbeat waits for a flush that never ends when the peer stopped reading.

    Raises:
        ConnectionError: it is over, or has been silent for too long.
    """
    connection = client._connection  # noqa: SLF001 - no public way to the last sign of life
    while not lost.is_set():
        silence = time.monotonic() - connection._last_data_in  # noqa: SLF001 - as above
        if silence > 2 * connection.keepalive:
            _abort(client)
            raise ConnectionAbortedError(f"no sign of life for {silence:.0f} s")
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(connection.keepalive / 4):
                await lost.wait()
    raise ConnectionResetError("the connection was lost")


async def _disconnect(client: Any) -> None:
    """Say goodbye if the peer listens; after a clean DISCONNECT the broker keeps our will back."""
    try:
        async with asyncio.timeout(DISCONNECT_SECONDS):
            await client.disconnect()
    except (OSError, TimeoutError):
        pass
    finally:
        _abort(client)


def _brief(error: Exception) -> str:
    return str(error) or type(error).__name__
