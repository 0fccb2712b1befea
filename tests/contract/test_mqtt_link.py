"""The broker link against real mosquitto, with paho as the other side.

gmqtt 0.8's traps, and what keeps each from us:

PUBACK goes out before on_message begins
    test_request_is_acknowledged_only_once_on_request_returned
a callback that raises: no PUBACK, and a slot of the window leaks
    test_request_that_cannot_be_stored_comes_again, test_failed_request_takes_no_other_with_it
a callback that returns no valid code: the same
    cannot happen: the link's own on_message returns 0, whatever on_request returns
a callback that is no `async def`: never acknowledged
    cannot happen: the link's own on_message is one; on_request is an object in these tests
a returned 0x80 or more discards the request
    cannot happen: only 0 is returned, and a refusal is an event
the PUBACK of an old handler goes out on the next connection
    test_late_acknowledgement_confirms_no_other_message
nothing but the broker's window holds requests back
    test_burst_beyond_the_window_is_all_handled
reconnects by itself, after a constant wait
    test_waits_between_connects_grow_and_are_jittered,
    test_broker_hears_of_one_connect_for_each_try
the first connect() raises, later ones retry only after an OSError
    test_link_comes_up_when_the_broker_does, test_wrong_password_is_told_and_outlived
connect() waits for CONNACK without an end, and so when refused for speaking MQTT 5
    test_connect_without_an_answer_is_given_up,
    test_connection_closed_before_connack_is_no_timeout, test_broker_without_mqtt_5_is_told
nobody subscribes again
    test_link_survives_a_restart_of_the_broker
a dead peer goes unnoticed while bytes wait to be sent
    test_frozen_broker_is_noticed_with_unsent_bytes
publish() tells nothing, and the PUBACK's reason code is dropped
    test_publish_returns_the_brokers_reason_code, test_publish_refused_by_the_acl_raises
publish() before connect raises AttributeError; while down it only remembers
    test_publish_fails_at_once_without_a_connection
unconfirmed messages: replayed while the session lasts, else silently dropped; no DUP flag
    test_nothing_is_replayed_behind_our_back, test_publish_fails_when_its_connection_is_lost
packet ids of a lost session are never freed
    test_packet_ids_survive_lost_sessions
Receive Maximum becomes the number of packet ids: OverflowError, also for SUBSCRIBE
    test_more_publishes_than_the_broker_allows_at_once,
    test_narrow_window_of_the_broker_still_lets_us_publish,
    test_unconfirmed_publishes_do_not_use_up_the_packet_ids
a message beyond Maximum Packet Size: disconnected and replayed for ever
    test_payload_beyond_the_brokers_limit,
    test_payload_beyond_an_unknown_limit_is_lost_but_not_replayed
`persistent_storage` was async in 0.7, and is replaced when falsy
    cannot happen unnoticed: without ours no packet id is learnt and every publish fails
bytes that are no packets end the reading, not the connection
    test_garbage_from_the_broker_does_not_stop_the_link
MQTT 5's subscription options are sent to a 3.1.1 broker, which hangs up
    every test with version 3.1.1
"""

import asyncio
import base64
import contextlib
import itertools
import struct
import sys
import textwrap
import time
import uuid
from asyncio import sleep  # by name: some tests replace asyncio's
from collections import defaultdict
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from typing import Any

import pytest
from pydantic import SecretStr

from daemon.errors import PublishError
from daemon.mqtt import client as mqtt_client
from daemon.mqtt.link import MqttLink
from daemon.mqtt.sender import TooLargeError
from daemon.requests import MqttRequest
from daemon.settings import MqttSettings
from tests.broker import AsyncClient, Broker, Message, Version

DEADLINE = 30.0
NO_SUBSCRIBERS = 0x10
NOT_AUTHORIZED = 0x87

both = pytest.mark.parametrize("version", ["5", "3.1.1"])


class Requests:
    """An on_request that remembers, and can be told to wait or to fail."""

    def __init__(self) -> None:
        self.came: list[MqttRequest] = []
        self.stored: list[MqttRequest] = []
        self.gate = asyncio.Event()
        self.gate.set()
        self.gates: defaultdict[bytes, asyncio.Event] = defaultdict(lambda: self.gate)
        """Other gates for some payloads."""
        self.failures = 0
        """How many of the next requests cannot be stored."""

    async def __call__(self, request: MqttRequest) -> None:
        self.came.append(request)
        if self.failures:
            self.failures -= 1
            raise OSError("the disk is full")
        await self.gates[request.payload].wait()
        self.stored.append(request)

    @property
    def payloads(self) -> list[bytes]:
        return [request.payload for request in self.came]


class Setup:
    """A link's name and topics, unique so that tests share a broker, and what it was handed."""

    def __init__(self, url: str, version: Version, **options: Any) -> None:
        self.client_id = f"link-{uuid.uuid4().hex[:8]}"
        self.root = f"test/{self.client_id}"
        self.url = url
        self.version = version
        # No stall of this machine is an answer that never came, unless a test says so.
        patience = {"connect_timeout_seconds": DEADLINE, "publish_timeout_seconds": DEADLINE}
        self.options = patience | options
        self.requests = Requests()

    @property
    def topic(self) -> str:
        return f"{self.root}/request/x"

    @property
    def availability(self) -> str:
        return f"inference/worker/{self.client_id}/availability"

    def link(self) -> MqttLink:
        settings = MqttSettings(
            url=SecretStr(self.url), client_id=self.client_id, version=self.version, **self.options
        )
        return MqttLink(
            settings, subscriptions=[f"{self.root}/request/+"], on_request=self.requests
        )

    @contextlib.asynccontextmanager
    async def running(self, *, up: bool = True) -> AsyncIterator[MqttLink]:
        link = self.link()
        task = asyncio.create_task(link.run())
        try:
            if up:
                async with asyncio.timeout(DEADLINE):
                    await link.wait_up()
            yield link
        finally:
            task.cancel()
            async with asyncio.timeout(DEADLINE):
                with contextlib.suppress(asyncio.CancelledError):
                    await task


async def until(predicate: Callable[[], object], seconds: float = DEADLINE) -> None:
    """Return once it is true; TimeoutError after the deadline."""
    async with asyncio.timeout(seconds):
        while not predicate():  # noqa: ASYNC110 - facts of many kinds, and most ring no bell
            await sleep(0.005)


async def is_up_again(link: MqttLink, connects: int) -> None:
    await until(lambda: link.is_up and link.connects == connects)


async def publish_at_last(link: MqttLink) -> None:
    """Return once the broker confirmed a message; what was lost or too late is sent again."""
    async with asyncio.timeout(DEADLINE):
        while True:
            with contextlib.suppress(PublishError):
                await link.publish("event", b"")
                return
            await sleep(0.05)


def unconfirmed(link: MqttLink) -> int:
    return len(link._sender._unconfirmed) if link._sender else 0


async def has_unsent_bytes(link: MqttLink) -> None:
    transport = link._client._connection._transport
    await until(lambda: transport.get_write_buffer_size() > 0)


def cut(link: MqttLink) -> None:
    """Break the connection as a network does, with nothing said."""
    link._client._connection._transport.abort()


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Broker]:
    """A broker that no test disturbs."""
    with Broker(tmp_path_factory.mktemp("mqtt")) as broker:
        yield broker


@pytest.fixture
def broker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Broker]:
    """A broker for a test that is not kind to it."""
    with Broker(tmp_path_factory.mktemp("mqtt")) as broker:
        yield broker


# -- requests --------------------------------------------------------------------------------------


@both
async def test_request_is_acknowledged_only_once_on_request_returned(
    shared: Broker, version: Version
) -> None:
    setup = Setup(shared.url, version)
    setup.requests.gate.clear()
    async with AsyncClient(shared.port) as client:
        async with setup.running() as link:
            await client.publish(setup.topic, b"ask")
            await until(lambda: setup.requests.payloads == [b"ask"])

            cut(link)

            await until(lambda: setup.requests.payloads == [b"ask", b"ask"])
            setup.requests.gate.set()
            await until(lambda: len(setup.requests.stored) == 2)
        async with setup.running():
            await client.publish(setup.topic, b"next")
            await until(lambda: b"next" in setup.requests.payloads)
    assert setup.requests.payloads == [b"ask", b"ask", b"next"]


@both
async def test_unfinished_request_comes_to_the_next_process(
    shared: Broker, version: Version
) -> None:
    setup = Setup(shared.url, version)
    setup.requests.gate.clear()
    async with AsyncClient(shared.port) as client:
        async with setup.running():
            await client.publish(setup.topic, b"ask")
            await until(lambda: setup.requests.payloads == [b"ask"])
        # A later return of the old handler must not matter.
        setup.requests.gate.set()
        async with setup.running():
            await until(lambda: setup.requests.payloads == [b"ask", b"ask"])


@both
async def test_request_that_cannot_be_stored_comes_again(shared: Broker, version: Version) -> None:
    setup = Setup(shared.url, version)
    setup.requests.failures = 2
    async with AsyncClient(shared.port) as client:
        async with setup.running() as link:
            await client.publish(setup.topic, b"ask")
            # It comes again before the SUBACK: is_up may be late, or miss a try altogether.
            await until(lambda: len(setup.requests.stored) == 1 and link.is_up)
            assert setup.requests.payloads == [b"ask"] * 3
        async with setup.running():
            await client.publish(setup.topic, b"next")
            await until(lambda: b"next" in setup.requests.payloads)
    assert setup.requests.payloads == [b"ask"] * 3 + [b"next"]


@both
async def test_failed_request_takes_no_other_with_it(shared: Broker, version: Version) -> None:
    setup = Setup(shared.url, version)
    sent = [b"%d" % number for number in range(100)]
    async with AsyncClient(shared.port) as client, setup.running() as link:
        setup.requests.failures = 1
        for payload in sent:
            client.sync.send(setup.topic, payload)
        await until(lambda: {r.payload for r in setup.requests.stored} == set(sent))
        await until(lambda: link.connects == 2 and link.is_up)


@both
async def test_burst_beyond_the_window_is_all_handled(shared: Broker, version: Version) -> None:
    # 3.1.1 knows no receive_maximum: there it is the broker's max_inflight_messages, 100.
    window, count = (5, 50) if version == "5" else (100, 300)
    setup = Setup(shared.url, version, receive_maximum=window)
    async with AsyncClient(shared.port) as client, setup.running() as link:
        setup.requests.gate.clear()
        mids = [client.sync.send(setup.topic, b"%d" % number) for number in range(count)]
        for mid in mids:
            await client.confirm(mid)
        await until(lambda: len(setup.requests.came) == window)
        # What else the broker would have sent comes before this PUBACK.
        await link.publish(f"{setup.root}/event", b"")
        assert len(setup.requests.came) == window

        setup.requests.gate.set()
        await until(lambda: len(setup.requests.stored) == count)
        # A leaked slot would be missed now.
        for number in range(count):
            client.sync.send(setup.topic, b"%d" % number)
        await until(lambda: len(setup.requests.stored) == 2 * count)
        assert link.connects == 1


async def test_late_acknowledgement_confirms_no_other_message(broker: Broker) -> None:
    # The proven loss: the broker came back without our session and counts packet ids from 1
    # again, so the PUBACK of an old handler (id 1) would confirm a new message that is not stored.
    setup = Setup(broker.url, "5")
    old, new = asyncio.Event(), asyncio.Event()
    setup.requests.gates.update({b"old": old, b"new": new})
    async with AsyncClient(broker.port) as client, setup.running() as link:
        await client.publish(setup.topic, b"old")
        await until(lambda: setup.requests.payloads == [b"old"])
        broker.restart(kill=True, forget=True)
        await until(lambda: link.connects == 2 and link.is_up)
        await client.publish(setup.topic, b"new")
        await until(lambda: setup.requests.payloads == [b"old", b"new"])

        old.set()
        await until(lambda: len(setup.requests.stored) == 1)
        # Were the PUBACK of `old` on the wire, it is before this one.
        await link.publish(f"{setup.root}/after", b"")
        cut(link)

        await until(lambda: setup.requests.payloads == [b"old", b"new", b"new"])
        new.set()


@both
async def test_a_session_that_the_broker_has_forgotten_is_told(
    broker: Broker, version: Version, caplog: pytest.LogCaptureFixture
) -> None:
    """What waited in it is gone, and nobody else can know."""
    async with Setup(broker.url, version).running() as link:
        broker.settle()
        broker.restart(kill=True)
        await until(lambda: link.connects == 2 and link.is_up)
        assert "forgotten our session" not in caplog.text

        broker.restart(kill=True, forget=True)
        await until(lambda: link.connects == 3 and link.is_up)
        assert caplog.text.count("forgotten our session") == 1


@both
async def test_payloads_arrive_as_they_were_sent(shared: Broker, version: Version) -> None:
    setup = Setup(shared.url, version)
    sent = [b"", b"\x00\xff\xfe not UTF-8 \xc3", "Grüße ☃".encode(), bytes(300_000)]
    topic = f"{setup.root}/request/größe-☃-🙂"
    async with AsyncClient(shared.port) as client, setup.running() as link:
        for payload in sent:
            await client.publish(topic, payload)
        await until(lambda: len(setup.requests.came) == len(sent))
        assert setup.requests.payloads == sent
        assert {request.topic for request in setup.requests.came} == {topic}

        answers = f"{setup.root}/answer/größe-☃-🙂"
        await client.subscribe(answers)
        for payload in sent:
            assert await link.publish(answers, payload) == 0
        got = await client.wait_until(lambda received: len(received) == len(sent))
    assert [message.payload for message in got] == sent
    assert {message.topic for message in got} == {answers}


@both
@pytest.mark.parametrize("qos", [0, 2])
async def test_requests_of_other_qos_are_handed_over(
    shared: Broker, version: Version, qos: int
) -> None:
    setup = Setup(shared.url, version)
    async with AsyncClient(shared.port) as client, setup.running() as link:
        await client.publish(setup.topic, b"ask", qos=qos)
        await until(lambda: setup.requests.payloads == [b"ask"])
        assert link.connects == 1


async def test_failed_qos_0_request_does_not_stop_the_link(shared: Broker) -> None:
    setup = Setup(shared.url, "5")
    setup.requests.failures = 1
    async with AsyncClient(shared.port) as client, setup.running() as link:
        await client.publish(setup.topic, b"lost", qos=0)
        await until(lambda: link.connects == 2 and link.is_up)
        await client.publish(setup.topic, b"next", qos=0)
        await until(lambda: len(setup.requests.stored) == 1)


async def test_response_topic_and_correlation_data_come_and_go_back(shared: Broker) -> None:
    setup = Setup(shared.url, "5")
    reply, secret = f"{setup.root}/reply", b"\x00\xff\x10 binary"
    async with AsyncClient(shared.port) as client, setup.running() as link:
        await client.subscribe(reply)
        await client.publish(setup.topic, b"ask", response_topic=reply, correlation_data=secret)
        await until(lambda: setup.requests.came)
        request = setup.requests.came[0]
        assert request.response_topic == reply
        assert base64.b64decode(request.correlation_data or "") == secret

        await link.publish(reply, b"answer", correlation_data=request.correlation_data)

        assert (await client.wait_for()).correlation_data == secret


async def test_plain_request_has_no_properties(shared: Broker) -> None:
    setup = Setup(shared.url, "5")
    async with AsyncClient(shared.port, version="3.1.1") as client, setup.running():
        await client.publish(setup.topic, b"ask")
        await until(lambda: setup.requests.came)
    assert setup.requests.came == [MqttRequest(topic=setup.topic, payload=b"ask")]


async def test_correlation_data_is_left_out_where_the_protocol_has_none(shared: Broker) -> None:
    setup = Setup(shared.url, "3.1.1")
    async with AsyncClient(shared.port) as client, setup.running() as link:
        await client.subscribe(f"{setup.root}/reply")
        await link.publish(f"{setup.root}/reply", b"answer", correlation_data="AP8=")
        assert await client.wait_for() == Message(f"{setup.root}/reply", b"answer", 1, False)


async def test_retained_request_is_flagged(shared: Broker) -> None:
    setup = Setup(shared.url, "5")
    async with AsyncClient(shared.port) as client, setup.running():
        await client.publish(setup.topic, b"ask", retain=True)
        await until(lambda: setup.requests.came)
        await client.publish(setup.topic, b"", retain=True)
    assert setup.requests.came[0].is_retained


@both
async def test_retained_request_from_before_is_never_taken_for_a_new_one(
    shared: Broker, version: Version
) -> None:
    # 5: it is not sent at all; 3.1.1 cannot ask for that, but flags it.
    setup = Setup(shared.url, version)
    async with AsyncClient(shared.port) as client:
        await client.publish(setup.topic, b"old", retain=True)
        async with setup.running():
            await client.publish(f"{setup.topic}2", b"new")
            await until(lambda: b"new" in setup.requests.payloads)
        await client.publish(setup.topic, b"", retain=True)
    fresh = [request.payload for request in setup.requests.came if not request.is_retained]
    assert fresh == [b"new"]
    assert version == "3.1.1" or len(setup.requests.came) == 1


# -- publishing ------------------------------------------------------------------------------------


@both
async def test_publish_returns_the_brokers_reason_code(shared: Broker, version: Version) -> None:
    setup = Setup(shared.url, version)
    async with AsyncClient(shared.port) as client, setup.running() as link:
        # Nobody listens: a success that only 5 can tell apart.
        code = await link.publish(f"{setup.root}/event", b"1")
        assert code == (NO_SUBSCRIBERS if version == "5" else 0)
        await client.subscribe(f"{setup.root}/event")
        assert await link.publish(f"{setup.root}/event", b"2") == 0
        assert (await client.wait_for()).payload == b"2"


async def test_publish_refused_by_the_acl_raises(tmp_path_factory: pytest.TempPathFactory) -> None:
    acl = "topic readwrite inference/#\ntopic readwrite test/#\n"
    with Broker(tmp_path_factory.mktemp("mqtt"), acl=acl) as broker:
        async with Setup(broker.url, "5").running() as link:
            with pytest.raises(PublishError) as caught:
                await link.publish("elsewhere", b"")
            assert caught.value.reason_code == NOT_AUTHORIZED
            assert link.connects == 1
        async with Setup(broker.url, "3.1.1").running() as link:
            # The protocol has no word for it, and mosquitto acknowledges.
            assert await link.publish("elsewhere", b"") == 0


@both
async def test_publish_fails_at_once_without_a_connection(broker: Broker, version: Version) -> None:
    setup = Setup(broker.url, version, publish_timeout_seconds=60)
    broker.stop()
    async with setup.running(up=False) as link:
        async with asyncio.timeout(DEADLINE):
            with pytest.raises(PublishError):
                await link.publish("event", b"")
        broker.start()
        await until(lambda: link.is_up)
        broker.stop()
        await until(lambda: not link.is_up)
        async with asyncio.timeout(DEADLINE):
            with pytest.raises(PublishError) as caught:
                await link.publish("event", b"")
        assert caught.value.reason_code is None


@both
async def test_publish_fails_when_its_connection_is_lost(broker: Broker, version: Version) -> None:
    setup = Setup(broker.url, version, publish_timeout_seconds=60)
    async with setup.running() as link:
        broker.freeze()
        # More than the broker's window: those that wait for a slot must hear of it too.
        tasks = [asyncio.create_task(link.publish("event", b"")) for _ in range(200)]
        await until(lambda: unconfirmed(link) >= 97)
        broker.kill()
        async with asyncio.timeout(DEADLINE):
            outcomes = await asyncio.gather(*tasks, return_exceptions=True)
    assert {type(outcome) for outcome in outcomes} == {PublishError}


async def test_publish_that_is_not_confirmed_in_time_fails(broker: Broker) -> None:
    setup = Setup(broker.url, "5", publish_timeout_seconds=0.3)
    async with setup.running() as link:
        # Nothing else is under way, whose end would take the connection with it.
        await publish_at_last(link)
        broker.freeze()
        with pytest.raises(PublishError, match="in time"):
            await link.publish("event", b"")
        broker.thaw()


@both
async def test_more_publishes_than_the_broker_allows_at_once(
    tmp_path_factory: pytest.TempPathFactory, version: Version
) -> None:
    with Broker(tmp_path_factory.mktemp("mqtt"), max_inflight_messages=20) as broker:
        setup = Setup(broker.url, version)
        async with AsyncClient(broker.port) as client, setup.running() as link:
            await client.subscribe("event")
            sent = [b"%d" % number for number in range(500)]
            codes = await asyncio.gather(*(link.publish("event", payload) for payload in sent))
            assert set(codes) == {0}
            got = await client.wait_until(lambda received: len(received) >= len(sent))
            assert [message.payload for message in got] == sent
            assert link.connects == 1


@pytest.mark.parametrize("window", [1, 2, 3])
async def test_narrow_window_of_the_broker_still_lets_us_publish(
    tmp_path_factory: pytest.TempPathFactory, window: int
) -> None:
    with Broker(tmp_path_factory.mktemp("mqtt"), max_inflight_messages=window) as broker:
        async with Setup(broker.url, "5").running() as link:
            codes = await asyncio.gather(*(link.publish("event", b"") for _ in range(20)))
    assert set(codes) == {NO_SUBSCRIBERS}


@both
@pytest.mark.parametrize("how", ["too late", "cancelled"])
async def test_unconfirmed_publishes_do_not_use_up_the_packet_ids(
    tmp_path_factory: pytest.TempPathFactory, version: Version, how: str
) -> None:
    # gmqtt frees an id when the PUBACK comes, so whoever stops waiting must not free the slot:
    # the next publish would find no id (OverflowError), and a relay would die of it.
    with Broker(tmp_path_factory.mktemp("mqtt"), max_inflight_messages=20) as broker:
        late = how == "too late"
        setup = Setup(broker.url, version, publish_timeout_seconds=0.2 if late else 60)
        async with setup.running() as link:
            broker.freeze()
            for _ in range(3):
                tasks = [asyncio.create_task(link.publish("event", b"")) for _ in range(40)]
                if not late:
                    await until(lambda: unconfirmed(link) >= 10)
                    for task in tasks:
                        task.cancel()
                outcomes = await asyncio.gather(*tasks, return_exceptions=True)
                expected = PublishError if late else asyncio.CancelledError
                assert {type(outcome) for outcome in outcomes} == {expected}
            broker.thaw()

            # Too early, until the broker has caught up.
            await asyncio.gather(*(publish_at_last(link) for _ in range(100)))


async def test_payload_beyond_the_brokers_limit(tmp_path_factory: pytest.TempPathFactory) -> None:
    with Broker(tmp_path_factory.mktemp("mqtt"), max_packet_size=20_000) as broker:
        async with Setup(broker.url, "5").running() as link:
            with pytest.raises(TooLargeError) as caught:
                await link.publish("event", bytes(20_000))
            assert caught.value.code == "too_large"
            # Properties count as well.
            with pytest.raises(TooLargeError):
                await link.publish(
                    "event", b"", correlation_data=base64.b64encode(bytes(20_000)).decode()
                )
            assert await link.publish("event", bytes(18_000)) == NO_SUBSCRIBERS
            assert link.connects == 1


async def test_payload_beyond_an_unknown_limit_is_lost_but_not_replayed(
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    # 3.1.1 brokers do not tell their limit, they hang up.
    with Broker(tmp_path_factory.mktemp("mqtt"), max_packet_size=20_000) as broker:
        async with Setup(broker.url, "3.1.1").running() as link:
            with pytest.raises(PublishError, match="lost"):
                await link.publish("event", bytes(20_000))
            await is_up_again(link, 2)
            assert await link.publish("event", bytes(18_000)) == 0
            assert link.connects == 2


@both
async def test_packet_ids_survive_lost_sessions(
    tmp_path_factory: pytest.TempPathFactory, version: Version
) -> None:
    with Broker(tmp_path_factory.mktemp("mqtt"), max_inflight_messages=20) as broker:
        async with Setup(broker.url, version).running() as link:
            for connects in (1, 2, 3):
                await is_up_again(link, connects)
                await asyncio.gather(*(link.publish("event", b"") for _ in range(200)))
                broker.freeze()
                tasks = [asyncio.create_task(link.publish("event", b"")) for _ in range(40)]
                await until(lambda: unconfirmed(link) >= 17)
                broker.restart(kill=True, forget=True)
                outcomes = await asyncio.gather(*tasks, return_exceptions=True)
                assert {type(outcome) for outcome in outcomes} == {PublishError}
            await is_up_again(link, 4)
            await asyncio.gather(*(link.publish("event", b"") for _ in range(200)))


@both
async def test_settle_passes_over_the_answer_to_an_earlier_unsubscribe(
    broker: Broker, version: Version
) -> None:
    """It says nothing of what was sent after that one."""
    async with Setup(broker.url, version).running() as link:
        client = link._client
        broker.freeze()
        earlier = client.unsubscribe("test/none")
        settling = asyncio.create_task(link.settle())
        given = client.on_unsubscribe
        await until(lambda: client.on_unsubscribe is not given)

        client.on_unsubscribe(earlier, ())

        for _ in range(10):
            await sleep(0)
        assert not settling.done()
        broker.thaw()
        async with asyncio.timeout(DEADLINE):
            await settling


async def test_a_silent_broker_does_not_hold_up_who_finishes(broker: Broker) -> None:
    """To say that we drain is a publish, whose own patience is longer than a stop has."""
    setup = Setup(broker.url, "5", publish_timeout_seconds=60)
    async with setup.running() as link:
        await publish_at_last(link)
        broker.freeze()
        async with asyncio.timeout(DEADLINE):
            assert not await link.finish(0.2)
        broker.thaw()


# -- the connection --------------------------------------------------------------------------------


@both
@pytest.mark.parametrize("kill", [False, True], ids=["SIGTERM", "SIGKILL"])
async def test_link_survives_a_restart_of_the_broker(
    broker: Broker, version: Version, kill: bool
) -> None:
    setup = Setup(broker.url, version)
    setup.requests.gate.clear()
    async with AsyncClient(broker.port) as client, setup.running() as link:
        await client.publish(setup.topic, b"unfinished")
        await until(lambda: setup.requests.payloads == [b"unfinished"])
        broker.settle()

        broker.restart(kill=kill)

        # The session is there: it brings what was not acknowledged.
        await until(lambda: setup.requests.payloads == [b"unfinished"] * 2)
        setup.requests.gate.set()
        await until(lambda: link.is_up)
        await client.publish(setup.topic, b"live")
        await until(lambda: b"live" in setup.requests.payloads)

        broker.restart(kill=kill, forget=True)

        # The session is gone: only a new subscription brings this.
        await until(lambda: link.is_up and link.connects == 3)
        await client.publish(setup.topic, b"after")
        await until(lambda: b"after" in setup.requests.payloads)


@both
@pytest.mark.parametrize("kill", [False, True], ids=["SIGTERM", "SIGKILL"])
async def test_requests_wait_in_the_broker_while_we_are_away(
    broker: Broker, version: Version, kill: bool
) -> None:
    setup = Setup(broker.url, version)
    sent = [b"%d" % number for number in range(20)]
    async with AsyncClient(broker.port) as client:
        async with setup.running():
            pass
        for payload in sent:
            await client.publish(setup.topic, payload)
        broker.settle()
        broker.restart(kill=kill)
        async with setup.running():
            await until(lambda: len(setup.requests.came) >= len(sent))
    assert setup.requests.payloads == sent


async def test_frozen_broker_is_noticed_with_unsent_bytes(broker: Broker) -> None:
    keepalive = 3
    setups = [
        Setup(broker.url, version, keepalive_seconds=keepalive, publish_timeout_seconds=60)
        for version in ("5", "3.1.1")
    ]
    async with setups[0].running() as five, setups[1].running() as old:
        # Nothing else is under way: what waits for `online` is given up otherwise.
        for link in (five, old):
            await link.publish("event", b"")
        broker.freeze()
        began = time.monotonic()
        tasks = [
            asyncio.create_task(link.publish("event", bytes(1_000_000)))
            for _ in range(30)
            for link in (five, old)
        ]
        for link in (five, old):
            await has_unsent_bytes(link)
        await until(lambda: not five.is_up and not old.is_up)
        assert time.monotonic() - began > keepalive
        async with asyncio.timeout(DEADLINE):
            outcomes = await asyncio.gather(*tasks, return_exceptions=True)
        assert {type(outcome) for outcome in outcomes} == {PublishError}
        broker.thaw()
        await until(lambda: five.is_up and old.is_up)
        assert await five.publish("event", b"") == NO_SUBSCRIBERS


async def test_idle_connection_is_kept(shared: Broker) -> None:
    # Silence alone is no reason: the pings of the shortest keepalive must hold it.
    setup = Setup(shared.url, "5", keepalive_seconds=3)
    async with setup.running() as link:
        connection = link._client._connection
        first = connection._last_data_in
        await until(lambda: connection._last_data_in > first)
        assert link.is_up
        assert link.connects == 1


@both
async def test_link_comes_up_when_the_broker_does(
    tmp_path_factory: pytest.TempPathFactory, version: Version
) -> None:
    broker = Broker(tmp_path_factory.mktemp("mqtt"))
    with contextlib.closing(broker):
        async with Setup(broker.url, version).running(up=False) as link:
            await until(lambda: link.last_error)
            assert not link.is_up
            assert "refused" in (link.last_error or "").lower() or "Connect" in str(link.last_error)
            broker.start()
            await until(lambda: link.is_up)
            assert link.last_error is None


@both
async def test_wrong_password_is_told_and_outlived(
    tmp_path_factory: pytest.TempPathFactory, version: Version
) -> None:
    with Broker(tmp_path_factory.mktemp("mqtt"), passwords={"daemon": "other"}) as broker:
        setup = Setup(broker.url_for("daemon", "p%40ss%2Fword"), version)
        async with setup.running(up=False) as link:
            await until(lambda: "not authori" in (link.last_error or "").lower())
            assert "word" not in (link.last_error or "")
            broker.set_passwords({"daemon": "p@ss/word"})
            await until(lambda: link.is_up)
            assert link.last_error is None


async def test_waits_between_connects_grow_and_are_jittered(
    tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs: list[list[float]] = []
    for _ in range(2):
        waits: list[float] = []
        record_waits(monkeypatch, waits, scale=0)
        with contextlib.closing(Broker(tmp_path_factory.mktemp("mqtt"))) as nobody:
            async with Setup(nobody.url, "5").running(up=False):
                await waited(waits, 12)
        runs.append(waits[:12])
    for waits in runs:
        for number, wait in enumerate(waits):
            full = min(0.2 * 2**number, 10)
            assert full / 2 <= wait <= full
    assert runs[0] != runs[1]


@both
async def test_two_daemons_with_one_name_do_not_storm_the_broker(
    shared: Broker, version: Version, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Each connect takes the session from the other, for ever; it must get slower.
    waits: list[float] = []
    record_waits(monkeypatch, waits, scale=0.02)
    first = Setup(shared.url, version)
    second = Setup(shared.url, version)
    second.client_id = first.client_id
    async with second.running() as survivor:
        async with first.running(up=False) as rival:
            await until(lambda: survivor.connects >= 8 and rival.connects >= 8)
            assert max(waits) > 5
        # The rival's last CONNECT may be on its way still.
        await publish_at_last(survivor)
        assert survivor.is_up


async def test_lasting_storage_failure_does_not_storm_the_broker(
    shared: Broker, monkeypatch: pytest.MonkeyPatch
) -> None:
    waits: list[float] = []
    record_waits(monkeypatch, waits, scale=0.02)
    setup = Setup(shared.url, "5")
    setup.requests.failures = 7
    async with AsyncClient(shared.port) as client, setup.running():
        await client.publish(setup.topic, b"ask")
        await until(lambda: setup.requests.stored)
    assert max(waits) > 5


async def waited(waits: list[float], times: int) -> None:
    await until(lambda: len(waits) >= times)


def record_waits(monkeypatch: pytest.MonkeyPatch, waits: list[float], *, scale: float) -> None:
    """Write down what the link waits between two connects, and let it wait less."""

    async def recorded(seconds: float) -> None:
        waits.append(seconds)
        await sleep(seconds * scale)

    monkeypatch.setattr(asyncio, "sleep", recorded)


# -- brokers that misbehave ------------------------------------------------------------------------

Talk = Callable[["Peer"], Awaitable[None]]
Published = tuple[str, bytes, bytes]


class Peer:
    """One accepted connection of a broker that we play ourselves."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer

    async def packet(self) -> tuple[int, bytes]:
        """Return type and body of the next packet."""
        kind, size, shift = (await self.reader.readexactly(1))[0], 0, 0
        while True:
            digit = (await self.reader.readexactly(1))[0]
            size |= (digit & 0x7F) << shift
            shift += 7
            if not digit & 0x80:
                return kind >> 4, await self.reader.readexactly(size)

    async def expect(self, kind: int) -> bytes:
        """Return the body of the next packet of this type."""
        while True:
            found, body = await self.packet()
            if found == kind:
                return body

    def send(self, *parts: bytes) -> None:
        self.writer.write(b"".join(parts))

    async def welcome(self, *, session_present: bool = False) -> None:
        """Take the CONNECT and the SUBSCRIBE of an MQTT 5 link."""
        await self.expect(1)
        self.send(b"\x20\x03", bytes([session_present]), b"\x00\x00")
        mid = (await self.expect(8))[:2]
        self.send(b"\x90\x04", mid, b"\x00\x01")

    async def published(self) -> Published:
        """Return topic, packet id and payload of the next QoS 1 PUBLISH without properties."""
        body = await self.expect(3)
        (size,) = struct.unpack("!H", body[:2])
        topic, rest = body[2 : 2 + size], body[2 + size :]
        return topic.decode(), rest[:2], rest[3:]

    def confirm(self, mid: bytes, code: int = 0) -> None:
        """Send a PUBACK."""
        self.send(b"\x40\x03", mid, bytes([code]))

    async def rest(self) -> None:
        """Say nothing until the other side has gone."""
        while await self.reader.read(65536):
            pass


@contextlib.asynccontextmanager
async def played(talk: Talk) -> AsyncIterator[tuple[str, list[Peer]]]:
    """Run a broker that talks like this; yield its URL and the connections that came."""
    peers: list[Peer] = []
    tasks: set[asyncio.Task[None]] = set()

    async def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        tasks.add(task)
        peer = Peer(reader, writer)
        peers.append(peer)
        with contextlib.suppress(OSError, asyncio.IncompleteReadError):
            await talk(peer)
        writer.close()
        with contextlib.suppress(OSError):
            await writer.wait_closed()
        tasks.discard(task)

    server = await asyncio.start_server(accept, "127.0.0.1", 0)
    try:
        yield f"mqtt://127.0.0.1:{server.sockets[0].getsockname()[1]}", peers
    finally:
        server.close()
        if tasks:
            await asyncio.wait(tasks, timeout=DEADLINE)


@both
async def test_connect_without_an_answer_is_given_up(version: Version) -> None:
    async with played(Peer.rest) as (url, peers):
        setup = Setup(url, version, connect_timeout_seconds=0.1)
        async with setup.running(up=False) as link:
            await until(lambda: len(peers) >= 3)
            assert not link.is_up
            assert "answer" in (link.last_error or "")


@both
async def test_connection_closed_before_connack_is_no_timeout(version: Version) -> None:
    async def close(_peer: Peer) -> None:
        """As a proxy does in front of a broker that is down."""

    async with played(close) as (url, peers):
        setup = Setup(url, version, connect_timeout_seconds=60)
        async with setup.running(up=False) as link:
            await until(lambda: len(peers) >= 3)
            assert "lost" in (link.last_error or "")


@pytest.mark.parametrize("stays", [False, True])
async def test_broker_without_mqtt_5_is_told(stays: bool) -> None:
    async def refuse(peer: Peer) -> None:
        await peer.expect(1)
        peer.send(b"\x20\x02\x00\x01")
        if stays:
            await peer.rest()

    async with played(refuse) as (url, peers):
        setup = Setup(url, "5", connect_timeout_seconds=0.5)
        async with setup.running(up=False) as link:
            # A try that took too long for this machine says something else.
            await until(lambda: "INFERD_MQTT__VERSION" in (link.last_error or ""))
            told = len(peers)
            await until(lambda: len(peers) > told)


async def test_refused_subscription_is_told_and_tried_again() -> None:
    async def refuse(peer: Peer) -> None:
        await peer.expect(1)
        peer.send(b"\x20\x03\x00\x00\x00")
        mid = (await peer.expect(8))[:2]
        peer.send(b"\x90\x04", mid, b"\x00\x87")
        await peer.rest()

    async with played(refuse) as (url, peers), Setup(url, "5").running(up=False) as link:
        await until(lambda: len(peers) >= 3)
        assert not link.is_up
        assert link.connects == 0
        assert "subscri" in (link.last_error or "")


async def test_a_dispensable_subscription_may_be_refused(caplog: pytest.LogCaptureFixture) -> None:
    async def refuse_the_second(peer: Peer) -> None:
        await peer.expect(1)
        peer.send(b"\x20\x03\x00\x00\x00")
        asked = await peer.expect(8)
        assert b"test/needed" in asked
        assert b"test/dispensable" in asked
        peer.send(b"\x90\x05", asked[:2], b"\x00\x01\x87")
        peer.confirm((await peer.published())[1])
        await peer.rest()

    async with played(refuse_the_second) as (url, _):
        link = MqttLink(
            MqttSettings(url=SecretStr(url), client_id="dispensed"),
            subscriptions=["test/needed"],
            dispensable=["test/dispensable"],
            on_request=Requests(),
        )
        task = asyncio.create_task(link.run())
        async with asyncio.timeout(DEADLINE):
            await link.wait_up()
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task

    assert "the broker does not let us read test/dispensable" in caplog.text


async def test_subscription_without_an_answer_is_given_up() -> None:
    async def ignore(peer: Peer) -> None:
        await peer.expect(1)
        peer.send(b"\x20\x03\x00\x00\x00")
        await peer.rest()

    async with played(ignore) as (url, peers):
        setup = Setup(url, "5", connect_timeout_seconds=0.1)
        async with setup.running(up=False) as link:
            await until(lambda: len(peers) >= 3)
            assert not link.is_up
            assert link.connects == 0


async def test_connection_lost_before_suback_is_no_timeout() -> None:
    async def hang_up(peer: Peer) -> None:
        await peer.expect(1)
        peer.send(b"\x20\x03\x00\x00\x00")
        await peer.expect(8)

    async with played(hang_up) as (url, peers):
        setup = Setup(url, "5", connect_timeout_seconds=60)
        async with setup.running(up=False):
            await until(lambda: len(peers) >= 3)


async def test_connection_lost_before_the_first_puback_is_noticed_at_once() -> None:
    # Saying that we are online is a publish too, and nobody watches the connection meanwhile
    # unless the loss itself ends it.
    async def hang_up(peer: Peer) -> None:
        await peer.welcome()
        await peer.expect(3)

    async with played(hang_up) as (url, peers):
        setup = Setup(url, "5", publish_timeout_seconds=60)
        async with setup.running(up=False):
            await until(lambda: len(peers) >= 3)


async def test_broker_hears_of_one_connect_for_each_try() -> None:
    # gmqtt's own reconnect would come beside ours.
    async def hang_up(peer: Peer) -> None:
        await peer.welcome()
        peer.confirm((await peer.published())[1])

    async with played(hang_up) as (url, peers), Setup(url, "5").running(up=False) as link:
        await until(lambda: len(peers) >= 4)
        assert link.connects in (len(peers), len(peers) - 1)


@pytest.mark.parametrize("session_present", [False, True])
async def test_nothing_is_replayed_behind_our_back(session_present: bool) -> None:
    # What was not confirmed is the outbox's to send again; were gmqtt to do it too, a message
    # that the broker does not take would end every connection from then on.
    published: list[bytes] = []

    async def forgetful(peer: Peer) -> None:
        await peer.welcome(session_present=session_present)
        while True:
            topic, mid, payload = await peer.published()
            if topic == "event":
                published.append(payload)
                if payload == b"first":
                    return
            peer.confirm(mid)

    async with played(forgetful) as (url, _), Setup(url, "5").running() as link:
        with pytest.raises(PublishError, match="lost"):
            await link.publish("event", b"first")
        await until(lambda: link.is_up and link.connects == 2)
        assert await link.publish("event", b"second") == 0
    assert published == [b"first", b"second"]


async def test_refused_availability_is_no_reason_to_hang_up() -> None:
    async def grudge(peer: Peer) -> None:
        await peer.welcome()
        while True:
            topic, mid, _ = await peer.published()
            peer.confirm(mid, 0 if topic == "event" else NOT_AUTHORIZED)

    async with played(grudge) as (url, peers), Setup(url, "5").running() as link:
        assert await link.publish("event", b"") == 0
        assert len(peers) == 1


async def test_broker_that_confirms_nothing_is_left() -> None:
    async def mute(peer: Peer) -> None:
        await peer.welcome()
        peer.confirm((await peer.published())[1])
        await peer.rest()

    async with played(mute) as (url, peers):
        setup = Setup(url, "5", publish_timeout_seconds=0.2)
        async with setup.running() as link:
            for _ in range(2):  # the first may still see the PUBACK of `online`
                with pytest.raises(PublishError):
                    await link.publish("event", b"")
            # More, where `online` was confirmed too late for this machine.
            await until(lambda: len(peers) >= 2 and link.is_up)


async def test_confirmation_after_the_caller_gave_up_confirms_nothing_else() -> None:
    late: asyncio.Queue[bytes] = asyncio.Queue()

    async def slow(peer: Peer) -> None:
        await peer.welcome()
        peer.confirm((await peer.published())[1])
        while True:
            late.put_nowait((await peer.published())[1])

    async with played(slow) as (url, peers), Setup(url, "5").running() as link:
        first = asyncio.create_task(link.publish("event", b"first"))
        mid = await late.get()
        first.cancel()
        second = asyncio.create_task(link.publish("event", b"second"))
        other = await late.get()
        peers[0].confirm(mid, NOT_AUTHORIZED)
        peers[0].confirm(other)
        assert other != mid
        assert await second == 0
        with pytest.raises(asyncio.CancelledError):
            await first


async def test_garbage_from_the_broker_does_not_stop_the_link(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    record_waits(monkeypatch, [], scale=0.02)
    garbage = itertools.cycle(
        [
            b"\x30\x03\x00\x09x",  # a topic longer than its packet
            b"\x32\x04\x00\x01x\x00",  # cut inside the packet id
            b"\xff\xff\xff\xff\xff",  # no length ever ends like this
            b"\x00\x00",  # no such packet
            b"\x40\x02\xff\xff",  # PUBACK of nothing
            b"\x90\x01\x00",  # half a SUBACK
        ]
    )

    async def babble(peer: Peer) -> None:
        await peer.welcome()
        peer.send(next(garbage))

    async with played(babble) as (url, peers), Setup(url, "5").running(up=False):
        await until(lambda: len(peers) >= 7)


# -- availability ----------------------------------------------------------------------------------


@both
async def test_availability_tells_of_start_drain_and_shutdown(
    shared: Broker, version: Version
) -> None:
    setup = Setup(shared.url, version)
    async with AsyncClient(shared.port) as client, AsyncClient(shared.port) as later:
        await client.subscribe(setup.availability)
        async with setup.running() as link:
            online = await client.wait_for()
            await later.subscribe(setup.availability)
            assert (await later.wait_for()).is_retained
            assert {"v": 1, "state": "online", "reason": "started"}.items() <= online.json().items()
            assert online.json()["worker_id"] == setup.client_id

            await link.drain()

            draining = (await client.wait_for()).json()
            assert (draining["state"], draining["reason"]) == ("draining", "shutdown")
            assert draining["session_id"] == online.json()["session_id"]
        offline = (await client.wait_for()).json()
        assert (offline["state"], offline["reason"]) == ("offline", "shutdown")
        assert offline["session_id"] == online.json()["session_id"]
    async with AsyncClient(shared.port) as late:
        await late.subscribe(setup.availability)
        assert (await late.wait_for()).json() == offline


@both
async def test_clean_shutdown_leaves_no_will(
    shared: Broker, version: Version, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mqtt_client, "WILL_DELAY_SECONDS", 0)
    setup = Setup(shared.url, version)
    async with AsyncClient(shared.port) as client:
        await client.subscribe(setup.availability)
        async with setup.running():
            pass
        # Who takes the name over ends whatever the old connection might still have had to say.
        async with AsyncClient(shared.port, client_id=setup.client_id) as heir:
            await heir.publish(setup.availability, b'{"state": "marker", "reason": ""}')
        await client.wait_for(lambda message: b"marker" in message.payload)
    said = [(message.json()["state"], message.json()["reason"]) for message in client.received]
    assert said == [("online", "started"), ("offline", "shutdown"), ("marker", "")]


async def test_short_break_is_not_told_as_offline(
    shared: Broker, monkeypatch: pytest.MonkeyPatch
) -> None:
    # However slow this machine is, the break is shorter.
    monkeypatch.setattr(mqtt_client, "WILL_DELAY_SECONDS", 60)
    setup = Setup(shared.url, "5")
    async with AsyncClient(shared.port) as client, setup.running() as link:
        await client.subscribe(setup.availability)
        await client.wait_for()
        cut(link)
        await client.wait_until(lambda received: len(received) == 2)
        assert [message.json()["state"] for message in client.received] == ["online", "online"]


async def test_drained_link_says_so_again_after_a_break(
    shared: Broker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mqtt_client, "WILL_DELAY_SECONDS", 60)
    setup = Setup(shared.url, "5")
    async with AsyncClient(shared.port) as client, setup.running() as link:
        await link.drain()
        cut(link)
        await until(lambda: link.connects == 2 and link.is_up)
        await client.subscribe(setup.availability)
        said = await client.wait_for(
            lambda message: not message.is_retained or message.json()["state"] != "online"
        )
        assert said.json()["state"] == "draining"


@both
async def test_drained_link_acknowledges_nothing_more(shared: Broker, version: Version) -> None:
    setup = Setup(shared.url, version)
    setup.requests.gate.clear()
    async with AsyncClient(shared.port) as client:
        async with setup.running() as link:
            await client.publish(setup.topic, b"before")
            await until(lambda: setup.requests.payloads == [b"before"])
            await link.drain()
            # What began is finished and acknowledged.
            setup.requests.gate.set()
            await until(lambda: len(setup.requests.stored) == 1)
            await client.publish(setup.topic, b"after")
            assert await link.publish(f"{setup.root}/event", b"") >= 0
        assert setup.requests.payloads == [b"before"]
        async with setup.running():
            await until(lambda: setup.requests.payloads == [b"before", b"after"])


@both
async def test_death_of_the_process_is_told_by_the_will(shared: Broker, version: Version) -> None:
    setup = Setup(shared.url, version)
    script = """
        import asyncio, sys
        from pydantic import SecretStr
        from daemon.mqtt import client as mqtt_client
        from daemon.mqtt.link import MqttLink
        from daemon.settings import MqttSettings

        async def on_request(request):
            pass

        mqtt_client.WILL_DELAY_SECONDS = 1
        url, client_id, version = sys.argv[1:]
        settings = MqttSettings(url=SecretStr(url), client_id=client_id, version=version)
        asyncio.run(MqttLink(settings, subscriptions=["x"], on_request=on_request).run())
    """
    async with AsyncClient(shared.port) as client:
        await client.subscribe(setup.availability)
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-c",
            textwrap.dedent(script),
            setup.url,
            setup.client_id,
            version,
        )
        try:
            online = (await client.wait_for()).json()
            assert online["state"] == "online"
        finally:
            process.kill()
            await process.wait()
        offline = (await client.wait_for()).json()
    assert (offline["state"], offline["reason"]) == ("offline", "connection_lost")
    assert offline["session_id"] == online["session_id"]
