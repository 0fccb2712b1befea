"""What one connection sends: gmqtt's real client and its ids, and PUBACKs handed to it by hand."""

import asyncio
import base64
import gc
import struct
from types import SimpleNamespace
from typing import Any

import gmqtt
import pytest
from pydantic import SecretStr

from daemon.errors import PublishError
from daemon.mqtt.sender import HEADER_BYTES, SPARE_IDS, Outgoing, Sender, TooLargeError
from daemon.mqtt.vendor import SentIds
from daemon.settings import MqttSettings

SLOTS = 2
MOST_BYTES = 2000
REFUSED = 0x87


class Line:
    """A client whose packets go nowhere, and whose broker is the test."""

    def __init__(self, publish_timeout_seconds: float = 10) -> None:
        sent = SentIds()
        self.client: Any = gmqtt.Client("test", persistent_storage=sent)
        self.client._package_handler._connack_properties = {
            "receive_maximum": [SLOTS + SPARE_IDS],
            "maximum_packet_size": [MOST_BYTES],
        }
        self.sent: dict[str, int] = {}

        def publish(topic: str, _payload: bytes, **_options: Any) -> None:
            mid = self.client._package_handler.id_generator.next_id()
            sent.push_message(mid, b"")
            self.sent[topic] = mid

        self.client.publish = publish
        settings = MqttSettings(
            url=SecretStr("mqtt://localhost"),
            client_id="test",
            publish_timeout_seconds=publish_timeout_seconds,
        )
        self.sender = Sender(self.client, sent, settings)
        self.sender.begin()

    def publish(self, *topics: str) -> asyncio.Task[list[int | PublishError]]:
        messages: list[Outgoing] = [(topic, b"{}", None) for topic in topics]
        return asyncio.create_task(self.sender.publish(messages))

    def confirm(self, topic: str, code: int = 0) -> None:
        packet = struct.pack("!HB", self.sent[topic], code)
        self.client._package_handler._handle_puback_packet(0x40, packet)


async def turns() -> None:
    """Let every task go as far as it can without a PUBACK."""
    for _ in range(10):
        await asyncio.sleep(0)


async def test_each_message_gets_its_own_code_in_whatever_order_they_are_confirmed() -> None:
    line = Line()
    publishing = line.publish("a", "b")
    await turns()
    line.confirm("b", REFUSED)
    line.confirm("a", 0x10)

    first, second = await publishing

    assert first == 0x10
    assert isinstance(second, PublishError)
    assert second.reason_code == REFUSED


async def test_no_more_is_sent_than_the_broker_takes_unconfirmed() -> None:
    line = Line()
    publishing = line.publish("a", "b", "c")
    await turns()
    assert list(line.sent) == ["a", "b"]

    line.confirm("b")
    await turns()
    assert list(line.sent) == ["a", "b", "c"]

    line.confirm("a")
    line.confirm("c")
    assert await publishing == [0, 0, 0]


async def test_who_stops_waiting_leaves_the_slot_to_its_puback() -> None:
    line = Line()
    given_up = line.publish("a", "b")
    await turns()
    given_up.cancel()
    later = line.publish("c")
    await turns()
    assert "c" not in line.sent

    line.confirm("a")
    await turns()
    line.confirm("c")
    assert await later == [0]


async def test_the_end_is_told_to_all_who_wait_for_a_puback_or_a_slot() -> None:
    line = Line()
    waiting = [line.publish("a", "b"), line.publish("c"), line.publish("d")]
    await turns()

    line.sender.end()
    line.sender.end()
    outcomes = [each for task in waiting for each in await task]

    assert [str(each) for each in outcomes] == ["the connection was lost"] * 4
    assert list(line.sent) == ["a", "b"]
    assert [str(each) for each in await line.publish("e")] == ["the connection was lost"]


async def test_a_late_puback_confirms_no_message_of_an_ended_connection() -> None:
    line = Line()
    publishing = line.publish("a")
    await turns()
    line.sender.end()
    line.confirm("a")

    (outcome,) = await publishing

    assert isinstance(outcome, PublishError)


async def test_what_is_too_large_is_not_sent_and_holds_up_nothing() -> None:
    line = Line()
    most = b"x" * (MOST_BYTES - HEADER_BYTES - len("topic"))
    messages: list[Outgoing] = [
        ("large", most + b"x", None),
        ("large", b"{}", base64.b64encode(most).decode()),
        ("topic", most, None),
    ]
    publishing = asyncio.create_task(line.sender.publish(messages))
    await turns()
    line.confirm("topic")

    *large, fits = await publishing

    assert [type(each) for each in large] == [TooLargeError] * 2
    assert fits == 0
    assert list(line.sent) == ["topic"]


async def test_slots_are_given_back_however_often_they_are_used() -> None:
    line = Line()
    for _ in range(5 * SLOTS):
        publishing = line.publish("a")
        await turns()
        line.confirm("a")
        assert await publishing == [0]


class Transport:
    """Tells how often its connection was broken."""

    def __init__(self, line: Line) -> None:
        self.aborts = 0
        line.client._connection = SimpleNamespace(_transport=self)

    def abort(self) -> None:
        self.aborts += 1


async def test_a_broker_that_confirms_nothing_in_time_loses_its_connection() -> None:
    line = Line(publish_timeout_seconds=0.01)
    transport = Transport(line)

    outcomes = await line.publish("a", "b", "c")

    assert [str(each) for each in outcomes] == ["the broker did not confirm in time"] * 3
    assert list(line.sent) == ["a", "b"]
    assert transport.aborts == 1


async def test_a_broker_that_confirms_something_in_time_keeps_its_connection() -> None:
    line = Line(publish_timeout_seconds=0.01)
    transport = Transport(line)
    publishing = line.publish("a", "b")
    await asyncio.sleep(0)
    assert list(line.sent) == ["a", "b"]
    line.confirm("b")

    late, confirmed = await publishing

    assert str(late) == "the broker did not confirm in time"
    assert confirmed == 0
    assert transport.aborts == 0


@pytest.mark.parametrize("is_cancelled", [True, False], ids=["cancelled", "too late"])
async def test_the_end_of_a_connection_is_no_fault_of_a_message_that_nobody_waits_for(
    is_cancelled: bool,
) -> None:
    # asyncio tells of an exception that nobody asks for, with a traceback.
    told: list[dict[str, Any]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _loop, context: told.append(context))
    line = Line(publish_timeout_seconds=60 if is_cancelled else 0.01)
    Transport(line)
    publishing = line.publish("a")
    await turns()
    if is_cancelled:
        publishing.cancel()
    await asyncio.wait([publishing])

    line.sender.end()

    del line, publishing
    gc.collect()
    assert told == []
