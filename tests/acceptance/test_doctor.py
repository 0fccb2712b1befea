"""Doctor names what is wrong, its mend, and disturbs nobody; as a process, against real parts."""

import asyncio
import json
import os
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from daemon.jobs import TaskType
from handlers.image_store import QdrantImageStore
from handlers.qdrant.vector_engine import Point
from tests.acceptance.conftest import PICTURE
from tests.acceptance.rig import (
    CASCADE_ONLY,
    ROOT,
    Daemon,
    MediaStore,
    answer,
    ask,
    finished,
)
from tests.broker import Broker, Client
from tests.integration.test_mosquitto_setup import Made, password, setup, started
from tests.ports import free_port
from tests.queue_bench import Bench, open_bench

SECRET = "not-for-anybodys-eyes"
SHORT = {
    "INFERD_MQTT__CONNECT_TIMEOUT_SECONDS": "1",
    "INFERD_MEDIA_STORE__CONNECT_TIMEOUT_SECONDS": "1",
}
"""Where nothing answers for as long as it is waited for."""


@dataclass(frozen=True)
class Said:
    """What doctor said, as JSON."""

    exit_code: int
    report: Mapping[str, Any]
    text: str
    """All that it wrote, to both."""

    def of(self, part: str) -> dict[str, dict[str, Any]]:
        """Return a part's findings by code; of those that are ok the last."""
        return {each["code"]: each for each in self.report["findings"] if each["part"] == part}

    def found(self, part: str, code: str) -> dict[str, Any]:
        found = self.of(part)
        assert code in found, self.text
        return found[code]

    @property
    def wrong(self) -> set[str]:
        return {each["code"] for each in self.report["findings"]} - {"ok"}


class Patient:
    """Everything that doctor is told; broker, daemon and media store are away at first."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.data = folder / "data"
        kept = {k: v for k, v in os.environ.items() if not k.startswith("INFERD_")}
        self.environ = {
            **kept,
            "AUTH_DISABLED": "true",
            "INFERD_DATA_DIR": str(self.data),
            "INFERD_MODELS_DIR": str(folder / "models"),
            "INFERD_MQTT__URL": f"mqtt://127.0.0.1:{free_port()}",
            "INFERD_MQTT__CLIENT_ID": "inferd-test",
            "INFERD_MQTT__CONNECT_TIMEOUT_SECONDS": "30",
            "INFERD_MEDIA_STORE__URL": f"http://127.0.0.1:{free_port()}",
            "INFERD_MEDIA_STORE__CONNECT_TIMEOUT_SECONDS": "30",
            "INFERD_HTTP__PORT": str(free_port()),
            **CASCADE_ONLY,
        }

    def run(self, *arguments: str) -> "subprocess.CompletedProcess[str]":
        return subprocess.run(
            [sys.executable, "-m", "daemon", "doctor", *arguments],
            cwd=ROOT,
            env=self.environ,
            capture_output=True,
            text=True,
            timeout=150,
            check=False,
        )

    def examine(self, *arguments: str, **environ: str) -> Said:
        """Run doctor with settings over the patient's; its JSON is all that is on stdout."""
        self.environ.update(environ)
        done = self.run("--json", *arguments)
        assert done.stdout, done.stderr
        said = Said(done.returncode, json.loads(done.stdout), done.stdout + done.stderr)
        assert said.report["exit_code"] == done.returncode
        for finding in said.report["findings"]:
            assert finding["verdict"] == "ok" or finding["mend"], finding
        return said

    async def queue(self, work: Callable[[Bench], Any]) -> None:
        """Do something to the queue as of ten minutes ago, with no daemon."""
        self.data.mkdir(exist_ok=True)
        async with open_bench(self.data / "queue.db") as bench:
            bench.clock.now = time.time_ns() // 1_000_000 - 600_000
            await work(bench)


@pytest.fixture
def patient(tmp_path: Path) -> Patient:
    return Patient(tmp_path)


def rows(path: Path) -> list[Any]:
    """Return all that a queue's file holds."""
    with closing(sqlite3.connect(f"{path.as_uri()}?mode=ro", uri=True)) as file:
        tables = ("jobs", "outbox", "schema_migrations")
        return [file.execute(f"SELECT * FROM {table} ORDER BY 1").fetchall() for table in tables]


# -- a running daemon --------------------------------------------------------------------------


def test_a_running_daemon_is_well_and_is_not_disturbed(
    tmp_path: Path, broker: Broker, media_store: MediaStore, client: Client, patient: Patient
) -> None:
    port = patient.environ["INFERD_HTTP__PORT"]
    with Daemon(tmp_path, broker, media_store, INFERD_HTTP__PORT=port) as daemon:
        finished(client, ask(client, PICTURE))
        lines, heard = len(daemon.log()), len(client.received)

        said = patient.examine(INFERD_MQTT__URL=broker.url, INFERD_MEDIA_STORE__URL=media_store.url)

        assert said.exit_code == 0, said.text
        assert said.wrong == {"broker_open", "cascade", "settings_differ"}
        assert "INFERD_OFFLINE is true there, false here" in said.text
        assert "inferd-test is online" in said.text
        assert "in the running daemon's memory" in said.text
        # What doctor sent it, the daemon has dealt with before this.
        asked = ask(client, PICTURE, force=True)
        finished(client, asked)
        _, health = daemon.request("GET", "/health")
        assert health["checks"]["broker"]["connects"] == 1
        assert [
            line for line in daemon.log()[lines:] if line["level"] not in ("info", "debug")
        ] == []
    others = [each for each in client.received[heard:] if asked.job_id not in each.topic]
    # To a job that is nobody's, and to the dead letters; the daemon answers neither.
    assert len(others) == 2
    assert {each.json()["event"] for each in others} == {"probe"}


def test_the_queue_is_the_same_afterwards_while_the_daemon_holds_jobs(
    tmp_path: Path, broker: Broker, media_store: MediaStore, client: Client, patient: Patient
) -> None:
    media_store.behaviours[7] = answer(503, b"{}", retry_after="300")
    with Daemon(tmp_path, broker, media_store):
        asked = ask(client, 7)
        client.wait_for(lambda message: message.topic.endswith(f"{asked.job_id}/started"))
        media_store.wait_until(lambda: 7 in media_store.fetched)
        held = until_still(lambda: rows(patient.data / "queue.db"))

        said = patient.examine(
            "--quick",
            INFERD_MQTT__URL=broker.url,
            INFERD_MEDIA_STORE__URL=media_store.url,
            INFERD_HTTP__PORT="0",
        )

        assert rows(patient.data / "queue.db") == held
    assert "media_store_error" in said.of("queue"), said.text


def until_still(look: Callable[[], Any]) -> Any:
    """Return what is there once a delayed job is, and no event waits."""
    ends_at = time.monotonic() + 30
    while time.monotonic() < ends_at:
        jobs, outbox, _ = found = look()
        if not outbox and [row for row in jobs if "pending" in row]:
            return found
        time.sleep(0.05)
    raise AssertionError(look())


def test_a_daemon_that_stands_still_does_not_hold_up_doctor(
    tmp_path: Path, broker: Broker, media_store: MediaStore, patient: Patient
) -> None:
    port = patient.environ["INFERD_HTTP__PORT"]
    with (
        Daemon(tmp_path, broker, media_store, INFERD_HTTP__PORT=port) as daemon,
        Client(broker.port) as client,
    ):
        process = daemon._process
        assert process is not None
        # It says that it is online a moment after it is connected.
        client.subscribe("inference/worker/inferd-test/availability")
        client.wait_for(lambda message: message.json()["state"] == "online")
        process.send_signal(signal.SIGSTOP)
        try:
            said = patient.examine(
                "--quick", INFERD_MQTT__URL=broker.url, INFERD_MEDIA_STORE__URL=media_store.url
            )
        finally:
            process.send_signal(signal.SIGCONT)

    assert said.exit_code == 1
    assert "hangs" in said.found("daemon", "rest_unreachable")["mend"]


# -- brokers -----------------------------------------------------------------------------------


def test_no_broker_and_no_media_store_are_named_and_all_else_is_looked_at(
    patient: Patient,
) -> None:
    said = patient.examine()

    assert said.exit_code == 1
    assert "INFERD_MQTT__URL" in said.found("broker", "broker_unreachable")["mend"]
    assert "INFERD_MEDIA_STORE__URL" in said.found("media store", "media_store_unreachable")["mend"]
    parts = {finding["part"] for finding in said.report["findings"]}
    assert parts >= {"configuration", "broker", "daemon", "database", "vectors", "models", "device"}
    assert not patient.data.exists()


def test_a_broker_that_stands_still_is_told_apart_from_none(
    broker: Broker, patient: Patient
) -> None:
    broker.freeze()

    said = patient.examine("--quick", INFERD_MQTT__URL=broker.url, **SHORT)

    broker.thaw()
    assert said.exit_code == 1
    assert "does not answer within 1 s" in said.found("broker", "broker_silent")["found"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("doctor") / "broker"
    setup(path, "alice", options=["--tls", "localhost"])
    return path


@pytest.fixture(scope="module")
def made(folder: Path) -> Iterator[Made]:
    with started(folder) as made:
        yield made


def test_the_acl_lets_the_daemon_do_its_work_and_keeps_strangers_out(
    made: Made, patient: Patient
) -> None:
    secret = password(made.folder, "inferd")

    said = patient.examine(
        "--quick", INFERD_MQTT__URL=f"mqtt://inferd:{secret}@127.0.0.1:{made.port}"
    )

    assert set(said.of("permissions")) == {"ok"}, said.text
    assert "a client without user is refused" in said.text
    assert secret not in said.text


def test_a_broker_that_shares_requests_is_fit_for_intake_roles(
    made: Made, patient: Patient
) -> None:
    url = f"mqtt://inferd:{password(made.folder, 'inferd')}@127.0.0.1:{made.port}"

    said = patient.examine("--quick", INFERD_MQTT__URL=url, INFERD_MQTT__INTAKE_ROLES="2")

    assert set(said.of("permissions")) == {"ok"}, said.text
    assert "the broker shares requests among 2 intake roles" in said.text


def test_a_user_who_reads_no_requests_shares_none(made: Made, patient: Patient) -> None:
    url = f"mqtt://alice:{password(made.folder, 'alice')}@127.0.0.1:{made.port}"

    said = patient.examine("--quick", INFERD_MQTT__URL=url, INFERD_MQTT__INTAKE_ROLES="2")

    assert "INFERD_MQTT__INTAKE_ROLES=0" in said.found("permissions", "shares_unsupported")["mend"]


def test_a_clients_credentials_are_not_enough_for_the_daemon(made: Made, patient: Patient) -> None:
    secret = password(made.folder, "alice")

    said = patient.examine(
        "--quick", INFERD_MQTT__URL=f"mqtt://alice:{secret}@127.0.0.1:{made.port}"
    )

    assert said.exit_code == 1
    unread = said.found("permissions", "requests_unreadable")
    assert "inference/request/+" in unread["found"]
    assert "topic read inference/request/+" in unread["mend"]
    refused = said.found("permissions", "events_refused")["found"]
    assert all(tree in refused for tree in ("job", "reply", "rejected", "worker"))
    assert secret not in said.text


def test_what_cannot_be_tried_is_not_called_broken(tmp_path: Path, patient: Patient) -> None:
    rules = [
        "user inferd",
        *("topic read inference/request/+", "topic read inference/cancel/+"),
        *("topic read inference/delete/+", "topic write inference/media/+/+"),
        *("topic read inference/worker/+/+", "topic write inference/job/+/+"),
        *("topic write inference/reply/#", "topic write inference/rejected/+"),
        "topic write inference/worker/+/+\n",
    ]
    with Broker(tmp_path, passwords={"inferd": SECRET}, acl="\n".join(rules)) as broker:
        said = patient.examine("--quick", INFERD_MQTT__URL=broker.url_for("inferd", SECRET))

    assert set(said.of("permissions")) == {"ok", "requests_unknown"}, said.text


def test_an_acl_from_before_deletes_and_home_assistant_is_named(
    tmp_path: Path, patient: Patient
) -> None:
    rules = [
        "user inferd",
        *("topic read inference/request/+", "topic read inference/cancel/+"),
        *("topic read inference/worker/+/+", "topic write inference/job/+/+"),
        *("topic write inference/reply/#", "topic write inference/rejected/+"),
        "topic write inference/worker/+/+",
        *("pattern write inference/request/+", "pattern write inference/cancel/+"),
        "pattern write inference/delete/+\n",
    ]
    with Broker(tmp_path, passwords={"inferd": SECRET}, acl="\n".join(rules)) as broker:
        said = patient.examine(
            "--quick",
            INFERD_MQTT__URL=broker.url_for("inferd", SECRET),
            INFERD_HOME_ASSISTANT__ENABLED="true",
        )

    unread = said.found("permissions", "requests_unreadable")
    assert "nothing of inference/delete/+:" in unread["found"]
    assert "inference/media/..." in said.found("permissions", "events_refused")["found"]
    refused = said.found("permissions", "home_assistant_refused")
    assert "topic write homeassistant/+/+/+/config" in refused["mend"]


def test_home_assistant_can_be_told_by_the_shipped_acl(made: Made, patient: Patient) -> None:
    secret = password(made.folder, "inferd")

    said = patient.examine(
        "--quick",
        INFERD_MQTT__URL=f"mqtt://inferd:{secret}@127.0.0.1:{made.port}",
        INFERD_HOME_ASSISTANT__ENABLED="true",
    )

    assert set(said.of("permissions")) == {"ok"}, said.text
    assert "announces itself to Home Assistant" in said.text


def test_a_wrong_password_is_named_and_not_shown(made: Made, patient: Patient) -> None:
    url = f"mqtt://inferd:{SECRET}@127.0.0.1:{made.port}"

    said = patient.examine("--quick", INFERD_MQTT__URL=url)

    refusal = said.found("broker", "broker_refused")
    assert "Not authorized" in refusal["found"]
    assert "user and password" in refusal["mend"]
    assert SECRET not in said.text


def test_a_certificate_of_an_unknown_ca_is_named(made: Made, patient: Patient) -> None:
    secret = password(made.folder, "inferd")
    url = f"mqtts://inferd:{secret}@localhost:{made.tls_port}"

    said = patient.examine("--quick", INFERD_MQTT__URL=url)

    refusal = said.found("broker", "broker_certificate")
    assert "INFERD_MQTT__CA_FILE" in refusal["mend"]

    trusted = patient.examine("--quick", INFERD_MQTT__CA_FILE=str(made.folder / "certs/ca.crt"))

    assert set(trusted.of("permissions")) == {"ok"}, trusted.text
    assert secret not in said.text + trusted.text


def test_tls_and_plain_text_do_not_go_together_and_it_says_so(made: Made, patient: Patient) -> None:
    said = patient.examine("--quick", INFERD_MQTT__URL=f"mqtt://127.0.0.1:{made.tls_port}")
    assert "TLS" in said.found("broker", "broker_silent")["mend"]

    said = patient.examine("--quick", INFERD_MQTT__URL=f"mqtts://127.0.0.1:{made.port}")
    assert "mqtt://" in said.found("broker", "broker_tls")["mend"]


def test_a_broker_that_takes_forged_events_from_strangers_is_told(
    tmp_path: Path, patient: Patient
) -> None:
    with (
        Broker(tmp_path, passwords={"inferd": SECRET}, extra=["allow_anonymous true"]) as broker,
        Client(broker.port) as reader,
    ):
        reader.subscribe("inference/job/+/completed")

        said = patient.examine("--quick", INFERD_MQTT__URL=broker.url_for("inferd", SECRET))

        forged = reader.wait_for(lambda message: b"probe" in message.payload)
    assert forged.json()["event"] == "probe"
    warned = said.found("permissions", "anonymous_forges")
    assert warned["verdict"] == "warn"
    assert "mosquitto/acl" in warned["mend"]
    assert SECRET not in said.text


def test_a_broker_is_examined_with_mqtt_3_too(broker: Broker, patient: Patient) -> None:
    said = patient.examine("--quick", INFERD_MQTT__URL=broker.url, INFERD_MQTT__VERSION="3.1.1")

    assert set(said.of("permissions")) == {"ok", "broker_open"}, said.text
    assert "MQTT 3.1.1" in said.text


def test_a_broker_of_narrow_limits_is_told(tmp_path: Path, patient: Patient) -> None:
    with Broker(tmp_path, max_packet_size=10_000, max_inflight_messages=10) as broker:
        said = patient.examine("--quick", INFERD_MQTT__URL=broker.url)

    assert "max_packet_size" in said.found("broker", "packets_too_small")["mend"]
    assert "max_inflight_messages" in said.found("broker", "window_small")["mend"]


# -- the queue ---------------------------------------------------------------------------------


def test_jobs_that_nobody_does_are_stuck_and_it_is_told_why(
    broker: Broker, patient: Patient
) -> None:
    async def fill(bench: Bench) -> None:
        for number in range(3):
            await bench.accept(number, TaskType.FACE_DETECTION)
        await bench.accept(1, TaskType.IMAGE_EMBEDDING)

    asyncio.run(patient.queue(fill))
    held = (patient.data / "queue.db").read_bytes()
    before = sorted(path.name for path in patient.data.iterdir())

    said = patient.examine("--quick", INFERD_MQTT__URL=broker.url)

    assert said.exit_code == 1
    stuck = said.found("queue", "no_daemon")
    assert stuck["verdict"] == "fail"
    assert "4 wait, the oldest for 10 min" in stuck["found"]
    assert stuck["mend"] == "start it: python -m daemon"
    assert "image_embedding" in said.found("queue", "task_not_served")["found"]
    # Each job's `accepted` waits with it.
    assert "no daemon is there to send them" in said.found("queue", "events_waiting")["found"]
    assert (patient.data / "queue.db").read_bytes() == held
    assert sorted(path.name for path in patient.data.iterdir()) == before


def test_a_paused_task_is_the_reason_that_is_told(patient: Patient) -> None:
    async def fill(bench: Bench) -> None:
        await bench.accept(1, TaskType.FACE_DETECTION)
        await bench.execute(
            "INSERT INTO pauses (task_type, paused_at) VALUES (?, 1)", "face_detection"
        )

    asyncio.run(patient.queue(fill))

    said = patient.examine("--quick")

    paused = said.found("queue", "task_paused")
    assert "1 of face_detection wait because it is paused" in paused["found"]
    assert "/queue/face_detection/resume" in paused["mend"]


def test_face_results_that_were_not_taken_are_told(patient: Patient) -> None:
    async def fill(bench: Bench) -> None:
        job = await bench.accept(1, TaskType.FACE_DETECTION)
        await bench.execute(
            "UPDATE jobs SET status = 'sync_failed', completed_at = 1, result = '{}',"
            " error_code = 'media_store_refused', error_message = 'x' WHERE job_id = ?",
            job.job_id,
        )

    asyncio.run(patient.queue(fill))

    said = patient.examine("--quick")

    told = said.found("queue", "undelivered")
    assert "1 media_store_refused" in told["found"]
    assert "retry" in told["mend"]


def test_a_file_of_a_newer_version_is_told(patient: Patient) -> None:
    async def age(bench: Bench) -> None:
        await bench.execute(
            "INSERT INTO schema_migrations (version, name, sha256, applied_at)"
            " VALUES (9999, 'x', 'y', 1)"
        )

    asyncio.run(patient.queue(age))

    said = patient.examine("--quick")

    assert "newer inferd" in said.found("database", "schema_newer")["mend"]


def test_a_file_of_an_older_version_is_to_be_migrated(patient: Patient) -> None:
    async def age(bench: Bench) -> None:
        await bench.execute(
            "DELETE FROM schema_migrations"
            " WHERE version = (SELECT max(version) FROM schema_migrations)"
        )

    asyncio.run(patient.queue(age))

    said = patient.examine("--quick")

    assert "python -m daemon migrate" in said.found("database", "schema_older")["mend"]


@pytest.mark.parametrize("damage", ["no database", "torn page"])
def test_a_damaged_file_is_told_and_the_rest_is_looked_at(patient: Patient, damage: str) -> None:
    async def fill(bench: Bench) -> None:
        for number in range(200):
            await bench.accept(number)

    asyncio.run(patient.queue(fill))
    path = patient.data / "queue.db"
    if damage == "no database":
        path.write_bytes(b"nothing" * 1000)
    else:
        with path.open("r+b") as file:
            file.seek(4096 * 5)
            file.write(os.urandom(4096 * 10))

    said = patient.examine("--quick")

    assert said.wrong & {"database_unreadable", "database_corrupt"}
    assert {"media store", "device"} <= {each["part"] for each in said.report["findings"]}


def test_a_media_store_that_is_away_and_one_that_refuses_are_told_apart(
    patient: Patient, media_store: MediaStore
) -> None:
    media_store.behaviours[2**63 - 1] = answer(401, b"{}")

    said = patient.examine("--quick", INFERD_MEDIA_STORE__URL=media_store.url)

    assert "INFERD_MEDIA_STORE__TOKEN" in said.found("media store", "media_store_refused")["mend"]


# -- models, vectors, configuration ------------------------------------------------------------


def test_a_missing_model_has_the_command_that_gets_it(patient: Patient) -> None:
    patient.environ.update(HOME=str(patient.folder))

    said = patient.examine(
        INFERD_WORKER__TASK_TYPES="image_embedding,face_embedding",
        INFERD_CLIP__WEIGHTS="openai",
        INFERD_FACES__PACK="buffalo_l",
        INFERD_FACES__RECOGNISER="",
    )

    mends = [each["mend"] for each in said.report["findings"] if each["code"] == "model_absent"]
    assert any(mend.startswith("python -m daemon models pull clip") for mend in mends)
    assert sum("models pull buffalo_l (non-commercial" in mend for mend in mends) == 2
    assert not (patient.folder / "models").exists()


@pytest.mark.assets
def test_real_face_models_load_and_say_whose_they_are(assets: Path, patient: Patient) -> None:
    said = patient.examine(
        INFERD_MODELS_DIR=str(assets / "models"),
        INFERD_WORKER__TASK_TYPES="face_detection,face_embedding",
        INFERD_FACES__PACK="buffalo_sc",
        INFERD_FACES__RECOGNISER="",
    )

    # The recogniser there is an int8 twin of the published file, under its name.
    assert set(said.of("models")) == {"ok", "checksum_differs"}, said.text
    assert "w600k_mbf" in said.found("models", "checksum_differs")["found"]
    assert "the published file; licence: non-commercial research only" in said.text
    assert "det_500m loads and runs on cpu in fp32" in said.text
    assert "w600k_mbf loads and runs on cpu in int8" in said.text


def test_untrained_weights_are_shouted(patient: Patient) -> None:
    said = patient.examine("--quick", INFERD_WORKER__TASK_TYPES="image_embedding,face_embedding")

    untrained = [each for each in said.report["findings"] if each["code"] == "untrained"]
    assert len(untrained) == 2
    assert all("UNTRAINED" in each["found"] for each in untrained)


def test_a_gpu_that_is_not_there_is_told_where_one_was_asked_for(patient: Patient) -> None:
    said = patient.examine(INFERD_DEVICE="cuda:99", INFERD_WORKER__TASK_TYPES="image_embedding")

    assert "INFERD_DEVICE=cpu" in said.found("models", "no_gpu")["mend"]
    assert "does not start" in said.found("device", "no_gpu")["found"]


def test_vectors_of_another_model_are_told_and_stay_as_they_are(patient: Patient) -> None:
    vectors = patient.data / "vectors"

    async def store() -> None:
        async with QdrantImageStore(path=vectors) as images:
            await images.claim("another-model", "another-model")
            await images.upsert([Point(1, np.ones(512, np.float32))])

    asyncio.run(store())
    before = {path: path.read_bytes() for path in vectors.rglob("*") if path.is_file()}

    said = patient.examine("--quick", INFERD_WORKER__TASK_TYPES="image_embedding")

    mismatch = said.found("vectors", "model_mismatch")
    assert "1 vector of another-model" in mismatch["found"]
    assert {path: path.read_bytes() for path in vectors.rglob("*") if path.is_file()} == before


def test_vectors_that_somebody_has_open_are_left_alone(patient: Patient) -> None:
    with QdrantImageStore(path=patient.data / "vectors") as images:
        images.add_vector(1, np.ones(512, np.float32))

        said = patient.examine("--quick", INFERD_WORKER__TASK_TYPES="image_embedding")

        images.add_vector(2, np.ones(512, np.float32))
    assert str(os.getpid()) in said.found("vectors", "vector_store_locked")["found"]


def test_a_ca_file_that_is_not_there_is_named(patient: Patient) -> None:
    said = patient.examine(
        "--quick", INFERD_MQTT__URL="mqtts://127.0.0.1:1", INFERD_MQTT__CA_FILE="/nowhere"
    )

    assert "INFERD_MQTT__CA_FILE" in said.found("broker", "broker_tls")["found"]


def test_a_wrong_configuration_is_78_and_names_each_wrong_name(patient: Patient) -> None:
    said = patient.examine(
        INFERD_MQTT__URL=f"http://u:{SECRET}@x", INFERD_NONSENSE="1", INFERD_HTTP__PORT="x"
    )

    assert said.exit_code == 78
    found = said.found("configuration", "config")["found"]
    assert all(name in found for name in ("MQTT__URL", "INFERD_NONSENSE", "HTTP__PORT"))
    assert SECRET not in said.text


def test_people_read_one_line_a_finding_and_the_mend_below(patient: Patient) -> None:
    done = patient.run("--quick")

    assert done.returncode == 1
    lines = done.stdout.splitlines()
    at = next(number for number, line in enumerate(lines) if line.startswith("FAIL  broker"))
    assert lines[at + 1].strip().startswith("-> start it")
    assert lines[-1].endswith("failing")
