"""`python -m bench.memory models`: what models keep in memory, loaded and after idle unloading.

CLIP with random weights, then face models of buffalo_l's shapes and random weights, each in a
daemon of its own that unloads them after some idle seconds, again and again. Beside them: a process
that has imported the same libraries and never had a model, since a library stays once it is there.
"""

import subprocess
import sys
import time
from pathlib import Path

from bench.face_models import save_detector, save_recogniser
from bench.table import show
from tests.acceptance.rig import Daemon, MediaStore
from tests.broker import Broker
from tests.hostile import watch
from tests.waiting import wait_until

HEAD = ("", "resident MB", "own MB", "files MB")
ROUNDS = 3
IDLE_SECONDS = 4
SECONDS = 120.0
LIBRARIES = {
    "CLIP": "from handlers.clip.vendors import load_vendors; load_vendors()",
    "faces": "import onnxruntime, insightface, cv2",
}


def models(folder: Path, broker: Broker, store: MediaStore) -> None:
    """Show both kinds of models: never loaded, loaded, unloaded, and so on."""
    faces = {
        "INFERD_FACES__DETECTOR": str(save_detector(folder / "detector.onnx", faces=1)),
        "INFERD_FACES__RECOGNISER": str(save_recogniser(folder / "recogniser.onnx")),
    }
    for title, task, environ in (
        ("CLIP", "image_embedding", {}),
        ("faces", "face_embedding", faces),
    ):
        (folder / title).mkdir()
        settings = {
            **environ,
            "INFERD_WORKER__TASK_TYPES": task,
            "INFERD_MODELS_IDLE_SECONDS": str(IDLE_SECONDS),
        }
        rows = _come_and_go(Daemon(folder / title, broker, store, **settings), task)
        rows.append(_only_libraries(LIBRARIES[title]))
        show(f"{title}: models idle for {IDLE_SECONDS} s are unloaded", HEAD, rows)


def _come_and_go(daemon: Daemon, task: str) -> list[list[str]]:
    rows = []
    daemon.launch()
    try:
        running = daemon.wait_for_log(lambda line: line["message"] == "inferd is running")
        daemon.port = running["port"]
        pid = _pid(daemon)
        rows.append(_row("started, nothing imported yet", pid))
        for number in range(ROUNDS):
            _do(daemon, task, number + 1)
            rows.append(_row(f"loaded, {number + 1}", pid))
            wait_until(lambda: not _loaded(daemon), SECONDS)
            # The last of it is given back by the lane's thread.
            time.sleep(1)
            rows.append(_row(f"unloaded, {number + 1}", pid))
    finally:
        daemon.terminate()
    return rows


def _pid(daemon: Daemon) -> int:
    process = daemon._process  # noqa: SLF001 - the rig tells it to nobody else
    if process is None:
        raise SystemExit("the daemon ended")
    return process.pid


def _do(daemon: Daemon, task: str, media_store_id: int) -> None:
    _, job = daemon.request("POST", f"/job/{task}", {"media_store_id": media_store_id})
    wait_until(lambda: daemon.job(job["job_id"])["status"] == "completed", SECONDS)


def _loaded(daemon: Daemon) -> bool:
    _, health = daemon.request("GET", "/health")
    told = health["checks"]["models"].values()
    return any(each["loaded"] for each in told if isinstance(each, dict))


def _row(what: str, pid: int) -> list[str]:
    resident, own = watch.resident(pid), watch.own(pid)
    return [what, *(f"{size / 2**20:.0f}" for size in (resident, own, resident - own))]


def _only_libraries(code: str) -> list[str]:
    process = subprocess.Popen(
        [sys.executable, "-c", f"import daemon.app; {code}; print(flush=True); input()"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    try:
        if process.stdout is not None:
            process.stdout.readline()
        return _row("the daemon's code and libraries alone", process.pid)
    finally:
        process.kill()
        process.wait()
