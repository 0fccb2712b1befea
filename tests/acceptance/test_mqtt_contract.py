"""Everything that a daemon said over MQTT in an eventful life is as the AsyncAPI document says."""

import json
import uuid
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

import pytest

from daemon.jobs import TaskType
from daemon.wire.codes import FAILURES, REFUSALS
from demos.client import InferdClient
from tests.acceptance.rig import Asked, Daemon, Held, MediaStore, answer, ask, event_of, finished
from tests.broker import Broker, Client, Message
from tests.documents import Mqtt
from tests.waiting import wait_until

GOOD, MISSING, HELD, WAITING, UNDELIVERABLE = 1, 2, 3, 4, 5
FLOOD = range(100, 140)
REPLY, SECRET = "inference/reply/alice/1", b"\x00\xff"
SENT_BY_CLIENTS = ("pause", "homeStatus", "request", "cancel")
SETTINGS = {
    "INFERD_WORKER__TASK_TYPES": ",".join(TaskType),
    "INFERD_WORKER__MAX_IN_FLIGHT": "1",
    "INFERD_QUEUE__MAX_PENDING": "20",
    "INFERD_QUEUE__MAX_ATTEMPTS": "2",
    "INFERD_MQTT__MAX_REQUEST_BYTES": "4096",
    "INFERD_HOME_ASSISTANT__ENABLED": "true",
}


@dataclass
class Traffic:
    """All that a subscriber of everything got, and what of it was bad on purpose."""

    messages: list[Message] = field(default_factory=list)
    retained: list[Message] = field(default_factory=list)
    bad: set[bytes] = field(default_factory=set)

    def told(self) -> list[Message]:
        """Return what the daemon said."""
        mqtt = Mqtt()
        return [each for each in self.messages if mqtt.channel(each.topic) not in SENT_BY_CLIENTS]

    def data(self, channel: str) -> list[dict[str, Any]]:
        """Return the payloads that came on a channel."""
        mqtt = Mqtt()
        return [each.json() for each in self.messages if mqtt.channel(each.topic) == channel]


@pytest.fixture(scope="module")
def traffic(tmp_path_factory: pytest.TempPathFactory, portrait: bytes) -> Iterator[Traffic]:
    """Let everything happen that a client can see, once."""
    folder, found = tmp_path_factory.mktemp("traffic"), Traffic()
    with ExitStack() as stack:
        broker = stack.enter_context(Broker(folder))
        store = stack.enter_context(MediaStore())
        client = stack.enter_context(Client(broker.port))
        client.subscribe("inference/#")
        client.subscribe("homeassistant/#")
        daemon = stack.enter_context(Daemon(folder, broker, store, **SETTINGS))
        life = Life(broker, store, client, daemon, found)
        store.put(GOOD, portrait, "image/png")
        store.put(UNDELIVERABLE, portrait, "image/png")
        life.good_jobs()
        life.refused_requests()
        life.failing_jobs()
        life.cancelled_jobs()
        life.a_deleted_picture()
        life.a_full_queue()
        life.undelivered_faces()
        life.a_pause()
        life.at_home()
        life.ends()
        found.messages = client.received
        yield found


@dataclass
class Life:
    """One daemon, and what happens to it, in order."""

    broker: Broker
    store: MediaStore
    client: Client
    daemon: Daemon
    found: Traffic

    def good_jobs(self) -> None:
        """Do every task type, asked by the client library, by a batch and with a response topic."""
        self.client.wait_for(lambda message: message.topic.endswith("/availability"))
        with InferdClient(self.broker.url) as inferd:
            for task in (TaskType.IMAGE_EMBEDDING, TaskType.FACE_EMBEDDING):
                submitted = inferd.submit(task, GOOD, priority=7, request_id="mine")
                assert inferd.wait(submitted.job_id, 60)["status"] == "completed"
        job_id = str(uuid.uuid4())
        self.client.publish(
            "inference/request/face_detection",
            {"requests": [{"media_store_id": GOOD, "job_id": job_id}]},
            response_topic=REPLY,
            correlation_data=SECRET,
        )
        done = Asked(job_id, GOOD)
        assert finished(self.client, done)["status"] == "completed"
        self.client.wait_for(
            lambda message: message.topic == REPLY and message.json()["event"] == "job_completed"
        )
        # What was stored is found; the rig holds each answer to the REST contract.
        for query in ("image_embeddings?text=a%20face", "face_embeddings?like=1"):
            assert self.daemon.request("GET", f"/search/{query}")[0] == 200
        for path in ("/", "/queue", "/job", "/health", "/health/ready", "/openapi.json"):
            assert self.daemon.request("GET", path)[0] == 200
        # A repeat.
        ask(self.client, GOOD, job_id=job_id)
        self.client.wait_for(
            lambda message: message.event == "accepted" and message.json()["duplicate"]
        )
        # A rival.
        assert self.refusal(ask(self.client, GOOD)) == "conflict"

    def refused_requests(self) -> None:
        """Earn each refusal, with a job_id to answer to and without one."""
        for body, code in (
            ({"media_store_id": 9, "priority": 11}, "invalid_request"),
            ({"media_store_id": 9, "expires_at": 1, "reply_to": REPLY}, "expired"),
        ):
            job_id = str(uuid.uuid4())
            self.bad("face_detection", json.dumps({**body, "job_id": job_id}).encode())
            assert self.refusal(Asked(job_id, 9)) == code
            self.letter("face_detection", json.dumps(body).encode(), code)
        self.letter("face_detection", b"hello", "invalid_json")
        self.letter("paint_it_black", b'{"media_store_id": 9}', "unknown_task")
        self.letter("Not-A-Word", b'{"media_store_id": 9}', "unknown_task", topic="unknown")
        self.letter("face_detection", b" " * 5000, "too_large")
        retained = b'{"media_store_id": 9 }'
        self.found.bad.add(retained)
        self.client.publish("inference/request/face_detection", retained, retain=True)
        self.wait_for_letter("face_detection", "retained_request")
        self.client.publish("inference/request/face_detection", b"", retain=True)
        self.found.bad.add(b"")
        self.wait_for_letter("face_detection", "invalid_json")
        batch = {"requests": [{"media_store_id": 404}, {"media_store_id": -1}]}
        self.bad("face_embedding", json.dumps(batch).encode())
        self.wait_for_letter("face_embedding", "invalid_request")

    def failing_jobs(self) -> None:
        """Let one job fail, and take the place of another one."""
        failed = ask(self.client, MISSING, reply_to=REPLY)
        assert finished(self.client, failed)["status"] == "error"
        event_of(self.client, failed, "failed")

    def cancelled_jobs(self) -> None:
        """Cancel what runs, what waits and what is not; let a newer request supersede one."""
        held = Held(answer(404, b"{}"))
        self.store.behaviours[HELD] = held
        running = ask(self.client, HELD)
        self.store.wait_until(lambda: HELD in self.store.fetched)
        waiting, older = ask(self.client, WAITING), ask(self.client, GOOD + 1000)
        event_of(self.client, older, "accepted")
        newer = ask(self.client, GOOD + 1000, force=True)
        event_of(self.client, newer, "accepted")
        for asked in (waiting, running):
            self.client.publish(f"inference/cancel/{asked.job_id}", b"never mind")
        for asked in (waiting, running, older):
            event_of(self.client, asked, "failed")
        held.release()
        finished(self.client, newer)
        self.client.publish(f"inference/cancel/{uuid.uuid4()}")
        self.wait_for_letter("cancel", "job_not_found")

    def a_deleted_picture(self) -> None:
        """Delete a picture, and be refused."""
        self.client.publish(
            f"inference/delete/{GOOD}", b"never mind", response_topic=REPLY, correlation_data=SECRET
        )
        self.client.wait_for(lambda each: each.topic == f"inference/media/{GOOD}/deleted")
        self.client.wait_for(
            lambda each: each.topic == REPLY and each.json()["event"] == "media_deleted"
        )
        self.client.publish("inference/delete/none")
        self.wait_for_letter("delete", "invalid_request")

    def a_full_queue(self) -> None:
        """Ask for more than may wait."""
        body = {"requests": [{"media_store_id": number} for number in FLOOD]}
        self.client.publish("inference/request/face_detection", body)
        self.wait_for_letter("face_detection", "queue_full")
        # What comes next has room.
        wait_until(lambda: not self.daemon.request("GET", "/queue")[1]["pending"])

    def undelivered_faces(self) -> None:
        """Let the media store refuse results until the job gave up, and then take them."""
        self.store.refuse_results = True
        asked = ask(self.client, UNDELIVERABLE, priority=10)
        assert finished(self.client, asked)["status"] == "sync_failed"
        event_of(self.client, asked, "failed")
        self.store.refuse_results = False
        assert finished(self.client, asked)["status"] == "completed"

    def a_pause(self) -> None:
        """Pause everything, and go on."""
        for task in TaskType:
            assert self.daemon.request("POST", f"/queue/{task}/pause")[0] == 200
        self.wait_for_state("paused", "paused")
        for task in TaskType:
            assert self.daemon.request("POST", f"/queue/{task}/resume")[0] == 200
        self.wait_for_state("online", "resumed")

    def at_home(self) -> None:
        """Turn a switch as Home Assistant does, and let it start."""
        for order, reason in (("ON", "paused"), ("OFF", "resumed")):
            topic = "inference/worker/inferd-test/pause/face_detection"
            self.client.publish(topic, order)
            self.wait_for_state("online", reason)
        before = len(self.found_at_home())
        self.client.publish("homeassistant/status", "online")
        self.client.wait_until(lambda _: len(self.found_at_home()) == 2 * before)

    def found_at_home(self) -> list[Message]:
        """Return what Home Assistant was told so far."""
        return [each for each in self.client.received if each.topic.endswith("/config")]

    def ends(self) -> None:
        """Stop in good order, start again, and die."""
        with Client(self.broker.port) as late:
            late.subscribe("homeassistant/#")
            late.subscribe("inference/#")
            late.subscribe("end")
            late.publish("end")
            # What is retained comes before it.
            late.wait_for(lambda message: message.topic == "end")
            self.found.retained = [each for each in late.received if each.is_retained]
        assert self.daemon.terminate() == 0
        self.wait_for_state("offline", "shutdown")
        self.daemon.start()
        self.daemon.kill()
        self.wait_for_state("offline", "connection_lost")

    def bad(self, task: str, payload: bytes) -> None:
        self.found.bad.add(payload)
        self.client.publish(f"inference/request/{task}", payload)

    def letter(self, task: str, payload: bytes, code: str, *, topic: str = "") -> None:
        self.bad(task, payload)
        self.wait_for_letter(topic or task, code)

    def wait_for_letter(self, task: str, code: str) -> None:
        self.client.wait_for(
            lambda message: (
                message.topic == f"inference/rejected/{task}"
                and message.json()["data"]["code"] == code
            )
        )

    def wait_for_state(self, state: str, reason: str) -> None:
        wanted = {"state": state, "reason": reason}
        self.client.wait_for(
            lambda message: (
                message.topic.endswith("/availability") and wanted.items() <= message.json().items()
            ),
            30,
        )

    def refusal(self, asked: Asked) -> str:
        event = event_of(self.client, asked, "rejected").json()
        return str(event["data"]["code"])


def test_every_message_is_as_described_and_every_kind_of_message_came(traffic: Traffic) -> None:
    mqtt = Mqtt()

    for message in traffic.messages:
        if message.payload not in traffic.bad:
            mqtt.check(message.topic, message.payload, qos=message.qos)

    assert len(traffic.messages) > 100
    # Only told where there are several daemons: test_intake_roles.py holds it to the contract.
    assert mqtt.messages - mqtt.seen == {("wake", "wake")}


def test_what_was_refused_is_refused_by_the_schema_where_its_shape_is_bad(
    traffic: Traffic,
) -> None:
    mqtt = Mqtt()
    beyond_shapes = {"unknown_task", "too_large", "retained_request", "expired"}
    for payload in traffic.bad - {b" " * 5000, b""}:
        takes = [name for name, wrong in mqtt.refusals("request", payload).items() if not wrong]
        why = {
            each["data"]["code"]
            for each in traffic.data("deadLetter") + traffic.data("rejected")
            if each["data"].get("body", "").encode() == payload
            or (each["job_id"] and each["job_id"].encode() in payload)
        }
        assert not takes or why & beyond_shapes, (payload, takes, why)


def test_every_refusal_came(traffic: Traffic) -> None:
    answers = traffic.data("deadLetter") + traffic.data("rejected")

    assert {each["data"]["code"] for each in answers} == REFUSALS.keys()
    assert {"index", "field", "existing_job_id", "retry_after_ms"} <= {
        name for each in answers for name in each["data"]
    }


def test_every_end_came_and_every_code_of_one_is_told(traffic: Traffic) -> None:
    ends = traffic.data("completed")
    codes = {each["data"]["error_message"].partition(":")[0] for each in traffic.data("failed")}

    assert {each["status"] for each in ends} == {"completed", "error", "sync_failed"}
    assert {each["data"]["task_type"] for each in ends if each["data"]["result"]} == set(TaskType)
    assert {"media_not_found", "cancelled", "superseded"} <= codes <= FAILURES.keys()


def test_every_state_of_a_daemon_came(traffic: Traffic) -> None:
    said = traffic.data("availability")
    enums = Mqtt().document["components"]["schemas"]["Availability"]["properties"]

    assert {each["state"] for each in said} == set(enums["state"]["enum"])
    assert {each["reason"] for each in said} == set(enums["reason"]["enum"])
    assert any("models" in each and "error" not in each["models"] for each in traffic.data("info"))


def test_only_what_is_said_to_be_retained_is(traffic: Traffic) -> None:
    mqtt = Mqtt()
    kept = {str(mqtt.channel(each.topic)) for each in traffic.retained}
    said = {
        name
        for name in mqtt.document["channels"]
        if mqtt.operation(name)["bindings"]["mqtt"]["retain"]
    }

    assert kept == said == {"availability", "info", "stats", "homeEntity"}


def test_copies_carry_the_correlation_data(traffic: Traffic) -> None:
    copies = [each for each in traffic.messages if each.topic == REPLY]

    # What asked for copies in its body alone has none.
    assert {each.correlation_data for each in copies} == {SECRET, None}
    assert {
        each.json()["data"].get("media_store_id") for each in copies if each.correlation_data
    } <= {
        GOOD,
        None,
    }
