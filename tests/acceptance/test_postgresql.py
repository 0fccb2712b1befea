"""Daemons over PostgreSQL: what a client sees when one of them dies, or their server does."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from urllib.request import urlopen

import pytest

from tests.acceptance.conftest import PICTURE
from tests.acceptance.rig import (
    ROOT,
    Daemon,
    Held,
    MediaStore,
    ask,
    events,
    finished,
)
from tests.broker import Broker, Client
from tests.exposition import Exposition
from tests.postgresql import Cluster, schema_of
from tests.waiting import wait_until

JOBS = range(10, 18)


@pytest.fixture
def mortal() -> Iterator[Cluster]:
    """Return a server of the test's own, which keeps what it acknowledged."""
    with Cluster(fsync=True) as opened:
        yield opened


def states(cluster: Cluster, url: str) -> str:
    return cluster.psql("SELECT status, count(*) FROM jobs GROUP BY 1", schema=schema_of(url))


def test_a_daemon_that_is_killed_completes_its_job_once_after_a_restart(
    tmp_path: Path,
    broker: Broker,
    client: Client,
    media_store: MediaStore,
    cluster: Cluster,
) -> None:
    url = cluster.schema()
    held = Held(media_store.behaviours[PICTURE])
    media_store.behaviours[2] = held
    with Daemon(tmp_path, broker, media_store, INFERD_QUEUE__URL=url) as daemon:
        asked = ask(client, 2)
        media_store.wait_until(lambda: 2 in media_store.fetched)

        daemon.kill()
        held.release()
        daemon.start()

        assert finished(client, asked)["status"] == "completed"
        assert daemon.job(asked.job_id)["status"] == "completed"
        finished(client, ask(client, PICTURE))
        assert events(client, asked).count("completed") == 1
        assert daemon.request("GET", "/health/ready")[0] == 200
        with urlopen(f"http://127.0.0.1:{daemon.port}/metrics") as answer:
            metrics = Exposition(answer.read().decode())
        assert metrics.value("inferd_postgresql_acquires_total") > 0
        assert daemon.terminate() == 0
    assert not (tmp_path / "data" / "queue.db").exists()
    assert cluster.psql("SELECT count(*) FROM outbox", schema=schema_of(url)) == "0"


def test_when_its_server_dies_nothing_is_lost_and_it_goes_on_by_itself(
    tmp_path: Path,
    broker: Broker,
    client: Client,
    media_store: MediaStore,
    mortal: Cluster,
) -> None:
    url = mortal.schema()
    held = Held(media_store.behaviours[PICTURE])
    media_store.behaviours[2] = held
    for number in JOBS:
        media_store.behaviours[number] = media_store.behaviours[PICTURE]
    with Daemon(
        tmp_path, broker, media_store, INFERD_QUEUE__URL=url, INFERD_QUEUE__LEASE_SECONDS="3"
    ) as daemon:
        running = ask(client, 2)
        media_store.wait_until(lambda: 2 in media_store.fetched)

        mortal.kill()
        meanwhile = [ask(client, number) for number in JOBS]
        # What it runs is finished, and kept until it can be stored.
        held.release()
        wait_until(lambda: daemon.request("GET", "/health/ready")[0] == 503, 60)
        assert not [name for each in meanwhile for name in events(client, each)]
        mortal.start()

        for each in (running, *meanwhile):
            assert finished(client, each)["status"] == "completed"
        wait_until(lambda: daemon.request("GET", "/health/ready")[0] == 200, 60)
        assert states(mortal, url) == f"completed|{1 + len(JOBS)}"
        assert daemon.terminate() == 0


def test_of_two_daemons_on_one_queue_one_dies_and_the_other_does_all(
    tmp_path: Path,
    broker: Broker,
    client: Client,
    media_store: MediaStore,
    cluster: Cluster,
) -> None:
    url = cluster.schema()
    held = Held(media_store.behaviours[PICTURE])
    for number in JOBS:
        media_store.behaviours[number] = held
    first, second = (
        Daemon(
            tmp_path / name,
            broker,
            media_store,
            INFERD_QUEUE__URL=url,
            INFERD_QUEUE__LEASE_SECONDS="2",
            INFERD_MQTT__CLIENT_ID=f"inferd-{name}",
            INFERD_WORKER__MAX_IN_FLIGHT="4",
        )
        for name in ("one", "two")
    )
    for daemon in (first, second):
        daemon.folder.mkdir()
    with first, second:
        asked = [ask(client, number) for number in JOBS]
        media_store.wait_until(lambda: set(JOBS) <= set(media_store.fetched))

        first.kill()
        held.release()

        for each in asked:
            assert finished(client, each)["status"] == "completed"
        assert second.terminate() == 0
    assert states(cluster, url) == f"completed|{len(JOBS)}"
    assert cluster.psql("SELECT count(*) FROM outbox", schema=schema_of(url)) == "0"


def test_the_doctor_looks_at_the_server(tmp_path: Path, cluster: Cluster) -> None:
    url = cluster.schema()

    def doctor(where: str) -> str:
        kept = {k: v for k, v in os.environ.items() if not k.startswith("INFERD_")}
        done = subprocess.run(
            [sys.executable, "-m", "daemon", "doctor", "--quick"],
            cwd=ROOT,
            env={
                **kept,
                "AUTH_DISABLED": "true",
                "INFERD_DATA_DIR": str(tmp_path),
                "INFERD_QUEUE__URL": where,
                "INFERD_MQTT__URL": "mqtt://127.0.0.1:1",
                "INFERD_OFFLINE": "true",
            },
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        assert "Traceback" not in done.stdout + done.stderr
        return done.stdout + done.stderr

    assert "no queue yet" in doctor(url)
    wrong = doctor(url.replace("/postgres?", "/nobodys?").replace("//inferd@", "//inferd:s3cret@"))
    assert "nobodys" in wrong
    assert "s3cret" not in wrong
