"""The client library's line to the broker: TLS, both versions of MQTT, and a goodbye that ends."""

import contextlib
import json
import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from demos.client import InferdClient, UnreachableError
from demos.client.link import CLOSE_SECONDS, KEEPALIVE_SECONDS, Link, Secured, Version
from tests.broker import Broker, Client
from tests.integration.test_mosquitto_setup import Made, password, setup, started
from tests.waiting import wait_until

DEADLINE = 2 * CLOSE_SECONDS + 10
"""Of a goodbye; without its own limit it would take until the keepalive notices."""


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Made]:
    path = tmp_path_factory.mktemp("tls") / "broker"
    setup(path, "alice", options=["--tls", "localhost", "--require-certificate"])
    with started(path) as broker:
        yield broker


def answer_requests(daemon: Client) -> None:
    """Accept and complete whatever is asked for, as a daemon would."""

    def answer(client: Any, _data: Any, message: Any) -> None:
        job_id = json.loads(message.payload)["job_id"]
        for name, status in (("accepted", "pending"), ("completed", "completed")):
            job = {"job_id": job_id, "status": status, "result": None}
            event = {"job_id": job_id, "status": status, "data": job}
            client.publish(f"inference/job/{job_id}/{name}", json.dumps(event), qos=1)

    daemon._paho.on_message = answer
    daemon.subscribe("inference/request/+")


def ended(work: Callable[[], None], seconds: float) -> bool:
    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    thread.join(seconds)
    return not thread.is_alive()


@pytest.mark.parametrize("version", ["5", "3.1.1"])
def test_a_job_is_asked_for_over_tls_with_a_certificate(made: Made, version: Version) -> None:
    certs = made.folder / "certs"
    url = f"mqtts://alice:{password(made.folder, 'alice')}@localhost:{made.tls_port}"
    with (
        made.client("inferd") as daemon,
        InferdClient(
            url,
            version=version,
            ca_file=certs / "ca.crt",
            cert_file=certs / "client-alice.crt",
            key_file=certs / "client-alice.key",
        ) as inferd,
    ):
        answer_requests(daemon)

        job = inferd.wait(inferd.submit("face_detection", 1).job_id, 30)

    assert job["status"] == "completed"


@pytest.mark.parametrize("version", ["5", "3.1.1"])
def test_both_versions_of_mqtt_are_spoken(tmp_path: Path, version: Version) -> None:
    with Broker(tmp_path, log_type=["all"]) as broker, Client(broker.port) as daemon:
        answer_requests(daemon)
        with InferdClient(broker.url, version=version) as inferd:
            submitted = inferd.submit("face_detection", 1)
            assert inferd.wait(submitted.job_id, 30)["status"] == "completed"
        # p5 is MQTT 5, p2 is 3.1.1.
        assert "as inferd-client-" in broker.log()
        said = [line for line in broker.log().splitlines() if "as inferd-client-" in line]
        assert f"p{'5' if version == '5' else '2'}," in said[0]


def test_a_broker_whose_certificate_nobody_vouches_for_is_not_told_the_password(
    made: Made,
) -> None:
    url = f"mqtts://alice:secret@localhost:{made.tls_port}"

    with InferdClient(url, reach_seconds=0.1) as inferd:
        # What a call ends with is what was wrong by then.
        wait_until(lambda: "not trusted" in inferd._follower.trouble)
        with pytest.raises(UnreachableError, match="its certificate is not trusted") as caught:
            inferd.submit("face_detection", 1)

    assert "secret" not in str(caught.value)


def test_a_ca_file_that_is_none_is_told_before_anything_is_opened(
    made: Made, tmp_path: Path
) -> None:
    text = tmp_path / "notes.txt"
    text.write_text("not a certificate", encoding="utf-8")
    key = made.folder / "certs" / "client-alice.key"
    wrong: list[tuple[dict[str, Path], str]] = [
        ({"ca_file": text}, "the CA file cannot be used"),
        ({"ca_file": tmp_path / "nowhere"}, "the CA file cannot be used"),
        ({"cert_file": text, "key_file": key}, "the certificate or key file cannot be used"),
    ]

    for files, says in wrong:
        with pytest.raises(ValueError, match=says):
            Secured(**files).context()


def silent_link(url: str, secured: Secured | None = None) -> tuple[Link, threading.Event]:
    heard = threading.Event()
    link = Link(
        url,
        secured=secured or Secured(),
        on_message=lambda _topic, _payload: None,
        on_heard=lambda _topics: heard.set(),
        on_refused=lambda _about, _reason: None,
        on_lost=lambda _reason: None,
    )
    return link, heard


def test_a_frozen_broker_does_not_hold_who_leaves(tmp_path: Path) -> None:
    assert DEADLINE < KEEPALIVE_SECONDS
    with Broker(tmp_path) as broker:
        link, heard = silent_link(broker.url)
        link.open()
        link.listen("inference/job/x/+")
        assert heard.wait(30)
        broker.freeze()
        # More than the sockets' buffers hold: the goodbye would have to wait behind it.
        for _ in range(40):
            link.publish("inference/request/face_detection", "x" * 500_000, about="x")

        assert ended(link.close, DEADLINE)


def test_a_handshake_that_is_never_answered_does_not_hold_who_leaves() -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        link, _ = silent_link(f"mqtts://127.0.0.1:{silent.getsockname()[1]}")
        link.open()
        connection, _address = silent.accept()
        with connection:
            assert connection.recv(1)  # the handshake has begun

            assert ended(link.close, DEADLINE)
            # What is still under way gives up by itself.
            connection.settimeout(60)
            while connection.recv(65536):
                pass


def test_who_left_while_it_connected_stays_away(made: Made) -> None:
    """What was to be said is not said after the goodbye, when the handshake succeeds at last."""
    certs = made.folder / "certs"
    secured = Secured(certs / "ca.crt", certs / "client-alice.crt", certs / "client-alice.key")
    secret = password(made.folder, "alice")
    with made.client("inferd") as daemon, socket.create_server(("127.0.0.1", 0)) as door:
        daemon.subscribe("inference/request/+")
        port = door.getsockname()[1]
        link, heard = silent_link(f"mqtts://alice:{secret}@localhost:{port}", secured)
        link.publish("inference/request/face_detection", "late", about="x")
        link.open()
        near, _address = door.accept()
        hello = near.recv(65536)
        assert ended(link.close, DEADLINE)

        with near, socket.create_connection(("127.0.0.1", made.tls_port)) as far:
            far.sendall(hello)
            back = threading.Thread(target=pump, args=(far, near), daemon=True)
            back.start()
            assert ended(lambda: pump(near, far), DEADLINE)  # the client hangs up
        back.join(DEADLINE)

        assert daemon.received == []
        assert not heard.is_set()


def pump(source: socket.socket, sink: socket.socket) -> None:
    with contextlib.suppress(OSError):
        while data := source.recv(65536):
            sink.sendall(data)
    with contextlib.suppress(OSError):
        sink.shutdown(socket.SHUT_RDWR)
