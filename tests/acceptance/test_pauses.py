"""Pausing a running daemon over REST, and what clients of the broker see of it; paho outside."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.acceptance.conftest import PICTURE
from tests.acceptance.rig import (
    Daemon,
    Held,
    MediaStore,
    answer,
    ask,
    event_of,
    events,
    finished,
)
from tests.acceptance.test_watching import scrape
from tests.broker import Broker, Client, Message
from tests.waiting import wait_until

AVAILABILITY = "inference/worker/inferd-test/availability"
BOTH = {"INFERD_WORKER__TASK_TYPES": "face_detection,face_embedding"}
FACES, VECTORS = "face_detection", "face_embedding"
NOTHING = {"pending": 0, "processing": 0, "paused": False, "paused_until": None}


def says(**wanted: Any) -> Callable[[Message], bool]:
    """Return whether a message is an availability that holds these."""

    def is_it(message: Message) -> bool:
        return message.topic == AVAILABILITY and wanted.items() <= message.json().items()

    return is_it


def retained(broker: Broker) -> dict[str, Any]:
    """Return the availability that a client is told who comes now."""
    with Client(broker.port) as late:
        late.subscribe(AVAILABILITY)
        return dict(late.wait_for(lambda message: message.is_retained).json())


def depths(daemon: Daemon) -> dict[str, Any]:
    status, body = daemon.request("GET", "/queue")
    assert status == 200
    return dict(body["task_types"])


def test_a_paused_task_type_waits_across_a_restart_and_the_other_goes_on(
    tmp_path: Path, broker: Broker, client: Client, media_store: MediaStore
) -> None:
    client.subscribe(AVAILABILITY)
    with Daemon(tmp_path, broker, media_store, **BOTH) as daemon:
        client.wait_for(says(state="online"))

        assert daemon.request("POST", f"/queue/{VECTORS}/pause") == (
            200,
            {"task_type": VECTORS, "paused": True, "paused_until": None},
        )
        said = client.wait_for(says(paused=[VECTORS])).json()
        assert (said["state"], said["paused_until"]) == ("online", {VECTORS: None})
        waiting, other = ask(client, PICTURE, VECTORS), ask(client, PICTURE, FACES)
        event_of(client, waiting, "accepted")
        assert finished(client, other)["status"] == "completed"
        assert events(client, waiting) == ["accepted"]
        assert daemon.job(waiting.job_id)["status"] == "pending"
        assert depths(daemon) == {
            "image_embedding": NOTHING,
            FACES: NOTHING,
            VECTORS: {**NOTHING, "pending": 1, "paused": True},
        }
        status, health = daemon.request("GET", "/health/ready")
        assert (status, health["status"]) == (200, "ok")
        assert health["checks"]["pauses"]["paused"] == [VECTORS]
        told = scrape(daemon)
        assert told.value("inferd_paused", task_type=VECTORS) == 1
        assert told.value("inferd_paused", task_type=FACES) == 0
        daemon.wait_for_log(lambda line: "is paused until" in line["message"])

        assert daemon.terminate() == 0
        for state in ("draining", "offline"):
            client.wait_for(says(state=state))
        daemon.start()

        # The first thing that the new process says.
        again = client.wait_for(lambda message: message.topic == AVAILABILITY).json()
        assert (again["state"], again["paused"]) == ("online", [VECTORS])
        third = ask(client, 404, FACES)
        assert finished(client, third)["status"] == "error"
        assert events(client, waiting) == ["accepted"]

        status, _ = daemon.request("POST", f"/queue/{VECTORS}/resume")
        assert status == 200
        assert finished(client, waiting)["status"] == "completed"
        client.wait_for(says(state="online", reason="resumed"))
        assert "paused" not in retained(broker)
        daemon.wait_for_log(lambda line: line["message"] == f"{VECTORS} is resumed")


def test_a_daemon_whose_task_types_are_all_paused_is_paused_until_the_end_that_was_set(
    tmp_path: Path, broker: Broker, client: Client, media_store: MediaStore
) -> None:
    client.subscribe(AVAILABILITY)
    with Daemon(tmp_path, broker, media_store) as daemon:
        client.wait_for(says(state="online"))
        daemon.request("POST", f"/queue/{FACES}/pause")
        client.wait_for(says(state="paused"))
        assert retained(broker)["state"] == "paused"
        asked = ask(client, PICTURE)
        event_of(client, asked, "accepted")

        # Long enough to be told before it is over.
        _, body = daemon.request("POST", f"/queue/{FACES}/pause", {"seconds": 2})

        said = client.wait_for(says(paused_until={FACES: body["paused_until"]})).json()
        assert said["state"] == "paused"
        event = finished(client, asked)
        assert event["status"] == "completed"
        assert event["data"]["started_at"] >= body["paused_until"]
        client.wait_for(says(state="online", reason="resumed"))


def test_a_paused_daemon_that_is_killed_leaves_its_will_and_is_paused_when_it_is_back(
    tmp_path: Path, broker: Broker, client: Client, media_store: MediaStore
) -> None:
    client.subscribe(AVAILABILITY)
    with Daemon(tmp_path, broker, media_store) as daemon:
        daemon.request("POST", f"/queue/{FACES}/pause")
        paused = client.wait_for(says(state="paused")).json()

        daemon.kill()

        will = client.wait_for(says(state="offline"), seconds=30).json()
        assert (will["reason"], will["session_id"]) == ("connection_lost", paused["session_id"])
        assert "paused" not in will
        assert retained(broker) == will
        daemon.start()
        assert client.wait_for(says(reason="started", state="paused")).json()["paused"] == [FACES]


def test_draining_is_retained_while_a_slow_job_runs_whatever_is_paused_meanwhile(
    tmp_path: Path, broker: Broker, client: Client, media_store: MediaStore, portrait: bytes
) -> None:
    held = Held(answer(200, portrait, "image/png"))
    media_store.behaviours[2] = held
    with Daemon(tmp_path, broker, media_store) as daemon:
        asked = ask(client, 2)
        media_store.wait_until(lambda: 2 in media_store.fetched)
        client.subscribe(AVAILABILITY)

        daemon.signal_stop()

        client.wait_for(says(state="draining"))
        assert daemon.job(asked.job_id)["status"] == "processing"
        assert daemon.request("POST", f"/queue/{FACES}/pause")[0] == 200
        client.wait_for(says(state="draining", paused=[FACES]))
        assert retained(broker)["state"] == "draining"
        wait_until(lambda: daemon.request("GET", "/health/ready")[1]["status"] == "draining")
        held.release()
        assert daemon.wait() == 0
        assert finished(client, asked)["status"] == "completed"
        client.wait_for(says(state="offline"))
        assert retained(broker)["reason"] == "shutdown"
        told = [each.json()["state"] for each in client.received if each.topic == AVAILABILITY]
        assert told == ["online", "draining", "draining", "offline"]


def test_no_job_begins_after_sigterm_though_the_broker_does_not_answer(
    tmp_path: Path, broker: Broker, client: Client, media_store: MediaStore, portrait: bytes
) -> None:
    # Telling that we drain waits for its PUBACK; the worker went on leasing meanwhile.
    held = Held(answer(200, portrait, "image/png"))
    media_store.behaviours[2] = held
    options = {"INFERD_WORKER__MAX_IN_FLIGHT": "1", "INFERD_MQTT__PUBLISH_TIMEOUT_SECONDS": "3"}
    with Daemon(tmp_path, broker, media_store, **options) as daemon:
        first = ask(client, 2)
        media_store.wait_until(lambda: 2 in media_store.fetched)
        event_of(client, ask(client, PICTURE), "accepted")
        broker.freeze()
        try:
            daemon.signal_stop()
            wait_until(lambda: daemon.request("GET", "/health/ready")[1]["status"] == "draining")
            held.release()

            assert daemon.wait() == 0
        finally:
            broker.thaw()
        assert PICTURE not in media_store.fetched
        # What the broker did not confirm is told at the next start.
        daemon.start()
        assert finished(client, first)["status"] == "completed"
