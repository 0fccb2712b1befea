"""What a client sees when processes die: every accepted job still ends, and ends once."""

import os
import subprocess
import sys
import time
from pathlib import Path

from tests.acceptance.conftest import PICTURE
from tests.acceptance.rig import (
    ROOT,
    Daemon,
    Held,
    MediaStore,
    answer,
    ask,
    event_of,
    events,
    finished,
)
from tests.broker import Broker, Client
from tests.waiting import wait_until

SLOW = """
import asyncio, sys
from pathlib import Path
from daemon import app
from daemon.__main__ import main

came, go = (Path(each) for each in sys.argv[1:3])
receiver = app.receiver

def slow(*arguments):
    receive = receiver(*arguments)
    async def wait_and_receive(message):
        came.touch()
        while not go.exists():
            await asyncio.sleep(0.01)
        await receive(message)
    return wait_and_receive

app.receiver = slow
sys.exit(main(["serve"]))
"""


class SlowToStore(Daemon):
    """Stores a request once there is the file `go`; `came` says that there is one."""

    @property
    def came(self) -> Path:
        return self.folder / "came"

    @property
    def go(self) -> Path:
        return self.folder / "go"

    def launch(self) -> None:
        command = [sys.executable, "-c", SLOW, str(self.came), str(self.go)]
        with (self.folder / "daemon.log").open("ab") as log:
            self._process = subprocess.Popen(command, cwd=ROOT, env=self._environ, stderr=log)


def test_a_request_becomes_a_completed_event(
    tmp_path: Path, broker: Broker, client: Client, media_store: MediaStore
) -> None:
    with Daemon(tmp_path, broker, media_store) as daemon:
        asked = ask(client, PICTURE, priority=7, request_id="mine")

        event = finished(client, asked)

        assert event["event"] == "job_completed"
        assert event["status"] == "completed"
        assert event["request_id"] == "mine"
        assert event["data"] == daemon.job(asked.job_id)
        assert event["data"]["result"]["face_count"] >= 1
        assert events(client, asked) == ["accepted", "started", "completed"]
        assert [media_id for media_id, _ in media_store.delivered] == [PICTURE]
        assert daemon.terminate() == 0


def test_a_killed_daemon_completes_its_job_once_after_a_restart(
    tmp_path: Path, broker: Broker, client: Client, media_store: MediaStore, portrait: bytes
) -> None:
    held = Held(answer(200, portrait, "image/png"))
    media_store.behaviours[2] = held
    with Daemon(tmp_path, broker, media_store) as daemon:
        asked = ask(client, 2)
        media_store.wait_until(lambda: 2 in media_store.fetched)

        daemon.kill()
        held.release()
        daemon.start()

        assert finished(client, asked)["status"] == "completed"
        assert daemon.job(asked.job_id)["status"] == "completed"
        # A job asked for later is told of later: had there been a second event, it would be here.
        finished(client, ask(client, PICTURE))
        assert events(client, asked).count("completed") == 1


def test_sigterm_gives_a_running_job_back_with_its_attempt(
    tmp_path: Path, broker: Broker, client: Client, media_store: MediaStore, portrait: bytes
) -> None:
    held = Held(answer(200, portrait, "image/png"))
    media_store.behaviours[2] = held
    daemon = Daemon(tmp_path, broker, media_store, INFERD_WORKER__SHUTDOWN_GRACE_SECONDS="0.2")
    with daemon:
        asked = ask(client, 2)
        media_store.wait_until(lambda: 2 in media_store.fetched)

        assert daemon.terminate() == 0

        assert "completed" not in events(client, asked)
        held.release()
        daemon.start()
        assert finished(client, asked)["status"] == "completed"
        # Given back, not lost: it was not run alone, and its first attempt did not count.
        assert not [line for line in daemon.log() if "running a job alone" in line["message"]]


def test_sigterm_lets_a_quick_job_finish(
    tmp_path: Path, broker: Broker, client: Client, media_store: MediaStore, portrait: bytes
) -> None:
    held = Held(answer(200, portrait, "image/png"))
    media_store.behaviours[2] = held
    with Daemon(tmp_path, broker, media_store) as daemon:
        asked = ask(client, 2)
        media_store.wait_until(lambda: 2 in media_store.fetched)
        availability = "inference/worker/inferd-test/availability"
        client.subscribe(availability)

        daemon.signal_stop()
        client.wait_for(
            lambda message: message.topic == availability and message.json()["state"] == "draining"
        )
        held.release()

        assert daemon.wait() == 0
        assert finished(client, asked)["status"] == "completed"
        offline = client.wait_for(
            lambda message: message.topic == availability and message.json()["state"] == "offline"
        )
        assert offline.json()["reason"] == "shutdown"


def test_sigterm_confirms_what_is_being_stored(
    tmp_path: Path, broker: Broker, client: Client, media_store: MediaStore
) -> None:
    """Unconfirmed it would come again, and a request without a job_id would be two jobs."""
    media_store.behaviours[2] = media_store.behaviours[PICTURE]
    with SlowToStore(tmp_path, broker, media_store) as daemon:
        # Else the stop takes as long as the load.
        assert daemon.wait_for_log(lambda line: line["message"].startswith("loaded "))
        client.publish("inference/request/face_detection", {"media_store_id": PICTURE})
        wait_until(daemon.came.exists)
        availability = "inference/worker/inferd-test/availability"
        client.subscribe(availability)

        daemon.signal_stop()
        client.wait_for(
            lambda message: message.topic == availability and message.json()["state"] == "draining"
        )
        time.sleep(0.5)  # so long it takes
        daemon.go.touch()

        assert daemon.wait() == 0
        assert not [line for line in daemon.log() if line["level"] == "error"]
        daemon.start()
        # Had it come again, it would have come before this one.
        finished(client, ask(client, 2))
        accepted = [each for each in client.received if each.topic.endswith("/accepted")]
        assert len({each.topic for each in accepted}) == 2


def test_requests_sent_while_the_daemon_is_down_are_done_when_it_is_back(
    tmp_path: Path, broker: Broker, client: Client, media_store: MediaStore, portrait: bytes
) -> None:
    with Daemon(tmp_path, broker, media_store) as daemon:
        daemon.terminate()
        for media_id in range(10, 20):
            media_store.put(media_id, portrait, "image/png")
        asked = [ask(client, media_id) for media_id in range(10, 20)]

        daemon.start()

        assert {finished(client, each)["status"] for each in asked} == {"completed"}


def test_a_broker_restart_loses_no_event(
    tmp_path: Path, broker: Broker, client: Client, media_store: MediaStore, portrait: bytes
) -> None:
    held = Held(answer(200, portrait, "image/png"))
    media_store.behaviours[2] = held
    with Daemon(tmp_path, broker, media_store) as daemon:
        asked = ask(client, 2)
        media_store.wait_until(lambda: 2 in media_store.fetched)
        lines = len(daemon.log())

        broker.stop()
        held.release()
        # The job ends while there is no broker to tell.
        media_store.wait_until(lambda: len(media_store.delivered) == 1)
        broker.start()

        daemon.wait_for_log(lambda line: line["message"] == "connected to the broker", after=lines)
        assert finished(client, asked)["status"] == "completed"


def test_the_same_request_twice_is_one_job(
    tmp_path: Path, broker: Broker, client: Client, media_store: MediaStore
) -> None:
    with Daemon(tmp_path, broker, media_store) as daemon:
        asked = ask(client, PICTURE)
        finished(client, asked)
        ask(client, PICTURE, job_id=asked.job_id)

        first = event_of(client, asked, "accepted").json()
        second = event_of(client, asked, "accepted").json()

        assert (first["duplicate"], second["duplicate"]) == (False, True)
        assert second["seq"] > first["seq"]
        status, found = daemon.request("GET", "/job")
        assert status == 200
        assert [job["job_id"] for job in found["jobs"]] == [asked.job_id]
        assert media_store.fetched.count(PICTURE) == 1


def test_another_request_for_the_same_picture_is_a_conflict(
    tmp_path: Path, broker: Broker, client: Client, media_store: MediaStore
) -> None:
    with Daemon(tmp_path, broker, media_store) as daemon:
        asked = ask(client, PICTURE)
        finished(client, asked)

        other = ask(client, PICTURE)

        rejected = event_of(client, other, "rejected").json()["data"]
        assert rejected["code"] == "conflict"
        assert rejected["existing_job_id"] == asked.job_id
        status, body = daemon.request(
            "POST", "/job/face_detection", {"media_store_id": PICTURE, "priority": 5}
        )
        assert (status, body["existing_job_id"]) == (409, asked.job_id)


def test_a_daemon_that_dies_leaves_its_will(
    tmp_path: Path, broker: Broker, client: Client, media_store: MediaStore
) -> None:
    client.subscribe("inference/worker/+/availability")
    with Daemon(tmp_path, broker, media_store) as daemon:
        online = client.wait_for(lambda message: message.topic.endswith("/availability")).json()

        daemon.kill()

        offline = client.wait_for(
            lambda message: message.topic.endswith("/availability"), seconds=30
        ).json()
        assert (online["state"], offline["state"]) == ("online", "offline")
        assert offline["reason"] == "connection_lost"
        assert offline["session_id"] == online["session_id"]


def test_a_start_without_weights_says_which_file_and_ends_with_78(
    tmp_path: Path, broker: Broker, media_store: MediaStore
) -> None:
    daemon = Daemon(
        tmp_path,
        broker,
        media_store,
        INFERD_FACES__PACK="buffalo_l",
        INFERD_MODELS_DIR=str(tmp_path),
        HOME=str(tmp_path),
    )
    daemon.launch()

    assert daemon.wait() == os.EX_CONFIG
    assert "buffalo_l" in daemon.text()
    assert "Traceback" not in daemon.text()


def test_every_wrong_setting_is_named_at_once_and_no_secret_is(
    tmp_path: Path, broker: Broker, media_store: MediaStore
) -> None:
    daemon = Daemon(
        tmp_path,
        broker,
        media_store,
        INFERD_MQT__URL="x",
        INFERD_HTTP__PORT="99999",
        INFERD_MQTT__URL="http://user:hunter2@host",
    )
    daemon.launch()

    assert daemon.wait() == os.EX_CONFIG
    for name in ("INFERD_MQT__URL", "INFERD_HTTP__PORT", "INFERD_MQTT__URL"):
        assert name in daemon.text()
    assert "hunter2" not in daemon.text()
    assert "Traceback" not in daemon.text()
