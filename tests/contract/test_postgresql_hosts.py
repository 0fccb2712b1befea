"""A URL of several servers: the primary is found, and the next one when it has died."""

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator, Awaitable, Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

import asyncpg
import pytest

from daemon.errors import ConfigError, StorageError
from daemon.queue.postgresql import backend, inspection
from daemon.queue.postgresql.hosts import Hosts
from tests.postgresql import Cluster, schema_of, url_of_servers
from tests.queue_bench import DEADLINE, open_bench, until


@contextmanager
def pair() -> Iterator[tuple[Cluster, Cluster]]:
    """Give a primary and its standby, for which each of its commits waits."""
    with Cluster(fsync=True) as primary, Cluster(fsync=True, standby_of=primary) as standby:
        standby.follow_in_step()
        yield primary, standby


@pytest.fixture
def mortals() -> Iterator[tuple[Cluster, Cluster]]:
    with pair() as made:
        yield made


@pytest.fixture(scope="module")
def lasting() -> Iterator[tuple[Cluster, Cluster]]:
    with pair() as made:
        yield made


@pytest.fixture
def silent() -> Iterator[socket.socket]:
    """Yield the socket of a server that lets everybody in and never answers."""
    # pytest's folders are too long for a socket's name.
    with TemporaryDirectory() as folder, socket.socket(socket.AF_UNIX) as listener:
        listener.bind(f"{folder}/.s.PGSQL.5432")
        listener.listen(50)
        yield listener


async def test_nothing_is_lost_when_the_standby_takes_over(
    mortals: tuple[Cluster, Cluster], caplog: pytest.LogCaptureFixture
) -> None:
    primary, standby = mortals
    async with open_bench(url_of_servers(primary, standby)) as bench:
        before = [await bench.accept(number) for number in range(20)]

        primary.kill()
        with pytest.raises(StorageError) as told:
            await bench.accept(100)
        standby.promote()

        await until(lambda: is_done(bench.accept(101)), "the new primary took it")
        known = await bench.rows("SELECT job_id FROM jobs WHERE media_store_id <> 101")
        await bench.database.check()

    assert told.value.may_pass
    assert {job_id for (job_id,) in known} == {job.job_id for job in before}
    assert f"the queue's primary is {standby.folder} now" in caplog.text


async def test_a_server_that_became_a_standby_is_left(mortals: tuple[Cluster, Cluster]) -> None:
    # A switch-over in order: the old primary answers still, and only refuses writes.
    primary, standby = mortals
    async with open_bench(url_of_servers(primary, standby)) as bench:
        await bench.accept(1)
        primary.psql("ALTER SYSTEM RESET synchronous_standby_names")
        standby.promote()
        (primary.folder / "data" / "standby.signal").touch()
        primary.stop()
        primary.start()

        await until(lambda: is_done(bench.accept(2)), "the new primary took it")

    assert standby.psql("SELECT count(*) FROM jobs") == "2"


async def test_the_primary_is_found_whichever_comes_first(lasting: tuple[Cluster, Cluster]) -> None:
    primary, standby = lasting
    primary.psql("CREATE SCHEMA either")
    url = url_of_servers(standby, primary, schema="either")

    async with open_bench(url) as bench:
        job = await bench.accept()
        # It asks for a session that only reads, of the primary all the same.
        found = await inspection.inspect(url)

    assert primary.psql("SELECT job_id FROM jobs", schema="either") == job.job_id
    assert found.states == {"pending": 1}


async def test_a_host_that_is_silent_uses_up_its_own_time_only_and_once(
    cluster: Cluster, silent: socket.socket, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(backend, "ACQUIRE_SECONDS", 12.0)
    place = cluster.schema()
    url = url_of_servers(Path(silent.getsockname()).parent, cluster, schema=schema_of(place))

    async with open_bench(url) as bench:
        tries = asked(silent)
        # One connection more than there is.
        jobs = await asyncio.gather(*(bench.accept(number) for number in range(4)))

    assert tries > 0
    assert asked(silent) == 0
    assert cluster.psql("SELECT count(*) FROM jobs", schema=schema_of(place)) == str(len(jobs))


async def test_where_no_host_is_a_primary_each_says_why(
    lasting: tuple[Cluster, Cluster], tmp_path: Path
) -> None:
    primary, standby = lasting
    why = rf"{standby.folder}: it is a standby; {tmp_path}: .*No such file"
    with pytest.raises(ConnectionError, match=why):
        await Hosts(url_of_servers(standby, tmp_path)).connect(timeout=30)

    # What a server says of us comes before what is known of those that say nothing.
    wrong = url_of_servers(primary, tmp_path).replace("/postgres?", "/elsewhere?")
    with pytest.raises(ConfigError, match='database "elsewhere" does not exist'):
        async with open_bench(wrong):
            pass
    with pytest.raises(asyncpg.ClientConfigurationError, match="sslmode"):
        await Hosts(f"{url_of_servers(primary, tmp_path)}&sslmode=typo").connect(timeout=30)


async def is_done(work: Awaitable[object]) -> bool:
    """Whether it was stored."""
    try:
        await work
    except StorageError:
        return False
    return True


def asked(listener: socket.socket) -> int:
    """Return how many have come to a socket, and send them away."""
    listener.setblocking(False)
    count = 0
    with contextlib.suppress(BlockingIOError):
        while True:
            listener.accept()[0].close()
            count += 1
    return count


@contextlib.asynccontextmanager
async def pooler(server: Path) -> AsyncIterator[Path]:
    """Stand before a server, as a pooler that ignores startup parameters; yield the folder."""

    async def pass_on(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            while data := await reader.read(65_536):
                writer.write(data)
        writer.close()
        with contextlib.suppress(OSError):
            await writer.wait_closed()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        serving.append(asyncio.current_task())
        size = int.from_bytes(await reader.readexactly(4))
        asked = await reader.readexactly(size - 4)
        version, words = asked[:4], asked[4:].split(b"\0")
        user = words[words.index(b"user") + 1]
        startup = version + b"user\0%b\0database\0postgres\0\0" % user
        back, forth = await asyncio.open_unix_connection(f"{server}/.s.PGSQL.5432")
        forth.write((len(startup) + 4).to_bytes(4) + startup)
        await asyncio.gather(pass_on(reader, forth), pass_on(back, writer))

    serving: list[asyncio.Task[None] | None] = []
    with TemporaryDirectory() as folder:
        listener = await asyncio.start_unix_server(serve, f"{folder}/.s.PGSQL.5432")
        async with listener:
            yield Path(folder)
        async with asyncio.timeout(DEADLINE):
            await asyncio.gather(*filter(None, serving))


async def test_a_pooler_that_ignores_what_a_session_asks_for_is_refused(cluster: Cluster) -> None:
    # The queue of another place would be used, or changed by who only wants to look.
    place = schema_of(cluster.schema())
    async with pooler(cluster.folder) as folder:
        with pytest.raises(ConfigError, match=r"search_path is .*not to a pooler") as told:
            async with open_bench(url_of_servers(folder, schema=place)):
                pass
        assert told.value.code == "queue_unusable"
        with pytest.raises(ConfigError, match="default_transaction_read_only is 'off'"):
            await inspection.inspect(url_of_servers(folder).partition("&search_path")[0])
