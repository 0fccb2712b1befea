"""Brokers that the link does not trust, whatever they show; and the daemon over mutual TLS."""

import asyncio
import contextlib
import gc
import ssl
from collections.abc import AsyncIterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import cast

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import NameOID
from pydantic import SecretStr

from daemon import topics
from daemon.doctor import broker
from daemon.doctor.facts import begin
from daemon.mqtt.link import MqttLink
from daemon.settings import MqttSettings, Settings
from tests.acceptance.rig import Daemon, MediaStore
from tests.broker import Broker, Client
from tests.integration.test_mosquitto_setup import (
    TLS,
    password,
    running,
    setup,
    started,
    store_nothing,
)
from tests.waiting import until

DAY = timedelta(days=1)


@dataclass(frozen=True)
class Authority:
    """A private CA, which signs whatever a test asks for."""

    folder: Path
    key: ec.EllipticCurvePrivateKey
    name: x509.Name
    ca_file: Path

    def certificate(
        self,
        host: str = "localhost",
        *,
        begins: timedelta = -DAY,
        ends: timedelta = DAY,
        is_signed: bool = True,
    ) -> tuple[Path, Path]:
        """Return the files of a server's certificate and key."""
        key = ec.generate_private_key(ec.SECP256R1())
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, host)])
        now = datetime.now(UTC)
        made = (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(self.name if is_signed else subject)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now + begins)
            .not_valid_after(now + ends)
            .add_extension(x509.SubjectAlternativeName([x509.DNSName(host)]), critical=False)
            .sign(self.key if is_signed else key, hashes.SHA256())
        )
        return _written(self.folder / f"{host}-{begins.days}-{ends.days}-{is_signed}", made, key)


def _written(
    stem: Path, certificate: x509.Certificate, key: ec.EllipticCurvePrivateKey
) -> tuple[Path, Path]:
    shown, secret = stem.with_suffix(".crt"), stem.with_suffix(".key")
    shown.write_bytes(certificate.public_bytes(Encoding.PEM))
    secret.write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    return shown, secret


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "a private CA")])
    now = datetime.now(UTC)
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now - DAY)
        .not_valid_after(now + DAY)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .sign(key, hashes.SHA256())
    )
    shown, _ = _written(tmp_path / "ca", made, key)
    return Authority(tmp_path, key, name, shown)


@contextlib.asynccontextmanager
async def listening(
    files: tuple[Path, Path], version: ssl.TLSVersion | None = None
) -> AsyncIterator[tuple[int, list[bytes]]]:
    """Speak TLS as told; give the port, and what came through."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(*files)
    if version is not None:
        # OpenSSL itself speaks the old ones only with its guard down.
        context.set_ciphers("ALL:@SECLEVEL=0")
        context.minimum_version = context.maximum_version = version
    came: list[bytes] = []

    async def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError, ssl.SSLError):
            came.append(await reader.read(4096))
        writer.close()

    server = await asyncio.start_server(accept, "127.0.0.1", 0, ssl=context)
    async with server:
        yield server.sockets[0].getsockname()[1], came


def link_to(port: int, ca_file: Path | None) -> MqttLink:
    settings = MqttSettings(
        url=SecretStr(f"mqtts://inferd:a-password@localhost:{port}"),
        client_id="tls",
        ca_file=ca_file,
        connect_timeout_seconds=2,
    )
    return MqttLink(settings, subscriptions=[topics.REQUEST_FILTER], on_request=store_nothing)


async def refuses(port: int, ca_file: Path | None, reason: str = "") -> None:
    """Return once the link does not connect, for this reason if one is given."""
    link = link_to(port, ca_file)
    async with running(link):
        # On a slow machine its first try may end by the time limit.
        await until(lambda: link.last_error is not None and reason in link.last_error)
        assert link.connects == 0


@pytest.mark.parametrize(
    ("begins", "ends", "is_signed", "host", "reason"),
    [
        (-2 * DAY, -DAY, True, "localhost", "certificate has expired"),
        (DAY, 2 * DAY, True, "localhost", "not yet valid"),
        (-DAY, DAY, False, "localhost", "self-signed certificate"),
        (-DAY, DAY, True, "broker.example", "Hostname mismatch"),
    ],
    ids=["expired", "not yet valid", "self-signed", "another name"],
)
async def test_a_certificate_that_proves_nothing_gets_no_password(
    authority: Authority,
    begins: timedelta,
    ends: timedelta,
    host: str,
    reason: str,
    *,
    is_signed: bool,
) -> None:
    files = authority.certificate(host, begins=begins, ends=ends, is_signed=is_signed)
    async with listening(files) as (port, came):
        await refuses(port, authority.ca_file, reason)

    assert not [data for data in came if data]


# paho lets go of a socket whose handshake fails, and does not close it.
@pytest.mark.filterwarnings("ignore:unclosed <ssl.SSLSocket:ResourceWarning")
@pytest.mark.parametrize(
    ("begins", "ends", "mend"),
    [
        (DAY, 2 * DAY, "a machine whose clock is ahead"),
        (-2 * DAY, -DAY, "give the broker a new certificate"),
    ],
    ids=["not yet valid", "expired"],
)
async def test_doctor_sends_who_has_a_wrong_clock_to_the_clock(
    authority: Authority, begins: timedelta, ends: timedelta, mend: str
) -> None:
    async with listening(authority.certificate(begins=begins, ends=ends)) as (port, _):
        url, ca_file = f"mqtts://localhost:{port}", str(authority.ca_file)
        environ = {"INFERD_MQTT__URL": url, "INFERD_MQTT__CA_FILE": ca_file}
        facts = begin(Settings.from_env(environ), is_quick=True)
        (found,) = await asyncio.to_thread(lambda: list(broker.look(facts)))
    gc.collect()

    assert found.code == "broker_certificate"
    assert "look at this machine's clock" in found.mend
    assert mend in found.mend
    assert "CA_FILE" not in found.mend


async def test_a_private_ca_is_not_trusted_unless_it_is_named(authority: Authority) -> None:
    async with listening(authority.certificate()) as (port, came):
        await refuses(port, None, "certificate verify failed")

    assert not [data for data in came if data]


@pytest.mark.filterwarnings("ignore:ssl.TLSVersion")
@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1, ssl.TLSVersion.TLSv1_1])
async def test_old_versions_of_tls_are_refused(
    authority: Authority, version: ssl.TLSVersion
) -> None:
    async with listening(authority.certificate(), version) as (port, came):
        await refuses(port, authority.ca_file)
        assert not [data for data in came if data]
        # The listener is one that lets others in.
        lenient = ssl.create_default_context(cafile=authority.ca_file)
        lenient.set_ciphers("ALL:@SECLEVEL=0")
        lenient.minimum_version = lenient.maximum_version = version
        _, writer = await asyncio.open_connection("localhost", port, ssl=lenient)
        writer.write(b"old")
        await until(lambda: b"old" in came)
        writer.close()


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
async def test_what_can_be_trusted_gets_the_password(
    authority: Authority, version: ssl.TLSVersion
) -> None:
    # Else the tests above could not see one.
    async with (
        listening(authority.certificate(), version) as (port, came),
        running(link_to(port, authority.ca_file)),
    ):
        # On a slow machine a try may end between its handshake and its first word.
        await until(lambda: any(b"a-password" in data for data in came))


def test_the_daemon_works_over_tls_with_certificates_on_both_sides(tmp_path: Path) -> None:
    folder = tmp_path / "broker"
    setup(folder, "alice", options=[*TLS, "--require-certificate"])
    certs = folder / "certs"
    with started(folder) as broker, MediaStore() as media_store:
        url = f"mqtts://inferd:{password(folder, 'inferd')}@localhost:{broker.tls_port}"
        environ = {
            "INFERD_MQTT__CA_FILE": str(certs / "ca.crt"),
            "INFERD_MQTT__CERT_FILE": str(certs / "client-inferd.crt"),
            "INFERD_MQTT__KEY_FILE": str(certs / "client-inferd.key"),
        }
        with (
            Daemon(tmp_path, cast("Broker", _Url(url)), media_store, **environ),
            Client(broker.port, user="alice", password=password(folder, "alice")) as alice,
        ):
            alice.subscribe("inference/job/+/+")
            job_id = "550e8400-e29b-41d4-a716-446655440000"
            body = {"media_store_id": 404, "job_id": job_id}
            alice.publish("inference/request/face_detection", body)
            done = alice.wait_for(lambda message: message.topic.endswith("/completed"), 30)

    assert (done.json()["job_id"], done.json()["status"]) == (job_id, "error")


@dataclass(frozen=True)
class _Url:
    """All that the daemon's rig needs of a broker."""

    url: str
