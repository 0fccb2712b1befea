"""Intake roles over real mosquitto and a real queue file: several keepers in one process."""

import asyncio
import contextlib
import sqlite3
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Self

import pytest
from pydantic import SecretStr

from daemon.errors import StorageError
from daemon.fleet import role_keeper
from daemon.fleet.role_keeper import RoleKeeper
from daemon.mqtt.link import MqttLink
from daemon.queue.database import Database
from daemon.queue.roles import Roles
from daemon.requests import MqttRequest
from daemon.settings import MqttSettings
from daemon.topics import REQUEST_FILTER
from tests.broker import AsyncClient, Broker, Version
from tests.waiting import until

TOPIC = "inference/request/face_detection"
LEASE = 30.0
"""No machine stands still for so long; where one is to end, a member's clocks are put forward."""
SHARED = "$share/inference-intake/inference/request/+"

both = pytest.mark.parametrize("version", ["5", "3.1.1"])


@pytest.fixture(autouse=True)
def _looks_several_times_a_second() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(role_keeper, "LOOKS", 100)
        yield


@pytest.fixture
def broker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Broker]:
    # Roles have names of their own, so tests share no broker.
    with Broker(tmp_path_factory.mktemp("mqtt")) as broker:
        yield broker


@pytest.fixture
async def database(tmp_path: Path) -> AsyncIterator[Database]:
    async with Database(tmp_path / "queue.db") as database:
        yield database


class Member:
    """One daemon's links and roles, without the rest of it."""

    def __init__(
        self,
        name: str,
        broker: Broker,
        database: Database,
        *,
        count: int = 2,
        version: Version = "5",
        dead: set[str] | None = None,
    ) -> None:
        self.name = name
        self.stored: list[bytes] = []
        self.gate = asyncio.Event()
        self.gate.set()
        self.others: list[Member] = []
        self.ahead = 0.0
        """By how many seconds its clocks are before the others'."""
        self._dead = set() if dead is None else dead
        settings = MqttSettings(url=SecretStr(broker.url), client_id=name, version=version)
        self.link = MqttLink(
            settings,
            subscriptions=["test/+", *([] if count else [REQUEST_FILTER])],
            on_request=self.receive,
        )
        self.roles = Roles(
            database,
            owner=name,
            count=count,
            lease_seconds=LEASE,
            clock=lambda: time.time_ns() // 1_000_000 + int(self.ahead * 1000),
            is_dead=lambda owner: owner in self._dead,
        )
        self.keeper = RoleKeeper(
            self.roles,
            self.link,
            settings,
            secret="5ec2e7",
            on_request=self.receive,
            changed=self._tell,
            lease_seconds=LEASE,
            monotonic=lambda: time.monotonic() + self.ahead,
        )
        self._tasks: list[asyncio.Task[None]] = []

    async def receive(self, message: MqttRequest) -> None:
        await self.gate.wait()
        self.stored.append(message.payload)

    def _tell(self) -> None:
        for each in self.others:
            each.keeper.ask()

    def start(self) -> None:
        self._tasks = [asyncio.create_task(each.run()) for each in (self.link, self.keeper)]

    async def stop(self) -> None:
        """Stop as a daemon does at SIGTERM."""
        await self.keeper.close()
        await self._end()

    async def die(self) -> None:
        """Be gone as after SIGKILL: nothing is said, given back or confirmed any more."""
        for role in self.keeper._held.values():
            if role.link._client is not None:
                role.link._client._connection._transport.abort()
            role.task.cancel()
        self._dead.add(self.name)
        await self._end()

    async def _end(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._tasks = []

    @property
    def held(self) -> list[str]:
        return sorted(name for name, each in self.keeper._held.items() if each.link.is_up)

    async def __aenter__(self) -> Self:
        self.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        self.gate.set()
        await self._end()


def spread(*members: Member) -> list[int]:
    return sorted(len(each.held) for each in members)


async def ask(client: AsyncClient, *payloads: bytes) -> None:
    for payload in payloads:
        assert await client.publish(TOPIC, payload) == 0


@both
async def test_a_plain_shared_subscription_loses_what_a_dead_member_held(
    broker: Broker, version: Version
) -> None:
    """Why there are roles: mosquitto keeps it for a session that never comes back."""
    wanted = {b"%d" % number for number in range(20)}
    # A member that confirms nothing, and whose session outlives it.
    dead = MqttLink(
        MqttSettings(url=SecretStr(broker.url), client_id="dead", version=version),
        subscriptions=[SHARED],
        on_request=lambda _message: asyncio.Event().wait(),  # type: ignore[arg-type, return-value]
        is_worker=False,
    )
    living = AsyncClient(broker.port, version=version, client_id="living", clean=False)
    async with living, AsyncClient(broker.port) as client:
        await living.subscribe(SHARED)
        task = asyncio.create_task(dead.run())
        await dead.wait_up()
        await ask(client, *sorted(wanted))
        dead._client._connection._transport.abort()
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        await ask(client, b"last", b"last too")
        await living.wait_until(lambda got: any(each.payload[:4] == b"last" for each in got))

        got = {each.payload for each in living.received}
        assert wanted - got, "it lost nothing: roles would not be needed"


@both
async def test_a_role_that_is_taken_over_loses_nothing(
    broker: Broker, database: Database, version: Version
) -> None:
    dead: set[str] = set()
    one = Member("one", broker, database, version=version, dead=dead)
    two = Member("two", broker, database, version=version, dead=dead)
    async with one, two, AsyncClient(broker.port) as client:
        await until(lambda: spread(one, two) == [1, 1])
        # It has them, and confirms none.
        one.gate.clear()
        wanted = {b"%d" % number for number in range(30)}
        await ask(client, *sorted(wanted))

        await one.die()
        await ask(client, b"later")

        await until(lambda: set(two.stored) >= wanted | {b"later"} and spread(two) == [2])
        assert sorted(two.stored) == sorted({*wanted, b"later"}), "nothing came twice"


async def test_roles_are_spread_evenly_over_the_living(broker: Broker, database: Database) -> None:
    members = [Member(name, broker, database, count=5) for name in ("one", "two", "three")]
    for each in members:
        each.others = members
    one, two, three = members
    async with one:
        await until(lambda: spread(one) == [5])
        async with two:
            await until(lambda: spread(one, two) == [2, 3])
            async with three:
                await until(lambda: spread(*members) == [1, 2, 2])
                await three.stop()
                await until(lambda: spread(one, two) == [2, 3])
                names = one.held + two.held
                assert len(set(names)) == len(names)


async def test_a_graceful_stop_hands_over_at_once_and_loses_nothing(
    broker: Broker, database: Database
) -> None:
    one, two = Member("one", broker, database), Member("two", broker, database)
    one.others = [two]
    async with one, two, AsyncClient(broker.port) as client:
        await until(lambda: spread(one, two) == [1, 1])
        one.gate.clear()
        await ask(client, *(b"%d" % number for number in range(20)))
        stopping = asyncio.create_task(one.stop())
        await until(lambda: one.keeper._is_over)
        # What was being stored is confirmed before the role is given up.
        one.gate.set()
        await stopping
        await ask(client, b"later")

        await until(lambda: b"later" in two.stored)
        assert sorted(one.stored + two.stored) == sorted(
            [*(b"%d" % number for number in range(20)), b"later"]
        )
        rows = await database.read("SELECT DISTINCT owner FROM intake_roles")
        assert [row["owner"] for row in rows] == ["two"]


async def test_a_member_that_lost_its_role_does_not_fight_for_it(
    broker: Broker, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = Member("one", broker, database, count=1)
    two = Member("two", broker, database, count=1)
    async with one, AsyncClient(broker.port) as client:
        await until(lambda: one.held == ["inference-intake-0"])

        async def stand_still() -> None:
            """As a process does that is stopped, whose connection the broker keeps."""

        monkeypatch.setattr(one.keeper, "look", stand_still)
        role = one.keeper._held["inference-intake-0"]
        two.ahead = LEASE + 1
        async with two:
            await until(lambda: two.held == ["inference-intake-0"])
            await until(role.task.done)
            assert role.link.connects == 1
            # The lease is over: what reached it before the broker cut it off is not stored.
            one.keeper._valid_until = 0
            with pytest.raises(StorageError):
                await role.link._reception.on_request(MqttRequest(TOPIC, b"late"))
            await ask(client, b"ask")
            await until(lambda: two.stored == [b"ask"])
            assert one.stored == []
            monkeypatch.undo()
            two.ahead = 0
            # Back among the living, it takes part again.
            await until(lambda: spread(one, two) == [0, 1])
            await until(lambda: len(_rows(database, "intake_members")) == 2)


async def test_requests_wait_for_roles_while_no_daemon_lives(
    broker: Broker, database: Database
) -> None:
    async with Member("one", broker, database) as one:
        await until(lambda: spread(one) == [2])
        await one.stop()
    async with AsyncClient(broker.port) as client:
        await ask(client, *(b"%d" % number for number in range(10)))
    async with Member("two", broker, database) as two:
        await until(lambda: len(two.stored) == 10)
        assert set(two.stored) == {b"%d" % number for number in range(10)}


@both
async def test_a_daemon_that_begins_to_share_takes_no_request_twice(
    broker: Broker, database: Database, version: Version
) -> None:
    async with AsyncClient(broker.port) as client:
        async with Member("one", broker, database, count=0, version=version) as alone:
            await until(lambda: alone.link.is_up)
            await ask(client, b"before")
            await until(lambda: alone.stored == [b"before"])
        # Its session stays, with its own subscription and what waits there.
        await ask(client, b"between")
        async with Member("one", broker, database, version=version) as one:
            await until(lambda: spread(one) == [2] and one.link._dropped == [REQUEST_FILTER])
            # The broker has read that too: until then it brings a request by both subscriptions.
            await one.link.settle()
            await ask(client, *(b"%d" % number for number in range(10)))
            await until(lambda: len(one.stored) >= 11)
            await ask(client, b"last")
            await until(lambda: b"last" in one.stored)
            assert len(one.stored) == len(set(one.stored)) == 12


@both
async def test_roles_that_nobody_wants_any_more_are_drained_and_their_sessions_end(
    broker: Broker, database: Database, version: Version, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("daemon.queue.roles.RETIRED_MS", 100)
    monkeypatch.setattr("daemon.fleet.role_keeper.QUIET_SECONDS", 0.2)
    async with AsyncClient(broker.port) as client:
        async with Member("one", broker, database, count=3, version=version) as one:
            await until(lambda: spread(one) == [3])
            await one.stop()
        sent = {b"%d" % number for number in range(12)}
        await ask(client, *sorted(sent))
        # A third of them waits in the session of the third role.
        async with Member("two", broker, database, count=2, version=version) as two:
            await until(lambda: set(two.stored) >= sent)
            await until(lambda: len(_rows(database, "intake_roles")) == 2)
            await ask(client, *(b"more %d" % number for number in range(6)))
            await until(lambda: len(set(two.stored)) == 18)
        async with AsyncClient(
            broker.port, version=version, client_id="inference-intake-2-5ec2e7", clean=False
        ) as ghost:
            assert not ghost.sync.session_present


def _rows(database: Database, table: str) -> list[tuple[object, ...]]:
    with contextlib.closing(sqlite3.connect(database._path)) as connection:
        return connection.execute(f"SELECT * FROM {table}").fetchall()


async def test_a_member_whose_broker_is_away_leaves_the_roles_to_others(
    broker: Broker, database: Database
) -> None:
    one, two = Member("one", broker, database), Member("two", broker, database)
    async with one, two:
        await until(lambda: spread(one, two) == [1, 1])
        # Only its own way to the broker is cut: a port where nobody listens.
        one.link._settings = MqttSettings(url=SecretStr("mqtt://127.0.0.1:9"), client_id="one")
        for role in one.keeper._held.values():
            role.link._settings = one.link._settings
            role.link._client._connection._transport.abort()
        one.link._client._connection._transport.abort()
        await until(lambda: not one.link.is_up and one.held == [])
        one.ahead = LEASE

        await until(lambda: spread(two) == [2])
        assert one.held == []


async def test_a_retired_session_is_kept_while_requests_stand_in_it(
    broker: Broker, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("daemon.queue.roles.RETIRED_MS", 100)
    monkeypatch.setattr("daemon.fleet.role_keeper.QUIET_SECONDS", 0.2)
    monkeypatch.setattr("daemon.fleet.role_keeper.HAND_OVER_SECONDS", 0.1)
    async with AsyncClient(broker.port) as client:
        async with Member("one", broker, database, count=3) as one:
            await until(lambda: spread(one) == [3])
            await one.stop()
        sent = {b"%d" % number for number in range(12)}
        await ask(client, *sorted(sent))
        two = Member("two", broker, database, count=2)
        # Two of the third role's four stay at the broker while nothing can be stored.
        two.keeper._settings = two.keeper._settings.model_copy(update={"receive_maximum": 2})
        two.gate.clear()
        async with two:
            held = two.keeper._held
            await until(lambda: any(each.is_retired and each.link.is_up for each in held.values()))
            # Longer than a session must be quiet to be ended.
            await asyncio.sleep(1)
            two.gate.set()
            await until(lambda: set(two.stored) >= sent)
            await until(lambda: len(_rows(database, "intake_roles")) == 2)
