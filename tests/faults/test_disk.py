"""Disks fill up and files are locked: nothing is lost, the fault is named, and then all goes on."""

import os
import sqlite3
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.acceptance.rig import ROOT, Held, MediaStore, answer
from tests.broker import Broker
from tests.faults.disk import fill, small_disk
from tests.faults.invariants import check_all
from tests.faults.rig import Asker, FaultyDaemon, picture

LASTS = 6.0
"""Seconds: twice as long as a lease."""


def test_a_full_disk_under_the_queue_is_named_and_then_all_goes_on(
    tmp_path: Path, broker: Broker, media_store: MediaStore, asker: Asker
) -> None:
    held = Held(answer(200, picture(35), "image/png"))
    media_store.behaviours[35] = held
    with small_disk(tmp_path / "disk", "8m") as disk:
        daemon = FaultyDaemon(
            tmp_path,
            broker,
            media_store,
            INFERD_QUEUE__URL=f"sqlite:///{disk / 'queue.db'}",
            INFERD_QUEUE__LEASE_SECONDS="3",
        )
        with daemon:
            asker.ask_all(range(1, 4))
            running = asker.ask(35)
            media_store.wait_until(lambda: 35 in media_store.fetched)

            ballast = fill(disk)
            # One that runs ends while its end cannot be written; others come and cannot be stored.
            held.release()
            asker.ask_all(range(4, 30))
            report = daemon.wait_for_health(lambda report: not report["checks"]["database"]["ok"])
            time.sleep(LASTS)
            pid = daemon.pid
            ballast.unlink()

            asker.settle()
            daemon.wait_for_health(lambda report: report["status"] == "ok")
            assert "full" in report["checks"]["database"]["message"]
            assert daemon.pid == pid
            assert daemon.terminate() == 0
        with sqlite3.connect(disk / "queue.db") as file:
            (told,) = file.execute(
                "SELECT attempt, lost FROM jobs WHERE job_id = ?", (running.job_id,)
            )
        file.close()
        assert told == (1, 0), "a full disk cost a job an attempt"
        (tmp_path / "data" / "queue.db").write_bytes((disk / "queue.db").read_bytes())
        check_all(tmp_path / "data", asker.promises, asker.client.received)


@pytest.mark.long
def test_a_full_disk_under_the_vectors_buries_nothing(
    tmp_path: Path, broker: Broker, media_store: MediaStore, asker: Asker
) -> None:
    data = tmp_path / "data"
    with small_disk(data / "vectors", "300m") as disk:
        with FaultyDaemon(tmp_path, broker, media_store) as daemon:
            asker.ask_all(range(1, 4))
            asker.settle()
            pid = daemon.pid

            ballast = fill(disk)
            asker.ask_all(range(4, 40))
            report = daemon.wait_for_health(lambda report: not report["checks"]["vectors"]["ok"])
            assert "is full" in report["checks"]["vectors"]["message"]
            time.sleep(LASTS)
            assert daemon.request("GET", "/job?status=error")[1]["jobs"] == []
            ballast.unlink()

            asker.settle()
            assert daemon.pid == pid
            assert daemon.terminate() == 0
        check_all(data, asker.promises, asker.client.received)


@pytest.mark.long
def test_a_full_disk_under_the_log_stops_nothing(
    tmp_path: Path, broker: Broker, media_store: MediaStore, asker: Asker
) -> None:
    with FaultyDaemon(tmp_path, broker, media_store, INFERD_HTTP__PORT="0") as daemon:
        daemon.terminate()
        with Path("/dev/full").open("wb", buffering=0) as full:
            daemon.launch(stderr=full)

            asker.ask_all(range(1, 6))

            asker.settle()
            assert daemon.terminate() == 0
    check_all(tmp_path / "data", asker.promises, asker.client.received)


def test_a_queue_that_another_process_holds_locked_is_named_and_waited_for(
    tmp_path: Path, broker: Broker, media_store: MediaStore, asker: Asker
) -> None:
    held = Held(answer(200, picture(35), "image/png"))
    media_store.behaviours[35] = held
    daemon = FaultyDaemon(
        tmp_path,
        broker,
        media_store,
        INFERD_QUEUE__LEASE_SECONDS="3",
        TEST_BUSY_TIMEOUT_MS="500",
    )
    with daemon:
        running = asker.ask(35)
        media_store.wait_until(lambda: 35 in media_store.fetched)
        other = sqlite3.connect(tmp_path / "data" / "queue.db", isolation_level=None)
        other.execute("BEGIN IMMEDIATE")

        held.release()
        asker.ask_all(range(1, 4))
        report = daemon.wait_for_health(lambda report: not report["checks"]["database"]["ok"])
        time.sleep(LASTS)
        other.execute("ROLLBACK")
        other.close()

        asker.settle()
        daemon.wait_for_health(lambda report: report["status"] == "ok")
        assert "locked" in report["checks"]["database"]["message"]
        assert daemon.terminate() == 0
    check_all(tmp_path / "data", asker.promises, asker.client.received)
    with sqlite3.connect(tmp_path / "data" / "queue.db") as file:
        (told,) = file.execute("SELECT attempt, lost FROM jobs WHERE job_id=?", (running.job_id,))
    file.close()
    assert told == (1, 0), "a lock cost a job an attempt"


def test_a_queue_that_cannot_be_written_is_refused_at_the_start(
    tmp_path: Path, broker: Broker, media_store: MediaStore
) -> None:
    with small_disk(tmp_path / "disk", "8m") as disk:
        daemon = FaultyDaemon(
            tmp_path, broker, media_store, INFERD_QUEUE__URL=f"sqlite:///{disk / 'queue.db'}"
        )
        with daemon:
            daemon.terminate()
        subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)

        daemon.launch()

        assert daemon.wait() == os.EX_CONFIG
        assert str(disk / "queue.db") in daemon.text()
        assert "Traceback" not in daemon.text()


@pytest.mark.long
def test_doctor_names_a_full_disk(tmp_path: Path, broker: Broker, media_store: MediaStore) -> None:
    with small_disk(tmp_path / "disk", "8m") as disk:
        daemon = FaultyDaemon(
            tmp_path, broker, media_store, INFERD_QUEUE__URL=f"sqlite:///{disk / 'queue.db'}"
        )
        with daemon:
            fill(disk)
            said = subprocess.run(
                [sys.executable, "-m", "tests.faults.daemon", "doctor"],
                cwd=ROOT,
                env=daemon.environ,
                capture_output=True,
                text=True,
                timeout=120,
                check=False,
            )
    assert "full" in said.stdout or "space" in said.stdout, said.stdout
