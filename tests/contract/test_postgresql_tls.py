"""sslmode in the queue's URL is honoured: TLS, the server's certificate, and its name."""

import asyncio
import contextlib
import logging
import os
import socket
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import NameOID

from daemon.errors import ConfigError
from daemon.queue.postgresql.backend import PostgresDatabase
from tests.postgresql import Cluster, schema_of
from tests.queue_bench import DEADLINE

# Of this machine, as all of 127, and nobody else's meanwhile; the second one is in no certificate.
ADDRESS, UNNAMED = (f"127.{net}.{os.getpid() // 250 % 250}.{os.getpid() % 250 + 1}" for net in "78")
HOW = "SELECT ssl FROM pg_stat_ssl WHERE pid = pg_backend_pid()"


@dataclass(frozen=True)
class Server:
    """A server that speaks TLS, and the file of the certificate that vouches for it."""

    cluster: Cluster
    certificate: Path

    def url(self, schema_url: str, host: str = ADDRESS, **options: object) -> str:
        more = "".join(f"&{name}={value}" for name, value in options.items())
        where = f"postgresql://inferd@{host}:5432/postgres"
        return f"{where}?search_path={schema_of(schema_url)}{more}"


def certificate(folder: Path, address: str) -> tuple[Path, Path]:
    """Return the files of a key and of the certificate that it signed for itself."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, address)])
    now, day = datetime.now(UTC), timedelta(days=1)
    made = (
        x509.CertificateBuilder(name, name, key.public_key(), 1, now - day, now + day)
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ip_address(address))]), False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), True)
        .sign(key, hashes.SHA256())
    )
    secret, shown = folder / "server.key", folder / "server.crt"
    secret.write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    shown.write_bytes(made.public_bytes(Encoding.PEM))
    return secret, shown


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with socket.socket() as probe:
        try:
            probe.bind((ADDRESS, 5432))
        except OSError:
            pytest.skip("somebody listens at port 5432 of every address")
    secret, shown = certificate(tmp_path_factory.mktemp("tls"), ADDRESS)
    with Cluster(address=f"{ADDRESS},{UNNAMED}", tls=(secret, shown)) as cluster:
        yield Server(cluster, shown)


async def is_encrypted(url: str) -> bool:
    async with PostgresDatabase(url, start_seconds=0) as database:
        ((found,),) = await database.read(HOW)
        return bool(found)


async def test_a_server_that_is_verified_is_used_with_tls(server: Server) -> None:
    place = server.cluster.schema()

    for mode in ("verify-full", "verify-ca"):
        url = server.url(place, sslmode=mode, sslrootcert=server.certificate)
        assert await is_encrypted(url)


async def test_require_and_no_word_at_all_use_tls_without_knowing_the_server(
    server: Server,
) -> None:
    place = server.cluster.schema()

    assert await is_encrypted(server.url(place, sslmode="require"))
    assert await is_encrypted(server.url(place))


async def test_no_tls_is_used_where_the_url_forbids_it(server: Server) -> None:
    assert not await is_encrypted(server.url(server.cluster.schema(), sslmode="disable"))


async def test_a_server_that_another_authority_vouches_for_is_refused(
    server: Server, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    _, other = certificate(tmp_path, ADDRESS)

    with (
        caplog.at_level(logging.WARNING),
        pytest.raises(ConfigError, match="certificate verify failed") as caught,
    ):
        await is_encrypted(
            server.url(server.cluster.schema(), sslmode="verify-full", sslrootcert=other)
        )

    assert caught.value.code == "queue_unusable"


async def test_a_server_of_another_name_is_refused_by_verify_full_alone(server: Server) -> None:
    place = server.cluster.schema()
    trusted = server.certificate

    with pytest.raises(ConfigError, match="certificate is not valid for"):
        await is_encrypted(server.url(place, UNNAMED, sslmode="verify-full", sslrootcert=trusted))

    assert await is_encrypted(server.url(place, UNNAMED, sslmode="verify-ca", sslrootcert=trusted))


async def test_a_server_without_tls_is_told_nothing_where_tls_is_required() -> None:
    heard, is_over = bytearray(), asyncio.Event()

    async def refuse(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        heard.extend(await reader.read(8))
        writer.write(b"N")
        heard.extend(await reader.read(1))
        writer.close()
        with contextlib.suppress(OSError):
            await writer.wait_closed()
        is_over.set()

    listening = await asyncio.start_server(refuse, "127.0.0.1", 0)
    async with listening:
        port = listening.sockets[0].getsockname()[1]
        with pytest.raises(ConfigError, match="rejected SSL upgrade") as caught:
            await is_encrypted(f"postgresql://inferd@127.0.0.1:{port}/x?sslmode=require")
        await asyncio.wait_for(is_over.wait(), DEADLINE)

    assert caught.value.code == "queue_unusable"
    # The question for TLS, and nothing after the answer.
    assert len(heard) == 8
