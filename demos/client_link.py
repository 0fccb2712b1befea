"""The client's line to the broker: the one file of the client library that knows paho-mqtt.

It connects by itself and again after every loss, keeps the set of topics that are wanted, and
says which of them the broker has confirmed on the connection that stands now.
"""

import threading
import uuid
from collections.abc import Callable
from typing import Any
from urllib.parse import SplitResult, unquote, urlsplit

import paho.mqtt.client as paho
from paho.mqtt.enums import CallbackAPIVersion, MQTTProtocolVersion
from paho.mqtt.reasoncodes import ReasonCode

KEEPALIVE_SECONDS = 20
IN_FLIGHT = 200
CONNECT_SECONDS = 5.0
TOPICS_A_SUBSCRIBE = 200
"""Brokers limit a packet; a list this long fits into any."""
_PORTS = {"mqtt": 1883, "mqtts": 8883}


def split_address(url: str) -> SplitResult:
    """Return the parts of a broker's address.

    Raises:
        ValueError: it is none. The message does not repeat it, since it may hold a password.
    """
    parts = urlsplit(url if "://" in url else f"mqtt://{url}")
    if parts.scheme not in _PORTS or not parts.hostname or parts.port == 0:
        raise ValueError("a broker's address is mqtt[s]://[user:password@]host[:port]")
    return parts


class Link:
    """A paho client; its callbacks run in paho's thread and must not block.

    Args:
        url: `mqtt[s]://[user:password@]host[:port]`, or `host[:port]`.
        on_message: topic and payload of what came.
        on_heard: topics whose SUBACK came: from now on nothing of them is missed.
        on_refused: topic, and why the broker does not let us.
        on_lost: why there is no connection, now or at first.

    Raises:
        ValueError: the URL is none.
    """

    def __init__(
        self,
        url: str,
        *,
        on_message: Callable[[str, bytes], None],
        on_heard: Callable[[list[str]], None],
        on_refused: Callable[[str, str], None],
        on_lost: Callable[[str], None],
    ) -> None:
        parts = split_address(url)
        self._host = str(parts.hostname)
        self._port = parts.port or _PORTS[parts.scheme]
        self._on_message, self._on_heard = on_message, on_heard
        self._on_refused, self._on_lost = on_refused, on_lost
        self._lock = threading.Lock()  # never held while paho is called
        self._wanted: set[str] = set()
        self._asked: dict[int, list[str]] = {}
        self._early: dict[int, list[ReasonCode]] = {}
        self._published: dict[int, str] = {}
        self._is_connected = False
        self._refusal: str | None = None
        self._paho = paho.Client(
            CallbackAPIVersion.VERSION2,
            f"inferd-client-{uuid.uuid4().hex[:12]}",
            protocol=MQTTProtocolVersion.MQTTv5,
        )
        self._paho.connect_timeout = CONNECT_SECONDS
        self._paho.max_inflight_messages_set(IN_FLIGHT)
        # paho multiplies it; only its type says int.
        self._paho.reconnect_delay_set(0.25, 5)  # type: ignore[arg-type]
        if parts.username is not None:
            self._paho.username_pw_set(unquote(parts.username), unquote(parts.password or ""))
        if parts.scheme == "mqtts":
            self._paho.tls_set()
        self._paho.on_connect = self._connected
        self._paho.on_connect_fail = lambda *_: self._lost("cannot connect")
        self._paho.on_disconnect = lambda *_: self._lost("the connection was lost")
        self._paho.on_subscribe = self._subscribed
        self._paho.on_publish = self._confirmed
        self._paho.on_message = lambda _c, _u, got: on_message(got.topic, bytes(got.payload))

    @property
    def address(self) -> str:
        """Where the broker is, without password."""
        return f"{self._host}:{self._port}"

    @property
    def is_connected(self) -> bool:
        """Whether the broker let us in and the connection stands."""
        return self._is_connected

    def open(self) -> None:
        """Begin to connect; return at once."""
        self._paho.connect_async(self._host, self._port, KEEPALIVE_SECONDS)
        self._paho.loop_start()

    def close(self) -> None:
        """Say goodbye and end paho's thread."""
        self._paho.disconnect()
        self._paho.loop_stop()

    def listen(self, topic: str) -> None:
        """Subscribe to a topic now and after every reconnect; `on_heard` tells when."""
        with self._lock:
            self._wanted.add(topic)
        if self._is_connected:
            self._subscribe([topic])

    def forget(self, topic: str) -> None:
        """Stop listening."""
        with self._lock:
            self._wanted.discard(topic)
        if self._is_connected:
            self._paho.unsubscribe(topic)

    def publish(self, topic: str, payload: str, *, about: str) -> None:
        """Publish with QoS 1; a refusal comes back through `on_refused(about, ...)`."""
        info = self._paho.publish(topic, payload, qos=1)
        with self._lock:
            self._published[info.mid] = about

    def _subscribe(self, topics: list[str]) -> None:
        for start in range(0, len(topics), TOPICS_A_SUBSCRIBE):
            some = topics[start : start + TOPICS_A_SUBSCRIBE]
            _, mid = self._paho.subscribe([(topic, 1) for topic in some])
            if mid is None:
                return  # the connection went; the next one subscribes
            with self._lock:
                self._asked[mid] = some
                codes = self._early.pop(mid, None)
            if codes is not None:
                self._granted(mid, codes)

    def _connected(
        self, _client: paho.Client, _data: Any, _flags: Any, code: ReasonCode, _properties: Any
    ) -> None:
        if code.is_failure:
            self._refusal = f"it refuses us ({code})"
            self._lost(self._refusal)
            return
        self._refusal = None
        with self._lock:
            self._asked.clear()
            self._early.clear()
            self._is_connected = True
            wanted = sorted(self._wanted)
        self._subscribe(wanted)

    def _lost(self, reason: str) -> None:
        self._is_connected = False
        self._on_lost(f"the broker at {self.address}: {self._refusal or reason}")

    def _subscribed(
        self, _client: paho.Client, _data: Any, mid: int, codes: list[ReasonCode], _properties: Any
    ) -> None:
        with self._lock:
            if mid not in self._asked:  # faster than the thread that asked
                self._early[mid] = codes
                return
        self._granted(mid, codes)

    def _granted(self, mid: int, codes: list[ReasonCode]) -> None:
        with self._lock:
            topics = self._asked.pop(mid, [])
        for topic, code in zip(topics, codes, strict=False):
            if code.is_failure:
                self._on_refused(topic, f"the broker does not let us subscribe ({code})")
        self._on_heard(
            [topic for topic, code in zip(topics, codes, strict=False) if not code.is_failure]
        )

    def _confirmed(
        self, _client: paho.Client, _data: Any, mid: int, code: ReasonCode, _properties: Any
    ) -> None:
        with self._lock:
            about = self._published.pop(mid, None)
        if about is not None and code.is_failure:
            self._on_refused(about, f"the broker does not let us ask ({code})")
