"""Paused and draining in the retained availability: real mosquitto, paho as the listener."""

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from daemon.errors import PublishError
from daemon.mqtt import client as mqtt_client
from daemon.mqtt import link as mqtt_link
from daemon.mqtt.client import open_client
from daemon.mqtt.link import MqttLink
from tests.broker import AsyncClient, Broker, Version
from tests.contract.test_mqtt_link import DEADLINE, Setup, both, cut, until

SOON = 1_767_268_860_000


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Broker]:
    with Broker(tmp_path_factory.mktemp("mqtt")) as broker:
        yield broker


@pytest.fixture(autouse=True)
def late_will(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let no break be so long, on however slow a machine, that the broker tells of it."""
    monkeypatch.setattr(mqtt_client, "WILL_DELAY_SECONDS", 60)


class Listener:
    """What a client hears of one daemon, one message after the other."""

    def __init__(self, client: AsyncClient, setup: Setup) -> None:
        self._client, self._setup = client, setup

    async def next(self) -> dict[str, Any]:
        return dict((await self._client.wait_for()).json())

    async def next_state(self) -> tuple[str, str, Any, Any]:
        said = await self.next()
        return said["state"], said["reason"], said.get("paused"), said.get("paused_until")


@asynccontextmanager
async def heard(broker: Broker, version: Version = "5") -> AsyncIterator[tuple[Setup, Listener]]:
    setup = Setup(broker.url, version)
    async with AsyncClient(broker.port) as client:
        await client.subscribe(setup.availability)
        yield setup, Listener(client, setup)


async def retained(broker: Broker, setup: Setup) -> dict[str, Any]:
    """Return what a client that comes now is told."""
    async with AsyncClient(broker.port) as late:
        await late.subscribe(setup.availability)
        message = await late.wait_for()
        assert message.is_retained
        return dict(message.json())


@both
async def test_what_is_paused_is_told_and_retained(shared: Broker, version: Version) -> None:
    async with heard(shared, version) as (setup, listener), setup.running() as link:
        assert await listener.next_state() == ("online", "started", None, None)

        await link.tell_paused({"image_embedding": SOON}, is_all=False)
        said = await listener.next()
        assert (said["state"], said["reason"]) == ("online", "paused")
        assert said["paused"] == ["image_embedding"]
        assert said["paused_until"] == {"image_embedding": SOON}
        assert await retained(shared, setup) == said

        await link.tell_paused({"image_embedding": SOON, "face_detection": None}, is_all=True)
        assert await listener.next_state() == (
            "paused",
            "paused",
            ["image_embedding", "face_detection"],
            {"image_embedding": SOON, "face_detection": None},
        )
        await link.tell_paused({}, is_all=False)
        assert await listener.next_state() == ("online", "resumed", None, None)
    assert await listener.next_state() == ("offline", "shutdown", None, None)


async def test_a_paused_daemon_goes_on_taking_requests(shared: Broker) -> None:
    async with AsyncClient(shared.port) as client:
        setup = Setup(shared.url, "5")
        async with setup.running() as link:
            await link.tell_paused({"image_embedding": None}, is_all=True)

            await client.publish(setup.topic, b"ask")

            await until(lambda: setup.requests.payloads == [b"ask"])


async def test_a_pause_is_told_again_after_a_break(shared: Broker) -> None:
    async with heard(shared) as (setup, listener), setup.running() as link:
        await listener.next()
        await link.tell_paused({"face_detection": None}, is_all=True)
        first = await listener.next()

        cut(link)

        again = await listener.next()
        assert (again["state"], again["reason"]) == ("paused", "started")
        assert again["paused"] == ["face_detection"]
        assert again["session_id"] != first["session_id"]


async def test_a_pause_that_was_known_before_the_first_connect_is_the_first_thing_told(
    shared: Broker,
) -> None:
    async with heard(shared) as (setup, listener):
        link = setup.link()
        await link.tell_paused({"face_detection": SOON}, is_all=True)
        async with running(link):
            assert await listener.next_state() == (
                "paused",
                "started",
                ["face_detection"],
                {"face_detection": SOON},
            )


async def test_a_draining_daemon_says_nothing_else_whatever_is_paused_or_resumed(
    shared: Broker,
) -> None:
    async with heard(shared) as (setup, listener):
        async with setup.running() as link:
            await listener.next()
            await link.tell_paused({"face_detection": None}, is_all=True)
            await listener.next()

            await link.drain()
            await link.tell_paused({}, is_all=False)
            await link.tell_paused({"face_detection": None}, is_all=True)

            said = [await listener.next_state() for _ in range(3)]
            assert [each[:2] for each in said] == [("draining", "shutdown")] * 3
            assert [each[2] for each in said] == [["face_detection"], None, ["face_detection"]]
            cut(link)
            assert (await listener.next_state())[:2] == ("draining", "shutdown")
        assert (await listener.next_state()) == ("offline", "shutdown", None, None)


async def test_draining_stands_last_however_many_pauses_are_told_at_once(shared: Broker) -> None:
    # All wait for the window of one unconfirmed message, in the order in which they came.
    async with heard(shared) as (setup, listener), setup.running() as link:
        await listener.next()
        assert link._sender is not None
        link._sender._window = asyncio.Semaphore(1)
        await asyncio.gather(
            *(link.tell_paused({"a": None}, is_all=bool(number % 2)) for number in range(20)),
            link.drain(),
            *(link.tell_paused({"a": None}, is_all=bool(number % 2)) for number in range(20)),
        )
        said = [(await listener.next())["state"] for _ in range(41)]
        assert set(said[:20]) == {"online", "paused"}
        assert said[20:] == ["draining"] * 21


async def test_a_pause_that_nobody_heard_is_an_error(shared: Broker) -> None:
    setup = Setup(shared.url, "5")
    async with setup.running() as link:
        client = link._client
        telling = asyncio.create_task(link.tell_paused({"a": None}, is_all=True))
        client._connection._transport.abort()

        with pytest.raises(PublishError):
            await telling


@asynccontextmanager
async def running(link: MqttLink) -> AsyncIterator[None]:
    task = asyncio.create_task(link.run())
    try:
        yield
    finally:
        task.cancel()
        await asyncio.wait([task])


async def test_who_ends_before_it_is_up_again_is_not_left_online(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A clean end amid a connect took the will back, and nothing else tells that it is gone."""
    opened = asyncio.Event()

    async def open_and_stand_still(client: Any, *args: Any, **options: Any) -> None:
        await open_client(client, *args, **options)
        opened.set()
        await asyncio.Event().wait()

    with Broker(tmp_path) as broker:
        # With 5 the will would wait for WILL_DELAY_SECONDS.
        async with heard(broker, "3.1.1") as (setup, listener):
            async with setup.running() as link:
                await listener.next()
                broker.settle()
                monkeypatch.setattr(mqtt_link, "open_client", open_and_stand_still)
                broker.restart(kill=True)
                await until(opened.is_set)
                assert (await retained(broker, setup))["state"] == "online"
                assert not link.is_up

            async with asyncio.timeout(DEADLINE):
                while (await listener.next())["state"] != "offline":
                    pass
