"""The client's connection to the broker: the client library's only file that imports paho-mqtt.

It connects by itself and again after every loss, keeps the set of topics that are wanted, and
says which of them the broker has confirmed on the connection that stands now.
"""

import contextlib
import socket
import ssl
import sys
import threading
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal
from urllib.parse import SplitResult, unquote, urlsplit

import paho.mqtt.client as paho
from paho.mqtt.enums import CallbackAPIVersion, MQTTProtocolVersion
from paho.mqtt.reasoncodes import ReasonCode

KEEPALIVE_SECONDS = 20
IN_FLIGHT = 200
CONNECT_SECONDS = 5.0
TOPICS_A_SUBSCRIBE = 200
"""Brokers limit a packet; a list this long fits into any."""
CLOSE_SECONDS = 2.0
"""How long a goodbye may take: a broker that stands still must not hold who leaves."""
_PORTS = {"mqtt": 1883, "mqtts": 8883}

Version = Literal["5", "3.1.1"]
_PROTOCOLS = {"5": MQTTProtocolVersion.MQTTv5, "3.1.1": MQTTProtocolVersion.MQTTv311}


@dataclass(frozen=True, slots=True)
class Secured:
    """Files for `mqtts`, all PEM; without a CA file the system's CAs are trusted."""

    ca_file: Path | None = None
    cert_file: Path | None = None
    key_file: Path | None = None

    def context(self) -> ssl.SSLContext:
        """Return what TLS is spoken with.

        Raises:
            ValueError: a file cannot be read or used.
        """
        name = "CA file"
        try:
            context = ssl.create_default_context(cafile=self.ca_file)
            if self.cert_file is not None:
                name = "certificate or key file"
                context.load_cert_chain(self.cert_file, self.key_file)
        except OSError as error:  # ssl.SSLError is one
            raise ValueError(f"the {name} cannot be used: {error}") from error
        context.sslsocket_class = _TlsSocket
        return context


class _TlsSocket(ssl.SSLSocket):
    """Closes itself when the handshake fails: paho would leave that to the garbage collector."""

    def do_handshake(self, block: bool = False) -> None:  # noqa: FBT002 - the base's signature
        try:
            super().do_handshake(block)
        except BaseException:
            # paho drops the socket without closing it, whatever went wrong.
            self.close()
            raise


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
        secured: certificates for `mqtts`.
        version: of MQTT; a 3.1.1 broker never says that it did not take a request.
        on_message: topic and payload of what came.
        on_heard: topics whose SUBACK came: from now on nothing of them is missed.
        on_refused: topic, and why the broker does not let us.
        on_lost: why there is no connection, now or at first.

    Raises:
        ValueError: the URL is none, or a certificate cannot be used.
    """

    def __init__(
        self,
        url: str,
        *,
        secured: Secured = Secured(),
        version: Version = "5",
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
        self._is_connected = self._is_closed = False
        self._refusal: str | None = None
        self._paho = paho.Client(
            CallbackAPIVersion.VERSION2,
            f"inferd-client-{uuid.uuid4().hex[:12]}",
            protocol=_PROTOCOLS[version],
        )
        self._paho.connect_timeout = CONNECT_SECONDS
        self._paho.max_inflight_messages_set(IN_FLIGHT)
        # paho multiplies it; only its type says int.
        self._paho.reconnect_delay_set(0.25, 5)  # type: ignore[arg-type]
        if parts.username is not None:
            self._paho.username_pw_set(unquote(parts.username), unquote(parts.password or ""))
        if parts.scheme == "mqtts":
            self._paho.tls_set_context(secured.context())
        self._paho.on_connect = self._connected
        self._paho.on_connect_fail = lambda *_: self._lost(_failure())
        self._paho.on_disconnect = lambda *_: self._lost("the connection was lost")
        self._paho.on_socket_open = lambda _c, _u, sock: self._opened(sock)
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
        """Say goodbye and end paho's thread; take a few seconds at most.

        A thread that still connects is left to itself; it ends when that does, connected or not.
        """
        self._is_closed = True
        self._paho.disconnect()
        # It waits for paho's thread without a limit.
        ending = threading.Thread(target=self._paho.loop_stop, name="inferd-close", daemon=True)
        ending.start()
        ending.join(CLOSE_SECONDS)
        if ending.is_alive():
            # What is not sent by now, the goodbye included, waits behind a full buffer.
            _cut(self._paho.socket())
            ending.join(CLOSE_SECONDS)

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

    def _opened(self, sock: Any) -> None:
        if self._is_closed:
            _cut(sock)
            return
        # Else a request waits, 40 ms, for the broker's word on our last confirmation.
        with contextlib.suppress(OSError):
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

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


def _cut(sock: Any) -> None:
    """End a connection, so that who waits on it wakes."""
    if sock is not None:
        with contextlib.suppress(OSError):
            sock.shutdown(socket.SHUT_RDWR)


def _failure() -> str:
    """Say why there is no connection: paho calls back while it handles the error, without it."""
    error = sys.exc_info()[1]
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"its certificate is not trusted ({error.verify_message})"
    return f"cannot connect ({error})" if error else "cannot connect"
