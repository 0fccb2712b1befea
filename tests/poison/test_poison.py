"""A picture that hangs or kills its model ends alone, in error; a supervisor and we do the rest."""

import contextlib
import signal
import time
import urllib.request
from pathlib import Path

import pytest

from daemon.worker.watchdog import EXIT_STALLED
from tests.acceptance.rig import MediaStore
from tests.broker import Broker
from tests.exposition import Exposition
from tests.faults.rig import Asker
from tests.poison.conftest import GOOD
from tests.poison.daemon import CODE, POISON
from tests.poison.rig import PoisonedDaemon, Supervisor
from tests.waiting import wait_until

ENDS = {
    "hang": (EXIT_STALLED, 4, "0.6"),
    "hang the loop": (EXIT_STALLED, 2, "0.6"),
    "hang with the interpreter": (1, 2, "0.6"),
    "segfault": (-signal.SIGSEGV, 2, "60"),
    "exit": (CODE, 2, "60"),
}
"""By what the picture does: the exit code, how many attempts it is given, and after how many
seconds a call hangs."""
PATIENCE = 150.0
"""For the longest of them: it starts a daemon five times."""
STACKS = {"segfault": "Segmentation fault", "hang with the interpreter": "Timeout"}


@pytest.mark.parametrize("deed", ENDS)
def test_a_picture_that_a_model_cannot_bear_is_buried_and_all_others_complete(
    tmp_path: Path, broker: Broker, media_store: MediaStore, asker: Asker, deed: str
) -> None:
    code, attempts, stall_seconds = ENDS[deed]
    daemon = PoisonedDaemon(
        tmp_path / "d",
        broker,
        media_store,
        TEST_POISON=deed,
        INFERD_WORKER__STALL_SECONDS=stall_seconds,
        INFERD_QUEUE__MAX_ATTEMPTS=str(attempts),
    )
    with daemon:
        good = [asker.ask(media_id) for media_id in GOOD[:6]]
        bad = asker.ask(POISON, code="worker_lost")
        good += [asker.ask(media_id) for media_id in GOOD[6:]]
        others = asker.ask_all(range(1, 4), ("face_detection", "face_embedding"))
        with Supervisor(daemon) as supervisor:
            asker.settle(PATIENCE)

        ends = {promise.job_id: daemon.row(promise.job_id) for promise in (*good, *others)}
        assert {row["status"] for row in ends.values()} == {"completed"}
        # Once beside it at the most, and once alone.
        assert all(row["attempt"] <= 2 for row in ends.values())
        row = daemon.row(bad.job_id)
        assert (row["status"], row["error_code"]) == ("error", "worker_lost")
        assert (row["attempt"], row["lost"]) == (attempts, attempts)
        assert supervisor.codes == [code] * attempts
        if deed in STACKS:
            # Where it was, for whoever mends it.
            assert STACKS[deed] in daemon.text()
            assert "in infer_batch" in daemon.text()


def test_a_hang_is_told_everywhere_and_ends_the_daemon_which_gives_all_others_back(
    tmp_path: Path, broker: Broker, media_store: MediaStore, asker: Asker
) -> None:
    daemon = PoisonedDaemon(
        tmp_path / "d",
        broker,
        media_store,
        TEST_POISON="hang",
        INFERD_WORKER__STALL_SECONDS="3",
        INFERD_CLIP__BATCH_SIZE="1",
    )
    with daemon:
        bad = asker.ask(POISON)
        wait_until(lambda: daemon.request("GET", "/queue")[1]["processing"] == 1)
        good = [asker.ask(media_id) for media_id in GOOD]
        wait_until(lambda: daemon.request("GET", "/queue")[1]["processing"] == 1 + len(GOOD))

        wait_until(lambda: daemon.request("GET", "/health/live")[0] == 503)
        _, live = daemon.request("GET", "/health/live")
        ready, report = daemon.request("GET", "/health/ready")
        with urllib.request.urlopen(f"http://127.0.0.1:{daemon.port}/metrics") as answer:
            metrics = Exposition(answer.read().decode())
        code = daemon.await_exit()
        critical = [line["message"] for line in daemon.log() if line["level"] == "critical"]
        rows = {promise.job_id: daemon.row(promise.job_id) for promise in (bad, *good)}

    assert code == EXIT_STALLED
    assert live["code"] == "model_stalled"
    assert live["message"].startswith("clip has been busy with one call (infer) for ")
    assert (ready, report["checks"]["worker"]["code"]) == (503, "model_stalled")
    assert metrics.value("inferd_model_stalled", model="clip") == 1
    assert metrics.value("inferd_model_stalled", model="face_detector") == 0
    assert metrics.value("inferd_model_call_seconds") >= 3
    assert bad.job_id in critical[0]
    assert "clip hangs: the daemon ends" in critical[1]
    held = rows.pop(bad.job_id)
    assert (held["status"], held["attempt"]) == ("processing", 1)
    assert {(row["status"], row["attempt"], row["lost"]) for row in rows.values()} == {
        ("pending", 0, 0)
    }


def test_clients_hear_that_the_daemon_is_offline(
    tmp_path: Path, broker: Broker, media_store: MediaStore, asker: Asker
) -> None:
    asker.client.subscribe("inference/worker/+/availability")
    daemon = PoisonedDaemon(
        tmp_path / "d",
        broker,
        media_store,
        TEST_POISON="hang",
        INFERD_WORKER__STALL_SECONDS="0.5",
    )
    with daemon:
        asker.ask(POISON)
        assert daemon.await_exit() == EXIT_STALLED

        said = asker.client.wait_for(
            lambda message: message.event == "availability" and message.json()["state"] == "offline"
        )
        # Said by itself: the last will would give another reason, and come later.
        assert said.json()["reason"] == "shutdown"


@pytest.mark.parametrize("stall_seconds", ["0", "100"])
def test_a_model_that_hangs_does_not_keep_a_stop_that_was_asked_for(
    tmp_path: Path, broker: Broker, media_store: MediaStore, asker: Asker, stall_seconds: str
) -> None:
    daemon = PoisonedDaemon(
        tmp_path / "d",
        broker,
        media_store,
        TEST_POISON="hang",
        INFERD_WORKER__STALL_SECONDS=stall_seconds,
        INFERD_WORKER__SHUTDOWN_GRACE_SECONDS="0.2",
    )
    with daemon:
        bad = asker.ask(POISON)
        asker.client.wait_for(
            lambda message: (
                message.event == "progress" and message.json()["data"]["stage"] == "infer"
            )
        )
        assert daemon.terminate() == 0

        row = daemon.row(bad.job_id)
        assert (row["status"], row["attempt"], row["lost"]) == ("pending", 0, 0)
        assert any("is left behind" in line["message"] for line in daemon.log())


def test_a_supervisor_that_stops_a_hanging_daemon_does_not_hide_who_did_it(
    tmp_path: Path, broker: Broker, media_store: MediaStore, asker: Asker
) -> None:
    daemon = PoisonedDaemon(
        tmp_path / "d",
        broker,
        media_store,
        TEST_POISON="hang",
        INFERD_WORKER__STALL_SECONDS="4",
        INFERD_WORKER__SHUTDOWN_GRACE_SECONDS="0.1",
    )
    with daemon:
        bad = asker.ask(POISON)
        wait_until(lambda: daemon.request("GET", "/health/live")[0] == 503)
        # As a probe of Docker or Kubernetes would.
        assert daemon.terminate() == 0
        assert daemon.row(bad.job_id)["status"] == "processing"

        daemon.start()
        wait_until(lambda: daemon.row(bad.job_id)["lost"] == 1)


def test_a_daemon_that_was_frozen_for_long_hung_nowhere(
    tmp_path: Path, broker: Broker, media_store: MediaStore, asker: Asker
) -> None:
    daemon = PoisonedDaemon(
        tmp_path / "d",
        broker,
        media_store,
        TEST_POISON="hang",
        INFERD_WORKER__STALL_SECONDS="1",
    )
    with daemon:
        assert daemon._process is not None
        daemon._process.send_signal(signal.SIGSTOP)
        # Longer than twice the limit, and far shorter than faulthandler waits.
        time.sleep(2.2)
        daemon._process.send_signal(signal.SIGCONT)
        good = asker.ask(GOOD[0])
        with contextlib.suppress(AssertionError):
            wait_until(lambda: daemon._process is None or daemon._process.poll() is not None, 1)
        asker.settle()

        assert daemon.row(good.job_id)["status"] == "completed"
        assert not [line for line in daemon.log() if line["level"] == "critical"]
