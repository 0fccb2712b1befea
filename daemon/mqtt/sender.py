"""Sends over one connection: QoS 1 within the broker's window until confirmed, QoS 0 or not at all.

It lives as long as its connection; packet ids, the window and what is unconfirmed go with it.
"""

import asyncio
import base64
import logging
import struct
from collections.abc import Sequence
from typing import Any, TypeAlias

from daemon.errors import PublishError
from daemon.mqtt.vendor import REFUSED, SentIds, abort
from daemon.settings import MqttSettings

log = logging.getLogger(__name__)

SPARE_IDS = 3
"""gmqtt runs out of packet ids before the broker's window is full, and SUBSCRIBE shares them."""
MOST_UNCONFIRMED = 1024
MOST_UNSENT_BYTES = 65_536
"""With more waiting for the broker, messages of QoS 0 are dropped."""
HEADER_BYTES = 512
"""Room for topic, properties and headers beside a payload."""

Outgoing: TypeAlias = tuple[str, bytes, str | None]
"""Topic, payload and correlation data in base64."""


class TooLargeError(PublishError):
    """The broker said at connect that it takes no packet of this size."""

    default_code = "too_large"


class Sender:
    """What one connection sends; of use between `begin` and `end`."""

    def __init__(self, client: Any, sent: SentIds, settings: MqttSettings) -> None:
        """Hear of the client's PUBACKs from the first one on.

        Args:
            client: gmqtt's, not yet connected.
            sent: that client's storage, which knows the id of what was just sent.
            settings: the protocol's version, and how long a PUBACK may take.
        """
        self._client = client
        self._sent = sent
        self._settings = settings
        self._unconfirmed: dict[int, asyncio.Future[int]] = {}
        self._window = asyncio.Semaphore(1)
        self._most_bytes = 0
        self._pubacks = 0
        self._is_over = False
        handler = client._package_handler  # noqa: SLF001 - no public way to a PUBACK's reason code

        def on_puback(_command: int, packet: bytes) -> None:
            (mid,) = struct.unpack("!H", packet[:2])
            handler.id_generator.free_id(mid)
            self._confirm(mid, packet[2] if len(packet) > 2 else 0)  # noqa: PLR2004 - short form

        handler._handle_puback_packet = on_puback  # noqa: SLF001 - as above

    def begin(self) -> None:
        """Take the limits that the broker told in its CONNACK."""
        told = self._client._package_handler._connack_properties  # noqa: SLF001 - no public way
        window = told.get("receive_maximum", [65535])[0]
        self._window = asyncio.Semaphore(max(1, min(window, MOST_UNCONFIRMED) - SPARE_IDS))
        self._most_bytes = told.get("maximum_packet_size", [268_435_455])[0]

    def end(self) -> None:
        """Fail whatever waits for a PUBACK, and whatever is published from now on; may be twice."""
        self._is_over = True
        for confirmed in self._unconfirmed.values():
            # Whoever waits for a slot must hear of it too.
            self._window.release()
            if not confirmed.done():
                confirmed.set_exception(PublishError("the connection was lost"))
        self._unconfirmed.clear()

    async def publish(
        self, messages: Sequence[Outgoing], *, retain: bool = False
    ) -> list[int | PublishError]:
        """Send with QoS 1, in order; return for each the PUBACK's reason code, or what failed."""
        pubacks = self._pubacks
        sent: list[asyncio.Future[int] | PublishError] = []
        # One for all: they are sent at about the same time.
        deadline = asyncio.timeout(self._settings.publish_timeout_seconds)
        try:
            async with deadline:
                for message in messages:
                    sent.append(await self._publish_one(*message, retain=retain))  # noqa: PERF401 - the first stay known when a later one fails
                for each in sent:
                    if isinstance(each, asyncio.Future) and not each.done():
                        await asyncio.wait((each,))
        except TimeoutError:
            pass
        except BaseException:
            # A cancellation too: nobody is left to hear that the connection was lost.
            for each in sent:
                if isinstance(each, asyncio.Future):
                    each.cancel()
            raise
        if deadline.expired() and not self._is_over and self._pubacks == pubacks:
            log.warning("the broker confirms nothing, dropping the connection")
            abort(self._client)
        late = [PublishError("the broker did not confirm in time")] * (len(messages) - len(sent))
        topics_of_all = (topic for topic, _, _ in messages)
        return [_outcome(*each) for each in zip(topics_of_all, [*sent, *late], strict=True)]

    async def _publish_one(
        self, topic: str, payload: bytes, correlation_data: str | None, *, retain: bool
    ) -> asyncio.Future[int] | PublishError:
        """Send once the window has room; return what the PUBACK will resolve, or why not sent."""
        properties = self._properties(correlation_data)
        if error := self._too_large(topic, payload, properties):
            return error
        # Given back by the PUBACK or by the end of the connection, and not by whoever stops
        # waiting: until then gmqtt's packet id is taken.
        await self._window.acquire()
        if self._is_over:
            self._window.release()
            return PublishError("the connection was lost")
        self._client.publish(topic, payload, qos=1, retain=retain, **properties)
        # Nothing awaits between sending and this: the PUBACK cannot be missed.
        confirmed = asyncio.get_running_loop().create_future()
        self._unconfirmed[self._sent.latest] = confirmed
        return confirmed

    def send(
        self, topic: str, payload: bytes, *, retain: bool, correlation_data: str | None
    ) -> bool:
        """Send with QoS 0, or drop it where that is not possible at once; return whether sent."""
        transport = self._client._connection._transport  # noqa: SLF001 - no public way to its buffer
        if transport.is_closing() or transport.get_write_buffer_size() > MOST_UNSENT_BYTES:
            # The broker reads too slowly: what must arrive comes first.
            return False
        properties = self._properties(correlation_data)
        if self._too_large(topic, payload, properties):
            return False
        self._client.publish(topic, payload, qos=0, retain=retain, **properties)
        return True

    def _confirm(self, mid: int, code: int) -> None:
        confirmed = self._unconfirmed.pop(mid, None)
        if confirmed is None:
            return
        self._pubacks += 1
        self._window.release()
        if not confirmed.done():
            confirmed.set_result(code)

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
