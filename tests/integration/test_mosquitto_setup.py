"""setup.sh makes a broker that keeps its users apart and speaks TLS as MqttLink demands it."""

import asyncio
import contextlib
import os
import shlex
import shutil
import socket
import ssl
import stat
import subprocess
import tempfile
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from pathlib import Path

import pytest
from pydantic import SecretStr

from daemon import topics
from daemon.mqtt.link import MqttLink
from daemon.requests import MqttRequest
from daemon.settings import MqttSettings
from tests.broker import CONNACK, CONNECT, DEADLINE, AsyncClient, Client, mosquitto
from tests.ports import free_port
from tests.waiting import until

SETUP = Path(__file__).parents[2] / "mosquitto" / "setup.sh"
TLS = ("--tls", "localhost")
REFUSED = 0x87
"""MQTT 5: not authorized."""


def setup(folder: Path, *users: str, options: Sequence[str] = ()) -> str:
    """Run the script and return what it said."""
    done = subprocess.run(
        [SETUP, *options, folder, *users], capture_output=True, text=True, check=False, timeout=60
    )
    assert done.returncode == 0, done.stderr
    return done.stdout + done.stderr


def password(folder: Path, user: str) -> str:
    return (folder / "passwords" / user).read_text().strip()


class Made:
    """A broker over a folder of setup.sh; only the ports differ from what a person starts."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.port, self.tls_port = free_port(), free_port()
        config = (folder / "mosquitto.conf").read_text()
        # mosquitto opens its listeners one after the other.
        self._ports = [self.port]
        assert config.count("\nlistener 1883 127.0.0.1\n") == 1
        config = config.replace("listener 1883 ", f"listener {self.port} ")
        if "\nlistener 8883\n" in config:
            config = config.replace("\nlistener 8883\n", f"\nlistener {self.tls_port} 127.0.0.1\n")
            self._ports.append(self.tls_port)
        path = folder / "test.conf"
        path.write_text(config)
        with (folder / "log").open("wb") as log:
            self._process = subprocess.Popen([mosquitto(), "-c", path], stderr=log)

    def wait(self) -> None:
        ends_at = time.monotonic() + DEADLINE
        while self._process.poll() is None and time.monotonic() < ends_at:
            if all(map(_is_open, self._ports)):
                return
            time.sleep(0.01)
        pytest.fail(f"the broker does not start: {(self.folder / 'log').read_text()}")

    def stop(self) -> None:
        self._process.terminate()
        try:
            self._process.wait(DEADLINE)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait(DEADLINE)

    def client(self, user: str) -> Client:
        return Client(self.port, user=user, password=password(self.folder, user))

    def link(self, host: str, ca_file: Path, **changes: object) -> MqttLink:
        secret = password(self.folder, "inferd")
        settings = MqttSettings.model_validate(
            {
                "url": SecretStr(f"mqtts://inferd:{secret}@{host}:{self.tls_port}"),
                "client_id": "tls",
                "ca_file": ca_file,
                **changes,
            }
        )
        return MqttLink(settings, subscriptions=[topics.REQUEST_FILTER], on_request=store_nothing)


def _is_open(port: int) -> bool:
    with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
        return True
    return False


async def store_nothing(_request: MqttRequest) -> None:
    """Take a request."""


@contextlib.contextmanager
def started(folder: Path) -> Iterator[Made]:
    broker = Made(folder)
    try:
        broker.wait()
        yield broker
    finally:
        broker.stop()


@contextlib.asynccontextmanager
async def running(link: MqttLink) -> AsyncIterator[None]:
    task = asyncio.create_task(link.run())
    try:
        yield
    finally:
        task.cancel()
        await asyncio.wait([task], timeout=DEADLINE)
        assert task.cancelled()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    # The name is one that a careless script stumbles over.
    path = tmp_path_factory.mktemp("setup") / "a b&c\\d'e"
    setup(path, "alice", "bob", "ops", options=["--tls", "localhost", "--tls", "127.0.0.1"])
    return path


@pytest.fixture(scope="module")
def other(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A CA that has nothing to do with the first, and a server of another name."""
    path = tmp_path_factory.mktemp("other") / "b"
    setup(path, options=["--tls", "broker.example", "--require-certificate"])
    return path


@pytest.fixture(scope="module")
def made(folder: Path) -> Iterator[Made]:
    with started(folder) as broker:
        yield broker


# -- who may what --------------------------------------------------------------------------------


def test_nobody_gets_in_without_a_right_password(made: Made) -> None:
    for client in (
        Client(made.port),
        Client(made.port, user="alice", password="wrong"),
        Client(made.port, user="mallory", password="wrong"),
        Client(made.port, user="alice", password=password(made.folder, "bob")),
    ):
        with pytest.raises(AssertionError, match=f"refused us: {REFUSED}|refused us: 134"):
            client.connect()


def test_a_request_of_a_client_reaches_the_daemon(made: Made) -> None:
    with made.client("inferd") as daemon, made.client("alice") as alice:
        assert daemon.subscribe(topics.REQUEST_FILTER) == 1

        assert alice.publish("inference/request/face_detection", {"media_store_id": 1}) == 0

        assert daemon.wait_for().json() == {"media_store_id": 1}


@pytest.mark.parametrize(
    ("user", "topic"),
    [
        ("alice", "inference/job/x/completed"),
        ("alice", "inference/job/x/accepted"),
        ("alice", "inference/rejected/face_detection"),
        ("alice", "inference/worker/w/availability"),
        ("alice", "inference/reply/bob/1"),
        ("alice", "inference/reply/alice/1"),
        ("alice", "elsewhere"),
        ("ops", "inference/job/x/completed"),
        ("ops", "inference/worker/w/availability"),
        ("inferd", "elsewhere"),
        ("inferd", "inference/other/x"),
        ("inferd", "homeassistant/light"),
    ],
)
def test_a_forged_message_is_refused_and_reaches_nobody(made: Made, user: str, topic: str) -> None:
    with made.client("ops") as ops, made.client("bob") as bob, made.client("inferd") as daemon:
        ops.subscribe("inference/#")
        for name in ("inference/job/+/+", "inference/worker/+/+", "inference/reply/bob/#"):
            bob.subscribe(name)
        with made.client(user) as forger:
            assert forger.publish(topic, b"forged") == REFUSED
            assert forger.publish(topic, b"forged", retain=True) == REFUSED

        # What the broker passed on of the forged ones, it passed on before this.
        assert daemon.publish("inference/job/y/completed", b"true") == 0
        for reader in (ops, bob):
            reader.wait_for(lambda message: message.payload == b"true")
            assert [message.payload for message in reader.received] == [b"true"]


def test_replies_are_for_their_user_alone(made: Made) -> None:
    with made.client("inferd") as daemon, made.client("alice") as alice, made.client("bob") as bob:
        alice.subscribe("inference/reply/alice/#")
        for name in ("inference/reply/alice/#", "inference/reply/#", "#", "inference/job/+/+"):
            bob.subscribe(name)

        daemon.publish("inference/reply/alice/1", b"for alice")
        daemon.publish("inference/job/y/completed", b"for all")

        assert alice.wait_for().payload == b"for alice"
        bob.wait_for(lambda message: message.payload == b"for all")
        assert {message.payload for message in bob.received} == {b"for all"}


def test_a_client_does_not_see_what_others_ask(made: Made) -> None:
    with made.client("inferd") as daemon, made.client("alice") as alice, made.client("bob") as bob:
        for name in ("inference/request/+", "inference/#", "inference/job/+/+"):
            bob.subscribe(name)
        alice.publish("inference/request/face_detection", b"private")
        daemon.publish("inference/job/y/completed", b"for all")

        bob.wait_for(lambda message: message.payload == b"for all")
        assert {message.payload for message in bob.received} == {b"for all"}


# -- TLS -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1"])
async def test_the_link_connects_with_the_private_ca(made: Made, host: str) -> None:
    link = made.link(host, made.folder / "certs" / "ca.crt")
    async with (
        running(link),
        AsyncClient(made.port, user="bob", password=password(made.folder, "bob")) as bob,
    ):
        await bob.subscribe("inference/job/+/+")
        async with asyncio.timeout(DEADLINE):
            await link.wait_up()
        assert await link.publish("inference/job/z/completed", b"over TLS") == 0
        assert (await bob.wait_for()).payload == b"over TLS"
        assert link.last_error is None


async def test_another_ca_is_refused_and_tried_again_until_it_is_right(
    made: Made, other: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    ca_file = tmp_path / "ca.crt"
    shutil.copy(other / "certs" / "ca.crt", ca_file)
    link = made.link("localhost", ca_file)
    async with running(link):
        await until(
            lambda: (
                caplog.text.count("the broker is away") >= 2
                and "certificate verify failed" in str(link.last_error)
            )
        )
        assert (link.is_up, link.connects) == (False, 0)

        shutil.copy(made.folder / "certs" / "ca.crt", ca_file)
        async with asyncio.timeout(DEADLINE):
            await link.wait_up()
        assert link.last_error is None


async def test_a_server_of_another_name_is_refused(other: Path) -> None:
    with started(other) as broker:
        link = broker.link("localhost", other / "certs" / "ca.crt")
        async with running(link):
            await until(lambda: "Hostname mismatch" in str(link.last_error))
            assert "localhost" in str(link.last_error)
            assert link.connects == 0


async def test_plain_text_does_not_speak_to_the_tls_listener(made: Made) -> None:
    link = made.link("localhost", made.folder / "certs" / "ca.crt")
    plain = MqttLink(
        MqttSettings(
            url=SecretStr(f"mqtt://127.0.0.1:{made.tls_port}"),
            client_id="plain",
            connect_timeout_seconds=1,
        ),
        subscriptions=[topics.REQUEST_FILTER],
        on_request=store_nothing,
    )
    async with running(plain), running(link):
        await until(lambda: "connection was lost" in str(plain.last_error) and link.is_up)
        assert plain.connects == 0


def test_a_listener_can_demand_client_certificates(other: Path) -> None:
    def answers(certificate: str | None) -> bool:
        context = ssl.create_default_context(cafile=other / "certs" / "ca.crt")
        context.verify_flags |= ssl.VERIFY_X509_STRICT
        if certificate is not None:
            stem = other / "certs" / certificate
            context.load_cert_chain(f"{stem}.crt", f"{stem}.key")
        with (
            socket.create_connection(("127.0.0.1", broker.tls_port), DEADLINE) as plain,
            contextlib.suppress(OSError),
            context.wrap_socket(plain, server_hostname="broker.example") as secured,
        ):
            secured.sendall(CONNECT)
            return secured.recv(1) == bytes([CONNACK])
        return False

    with started(other) as broker:
        assert answers("client-inferd")
        assert not answers(None)
        # It is no certificate for clients.
        assert not answers("server")


async def test_the_link_shows_its_certificate_where_one_is_demanded(tmp_path: Path) -> None:
    folder = tmp_path / "a"
    setup(folder, options=[*TLS, "--require-certificate"])
    certs = folder / "certs"
    certificate = {
        "cert_file": certs / "client-inferd.crt",
        "key_file": certs / "client-inferd.key",
    }
    with started(folder) as broker:
        without = broker.link("localhost", certs / "ca.crt")
        async with running(without):
            await until(lambda: without.last_error is not None)
            assert without.connects == 0
        shown = broker.link("localhost", certs / "ca.crt", **certificate)
        async with running(shown):
            async with asyncio.timeout(DEADLINE):
                await shown.wait_up()
            assert shown.last_error is None


# -- the script ----------------------------------------------------------------------------------


def test_a_second_run_changes_nothing(folder: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    # But for what its broker, which may run, writes there meanwhile.
    leftovers = shutil.ignore_patterns("test.conf", "log", "mosquitto.db*")
    shutil.copytree(folder, copy, ignore=leftovers)
    before = {path: path.read_bytes() for path in copy.rglob("*") if path.is_file()}

    said = setup(copy, "alice", "bob", "ops", options=TLS)

    assert "made" not in said
    assert {path: path.read_bytes() for path in copy.rglob("*") if path.is_file()} == before


def test_a_user_can_be_added_later(tmp_path: Path) -> None:
    setup(tmp_path / "a", "alice")
    old = (tmp_path / "a" / "inferd.passwd").read_text()

    said = setup(tmp_path / "a", "alice", "carol")

    assert "made  user carol" in said
    assert "kept  user alice" in said
    new = (tmp_path / "a" / "inferd.passwd").read_text()
    assert new.startswith(old)
    with started(tmp_path / "a") as broker, broker.client("alice"), broker.client("carol"):
        pass


def test_secrets_are_ours_alone_and_are_not_printed(tmp_path: Path) -> None:
    folder = tmp_path / "a"
    said = setup(folder, "alice", options=TLS)

    readable = {
        path.name
        for path in folder.rglob("*")
        if path.is_file() and stat.S_IMODE(path.stat().st_mode) & 0o077
    }
    assert readable == {"ca.crt", "server.crt", "client-inferd.crt", "client-alice.crt"}
    for user in ("inferd", "alice"):
        assert len(password(folder, user)) == 48
        assert password(folder, user) not in said
        assert password(folder, user) not in (folder / "inferd.passwd").read_text()
    assert not list(folder.glob(".setup*"))


def test_the_printed_lines_are_the_settings(folder: Path) -> None:
    said = setup(folder, options=TLS)

    told = [shlex.split(line) for line in said.splitlines() if line.startswith("    INFERD_")]
    assert [f"INFERD_MQTT__URL_FILE={folder}/mqtts-url"] in told
    assert [f"INFERD_MQTT__CA_FILE={folder}/certs/ca.crt"] in told
    secret = password(folder, "inferd")
    assert (folder / "mqtts-url").read_text() == f"mqtts://inferd:{secret}@localhost:8883\n"


def test_the_printed_lines_can_be_pasted_whatever_the_folder_is_called(tmp_path: Path) -> None:
    folder = tmp_path / 'it\'s a "$HOME" \\n'
    said = setup(folder, options=[*TLS, "--require-certificate"])
    _, _, settings = said.partition("Tell the daemon:\n")
    names = ("URL", "CA", "CERT", "KEY")
    shown = " ".join(f'"$INFERD_MQTT__{name}_FILE"' for name in names)

    pasted = f"{settings}\nprintf '%s\\n' {shown}\nmosquitto() {{ printf '%s\\n' \"$2\"; }}\n"
    start = next(line for line in said.splitlines() if "mosquitto -c" in line)
    done = subprocess.run(
        ["sh", "-c", f"{pasted}{start}"], capture_output=True, text=True, check=True, timeout=60
    )

    assert done.stdout.splitlines() == [
        str(folder / name)
        for name in (
            *("mqtts-url", "certs/ca.crt", "certs/client-inferd.crt", "certs/client-inferd.key"),
            "mosquitto.conf",
        )
    ]


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["--tls"],
        ["--tls", "a b", "FOLDER"],
        ["--tls", "a,IP:1.2.3.4", "FOLDER"],
        ["--require-certificate", "FOLDER"],
        ["--unknown", "FOLDER"],
        ["FOLDER", "al+ce"],
        ["FOLDER", "#"],
        ["FOLDER", "al:ce"],
        ["FOLDER", "../alice"],
        ["FOLDER", ""],
        [""],
        ["FOLDER\nuser root"],
    ],
)
def test_odd_wishes_are_refused_before_anything_is_made(
    arguments: list[str], tmp_path: Path
) -> None:
    asked = [word.replace("FOLDER", str(tmp_path / "a")) for word in arguments]

    done = subprocess.run([SETUP, *asked], capture_output=True, check=False, timeout=60)

    assert done.returncode == 64
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(os.geteuid() != 0, reason="the suite is run by a normal user already")
def test_a_normal_user_can_run_it() -> None:
    nobody = 65534
    # pytest's own folders are closed to others.
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        root.chmod(0o755)
        shutil.copytree(SETUP.parent, root / "files")
        (root / "work").mkdir()
        os.chown(root / "work", nobody, nobody)

        done = subprocess.run(
            [root / "files" / "setup.sh", *TLS, root / "work" / "a", "alice"],
            capture_output=True,
            text=True,
            check=False,
            timeout=60,
            user=nobody,
            group=nobody,
            extra_groups=[],
            env={"PATH": "/usr/bin:/bin"},
        )

        assert done.returncode == 0, done.stderr
        assert "user root" not in (root / "work" / "a" / "mosquitto.conf").read_text()


def test_shellcheck_has_nothing_to_say() -> None:
    found = shutil.which("shellcheck")
    if found is None:
        pytest.skip("shellcheck is not installed")
    done = subprocess.run([found, SETUP], capture_output=True, text=True, check=False, timeout=60)
    assert done.stdout == ""
