"""A full queue at the running daemon: who is refused, and that it opens again."""

import json
import sqlite3
import threading
import uuid
from contextlib import closing
from pathlib import Path

from tests.acceptance.rig import MQTT, Daemon, Held, MediaStore, answer
from tests.broker import Broker, Client

MOST = 300
BATCH = 1000
PATIENCE = 120


def pending(folder: Path) -> int:
    with closing(sqlite3.connect(folder / "data" / "queue.db")) as file:
        (count,) = file.execute("SELECT count(*) FROM jobs WHERE status = 'pending'").fetchone()
    return int(count)


def batch(start: int) -> dict[str, list[dict[str, object]]]:
    numbers = range(start, start + BATCH)
    return {"requests": [{"media_store_id": n, "job_id": str(uuid.UUID(int=n))} for n in numbers]}


def test_a_full_queue_refuses_what_does_not_fit_and_opens_again(
    tmp_path: Path, broker: Broker, client: Client, media_store: MediaStore, portrait: bytes
) -> None:
    held = Held(answer(404, b"{}"))
    media_store.behaviours.update(dict.fromkeys(range(1, 3 * BATCH + 10), held))
    limits = {"INFERD_QUEUE__MAX_PENDING": str(MOST), "INFERD_WORKER__MAX_IN_FLIGHT": "4"}
    with Daemon(tmp_path, broker, media_store, **limits) as daemon:
        # Nothing leaves the queue while it is filled.
        assert daemon.request("POST", "/queue/face_detection/pause")[0] == 200
        client.publish("inference/request/face_detection", batch(1))
        received = client.wait_until(
            lambda messages: sum(m.event in ("accepted", "rejected") for m in messages) >= BATCH,
            PATIENCE,
        )
        accepted = [
            int(uuid.UUID(m.topic.split("/")[2])) for m in received if m.event == "accepted"
        ]
        refusals = [m for m in received if m.event == "rejected"]

        # In order: the first ones fit, each of the others is told.
        assert sorted(accepted) == list(range(1, MOST + 1))
        assert len(refusals) == BATCH - MOST
        for message in refusals:
            MQTT.check(message.topic, message.payload, qos=message.qos)
            told = message.json()["data"]
            assert (told["code"], told["retry_after_ms"]) == ("queue_full", 10_000)
        assert pending(tmp_path) == MOST
        status, refused = daemon.request(
            "POST", "/job/face_detection", {"media_store_id": 2 * BATCH}
        )
        assert (status, refused["code"]) == (503, "queue_full")

        # Everybody at once, over both doors: never more rows than allowed.
        doors = [
            threading.Thread(
                target=lambda: daemon.request(
                    "POST", "/job/face_detection", {"media_store_id": 3 * BATCH}
                )
            )
            for _ in range(4)
        ]
        status, _ = daemon.request("DELETE", f"/job/{uuid.UUID(int=1)}")
        assert status == 204
        for door in doors:
            door.start()
        client.publish("inference/request/face_detection", batch(BATCH + 1))
        client.wait_until(
            lambda messages: sum(m.event == "rejected" for m in messages) >= 2 * BATCH - MOST - 1,
            PATIENCE,
        )
        for door in doors:
            door.join()
        assert pending(tmp_path) == MOST

        # It opens by itself as jobs end.
        held.release()
        assert daemon.request("POST", "/queue/face_detection/resume")[0] == 200
        client.wait_until(
            lambda messages: sum(m.event == "completed" for m in messages) >= MOST, PATIENCE
        )
        # Else it stands in the way of the next one for the same picture.
        early = f"inference/job/{uuid.UUID(int=5)}/completed"
        client.wait_until(lambda messages: any(m.topic == early for m in messages), PATIENCE)
        media_store.put(5, portrait, "image/png")
        late = {"media_store_id": 5, "job_id": str(uuid.uuid4())}
        client.publish("inference/request/face_detection", json.dumps(late))
        done = client.wait_for(
            lambda m: m.topic == f"inference/job/{late['job_id']}/completed", PATIENCE
        )
        assert done.json()["status"] == "completed"
