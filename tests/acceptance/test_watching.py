"""What a running daemon says of itself: metrics that move, readiness that is true, no secrets."""

import base64
import urllib.request
from pathlib import Path
from urllib.parse import quote, urlsplit

import pytest

from tests.acceptance.conftest import PICTURE
from tests.acceptance.rig import Daemon, MediaStore, ask, event_of, finished
from tests.broker import Broker, Client
from tests.exposition import Exposition
from tests.ports import free_port
from tests.waiting import wait_until

DEADLINE = 30.0
FACES = {"task_type": "face_detection"}


def fetch(daemon: Daemon, path: str = "/metrics") -> str:
    request = urllib.request.Request(
        f"http://127.0.0.1:{daemon.port}{path}", headers={"Authorization": "Bearer rest-token-5e"}
    )
    with urllib.request.urlopen(request, timeout=10) as answer:
        text: str = answer.read().decode()
    return text


def scrape(daemon: Daemon) -> Exposition:
    return Exposition(fetch(daemon))


def test_jobs_move_the_counters(
    tmp_path: Path, broker: Broker, client: Client, media_store: MediaStore
) -> None:
    with Daemon(tmp_path, broker, media_store) as daemon:
        before = scrape(daemon)
        done, missing = ask(client, PICTURE), ask(client, 404)
        client.publish("inference/request/face_detection", {"media_store_id": "none"})
        client.wait_for(lambda message: message.topic.startswith("inference/rejected/"))
        assert finished(client, done)["status"] == "completed"
        assert finished(client, missing)["status"] == "error"
        event_of(client, missing, "failed")
        # The events are confirmed after the client has them.
        wait_until(lambda: scrape(daemon).value("inferd_outbox_events") == 0)
        after = scrape(daemon)

    assert before.value("inferd_jobs_total", **FACES, status="completed") == 0
    assert after.value("inferd_jobs_total", **FACES, status="completed") == 1
    assert after.value("inferd_jobs_total", **FACES, status="error") == 1
    assert after.value("inferd_job_errors_total", **FACES, code="media_not_found") == 1
    assert after.value("inferd_job_attempts_total", **FACES) == 2
    assert after.value("inferd_requests_accepted_total", **FACES, duplicate="false") == 2
    assert after.value("inferd_requests_rejected_total", door="mqtt", code="invalid_request") == 1
    stages = {
        stage: after.value("inferd_stage_seconds_count", **FACES, stage=stage)
        for stage in after.labels("inferd_stage_seconds_count", "stage")
    }
    assert stages == {"fetch": 2, "decode": 1, "infer": 1, "deliver": 1}
    # Two accepted, two started, completed and completed with failed, and the dead letter.
    assert after.value("inferd_events_total", fate="published") >= 8
    assert after.value("inferd_events_total", fate="refused") == 0
    for name in ("pending", "delayed", "processing", "undelivered", "in_flight"):
        assert after.value(f"inferd_jobs_{name}") == 0
    assert after.value("inferd_oldest_pending_seconds") == 0
    assert after.value("inferd_outbox_oldest_seconds") == 0
    assert after.value("inferd_broker_up") == 1
    assert after.labels("inferd_model_loaded", "name") == {"face_detector"}
    assert after.labels("inferd_model_loaded", "device") == {"cpu"}
    assert "" not in after.labels("inferd_model_loaded", "weights")
    assert after.labels("inferd_build_info", "version") != {""}
    assert after.value("process_resident_memory_bytes") > 0


def test_a_broker_that_dies_is_told_and_comes_back(
    tmp_path: Path, broker: Broker, client: Client, media_store: MediaStore
) -> None:
    with Daemon(tmp_path, broker, media_store) as daemon:
        assert daemon.request("GET", "/health/ready")[0] == 200

        broker.kill()
        wait_until(lambda: daemon.request("GET", "/health/ready")[0] == 503)
        _, away = daemon.request("GET", "/health/ready")
        # What is asked meanwhile waits in the outbox, and is seen there.
        daemon.request("POST", "/job/face_detection", {"media_store_id": PICTURE})
        alarmed = scrape(daemon)

        broker.start()
        wait_until(lambda: daemon.request("GET", "/health/ready")[0] == 200)
        wait_until(lambda: scrape(daemon).value("inferd_outbox_events") == 0)
        healed = scrape(daemon)

    assert away["status"] == "unavailable"
    assert away["checks"]["broker"]["code"] == "broker_unreachable"
    assert away["checks"]["database"]["ok"]
    assert alarmed.value("inferd_broker_up") == 0
    assert alarmed.value("inferd_outbox_events") >= 1
    assert healed.value("inferd_broker_up") == 1
    assert healed.value("inferd_broker_reconnects_total") >= 1


def test_vectors_that_are_away_are_told(
    tmp_path: Path, broker: Broker, media_store: MediaStore
) -> None:
    nobody = f"http://127.0.0.1:{free_port()}"
    with Daemon(
        tmp_path,
        broker,
        media_store,
        INFERD_WORKER__TASK_TYPES="face_embedding",
        INFERD_QDRANT__URL=nobody,
        INFERD_QDRANT__GRPC_PORT="0",
    ) as daemon:
        status, report = daemon.request("GET", "/health/ready")

    assert (status, report["status"]) == (503, "unavailable")
    assert report["checks"]["vectors"]["code"] == "vector_store_unreachable"
    assert report["checks"]["models"]["ok"]


@pytest.mark.parametrize("with_token", [True, False])
def test_no_secret_is_ever_written(
    tmp_path: Path, media_store: MediaStore, *, with_token: bool
) -> None:
    password, store_password = "mqtt/p4ss:word", "st0re-p4ssword"
    secrets = [password, quote(password, safe=""), store_password, "rest-token-5e"]
    secrets += ["qdrant-k3y", "media-t0ken", base64.b64encode(b"u:st0re-p4ssword").decode()]
    where = urlsplit(media_store.url).netloc
    media: dict[str, str] = {"INFERD_MEDIA_STORE__TOKEN": "media-t0ken"}
    if not with_token:
        media = {"INFERD_MEDIA_STORE__URL": f"http://u:{store_password}@{where}"}
    with Broker(tmp_path, passwords={"inferd": password, "client": "c"}) as broker:
        with Daemon(
            tmp_path,
            broker,
            media_store,
            INFERD_MQTT__URL=broker.url_for("inferd", quote(password, safe="")),
            INFERD_LOG__LEVEL="debug",
            INFERD_WORKER__TASK_TYPES="face_detection,face_embedding",
            INFERD_QDRANT__URL=f"http://127.0.0.1:{free_port()}",
            INFERD_QDRANT__GRPC_PORT="0",
            INFERD_QDRANT__API_KEY="qdrant-k3y",
            **media,
        ) as daemon:
            for media_id in (PICTURE, 404):
                for task in ("face_detection", "face_embedding"):
                    daemon.request("POST", f"/job/{task}", {"media_store_id": media_id})
            wait_until(
                lambda: (
                    scrape(daemon).value("inferd_jobs_total", **FACES, status="completed") == 1
                    and scrape(daemon).value("inferd_jobs_total", **FACES, status="error") == 1
                )
            )
            daemon.wait_for_log(lambda line: line.get("task_type") == "face_embedding")
            shown = "".join(fetch(daemon, path) for path in ("/metrics", "/health", "/job"))
            # The media store as well, since what is away is written about most.
            media_store.behaviours.clear()
            broker.kill()
            daemon.wait_for_log(lambda line: line["message"].startswith("the broker is away"))
            shown += fetch(daemon, "/health")
            assert daemon.terminate() == 0
        written = daemon.text()

    assert '"level": "debug"' in written
    assert [secret for secret in secrets if secret in written] == []
    assert [secret for secret in secrets if secret in shown] == []
    # Every line about a job says which.
    about_jobs = [line for line in daemon.log() if line["logger"] == "daemon.worker.attempt"]
    attempts = [line for line in about_jobs if line["message"].startswith("attempt")]
    assert attempts
    assert all(line["job_id"] and line["task_type"] for line in attempts)
