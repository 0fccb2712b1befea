"""A daemon whose poll comes once in hours begins each job at once all the same."""

import uuid
from http.server import BaseHTTPRequestHandler
from pathlib import Path

import pytest

from tests.acceptance.conftest import PICTURE
from tests.acceptance.rig import Asked, Daemon, Held, MediaStore, answer, ask, event_of, finished
from tests.broker import Broker, Client, Message
from tests.waiting import wait_until

NO_POLL = {"INFERD_WORKER__POLL_SECONDS": "100000"}
BATCH = 8
CLIP = {
    **NO_POLL,
    "INFERD_WORKER__TASK_TYPES": "image_embedding",
    "INFERD_CLIP__BATCH_SIZE": str(BATCH),
}


def test_each_way_to_a_job_wakes_the_worker(
    tmp_path: Path, broker: Broker, media_store: MediaStore, client: Client, portrait: bytes
) -> None:
    with Daemon(tmp_path, broker, media_store, **NO_POLL) as daemon:
        assert finished(client, ask(client, PICTURE))["status"] == "completed"

        media_store.put(2, portrait, "image/png")
        status, job = daemon.request("POST", "/job/face_detection", {"media_store_id": 2})
        assert status == 201
        assert finished(client, Asked(job["job_id"], 2))["status"] == "completed"

        # Fails at first, and waits for the moment of its next try.
        torn = [answer(500, b"")]
        good = answer(200, portrait, "image/png")

        def first_torn(request: BaseHTTPRequestHandler) -> None:
            (torn.pop() if torn else good)(request)

        media_store.behaviours[3] = first_torn
        assert finished(client, ask(client, 3))["status"] == "completed"
        assert not torn

        media_store.put(4, portrait, "image/png")
        assert daemon.request("POST", "/queue/face_detection/pause")[0] == 200
        waiting = ask(client, 4)
        event_of(client, waiting, "accepted")
        assert daemon.request("POST", "/queue/face_detection/resume")[0] == 200
        assert finished(client, waiting)["status"] == "completed"


def test_the_job_behind_a_cancelled_one_begins_at_once(
    tmp_path: Path, broker: Broker, media_store: MediaStore, client: Client, portrait: bytes
) -> None:
    media_store.behaviours[2] = held = Held(answer(200, portrait, "image/png"))
    one_at_a_time = {**NO_POLL, "INFERD_WORKER__MAX_IN_FLIGHT": "1"}
    with Daemon(tmp_path, broker, media_store, **one_at_a_time):
        running = ask(client, 2)
        media_store.wait_until(lambda: 2 in media_store.fetched)
        behind = ask(client, PICTURE)
        event_of(client, behind, "accepted")
        client.publish(f"inference/cancel/{running.job_id}", b"")
        assert finished(client, running)["status"] == "error"
        assert finished(client, behind)["status"] == "completed"
        held.release()


@pytest.mark.parametrize(("passes", "waiting"), [(1, 2_000), (2, 10_000)])
def test_an_urgent_job_completes_within_two_batches_of_the_model(
    tmp_path: Path,
    broker: Broker,
    media_store: MediaStore,
    client: Client,
    portrait: bytes,
    *,
    passes: int,
    waiting: int,
) -> None:
    # What the model works on at a time, in all its passes together.
    batch = passes * BATCH
    for number in range(waiting + 1):
        media_store.put(number, portrait, "image/png")
    with Daemon(tmp_path, broker, media_store, **CLIP, INFERD_CLIP__PASSES=str(passes)) as daemon:
        assert daemon.request("POST", "/queue/image_embedding/pause")[0] == 200
        for start in range(0, waiting, 1000):
            requests = [
                {"media_store_id": number, "job_id": str(uuid.uuid4())}
                for number in range(start, start + 1000)
            ]
            client.publish("inference/request/image_embedding", {"requests": requests})
        wait_until(lambda: pending(daemon) == waiting, 120)
        assert daemon.request("POST", "/queue/image_embedding/resume")[0] == 200
        client.wait_until(lambda received: len(ended(received)) >= 5 * batch, 120)

        urgent = ask(client, waiting, "image_embedding", priority=10)
        finished(client, urgent)
        assert pending(daemon) > waiting // 2

    topics = [message.topic for message in client.received]
    asked = topics.index(f"inference/job/{urgent.job_id}/accepted")
    done = topics.index(f"inference/job/{urgent.job_id}/completed")
    before_it = [topic for topic in topics[asked:done] if topic.endswith("/completed")]
    # What the model was done with, what it was busy with, and what went with the urgent job.
    assert len(before_it) < 3 * batch


def pending(daemon: Daemon) -> int:
    return int(daemon.request("GET", "/queue")[1]["pending"])


def ended(received: list[Message]) -> list[str]:
    return [each.topic for each in received if each.topic.endswith("/completed")]
