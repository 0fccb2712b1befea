"""A picture is deleted: vectors, jobs and what runs, over MQTT, REST and by `delete`."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tests.acceptance.rig import (
    CASCADE_ONLY,
    MQTT,
    ROOT,
    Daemon,
    Held,
    MediaStore,
    answer,
    ask,
    finished,
)
from tests.broker import Broker, Client, Message

EVERYTHING = {"INFERD_WORKER__TASK_TYPES": "image_embedding,face_detection,face_embedding"}
NOTHING = {"image_embeddings": 0, "face_embeddings": 0}


@contextmanager
def world(folder: Path) -> Iterator[tuple[Broker, MediaStore, Client]]:
    with Broker(folder) as broker, MediaStore() as store, Client(broker.port) as client:
        for topic in ("inference/job/+/+", "inference/media/+/+", "inference/rejected/+"):
            client.subscribe(topic)
        yield broker, store, client


def deleted(client: Client, media_store_id: int, *, after: int = 0) -> list[Message]:
    topic = f"inference/media/{media_store_id}/deleted"
    return [each for each in client.received if each.topic == topic][after:]


def delete(client: Client, media_store_id: int, answers: int = 1) -> list[dict[str, Any]]:
    """Delete over MQTT; return what the daemons say that they removed."""
    before = len(deleted(client, media_store_id))
    client.publish(f"inference/delete/{media_store_id}", b"whatever")
    topic = f"inference/media/{media_store_id}/deleted"
    client.wait_until(
        lambda received: sum(each.topic == topic for each in received) >= before + answers
    )
    found = deleted(client, media_store_id, after=before)
    for message in found:
        MQTT.check(message.topic, message.payload, qos=message.qos)
    return [message.json() for message in found]


def like(daemon: Daemon, media_store_id: int) -> int:
    """Return the status of a search with a stored picture."""
    return int(daemon.request("GET", f"/search/image_embeddings?like={media_store_id}")[0])


def test_vectors_of_all_collections_and_jobs_go_and_a_repeat_is_harmless(
    tmp_path: Path, portrait: bytes
) -> None:
    with (
        world(tmp_path) as (broker, store, client),
        Daemon(tmp_path, broker, store, **EVERYTHING) as daemon,
    ):
        for media_store_id in (1, 2):
            store.put(media_store_id, portrait, "image/png")
            for task in EVERYTHING["INFERD_WORKER__TASK_TYPES"].split(","):
                assert finished(client, ask(client, media_store_id, task))["status"] == "completed"
        assert like(daemon, 1) == 200

        (event,) = delete(client, 1)

        assert event["event"] == "media_deleted"
        assert event["worker_id"] == "inferd-test"
        assert event["data"]["jobs"] == 3
        assert event["data"]["vectors"] == {"image_embeddings": 1, "face_embeddings": 1}
        assert like(daemon, 1) == 404
        assert daemon.request("GET", "/search/face_embeddings?like=1")[0] == 404
        assert daemon.request("GET", "/job?media_store_id=1")[1]["jobs"] == []
        # The other picture has all it had, and no longer finds the one that is gone.
        status, found = daemon.request("GET", "/search/image_embeddings?like=2")
        assert (status, found["results"]) == (200, [])
        assert len(daemon.request("GET", "/job?media_store_id=2")[1]["jobs"]) == 3

        for unknown in (1, 987654321):
            (again,) = delete(client, unknown)
            assert (again["data"]["jobs"], again["data"]["vectors"]) == (0, NOTHING)
        # The picture may be asked for anew.
        assert finished(client, ask(client, 1, "image_embedding"))["status"] == "completed"
        assert like(daemon, 1) == 200


def test_what_runs_and_waits_is_cancelled_first(tmp_path: Path, portrait: bytes) -> None:
    held = Held(answer(200, portrait, "image/png"))
    with (
        world(tmp_path) as (broker, store, client),
        Daemon(tmp_path, broker, store, **EVERYTHING, INFERD_WORKER__MAX_IN_FLIGHT="1") as daemon,
    ):
        store.behaviours = {1: held, 5: held}
        daemon.request("POST", "/queue/face_detection/pause")
        running, waiting = ask(client, 1, "image_embedding"), ask(client, 1, "face_detection")
        store.wait_until(lambda: store.fetched == [1])
        client.wait_for(lambda each: each.topic == f"inference/job/{waiting.job_id}/accepted")

        (event,) = delete(client, 1)

        assert (event["data"]["jobs"], event["data"]["cancelled"]) == (2, 2)
        for asked in (running, waiting):
            told = finished(client, asked)
            assert told["data"]["error_message"].startswith("cancelled: ")
            assert daemon.request("GET", f"/job/{asked.job_id}")[0] == 404
        held.release()
        # Nothing of it comes after all.
        store.put(2, portrait, "image/png")
        assert finished(client, ask(client, 2, "image_embedding"))["status"] == "completed"
        assert like(daemon, 1) == 404


def test_what_is_no_delete_becomes_a_dead_letter(tmp_path: Path) -> None:
    with world(tmp_path) as (broker, store, client), Daemon(tmp_path, broker, store) as daemon:
        client.publish("inference/delete/seven")
        client.publish("inference/delete/8", retain=True)
        for code in ("invalid_request", "retained_request"):
            letter = client.wait_for(
                lambda each, code=code: (  # type: ignore[misc]
                    each.topic == "inference/rejected/delete"
                    and each.json()["data"]["code"] == code
                )
            )
            MQTT.check(letter.topic, letter.payload, qos=letter.qos)
        assert deleted(client, 8) == []
        assert daemon.terminate() == 0


def test_each_daemon_with_vectors_of_its_own_removes_and_tells_what_it_had(
    tmp_path: Path, portrait: bytes
) -> None:
    shared = {"INFERD_QUEUE__URL": f"sqlite:///{tmp_path / 'shared.db'}", **EVERYTHING}
    folders = [tmp_path / "one", tmp_path / "two"]
    for folder in folders:
        folder.mkdir()
    with world(tmp_path) as (broker, store, client):
        store.put(1, portrait, "image/png")
        with Daemon(folders[0], broker, store, INFERD_MQTT__CLIENT_ID="one", **shared) as one:
            assert finished(client, ask(client, 1, "image_embedding"))["status"] == "completed"
            with Daemon(folders[1], broker, store, INFERD_MQTT__CLIENT_ID="two", **shared) as two:
                # REST reaches the daemon that is asked, and says what that one had.
                status, told = two.request("DELETE", "/media/1")
                assert (status, told["jobs"], told["vectors"]) == (200, 1, NOTHING)
                assert like(one, 1) == 200
                # It is told over MQTT as well, and must not count as an answer to what follows.
                client.wait_until(lambda _: bool(deleted(client, 1)))

                said = {each["worker_id"]: each["data"] for each in delete(client, 1, answers=2)}

                assert said["one"]["vectors"] == {"image_embeddings": 1, "face_embeddings": 0}
                assert said["two"]["vectors"] == NOTHING
                assert like(one, 1) == 404


def command(daemon: Daemon, name: str, *words: str) -> tuple[int, list[dict[str, Any]], str]:
    kept = {k: v for k, v in os.environ.items() if not k.startswith("INFERD_")}
    environ = {**kept, **CASCADE_ONLY, "INFERD_HTTP__PORT": str(daemon.port)}
    done = subprocess.run(
        [sys.executable, "-W", "error", "-m", "daemon", name, *words],
        env=environ,
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    lines = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    return done.returncode, lines, done.stdout + done.stderr


def test_the_command_deletes_ids_and_lists_of_them(tmp_path: Path, portrait: bytes) -> None:
    with (
        world(tmp_path) as (broker, store, client),
        Daemon(tmp_path, broker, store, **EVERYTHING) as daemon,
    ):
        store.put(1, portrait, "image/png")
        assert finished(client, ask(client, 1, "image_embedding"))["status"] == "completed"
        ids = tmp_path / "ids"
        ids.write_text("2\n3 # gone\n")

        code, lines, said = command(daemon, "delete", "1", "--ids", str(ids))

        assert code == 0, said
        by_id = {line["media_store_id"]: line for line in lines}
        assert set(by_id) == {1, 2, 3}
        assert by_id[1]["jobs"] == by_id[1]["vectors"]["image_embeddings"] == 1
        assert by_id[2]["jobs"] == 0
        assert "3 pictures" in said
        assert command(daemon, "delete")[0] == 2
        assert command(daemon, "delete", "seven")[0] == 2
    assert command(daemon, "delete", "1")[0] == 3


def test_jobs_are_listed_shown_retried_and_cancelled_by_command(tmp_path: Path) -> None:
    with world(tmp_path) as (broker, store, client), Daemon(tmp_path, broker, store) as daemon:
        failed = [ask(client, number) for number in range(3)]
        for asked in failed:
            assert finished(client, asked)["status"] == "error"
        daemon.request("POST", "/queue/face_detection/pause")

        code, lines, said = command(daemon, "jobs", "list", "--code", "media_not_found", "--json")
        assert (code, len(lines)) == (0, 3), said
        table = command(daemon, "jobs", "list", "--task", "face_detection", "--since", "1h")[2]
        assert table.count("media_not_found") == 3
        assert command(daemon, "jobs", "list", "--until", "1h", "--json")[1] == []

        code, _, said = command(daemon, "jobs", "retry", "--code", "media_not_fuond")
        assert (code, "did you mean media_not_found?" in said) == (0, True), said
        code, _, said = command(daemon, "jobs", "retry", "--code", "media_not_found")
        assert code == 0
        assert "3 jobs wait again" in said
        code, lines, _ = command(daemon, "jobs", "show", failed[0].job_id)
        assert (code, lines[0]["status"]) == (0, "pending")

        code, lines, _ = command(daemon, "jobs", "cancel", failed[0].job_id, failed[1].job_id)
        assert (code, [line["status"] for line in lines]) == (0, ["error", "error"])
        assert command(daemon, "jobs", "list", "--status", "pending", "--json")[1] != []

        retried = command(daemon, "jobs", "retry", failed[0].job_id)
        assert retried[0] == 0
        assert daemon.job(failed[0].job_id)["status"] == "pending"
        assert command(daemon, "jobs", "show", "00000000-0000-4000-8000-000000000000")[0] == 5
        assert command(daemon, "jobs", "retry")[0] == 2
