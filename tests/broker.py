"""A real mosquitto for tests, and paho-mqtt as the independent opinion on what the daemon does.

    with Broker(tmp_path) as broker, Client(broker.port) as client:
        client.subscribe("inference/job/+/+")
        assert client.publish("inference/request/image_embedding", b'{"media_store_id": 1}') == 0
        accepted = client.wait_for(lambda message: message.topic.endswith("/accepted"))
        assert accepted.json()["data"]["priority"] == 5

`Broker` and `Client` block, each call for a bounded time. In an async test `Broker` may be called
as it is (it answers in milliseconds and needs nobody's loop); a `Client` that waits for something
the test's own loop must do would wait for ever, so use `AsyncClient` there:

    async with AsyncClient(broker.port) as client:
        await client.subscribe("inference/job/+/+")
        accepted = await client.wait_for(lambda message: message.topic.endswith("/accepted"))
"""

import asyncio
import base64
import contextlib
import hashlib
import json
import os
import shutil
import signal
import socket
import subprocess
import threading
import time
import weakref
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self

import paho.mqtt.client as paho
import pytest
from paho.mqtt.enums import CallbackAPIVersion, MQTTProtocolVersion
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties
from paho.mqtt.reasoncodes import ReasonCode

from tests.ports import claim_port

DEADLINE = 30.0
"""Seconds that anything here may take unless the caller says otherwise."""
SBIN = "/usr/sbin:/usr/local/sbin"
"""Where Debian and Homebrew put the broker, outside a user's PATH."""
CONNECT = bytes.fromhex("100c00044d5154540402000a0000")
"""MQTT 3.1.1, clean session, no client id: all that it takes to be answered."""
CONNACK = 0x20

Version = Literal["5", "3.1.1"]


def mosquitto() -> str:
    """Return the broker's path; without one the test skips with a reason, but fails in CI."""
    found = shutil.which("mosquitto") or shutil.which("mosquitto", path=SBIN)
    if found:
        return found
    reason = "mosquitto is not installed (Debian: apt install mosquitto)"
    if os.environ.get("CI"):
        pytest.fail(reason)
    pytest.skip(reason)


class Broker:
    """A mosquitto on 127.0.0.1 with a port and a persistence folder of its own.

    A context manager: it starts on entry, and nothing of it is left on exit. `stop`, `kill`,
    `freeze`, `thaw` and `restart` do to it what happens to brokers; the port, the configuration
    and (unless `forget` is called) the sessions stay the same over all of them.

    Args:
        folder: an existing folder; configuration, log and persistence live in `broker-PORT` there.
        max_packet_size: told to MQTT 5 clients; whoever sends more is disconnected.
        max_inflight_messages: also what MQTT 5 clients are told as Receive Maximum.
        passwords: user -> password; given, anonymous clients are refused. See `set_passwords`.
        acl: text of an acl_file.
        log_type: what goes to `log()`, such as ("all",); the default is mosquitto's own.
        extra: further lines of mosquitto.conf.
    """

    def __init__(
        self,
        folder: Path,
        *,
        max_packet_size: int | None = None,
        max_inflight_messages: int = 100,
        passwords: Mapping[str, str] | None = None,
        acl: str | None = None,
        log_type: Sequence[str] = (),
        extra: Iterable[str] = (),
    ) -> None:
        self._program = mosquitto()
        self._lock, self.port = claim_port()
        self.folder = folder / f"broker-{self.port}"
        self.folder.mkdir()
        self._process: subprocess.Popen[bytes] | None = None
        self._is_frozen = False
        lines = [
            f"listener {self.port} 127.0.0.1",
            # Root must not be changed into a user who cannot write to a test's folder; for any
            # other user the line means nothing.
            "user root",
            "persistence true",
            f"persistence_location {self.folder}/",
            "autosave_on_changes true",
            # As strict as it can be; see `settle`.
            "autosave_interval 1",
            f"max_inflight_messages {max_inflight_messages}",
            "max_queued_messages 100000",
            "set_tcp_nodelay true",
            "log_dest stderr",
            *(f"log_type {kind}" for kind in log_type),
        ]
        if max_packet_size is not None:
            lines.append(f"max_packet_size {max_packet_size}")
        if passwords is None:
            lines.append("allow_anonymous true")
        else:
            self.set_passwords(passwords)
            lines += ["allow_anonymous false", f"password_file {self._passwords}"]
        if acl is not None:
            rules = self.folder / "acl"
            rules.write_text(acl, encoding="utf-8")
            rules.chmod(0o600)
            lines.append(f"acl_file {rules}")
        self._config.write_text("\n".join([*lines, *extra, ""]), encoding="utf-8")

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    @property
    def url(self) -> str:
        """What INFERD_MQTT__URL takes."""
        return f"mqtt://127.0.0.1:{self.port}"

    def url_for(self, user: str, password: str) -> str:
        """Return the URL with credentials in it."""
        return f"mqtt://{user}:{password}@127.0.0.1:{self.port}"

    def log(self) -> str:
        """Return what mosquitto wrote since the first start."""
        path = self.folder / "log"
        return path.read_text(encoding="utf-8", errors="replace") if path.exists() else ""

    def start(self) -> None:
        """Start it and return once it answers a CONNECT."""
        assert self._process is None, "the broker runs already"
        ends_at = time.monotonic() + DEADLINE
        while not self._start_once(ends_at):
            # Somebody's outgoing connection may hold the port for a moment.
            assert time.monotonic() < ends_at, f"the broker does not start:\n{self.log()}"
            time.sleep(0.05)

    def stop(self) -> None:
        """End it in good order (SIGTERM): it says goodbye and saves its sessions."""
        self._end(signal.SIGTERM)

    def settle(self) -> None:
        """Return once everything that it has confirmed so far is on its disk (SIGUSR1).

        Whoever kills it and counts on its sessions calls this before: even with autosave_interval
        1, mosquitto 2.0.11 does not save because of a message that it could pass on at once.
        (That a real broker may lose the last messages is why clients repeat a request until they
        hear `accepted`.)
        """
        before, ends_at = self._saved(), time.monotonic() + DEADLINE
        self._running().send_signal(signal.SIGUSR1)
        while self._saved() == before:
            assert time.monotonic() < ends_at, f"the broker does not save:\n{self.log()}"
            time.sleep(0.005)

    def kill(self) -> None:
        """End it as a power cut would (SIGKILL); see `settle`."""
        self._end(signal.SIGKILL)

    def restart(self, *, kill: bool = False, forget: bool = False) -> None:
        """Stop (or kill) and start it; with `forget`, without the sessions it had."""
        self._end(signal.SIGKILL if kill else signal.SIGTERM)
        if forget:
            self.forget()
        self.start()

    def forget(self) -> None:
        """Remove the saved sessions and retained messages of a stopped broker."""
        assert self._process is None, "a running broker would save them again"
        self._database.unlink(missing_ok=True)

    def freeze(self) -> None:
        """Let it stand still (SIGSTOP): the connections stay up and nobody answers."""
        self._running().send_signal(signal.SIGSTOP)
        self._is_frozen = True

    def thaw(self) -> None:
        """Let it go on (SIGCONT)."""
        self._running().send_signal(signal.SIGCONT)
        self._is_frozen = False

    def set_passwords(self, passwords: Mapping[str, str]) -> None:
        """Replace the users; a running broker reads them at once, connections stay.

        New connections are judged by the new file soon after, not at the very moment.
        """
        text = "".join(f"{user}:{_hashed(word)}\n" for user, word in passwords.items())
        fresh = self._passwords.with_suffix(".new")
        fresh.write_text(text, encoding="utf-8")
        fresh.chmod(0o600)
        fresh.replace(self._passwords)
        if self._process is not None:
            self._process.send_signal(signal.SIGHUP)

    def close(self) -> None:
        """Let nothing of it be left. Safe twice, and in any state."""
        if self._process is not None:
            self._end(signal.SIGTERM)
        self._lock.close()

    def _saved(self) -> tuple[int, int] | None:
        """Which file holds the sessions; each save makes another."""
        try:
            found = self._database.stat()
        except FileNotFoundError:
            return None
        return found.st_ino, found.st_mtime_ns

    @property
    def _database(self) -> Path:
        return self.folder / "mosquitto.db"

    @property
    def _config(self) -> Path:
        return self.folder / "mosquitto.conf"

    @property
    def _passwords(self) -> Path:
        return self.folder / "passwords"

    def _running(self) -> subprocess.Popen[bytes]:
        assert self._process is not None, "the broker is not running"
        return self._process

    def _start_once(self, ends_at: float) -> bool:
        with (self.folder / "log").open("ab") as log:
            process = subprocess.Popen([self._program, "-c", str(self._config)], stderr=log)
        # Whatever becomes of the test, the child does not outlive this object or this process.
        finalizer = weakref.finalize(self, _put_down, process)
        while process.poll() is None:
            if self._answers():
                self._process, self._is_frozen = process, False
                return True
            if time.monotonic() > ends_at:
                finalizer()
                pytest.fail(f"the broker does not answer:\n{self.log()}")
            time.sleep(0.01)
        finalizer.detach()
        return False

    def _answers(self) -> bool:
        with (
            contextlib.suppress(OSError),
            socket.create_connection(("127.0.0.1", self.port), timeout=1) as probe,
        ):
            probe.sendall(CONNECT)
            # Whether it lets us in does not matter.
            return probe.recv(1) == bytes([CONNACK])
        return False

    def _end(self, how: signal.Signals) -> None:
        process, self._process = self._running(), None
        process.send_signal(how)
        if self._is_frozen:
            process.send_signal(signal.SIGCONT)
        try:
            process.wait(DEADLINE)
        except subprocess.TimeoutExpired:
            _put_down(process)
            pytest.fail(f"the broker does not end:\n{self.log()}")


def _hashed(password: str) -> str:
    """Return a password as mosquitto_passwd writes it: PBKDF2-SHA512."""
    salt, rounds = os.urandom(12), 101
    digest = hashlib.pbkdf2_hmac("sha512", password.encode(), salt, rounds, 64)
    return f"$7${rounds}${base64.b64encode(salt).decode()}${base64.b64encode(digest).decode()}"


def _put_down(process: subprocess.Popen[bytes]) -> None:
    if process.poll() is None:
        process.kill()
        process.wait(DEADLINE)


@dataclass(frozen=True, slots=True)
class Message:
    """What a subscriber got."""

    topic: str
    payload: bytes
    qos: int
    is_retained: bool
    response_topic: str | None = None
    correlation_data: bytes | None = None

    def json(self) -> Any:
        """Return the payload read as JSON."""
        return json.loads(self.payload)

    @property
    def event(self) -> str:
        """Last level of the topic, such as `accepted`."""
        return self.topic.rpartition("/")[2]


class Client:
    """A paho-mqtt client whose every wait ends; a context manager that connects on entry.

    It reconnects by itself when the broker comes back, subscribes again to what it was subscribed
    to if the broker forgot, and sends again what was not confirmed.

    Args:
        port: the broker's, see `Broker.port`.
        version: the protocol to speak.
        client_id: needed for a session that outlives the connection.
        clean: start without an old session and leave none behind.
        user: name to log in with; anonymous when empty.
        password: goes with it.
        receive_maximum: MQTT 5: how many QoS 1 messages the broker may have under way to us.
    """

    def __init__(
        self,
        port: int,
        *,
        version: Version = "5",
        client_id: str = "",
        clean: bool = True,
        user: str = "",
        password: str = "",
        receive_maximum: int | None = None,
    ) -> None:
        assert clean or client_id, "a lasting session needs a client_id"
        self.port = port
        self.version = version
        self.session_present = False
        """Whether the broker knew our session at the latest connect."""
        self.code = -1
        """Reason code of the latest CONNACK; -1 before any."""
        self._clean = clean
        self._receive_maximum = receive_maximum
        self._changed = threading.Condition()
        self._connects = 0
        self._acks: dict[int, int] = {}
        self._filters: dict[str, int] = {}
        self._received: list[Message] = []
        self._waiting: list[Message] = []
        five = version == "5"
        self._paho = paho.Client(
            CallbackAPIVersion.VERSION2,
            client_id=client_id,
            clean_session=None if five else clean,
            protocol=MQTTProtocolVersion.MQTTv5 if five else MQTTProtocolVersion.MQTTv311,
        )
        # paho's own shortest wait is a second: long for a test, and its type says int.
        self._paho._reconnect_min_delay = 0.1  # type: ignore[assignment]
        self._paho._reconnect_max_delay = 0.5  # type: ignore[assignment]
        self._paho.max_inflight_messages_set(100)
        if user:
            self._paho.username_pw_set(user, password)
        self._paho.on_connect = self._on_connect
        self._paho.on_message = self._on_message
        self._paho.on_publish = lambda _c, _u, mid, code, _p: self._on_ack(mid, code)
        self._paho.on_subscribe = lambda _c, _u, mid, codes, _p: self._on_ack(mid, codes[0])

    def __enter__(self) -> Self:
        self.connect()
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def connect(self, *, seconds: float = DEADLINE) -> None:
        """Connect and wait for the CONNACK; a refusal fails."""
        properties = None
        if self.version == "5":
            properties = _properties(PacketTypes.CONNECT)
            if not self._clean:
                properties.SessionExpiryInterval = 0xFFFFFFFF
            if self._receive_maximum is not None:
                properties.ReceiveMaximum = self._receive_maximum
            self._paho.connect(
                "127.0.0.1", self.port, clean_start=self._clean, properties=properties
            )
        else:
            self._paho.connect("127.0.0.1", self.port)
        before = self._connects
        self._paho.loop_start()
        with self._changed:
            answered = self._changed.wait_for(lambda: self._connects > before, seconds)
        if not answered or self.code:
            self.close()
        assert answered, "the broker never answered CONNECT"
        assert self.code == 0, f"the broker refused us: {self.code}"

    def close(self) -> None:
        """Disconnect and end paho's thread. Safe twice."""
        self._paho.disconnect()
        self._paho.loop_stop()

    def subscribe(self, topic: str, *, qos: int = 1, seconds: float = DEADLINE) -> int:
        """Subscribe, wait for the SUBACK and return its reason code (the granted QoS)."""
        self._filters[topic] = qos
        _, mid = self._paho.subscribe(topic, qos)
        assert mid is not None, f"not connected: cannot subscribe to {topic}"
        return self.confirm(mid, seconds=seconds)

    def publish(
        self,
        topic: str,
        payload: bytes | str | Mapping[str, Any] = b"",
        *,
        qos: int = 1,
        retain: bool = False,
        response_topic: str | None = None,
        correlation_data: bytes | None = None,
        seconds: float = DEADLINE,
    ) -> int:
        """Publish, wait for the PUBACK and return its reason code (3.1.1 knows only 0).

        A mapping is sent as JSON. While the broker is away the message waits, like paho does.
        """
        return self.confirm(
            self.send(
                topic,
                payload,
                qos=qos,
                retain=retain,
                response_topic=response_topic,
                correlation_data=correlation_data,
            ),
            seconds=seconds,
        )

    def send(
        self,
        topic: str,
        payload: bytes | str | Mapping[str, Any] = b"",
        *,
        qos: int = 1,
        retain: bool = False,
        response_topic: str | None = None,
        correlation_data: bytes | None = None,
    ) -> int:
        """Publish without waiting; return what `confirm` wants."""
        properties = None
        if response_topic is not None or correlation_data is not None:
            assert self.version == "5", "3.1.1 has no properties"
            properties = _properties(PacketTypes.PUBLISH)
            if response_topic is not None:
                properties.ResponseTopic = response_topic
            if correlation_data is not None:
                properties.CorrelationData = correlation_data
        body = json.dumps(payload) if isinstance(payload, Mapping) else payload
        return self._paho.publish(topic, body, qos=qos, retain=retain, properties=properties).mid

    def confirm(self, mid: int, *, seconds: float = DEADLINE) -> int:
        """Wait for the PUBACK of what `send` sent and return its reason code."""
        with self._changed:
            assert self._changed.wait_for(lambda: mid in self._acks, seconds), (
                f"no acknowledgement within {seconds} s"
            )
            return self._acks.pop(mid)

    def wait_for(
        self, predicate: Callable[[Message], bool] = lambda _: True, seconds: float = DEADLINE
    ) -> Message:
        """Return the first message that fits, whether it came already or comes in time.

        Each message is returned once: asking again waits for the next that fits. What does not
        fit stays for later calls.
        """
        with self._changed:
            found: list[Message] = []

            def fits() -> bool:
                found.extend(message for message in self._waiting if predicate(message))
                return bool(found)

            assert self._changed.wait_for(fits, seconds), (
                f"nothing that fits within {seconds} s; received: {self._received}"
            )
            self._waiting = [message for message in self._waiting if message is not found[0]]
            return found[0]

    def wait_until(
        self, predicate: Callable[[list[Message]], bool], seconds: float = DEADLINE
    ) -> list[Message]:
        """Return everything ever received, once `predicate` is true of it."""
        with self._changed:
            assert self._changed.wait_for(lambda: predicate(self._received), seconds), (
                f"not within {seconds} s; received {len(self._received)}: {self._received[-20:]}"
            )
            return list(self._received)

    @property
    def received(self) -> list[Message]:
        """Everything that came so far, in order."""
        with self._changed:
            return list(self._received)

    def _on_connect(
        self,
        _client: paho.Client,
        _userdata: Any,
        flags: paho.ConnectFlags,
        code: ReasonCode,
        _properties: Properties | None,
    ) -> None:
        if not code.is_failure and not flags.session_present and self._filters:
            self._paho.subscribe(list(self._filters.items()))
        with self._changed:
            self.code, self.session_present = code.value, flags.session_present
            self._connects += 1
            self._changed.notify_all()

    def _on_ack(self, mid: int, code: ReasonCode) -> None:
        with self._changed:
            self._acks[mid] = code.value
            self._changed.notify_all()

    def _on_message(self, _client: paho.Client, _userdata: Any, got: paho.MQTTMessage) -> None:
        message = Message(
            topic=got.topic,
            payload=bytes(got.payload),
            qos=got.qos,
            is_retained=got.retain,
            response_topic=getattr(got.properties, "ResponseTopic", None),
            correlation_data=getattr(got.properties, "CorrelationData", None),
        )
        with self._changed:
            self._received.append(message)
            self._waiting.append(message)
            self._changed.notify_all()


def _properties(packet_type: int) -> Properties:
    # Everything in paho has types but this.
    return Properties(packet_type)  # type: ignore[no-untyped-call]


class AsyncClient:
    """`Client` for async tests: the same words, awaited, so that the test's loop goes on.

    `sync` is the client itself, for what does not wait (`received`, `send`, `session_present`).
    """

    def __init__(self, port: int, **options: Any) -> None:
        self.sync = Client(port, **options)

    async def __aenter__(self) -> Self:
        await self.connect()
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.close()

    @property
    def received(self) -> list[Message]:
        """Everything that came so far, in order."""
        return self.sync.received

    async def connect(self, *, seconds: float = DEADLINE) -> None:
        """See `Client.connect`."""
        await asyncio.to_thread(self.sync.connect, seconds=seconds)

    async def close(self) -> None:
        """See `Client.close`."""
        await asyncio.to_thread(self.sync.close)

    async def subscribe(self, topic: str, **options: Any) -> int:
        """See `Client.subscribe`."""
        return await asyncio.to_thread(self.sync.subscribe, topic, **options)

    async def publish(
        self, topic: str, payload: bytes | str | Mapping[str, Any] = b"", **options: Any
    ) -> int:
        """See `Client.publish`."""
        return await asyncio.to_thread(self.sync.publish, topic, payload, **options)

    async def confirm(self, mid: int, *, seconds: float = DEADLINE) -> int:
        """See `Client.confirm`."""
        return await asyncio.to_thread(self.sync.confirm, mid, seconds=seconds)

    async def wait_for(
        self, predicate: Callable[[Message], bool] = lambda _: True, seconds: float = DEADLINE
    ) -> Message:
        """See `Client.wait_for`."""
        return await asyncio.to_thread(self.sync.wait_for, predicate, seconds)

    async def wait_until(
        self, predicate: Callable[[list[Message]], bool], seconds: float = DEADLINE
    ) -> list[Message]:
        """See `Client.wait_until`."""
        return await asyncio.to_thread(self.sync.wait_until, predicate, seconds)
