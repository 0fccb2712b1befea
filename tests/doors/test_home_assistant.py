"""Home Assistant's side of the broker: finds the daemon, shows it, pauses it, and forgets it.

There is no client of the protocol on a registry that runs beside us (the homeassistant package
pins all of its dependencies), so its rules are recorded here, from homeassistant/components/mqtt
(discovery.py, mixins.py, sensor.py, switch.py) of release 2024.3.3: the pattern of
discovery topics; which keys a sensor and a switch take, all others being dropped in silence; a
device needs identifiers or connections; payload_available is `online`; an icon is `prefix:name`;
templates see `value_json`, in a sandboxed Jinja. These very payloads were also put through the
validators of homeassistant 2024.3.3, with unknown keys forbidden.
"""

import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from jinja2 import StrictUndefined
from jinja2.sandbox import ImmutableSandboxedEnvironment

from daemon.jobs import TaskType
from daemon.mqtt.home_discovery import discovery, node_id
from tests.acceptance.rig import MQTT, Daemon, MediaStore
from tests.broker import Broker, Client, Message
from tests.waiting import wait_until

CONFIG = re.compile(
    r"homeassistant/(?P<component>\w+)/(?:(?P<node_id>[a-zA-Z0-9_-]+)/)?"
    r"(?P<object_id>[a-zA-Z0-9_-]+)/config"
)
ENTITY = {
    "availability", "availability_mode", "device", "entity_category", "icon",
    "json_attributes_topic", "name", "origin", "qos", "state_topic", "unique_id", "value_template",
}  # fmt: skip
KEYS = {
    "sensor": ENTITY | {"state_class", "unit_of_measurement"},
    "switch": ENTITY | {"command_topic", "payload_on", "payload_off"},
}
DEVICE = {"identifiers", "name", "manufacturer", "model", "sw_version"}
SWITCHES = {"INFERD_WORKER__TASK_TYPES": "face_detection,face_embedding"}
ON = {"INFERD_HOME_ASSISTANT__ENABLED": "true"}
PAUSE = "inference/worker/inferd-test/pause/face_detection"
JINJA = ImmutableSandboxedEnvironment(undefined=StrictUndefined)


class Home:
    """What Home Assistant knows, kept as it keeps it: from the messages of its subscriptions."""

    def __init__(self, client: Client) -> None:
        self.client = client
        client.subscribe("homeassistant/+/+/+/config")
        client.subscribe("inference/worker/+/+")

    @property
    def entities(self) -> dict[str, dict[str, Any]]:
        """The entities by topic."""
        found: dict[str, dict[str, Any]] = {}
        for message in self.client.received:
            if message.topic.endswith("/config"):
                found.pop(message.topic, None)
                if message.payload:
                    MQTT.check(message.topic, message.payload, qos=message.qos)
                    found[message.topic] = message.json()
        return found

    def entity(self, key: str) -> dict[str, Any]:
        (found,) = [each for topic, each in self.entities.items() if f"/{key}/config" in topic]
        return found

    def state(self, key: str) -> str:
        """Return what is shown of an entity."""
        entity = self.entity(key)
        return self._render(entity["value_template"], entity["state_topic"])

    def is_there(self, key: str) -> bool:
        (one,) = self.entity(key)["availability"]
        return self._render(one["value_template"], one["topic"]) == "online"

    def turn(self, key: str, *, on: bool) -> None:
        """Do what a person's click does."""
        entity = self.entity(key)
        order = entity["payload_on"] if on else entity["payload_off"]
        self.client.publish(entity["command_topic"], order)

    def wait(self, fact: Callable[[], object]) -> None:
        wait_until(fact)

    def knows(self, count: int) -> None:
        """Wait until so many entities are known, and something is told on each of their topics."""
        wait_until(lambda: len(self.entities) == count)
        wanted = {each["state_topic"] for each in self.entities.values()}
        wait_until(lambda: wanted <= {each.topic for each in self.client.received})

    def _render(self, template: str, topic: str) -> str:
        latest = [each for each in self.client.received if each.topic == topic][-1]
        return JINJA.from_string(template).render(value_json=latest.json())


@pytest.fixture
def broker(tmp_path: Path) -> Iterator[Broker]:
    with Broker(tmp_path) as broker:
        yield broker


@pytest.fixture
def home(broker: Broker) -> Iterator[Home]:
    with Client(broker.port, client_id="home", clean=False) as client:
        yield Home(client)


@pytest.fixture
def store() -> Iterator[MediaStore]:
    with MediaStore() as store:
        yield store


def kept(broker: Broker) -> list[str]:
    """Return the announcements that the broker keeps for whoever comes now."""
    with Client(broker.port) as late:
        late.subscribe("homeassistant/#")
        late.publish("homeassistant/end", "x", retain=False)
        late.wait_for(lambda message: message.topic == "homeassistant/end")
        return [each.topic for each in late.received if each.is_retained]


def check_entity(topic: str, entity: dict[str, Any]) -> None:
    """Hold an announcement to the recorded rules."""
    match = CONFIG.fullmatch(topic)
    assert match is not None, topic
    assert set(entity) <= KEYS[match["component"]], set(entity) - KEYS[match["component"]]
    assert set(entity["device"]) <= DEVICE
    assert entity["device"]["identifiers"]
    assert set(entity["origin"]) <= {"name", "sw_version", "support_url"}
    assert re.fullmatch(r"mdi:[a-z-]+", entity["icon"])
    assert entity.get("entity_category") in (None, "config", "diagnostic")
    for name in ("state_topic", "command_topic"):
        assert not {"+", "#"} & set(entity.get(name, ""))
    if match["component"] == "switch":
        assert entity["command_topic"]


def test_a_daemon_is_found_and_shown(
    tmp_path: Path, broker: Broker, home: Home, store: MediaStore
) -> None:
    with Daemon(tmp_path, broker, store, **ON) as daemon:
        home.knows(5)
        for topic, entity in home.entities.items():
            check_entity(topic, entity)
        assert set(home.entities) == set(kept(broker))
        devices = {json.dumps(each["device"], sort_keys=True) for each in home.entities.values()}
        assert len(devices) == 1
        unique = {each["unique_id"] for each in home.entities.values()}
        assert len(unique) == 5
        assert (home.state("pending"), home.state("processing")) == ("0", "0")
        assert float(home.state("images_per_second")) == 0
        assert home.state("state") == "online"
        assert home.state("pause_face_detection") == "OFF"
        assert home.is_there("pending")
        assert daemon.terminate() == 0
        home.wait(lambda: home.state("state") == "offline")
        assert not home.is_there("pending")
        daemon.start()
        home.wait(lambda: home.is_there("pending"))
        # The same entities, or Home Assistant would show them twice.
        assert {each["unique_id"] for each in home.entities.values()} == unique


def test_a_switch_pauses_and_resumes_one_task_type(
    tmp_path: Path, broker: Broker, home: Home, store: MediaStore
) -> None:
    with Daemon(tmp_path, broker, store, **ON, **SWITCHES) as daemon:
        home.knows(6)

        def paused() -> dict[str, bool]:
            _, body = daemon.request("GET", "/queue")
            return {name: each["paused"] for name, each in body["task_types"].items()}

        home.turn("pause_face_detection", on=True)
        home.wait(lambda: home.state("pause_face_detection") == "ON")
        assert home.state("pause_face_embedding") == "OFF"
        assert (paused()["face_detection"], paused()["face_embedding"]) == (True, False)
        home.turn("pause_face_embedding", on=True)
        home.wait(lambda: home.state("state") == "paused")
        # Paused is not away: the switch must stay in reach.
        assert home.is_there("pause_face_detection")
        for key in ("pause_face_detection", "pause_face_embedding"):
            home.turn(key, on=False)
        home.wait(lambda: home.state("state") == "online")
        home.wait(lambda: home.state("pause_face_detection") == "OFF")
        # What REST does is shown as well.
        assert daemon.request("POST", "/queue/face_embedding/pause")[0] == 200
        home.wait(lambda: home.state("pause_face_embedding") == "ON")


def test_what_is_no_order_is_passed_over(
    tmp_path: Path, broker: Broker, home: Home, store: MediaStore
) -> None:
    with Daemon(tmp_path, broker, store, **ON) as daemon:
        home.knows(5)
        home.client.subscribe("inference/rejected/+")
        home.client.publish(PAUSE, "ON", retain=True)
        home.client.publish(PAUSE, b"", retain=True)
        for payload in (b"on", b"", b"\xff\xfe", b"ON " * 1000, b'{"state": "ON"}'):
            home.client.publish(PAUSE, payload)
        for task in ("paint", "image_embedding", "face_detection/x", ""):
            home.client.publish(f"inference/worker/inferd-test/pause/{task}", "ON")
        home.client.publish("homeassistant/status", b"\xff")
        # Another daemon's.
        home.client.publish("inference/worker/other/pause/face_detection", "ON")
        before = len([each for each in home.client.received if each.topic.endswith("/config")])
        home.client.publish("homeassistant/status", "online")
        home.client.wait_until(
            lambda got: len([each for each in got if each.topic.endswith("/config")]) == 2 * before
        )
        assert home.state("pause_face_detection") == "OFF"
        _, body = daemon.request("GET", "/queue")
        assert not any(each["paused"] for each in body["task_types"].values())
        assert not [each for each in home.client.received if "rejected" in each.topic]
        assert not [line for line in daemon.log() if line["level"] in ("error", "critical")]
        assert len([line for line in daemon.log() if "passed over" in line["message"]]) >= 6


def test_it_is_announced_again_to_a_home_or_a_broker_that_starts(
    tmp_path: Path, broker: Broker, home: Home, store: MediaStore
) -> None:
    def announcements(messages: list[Message]) -> int:
        return len([each for each in messages if each.topic.endswith("/config") and each.payload])

    with Daemon(tmp_path, broker, store, **ON):
        home.knows(5)
        home.client.publish("homeassistant/status", "offline")
        home.client.publish("homeassistant/status", "online")
        home.client.wait_until(lambda got: announcements(got) == 10)
        broker.stop()
        broker.forget()
        broker.start()
        wait_until(lambda: len(kept(broker)) == 5)


def test_what_was_announced_is_taken_back(
    tmp_path: Path, broker: Broker, home: Home, store: MediaStore
) -> None:
    with Daemon(tmp_path, broker, store, **ON, **SWITCHES) as first:
        home.knows(6)
        # A crash takes nothing back.
        first.kill()
    assert len(kept(broker)) == 6
    with Daemon(tmp_path, broker, store, **ON) as fewer:
        home.wait(lambda: len(home.entities) == 5)
        assert "pause_face_embedding" not in str(list(home.entities))
        assert fewer.terminate() == 0
    with Daemon(tmp_path, broker, store) as off:
        home.wait(lambda: not home.entities)
        assert kept(broker) == []
        wait_until(lambda: not list(tmp_path.glob("data/home-assistant-*")))
        # The broker still has the subscription of the session before.
        home.client.publish(PAUSE, "ON")
        home.client.publish("homeassistant/status", "online")
        home.client.publish("inference/cancel/x")
        home.client.subscribe("inference/rejected/+")
        home.client.publish("inference/request/paint", {"media_store_id": 1})
        home.client.wait_for(lambda message: message.topic == "inference/rejected/paint")
        assert not [each for each in home.client.received if each.topic.endswith("/unknown")]
        _, body = off.request("GET", "/queue")
        assert not any(each["paused"] for each in body["task_types"].values())
        assert off.terminate() == 0
    with Daemon(tmp_path, broker, store) as never:
        assert never.terminate() == 0
    assert kept(broker) == []


def test_the_brokers_rules_let_home_assistant_pause_and_nobody_else(
    tmp_path: Path, store: MediaStore
) -> None:
    rules = (Path(__file__).parent.parent.parent / "mosquitto" / "acl").read_text()
    users = {name: f"{name}-secret" for name in ("inferd", "homeassistant", "alice", "ops")}

    with Broker(tmp_path, passwords=users, acl=rules) as broker:
        daemon = Daemon(
            tmp_path,
            broker,
            store,
            **ON,
            INFERD_MQTT__URL=broker.url_for("inferd", users["inferd"]),
        )

        def client(name: str) -> Client:
            return Client(broker.port, user=name, password=users[name])

        with daemon, client("homeassistant") as at_home, client("alice") as alice:
            home = Home(at_home)
            home.knows(5)
            assert alice.publish(PAUSE, "ON") >= 0x80
            assert alice.publish("homeassistant/status", "online") >= 0x80
            assert client_may(client("ops"), PAUSE) is False
            home.turn("pause_face_detection", on=True)
            home.wait(lambda: home.state("pause_face_detection") == "ON")


def client_may(client: Client, topic: str) -> bool:
    with client:
        return client.publish(topic, "OFF") < 0x80


@pytest.mark.parametrize("worker_id", ["inferd-host", "a.b.c", "a_b_c", "..", "x" * 64])
def test_any_name_of_a_daemon_makes_topics_that_home_assistant_takes(worker_id: str) -> None:
    found = discovery(
        prefix="homeassistant",
        worker_id=worker_id,
        version="1.2.3",
        task_types=list(TaskType),
        has_stats=True,
    )

    assert len(found) == 7
    for topic, entity in found.items():
        check_entity(topic, entity)
        assert json.loads(json.dumps(entity)) == entity


def test_two_daemons_never_share_a_topic() -> None:
    assert len({node_id(each) for each in ("a.b", "a_b", "a-b", "a..b", "a__b")}) == 5


def test_without_stats_there_are_no_sensors_that_would_never_show_anything() -> None:
    found = discovery(
        prefix="ha", worker_id="w", version="1", task_types=[TaskType.FACE_DETECTION],
        has_stats=False,
    )  # fmt: skip

    assert {topic.split("/")[-2] for topic in found} == {"state", "pause_face_detection"}
