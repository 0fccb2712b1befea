"""Any message that a real broker lets through is answered by a real daemon and acknowledged."""

import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties

from daemon.jobs import TaskType
from tests.acceptance.rig import Daemon, MediaStore
from tests.broker import DEADLINE, Broker, Client, Message
from tests.documents import Mqtt
from tests.fuzz.answers import asked, check_topic
from tests.fuzz.messages import INJECTIONS, payloads
from tests.fuzz.profiles import effort

MAX_BYTES = 1_048_576
ASKING = ("inference/request/", "inference/cancel/")

# mosquitto hangs up on whoever sends what MQTT forbids in a string.
plain = st.text(st.characters(exclude_categories=("Cc", "Cs", "Cn")), max_size=30)
levels = st.text(
    st.characters(exclude_categories=("Cc", "Cs", "Cn"), exclude_characters="+#/"), max_size=30
)


def is_sendable(text: str) -> bool:
    return not any(ord(char) < 32 or char in "+#\x7f\uffff" for char in text)


@dataclass(frozen=True)
class Sent:
    topic: str
    payload: bytes
    qos: int
    is_retained: bool
    properties: dict[str, Any]


@st.composite
def sendings(draw: st.DrawFn) -> Sent:
    """Return what a client may publish, with any of MQTT 5's properties."""
    topic = draw(
        st.one_of(
            st.sampled_from([f"inference/request/{task}" for task in TaskType]),
            levels.map("inference/request/".__add__),
            levels.map("inference/cancel/".__add__),
            st.uuids().map(lambda job_id: f"inference/cancel/{job_id}"),
        )
    )
    replies = st.one_of(
        st.sampled_from(["inference/reply/alice/1", *filter(is_sendable, INJECTIONS)]),
        levels.map("inference/reply/".__add__),
    )
    optional: dict[str, st.SearchStrategy[Any]] = {
        "ResponseTopic": replies,
        "CorrelationData": st.binary(min_size=1, max_size=300),
        "ContentType": plain,
        "UserProperty": st.lists(st.tuples(plain, plain), min_size=1, max_size=3),
        "MessageExpiryInterval": st.integers(60, 2**32 - 1),
        "PayloadFormatIndicator": st.integers(0, 1),
        "TopicAlias": st.integers(1, 10),
    }
    return Sent(
        topic=topic,
        payload=draw(payloads),
        qos=draw(st.integers(0, 2)),
        is_retained=draw(st.sampled_from([False, False, False, True])),
        properties=draw(st.fixed_dictionaries({}, optional=optional)),
    )


class Fuzzer(Client):
    """A client that can set every property of PUBLISH."""

    def say(self, sent: Sent) -> None:
        properties = Properties(PacketTypes.PUBLISH)  # type: ignore[no-untyped-call]
        for name, value in sent.properties.items():
            setattr(properties, name, value)
        told = self._paho.publish(
            sent.topic, sent.payload, sent.qos, sent.is_retained, properties=properties
        )
        told.wait_for_publish(DEADLINE)
        assert told.is_published(), "the broker does not take it"


@pytest.fixture
def broker(tmp_path: Path) -> Iterator[Broker]:
    with Broker(tmp_path, extra=["max_topic_alias 10"]) as broker:
        yield broker


def answers(received: list[Message]) -> int:
    return sum(
        (message.event in ("accepted", "rejected") and message.topic.startswith("inference/job/"))
        or message.topic.startswith("inference/rejected/")
        for message in received
    )


def test_what_a_broker_lets_through_is_answered_and_acknowledged(
    tmp_path: Path, broker: Broker
) -> None:
    contract, expected = Mqtt(), 0
    with (
        MediaStore() as media_store,
        Daemon(tmp_path, broker, media_store) as daemon,
        # It sees the requests too, and paho hangs up over odd properties, which 3.1.1 has not.
        Client(broker.port, version="3.1.1") as observer,
        Fuzzer(broker.port) as fuzzer,
    ):
        observer.subscribe("#")
        up = daemon.request("GET", "/health")[1]["uptime_seconds"]

        @effort(quick=100, share=0.1)
        @given(sendings())
        def try_one(sent: Sent) -> None:
            nonlocal expected
            # Counted anew, so that one that goes wrong makes no later one wrong.
            expected = answers(observer.received)
            expected += asked(sent.topic, sent.payload, max_bytes=MAX_BYTES)
            fuzzer.say(sent)
            observer.wait_until(lambda received: answers(received) >= expected)

        try_one()

        asked_last = str(uuid.uuid4())
        body = {"media_store_id": 4711, "job_id": asked_last}
        fuzzer.publish("inference/request/face_detection", body)
        done = f"inference/job/{asked_last}/completed"
        observer.wait_for(lambda message: message.topic == done)
        assert daemon.request("GET", "/health")[1]["uptime_seconds"] > up
        assert answers(observer.received) == expected + 1
        assert observer._connects == fuzzer._connects == 1
        said = [each for each in observer.received if not each.topic.startswith(ASKING)]
        assert daemon.terminate() == 0
        wrong = [line for line in daemon.log() if line["level"] in ("error", "critical")]

    for message in said:
        check_topic(message.topic)
        contract.check(message.topic, message.payload, qos=message.qos)
    assert wrong == []
    # What the daemon had not acknowledged would come to its session before this.
    with Client(broker.port, client_id="inferd-test", clean=False) as heir:
        assert heir.session_present
        with Client(broker.port) as other:
            other.publish("inference/request/last", b"the last")
        heir.wait_for(lambda message: message.payload == b"the last")
        assert [message.payload for message in heir.received] == [b"the last"]
