"""One connection to a broker: what it is made with, what it asks for, and how it may fail."""

import asyncio
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    PrivateFormat,
)
from cryptography.x509.oid import NameOID
from pydantic import SecretStr

from daemon.errors import ConfigError
from daemon.mqtt import client as mqtt_client
from daemon.mqtt.broker_tls import broker_tls
from daemon.mqtt.link import MqttLink
from daemon.mqtt.vendor import abort
from daemon.settings import MqttSettings
from tests.broker import AsyncClient, Broker, Version
from tests.contract.test_mqtt_link import Peer, Requests, Setup, played, until

PASSWORD = b"a password"


@pytest.fixture
def certificate(tmp_path: Path) -> tuple[Path, Path]:
    """The files of a certificate and of its key, which has a password."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "inferd")])
    now, day = datetime.now(UTC), timedelta(days=1)
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now - day)
        .not_valid_after(now + day)
        .sign(key, hashes.SHA256())
    )
    shown, locked = tmp_path / "shown.crt", tmp_path / "locked.key"
    shown.write_bytes(made.public_bytes(Encoding.PEM))
    lock = BestAvailableEncryption(PASSWORD)
    locked.write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, lock))
    return shown, locked


def test_a_key_with_a_password_is_refused_and_nobody_asked_for_it(
    certificate: tuple[Path, Path], capfd: pytest.CaptureFixture[str]
) -> None:
    cert_file, key_file = certificate
    url = SecretStr("mqtts://localhost")

    with pytest.raises(ConfigError, match="INFERD_MQTT__CERT_FILE or KEY_FILE"):
        broker_tls(MqttSettings(url=url, cert_file=cert_file, key_file=key_file))

    assert capfd.readouterr() == ("", "")


async def test_files_that_are_replaced_just_now_are_read_again(
    certificate: tuple[Path, Path], tmp_path: Path
) -> None:
    # Whoever renewed certificates while the broker was away ended the daemon, for good.
    ca_file = tmp_path / "ca.crt"
    ca_file.write_text("half of it")
    settings = MqttSettings(url=SecretStr("mqtts://localhost:1"), client_id="tls", ca_file=ca_file)
    link = MqttLink(settings, subscriptions=["test/x"], on_request=Requests())
    task = asyncio.create_task(link.run())
    await until(lambda: task.done() or "INFERD_MQTT__CA_FILE" in (link.last_error or ""))

    ca_file.write_bytes(certificate[0].read_bytes())

    await until(lambda: task.done() or "Connect" in (link.last_error or ""))
    assert not task.done()
    task.cancel()
    await asyncio.wait([task])


async def test_a_message_beyond_all_bounds_is_left_to_the_broker(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Behind one of 160 MB no SUBACK came in time, at any connect: nothing else got through again.
    monkeypatch.setattr(mqtt_client, "REFUSABLE_BYTES", 100_000)
    with Broker(tmp_path) as broker:
        setup = Setup(broker.url, "5", max_request_bytes=1024)
        async with AsyncClient(broker.port) as client, setup.running():
            await client.publish(setup.topic, bytes(200_000))
            await client.publish(setup.topic, bytes(90_000))
            await until(lambda: setup.requests.came)

    assert setup.requests.payloads == [bytes(90_000)]


async def test_a_broker_that_wants_no_keepalive_is_kept() -> None:
    async def careless(peer: Peer) -> None:
        await peer.expect(1)
        peer.send(b"\x20\x06\x00\x00\x03\x13\x00\x00")
        mid = (await peer.expect(8))[:2]
        peer.send(b"\x90\x04", mid, b"\x00\x01")
        while True:
            peer.confirm((await peer.published())[1])

    async with played(careless) as (url, peers), Setup(url, "5").running() as link:
        for _ in range(3):
            assert await link.publish("event", b"") == 0
        assert len(peers) == 1
        # Which is also what gmqtt pings by.
        assert link._client._connection.keepalive == 30


async def test_a_session_has_not_ended_where_the_broker_hung_up_before_its_answer() -> None:
    async def hang_up(peer: Peer) -> None:
        await peer.expect(1)

    async with played(hang_up) as (url, _):
        settings = MqttSettings(url=SecretStr(url), client_id="ending", connect_timeout_seconds=60)
        with pytest.raises(ConnectionResetError, match="lost"):
            await mqtt_client.end_session(settings)


@pytest.mark.parametrize("version", ["5", "3.1.1"])
async def test_the_will_stays_for_whoever_looks_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, version: Version
) -> None:
    monkeypatch.setattr(mqtt_client, "WILL_DELAY_SECONDS", 0)
    with Broker(tmp_path) as broker:
        setup = Setup(broker.url, version)
        async with AsyncClient(broker.port) as client:
            await client.subscribe(setup.availability)
            link = setup.link()
            task = asyncio.create_task(link.run())
            await client.wait_for(lambda message: message.json()["state"] == "online")
            await until(lambda: link.is_up)
            abort(link._client)
            await until(lambda: not link.is_up)
            task.cancel()
            await asyncio.wait([task])
            said = await client.wait_for(lambda message: message.json()["state"] == "offline")
        async with AsyncClient(broker.port) as late:
            await late.subscribe(setup.availability)
            found = await late.wait_for()

    assert (found.payload, found.is_retained) == (said.payload, True)
    assert (said.qos, said.json()["reason"]) == (1, "connection_lost")
