"""The broker files that we ship start on the installed mosquitto and let in whom they should."""

import asyncio
import contextlib
import queue
import re
import shutil
import threading
from collections.abc import AsyncIterator
from pathlib import Path
from string import Template

import paho.mqtt.client as paho
import pytest
from paho.mqtt.enums import CallbackAPIVersion, MQTTProtocolVersion
from paho.mqtt.properties import Properties
from paho.mqtt.reasoncodes import ReasonCode

from tests.ports import free_port

FILES = Path(__file__).parents[2] / "mosquitto"
DEADLINE = 30.0
SBIN = "/usr/local/sbin:/usr/sbin"
"""Where Debian puts the broker, outside a user's PATH."""

REFUSED_LOGIN = 135
REFUSED_TOPIC = 135
KNOWN_WARNINGS = (
    "does not contain '%c' or '%u'",  # the acl file says why
    "should not be run as root",  # the tests may be
)


class Session:
    """One paho connection; every wait ends by DEADLINE."""

    def __init__(self, port: int, user: str = "") -> None:
        self.code = -1
        self.receive_maximum = 0
        self._connected = threading.Event()
        self._acks: dict[int, int] = {}
        self._acked = threading.Condition()
        self._messages: queue.Queue[bytes] = queue.Queue()
        self._client = paho.Client(
            CallbackAPIVersion.VERSION2, protocol=MQTTProtocolVersion.MQTTv5, client_id=""
        )
        if user:
            self._client.username_pw_set(user, f"{user}-secret")
        self._client.on_connect = self._on_connect
        self._client.on_publish = lambda _c, _u, mid, code, _p: self._on_ack(mid, code)
        self._client.on_subscribe = lambda _c, _u, mid, codes, _p: self._on_ack(mid, codes[0])
        self._client.on_message = lambda _c, _u, message: self._messages.put(bytes(message.payload))
        self._client.connect("127.0.0.1", port)
        self._client.loop_start()
        assert self._connected.wait(DEADLINE), "the broker never answered CONNECT"

    def publish(self, topic: str, payload: bytes = b"{}") -> int:
        """Publish at QoS 1 and return the reason code of the PUBACK."""
        return self._wait_for_ack(self._client.publish(topic, payload, qos=1).mid)

    def subscribe(self, topic: str) -> int:
        """Subscribe at QoS 1 and return the reason code of the SUBACK."""
        mid = self._client.subscribe(topic, qos=1)[1]
        assert mid is not None
        return self._wait_for_ack(mid)

    def receive(self) -> bytes:
        """Return the next message's payload."""
        return self._messages.get(timeout=DEADLINE)

    def close(self) -> None:
        """Disconnect and end the thread."""
        self._client.disconnect()
        self._client.loop_stop()
        # Else the garbage collector may find the sockets before their owner, and warns.
        self._client._reset_sockets()

    def _on_connect(
        self, _c: object, _u: object, _f: object, code: ReasonCode, properties: Properties | None
    ) -> None:
        self.code = code.value
        if code.is_failure:
            self._client.disconnect()  # or paho would try again for ever
        self.receive_maximum = getattr(properties, "ReceiveMaximum", 0)
        self._connected.set()

    def _on_ack(self, mid: int, code: ReasonCode) -> None:
        with self._acked:
            self._acks[mid] = code.value
            self._acked.notify_all()

    def _wait_for_ack(self, mid: int) -> int:
        with self._acked:
            assert self._acked.wait_for(lambda: mid in self._acks, DEADLINE), "no acknowledgement"
            return self._acks[mid]


@contextlib.asynccontextmanager
async def connected(port: int, user: str = "") -> AsyncIterator[Session]:
    session = await asyncio.to_thread(Session, port, user)
    try:
        yield session
    finally:
        await asyncio.to_thread(session.close)


def tool(name: str) -> str:
    found = shutil.which(name) or shutil.which(name, path=SBIN)
    assert found, f"{name} is not installed: run `make test`, which sees to it"
    return found


@contextlib.asynccontextmanager
async def broker(config: str, folder: Path, port: int) -> AsyncIterator[None]:
    """Run mosquitto; at the end its log must hold no error and no warning that we do not know."""
    path = folder / "broker.conf"
    path.write_text(config)
    log = folder / "broker.log"
    with log.open("wb") as stderr:
        process = await asyncio.create_subprocess_exec(
            tool("mosquitto"), "-c", str(path), stderr=stderr, stdout=stderr
        )
    try:
        async with asyncio.timeout(DEADLINE):
            while True:
                assert process.returncode is None, f"the broker ended:\n{log.read_text()}"
                with contextlib.suppress(ConnectionRefusedError):
                    _, writer = await asyncio.open_connection("127.0.0.1", port)
                    break
                await asyncio.sleep(0.02)
        writer.close()
        await writer.wait_closed()
        yield
    finally:
        if process.returncode is None:
            process.terminate()
        async with asyncio.timeout(DEADLINE):
            await process.wait()
    complaints = [
        line
        for line in log.read_text().splitlines()
        if re.search(r"warning|error", line, re.IGNORECASE)
        and not any(known in line for known in KNOWN_WARNINGS)
    ]
    assert complaints == []


@pytest.fixture
async def shipped(tmp_path: Path) -> AsyncIterator[int]:
    """Start mosquitto.conf with its acl; port, paths and the user it runs as are replaced."""
    port = free_port()
    passwords = tmp_path / "inferd.passwd"
    for user in ("inferd", "ops", "alice", "bob"):
        flags = ["-b"] if passwords.exists() else ["-b", "-c"]
        process = await asyncio.create_subprocess_exec(
            tool("mosquitto_passwd"), *flags, str(passwords), user, f"{user}-secret"
        )
        async with asyncio.timeout(DEADLINE):
            assert await process.wait() == 0
    acl = tmp_path / "inferd.acl"
    shutil.copy(FILES / "acl", acl)
    acl.chmod(0o600)
    config = (FILES / "mosquitto.conf").read_text()
    for old, new in {
        "listener 1883 127.0.0.1": f"listener {port} 127.0.0.1",
        "persistence_location /var/lib/mosquitto/": f"persistence_location {tmp_path}/",
        "/etc/mosquitto/inferd.passwd": str(passwords),
        "/etc/mosquitto/inferd.acl": str(acl),
    }.items():
        assert config.count(old) == 1
        config = config.replace(old, new)
    async with broker(f"{config}\nuser root\n", tmp_path, port):
        yield port


async def test_shipped_broker_refuses_anonymous_clients(shipped: int) -> None:
    async with connected(shipped) as nobody:
        assert nobody.code == REFUSED_LOGIN


async def test_shipped_broker_takes_a_request_to_the_daemon(shipped: int) -> None:
    async with connected(shipped, "inferd") as daemon, connected(shipped, "alice") as client:
        await asyncio.to_thread(daemon.subscribe, "inference/request/+")

        code = await asyncio.to_thread(client.publish, "inference/request/face_detection", b"ask")

        assert code == 0
        assert await asyncio.to_thread(daemon.receive) == b"ask"


async def test_shipped_broker_shares_requests_with_those_alone_who_know_the_group(
    shipped: int,
) -> None:
    shared = "$share/inference-intake{}/inference/request/+"
    async with connected(shipped, "inferd") as daemon, connected(shipped, "alice") as client:
        # It grants this, though she may not read, and would drop her share were it the same group.
        await asyncio.to_thread(client.subscribe, shared.format(""))
        await asyncio.to_thread(daemon.subscribe, shared.format("-5ec2e7"))
        for number in range(8):
            topic = "inference/request/face_detection"
            assert await asyncio.to_thread(client.publish, topic, b"%d" % number) == 0

        got = {await asyncio.to_thread(daemon.receive) for _ in range(8)}
        assert got == {b"%d" % number for number in range(8)}


async def test_shipped_broker_lets_daemons_wake_each_other(shipped: int) -> None:
    async with connected(shipped, "inferd") as one, connected(shipped, "inferd") as two:
        await asyncio.to_thread(two.subscribe, "inference/wake/+")

        assert await asyncio.to_thread(one.publish, "inference/wake/_intake", b"wake") == 0

        assert await asyncio.to_thread(two.receive) == b"wake"


async def test_shipped_broker_brings_events_and_replies_to_clients(shipped: int) -> None:
    async with connected(shipped, "inferd") as daemon, connected(shipped, "alice") as client:
        for topic in ("inference/job/1/completed", "inference/reply/alice/1"):
            await asyncio.to_thread(client.subscribe, topic)
            await asyncio.to_thread(daemon.publish, topic, topic.encode())
            assert await asyncio.to_thread(client.receive) == topic.encode()


async def test_shipped_broker_gives_the_daemon_room_in_flight(shipped: int) -> None:
    async with connected(shipped, "inferd") as daemon:
        assert daemon.receive_maximum == 100


@pytest.mark.parametrize(
    ("user", "topic"),
    [
        ("alice", "inference/job/1/completed"),
        ("alice", "inference/worker/w/availability"),
        ("alice", "inference/wake/face_detection"),
        ("alice", "inference/reply/bob/1"),
        ("ops", "inference/reply/ops/1"),
        ("inferd", "elsewhere"),
    ],
)
async def test_shipped_broker_refuses_forged_messages(shipped: int, user: str, topic: str) -> None:
    async with connected(shipped, user) as client:
        assert await asyncio.to_thread(client.publish, topic) == REFUSED_TOPIC


async def test_replies_reach_only_their_user(shipped: int) -> None:
    async with (
        connected(shipped, "inferd") as daemon,
        connected(shipped, "bob") as curious,
        connected(shipped, "alice") as client,
    ):
        for session in (curious, client):
            await asyncio.to_thread(session.subscribe, "inference/reply/alice/#")
        # Whatever bob gets, he gets in order: the job event shows that nothing came before it.
        await asyncio.to_thread(curious.subscribe, "inference/job/1/completed")

        await asyncio.to_thread(daemon.publish, "inference/reply/alice/1", b"for alice")
        await asyncio.to_thread(daemon.publish, "inference/job/1/completed", b"for all")

        assert await asyncio.to_thread(client.receive) == b"for alice"
        assert await asyncio.to_thread(curious.receive) == b"for all"


async def test_demo_broker_takes_a_message_and_keeps_its_state_in_the_folder(
    tmp_path: Path,
) -> None:
    folder = tmp_path / "a folder with spaces"
    folder.mkdir()
    port = free_port()
    template = Template((FILES / "demo.conf.template").read_text())
    config = template.substitute(port=port, folder=folder)
    async with broker(config, folder, port), connected(port) as client:
        await asyncio.to_thread(client.subscribe, "inference/request/+")
        code = await asyncio.to_thread(client.publish, "inference/request/image_embedding", b"ask")
        assert code == 0
        assert await asyncio.to_thread(client.receive) == b"ask"
        assert client.receive_maximum == 100

    assert (folder / "mosquitto.db").stat().st_size > 0


def test_the_two_configurations_share_their_limits() -> None:
    def limits(name: str) -> dict[str, str]:
        lines = (FILES / name).read_text().splitlines()
        pairs = (line.split(maxsplit=1) for line in lines if line and not line.startswith("#"))
        return {
            key: value
            for key, value in pairs
            if re.match(r"max_|autosave|queue_|persistence$", key)
        }

    demo, shipped = limits("demo.conf.template"), limits("mosquitto.conf")

    assert demo == {key: shipped[key] for key in demo}
