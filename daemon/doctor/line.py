"""One short MQTT connection that disturbs nobody: the only file of doctor that knows paho-mqtt.

Its client id is its own: with the daemon's, the broker would throw the daemon out. Nothing of it
is left at the broker: no session, no will, nothing retained, and what it publishes expires.
"""

import ssl
import threading
import time
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self
from urllib.parse import unquote, urlsplit

import paho.mqtt.client as paho
from paho.mqtt.enums import CallbackAPIVersion, MQTTProtocolVersion
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties
from paho.mqtt.reasoncodes import ReasonCode

from daemon.errors import InferdError
from daemon.mqtt.broker_tls import broker_tls
from daemon.settings import MqttSettings

KEEPALIVE_SECONDS = 20
EXPIRY_SECONDS = 5
"""No broker keeps what is published here for a client that is away."""
QUIET_SECONDS = 0.3
MOST_BYTES_HEARD = 65_536
"""Larger messages are other people's requests."""
_OLD_REFUSALS = {4: 0x86, 5: 0x87}
"""MQTT 3.1.1's words for a bad password and for not authorized."""


class LineError(InferdError):
    """The broker did not let us in, or did not answer.

    Attributes:
        reason_code: that of the CONNACK, as MQTT 5 counts, where the broker refused.
        verify_code: OpenSSL's X509_V_ERR, where its certificate is not trusted.
    """

    default_code = "broker_unreachable"

    def __init__(
        self,
        message: str,
        *,
        code: str | None = None,
        reason_code: int | None = None,
        verify_code: int | None = None,
    ) -> None:
        super().__init__(message, code=code)
        self.reason_code = reason_code
        self.verify_code = verify_code


@dataclass(frozen=True, slots=True)
class Heard:
    """A message that came."""

    topic: str
    payload: bytes


class Line:
    """A connection; a context manager that connects on entry. Every wait ends.

    Args:
        settings: where the broker is, and who we are there.
        is_anonymous: come without user, password and certificate.

    Raises:
        LineError: on entry.
        ConfigError: on entry; a TLS file cannot be used.
    """

    def __init__(self, settings: MqttSettings, *, is_anonymous: bool = False) -> None:
        parts = urlsplit(settings.url.get_secret_value())
        self._host = str(parts.hostname)
        self._is_tls = parts.scheme == "mqtts"
        self._port = parts.port or (8883 if self._is_tls else 1883)
        self._settings = settings
        self._is_anonymous = is_anonymous
        self._seconds = settings.connect_timeout_seconds
        self._changed = threading.Condition()
        self._answer: tuple[int, str] | None = None
        self._is_lost = False
        self._acks: dict[int, int] = {}
        self._heard: list[Heard] = []
        self.most_bytes: int | None = None
        """The largest packet that the broker takes, where it said so."""
        self.window: int | None = None
        """How many messages of ours may be unconfirmed, where the broker said so."""
        self.is_five = settings.version == "5"
        self._paho = paho.Client(
            CallbackAPIVersion.VERSION2,
            f"inferd-doctor-{uuid.uuid4().hex[:12]}",
            clean_session=None if self.is_five else True,
            protocol=MQTTProtocolVersion.MQTTv5 if self.is_five else MQTTProtocolVersion.MQTTv311,
            reconnect_on_failure=False,
        )
        self._paho.connect_timeout = self._seconds
        if parts.username and not is_anonymous:
            password = unquote(parts.password) if parts.password else None
            self._paho.username_pw_set(unquote(parts.username), password)
        self._paho.on_connect = self._on_connect
        self._paho.on_disconnect = lambda *_: self._on_lost()
        self._paho.on_publish = lambda _c, _u, mid, code, _p: self._on_ack(mid, code)
        self._paho.on_subscribe = lambda _c, _u, mid, codes, _p: self._on_ack(mid, *codes)
        self._paho.on_message = lambda _c, _u, got: self._on_message(got)

    @property
    def address(self) -> str:
        """Where the broker is, without user and password."""
        return f"mqtt{'s' if self._is_tls else ''}://{self._host}:{self._port}"

    def __enter__(self) -> Self:
        if self._is_tls:
            settings = self._settings
            if self._is_anonymous:
                settings = settings.model_copy(update={"cert_file": None, "key_file": None})
            self._paho.tls_set_context(broker_tls(settings))
        try:
            self._paho.connect(self._host, self._port, KEEPALIVE_SECONDS, clean_start=self._clean)
        except ssl.SSLCertVerificationError as error:
            raise LineError(
                f"its certificate is not trusted: {error.verify_message}",
                code="broker_certificate",
                verify_code=error.verify_code,
            ) from error
        except ssl.SSLError as error:
            raise LineError(f"TLS fails: {error.reason or error}", code="broker_tls") from error
        except ConnectionResetError as error:
            if self._is_tls:
                message = "it hangs up at the first word of TLS"
                raise LineError(message, code="broker_tls") from error
            raise LineError(str(error), code="broker_silent") from error
        except OSError as error:
            raise LineError(str(error) or type(error).__name__) from error
        self._paho.loop_start()
        try:
            self._wait_until_let_in()
        except BaseException:
            # Ctrl-C too: paho's thread would outlive us.
            self.close()
            raise
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Say goodbye. Safe twice."""
        self._paho.disconnect()
        self._paho.loop_stop()

    def subscribe(self, filters: Sequence[str]) -> float:
        """Subscribe with QoS 0; return the seconds until the broker confirmed.

        Raises:
            LineError: it refused, code broker_refused, or did not answer.
        """
        began = time.monotonic()
        _, mid = self._paho.subscribe([(name, 0) for name in filters])
        code = self._wait_for_ack(mid)
        if code >= 0x80:  # noqa: PLR2004 - refusals begin here
            message = f"it refuses to subscribe us to {', '.join(filters)} (0x{code:02x})"
            raise LineError(message, code="broker_refused", reason_code=code)
        return time.monotonic() - began

    def publish(self, topic: str, payload: bytes) -> int:
        """Publish with QoS 1; return the reason code, which MQTT 3.1.1 always has as 0.

        Raises:
            LineError: no confirmation came.
        """
        sent = self._paho.publish(topic, payload, qos=1, properties=self._expiring())
        return self._wait_for_ack(sent.mid)

    def send(self, topic: str, payload: bytes) -> None:
        """Publish with QoS 0: for those who listen right now."""
        self._paho.publish(topic, payload, qos=0, properties=self._expiring())

    def wait_for(self, predicate: Callable[[Heard], bool], seconds: float) -> bool:
        """Return whether such a message came within so many seconds, or before."""
        with self._changed:
            return self._changed.wait_for(
                lambda: self._is_lost or any(map(predicate, self._heard)), seconds
            ) and any(map(predicate, self._heard))

    def wait_quiet(self) -> list[Heard]:
        """Return what came, once nothing has come for a moment; retained messages come at once."""
        ends_at = time.monotonic() + self._seconds
        with self._changed:
            count = -1
            while count != len(self._heard) and time.monotonic() < ends_at:
                count = len(self._heard)
                self._changed.wait_for(lambda: len(self._heard) != count, QUIET_SECONDS)  # noqa: B023 - called at once
            return list(self._heard)

    @property
    def _clean(self) -> Any:
        return True if self.is_five else paho.MQTT_CLEAN_START_FIRST_ONLY

    def _expiring(self) -> Properties | None:
        if not self.is_five:
            return None
        properties = Properties(PacketTypes.PUBLISH)  # type: ignore[no-untyped-call]
        properties.MessageExpiryInterval = EXPIRY_SECONDS
        return properties

    def _wait_until_let_in(self) -> None:
        with self._changed:
            self._changed.wait_for(lambda: self._answer or self._is_lost, self._seconds)
            answer, is_lost = self._answer, self._is_lost
        if answer is None:
            what = (
                "it hangs up on us; is this an MQTT port, and TLS on both sides or on none?"
                if is_lost
                else f"it takes the connection but does not answer within {self._seconds:g} s"
            )
            raise LineError(what, code="broker_silent")
        code, words = answer
        if code:
            raise LineError(f"it refuses us: {words}", code="broker_refused", reason_code=code)

    def _wait_for_ack(self, mid: int | None) -> int:
        with self._changed:
            self._changed.wait_for(lambda: self._is_lost or mid in self._acks, self._seconds)
            code = self._acks.get(mid or 0)
        if code is None:
            raise LineError("it let us in and then fell silent", code="broker_silent")
        return code

    def _on_connect(
        self, _client: Any, _data: Any, _flags: Any, code: ReasonCode, said: Properties | None
    ) -> None:
        with self._changed:
            number = _OLD_REFUSALS.get(code.value, code.value)
            self._answer = number, str(code)
            self.most_bytes = getattr(said, "MaximumPacketSize", None)
            self.window = getattr(said, "ReceiveMaximum", None)
            self._changed.notify_all()

    def _on_lost(self) -> None:
        with self._changed:
            self._is_lost = True
            self._changed.notify_all()

    def _on_ack(self, mid: int, *codes: ReasonCode) -> None:
        with self._changed:
            self._acks[mid] = max((each.value for each in codes), default=0)
            self._changed.notify_all()

    def _on_message(self, got: paho.MQTTMessage) -> None:
        if len(got.payload) > MOST_BYTES_HEARD:
            return
        with self._changed:
            self._heard.append(Heard(got.topic, bytes(got.payload)))
            self._changed.notify_all()
