"""The daemon as a subprocess, a media store that misbehaves on request, and a client outside."""

import contextlib
import http.server
import json
import os
import signal
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from tests.broker import Broker, Client, Message
from tests.documents import Mqtt, Rest
from tests.http_server import QuietHandler, ThreadedServer

ROOT = Path(__file__).parent.parent.parent
START_SECONDS = 60.0
STOP_SECONDS = 60.0
REST = Rest()
MQTT = Mqtt()

CASCADE_ONLY = {
    "INFERD_WORKER__TASK_TYPES": "face_detection",
    "INFERD_FACES__PACK": "cascade",
    "INFERD_FACES__RECOGNISER": "untrained",
    "INFERD_CLIP__WEIGHTS": "untrained",
    "INFERD_CLIP__PASSES": "2",
    # What auto finds out at each start costs as much as all else that CLIP loads.
    "INFERD_CLIP__PRECISION": "fp32",
    # As conftest.py has it in this process: which runtime is quicker here is no fact of the code.
    "INFERD_FACES__RUNTIME": "onnxruntime",
}
"""The task that starts fastest: no weights, no torch."""


class Daemon:
    """`python -m daemon` over one data folder; may be killed, stopped and started again."""

    def __init__(
        self, folder: Path, broker: Broker, media_store: "MediaStore", **environ: str
    ) -> None:
        self.folder = folder
        kept = {k: v for k, v in os.environ.items() if not k.startswith("INFERD_")}
        self._environ = {
            **kept,
            "AUTH_DISABLED": "true",
            "INFERD_DATA_DIR": str(folder / "data"),
            "INFERD_MQTT__URL": broker.url,
            "INFERD_MQTT__CLIENT_ID": "inferd-test",
            "INFERD_MEDIA_STORE__URL": media_store.url,
            "INFERD_HTTP__PORT": "0",
            "INFERD_LOG__FORMAT": "json",
            "INFERD_OFFLINE": "true",
            "INFERD_QUEUE__BACKOFF_SECONDS": "0.05",
            "INFERD_QUEUE__BACKOFF_MAX_SECONDS": "0.2",
            "INFERD_WORKER__POLL_SECONDS": "0.1",
            **CASCADE_ONLY,
            **environ,
        }
        self._process: subprocess.Popen[bytes] | None = None
        self.port = 0

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        process, self._process = self._process, None
        if process is not None:
            process.kill()
            process.wait()

    def start(self) -> None:
        """Start it; return once it takes requests."""
        lines = len(self.log())
        self.launch()
        started = self.wait_for_log(
            lambda line: line["message"] == "connected to the broker", after=lines
        )
        assert started
        running = [line for line in self.log()[lines:] if line["message"] == "inferd is running"]
        self.port = running[0]["port"]

    def launch(self) -> None:
        """Start it, without waiting."""
        with (self.folder / "daemon.log").open("ab") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "daemon"], cwd=ROOT, env=self._environ, stderr=log
            )

    def kill(self) -> None:
        """End it as a power cut would."""
        self._signal(signal.SIGKILL)

    def terminate(self) -> int:
        """Ask it to stop; return its exit code."""
        return self._signal(signal.SIGTERM)

    def kill_from_outside(self) -> None:
        """End it from another thread; `wait` then returns -9."""
        assert self._process is not None
        self._process.send_signal(signal.SIGKILL)

    def signal_stop(self) -> None:
        """Ask it to stop, without waiting."""
        assert self._process is not None
        self._process.send_signal(signal.SIGTERM)

    def wait(self) -> int:
        """Wait until it ends by itself; return its exit code."""
        assert self._process is not None
        process = self._process
        try:
            return process.wait(START_SECONDS)
        finally:
            process.kill()
            self._process = None

    def log(self) -> list[dict[str, Any]]:
        """Return all log lines so far; each must be a JSON object."""
        path = self.folder / "daemon.log"
        if not path.exists():
            return []
        lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
        return [json.loads(line) for line in lines if line.startswith("{") and line.endswith("\n")]

    def text(self) -> str:
        """Return everything it wrote."""
        return (self.folder / "daemon.log").read_text(encoding="utf-8")

    def wait_for_log(
        self, predicate: Callable[[dict[str, Any]], bool], *, after: int = 0
    ) -> dict[str, Any]:
        """Return the first log line that fits, from line number `after` on."""
        deadline = time.monotonic() + START_SECONDS
        while time.monotonic() < deadline:
            # Asked before the log is read: its last line may be the one.
            has_ended = self._process is not None and self._process.poll() is not None
            for line in self.log()[after:]:
                if predicate(line):
                    return line
            assert not has_ended, self.text()
            time.sleep(0.02)
        raise AssertionError(f"no such log line:\n{self.text()}")

    def request(
        self, method: str, path: str, body: Mapping[str, Any] | None = None
    ) -> tuple[int, Any]:
        """Send a REST request; return status and JSON."""
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(
            f"http://127.0.0.1:{self.port}{path}", data=data, method=method
        )
        try:
            with urllib.request.urlopen(request, timeout=START_SECONDS) as answer:
                status, headers, raw = answer.status, answer.headers, answer.read()
        except urllib.error.HTTPError as error:
            status, headers, raw = error.code, error.headers, error.read()
        found = _json(raw)
        # Whatever any test asks for, the answer must be as the contract says.
        REST.check(method, path, status, found, headers)
        return status, found

    def job(self, job_id: str) -> dict[str, Any]:
        """Return a job as REST shows it."""
        status, job = self.request("GET", f"/job/{job_id}")
        assert status == 200, job
        return dict(job)

    def _signal(self, number: signal.Signals) -> int:
        assert self._process is not None
        self._process.send_signal(number)
        code = self._process.wait(STOP_SECONDS)
        self._process = None
        return code


def _json(data: bytes) -> Any:
    return json.loads(data) if data else None


Behaviour = Callable[[http.server.BaseHTTPRequestHandler], None]
"""Answers one GET of a picture's bytes in whatever way it likes."""


class MediaStore(ThreadedServer):
    """A media store over real HTTP; each picture's bytes come by a behaviour of the test's."""

    def __init__(self) -> None:
        self.behaviours: dict[int, Behaviour] = {}
        self.fetched: list[int] = []
        self.delivered: list[tuple[int, dict[str, Any]]] = []
        self.refuse_results = False
        self._changed = threading.Condition()
        store = self

        class Handler(QuietHandler, http.server.BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                media_id = int(self.path.split("/")[2]) if self.path.count("/") > 1 else -1
                store.note(lambda: store.fetched.append(media_id))
                behaviour = store.behaviours.get(media_id, answer(404, b"{}"))
                with contextlib.suppress(BrokenPipeError, ConnectionResetError):
                    behaviour(self)

            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                media_id = int(self.path.split("/")[2])
                if store.refuse_results:
                    answer(503, b"{}")(self)
                    return
                store.note(lambda: store.delivered.append((media_id, body)))
                answer(200, b'{"status": "accepted"}')(self)

        super().__init__(Handler)

    def put(self, media_id: int, data: bytes, content_type: str = "image/jpeg") -> None:
        """Serve these bytes."""
        self.behaviours[media_id] = answer(200, data, content_type)

    def note(self, change: Callable[[], None]) -> None:
        """Record something and wake who waits for it."""
        with self._changed:
            change()
            self._changed.notify_all()

    def wait_until(self, predicate: Callable[[], bool], seconds: float = 30) -> None:
        """Return once something is true of what was recorded."""
        with self._changed:
            assert self._changed.wait_for(predicate, seconds), (self.fetched, self.delivered)


def answer(status: int, body: bytes, content_type: str = "image/jpeg", **headers: str) -> Behaviour:
    """Answer plainly."""

    def behave(handler: http.server.BaseHTTPRequestHandler) -> None:
        handler.send_response(status)
        handler.send_header("Content-Type", content_type)
        handler.send_header("Content-Length", str(len(body)))
        for name, value in headers.items():
            handler.send_header(name.replace("_", "-"), value)
        handler.end_headers()
        handler.wfile.write(body)

    return behave


class Held:
    """A behaviour that answers only once the test lets it: a job stands still meanwhile."""

    def __init__(self, then: Behaviour) -> None:
        self._then = then
        self._go = threading.Event()

    def __call__(self, handler: http.server.BaseHTTPRequestHandler) -> None:
        assert self._go.wait(60)
        self._then(handler)

    def release(self) -> None:
        self._go.set()


@dataclass(frozen=True)
class Asked:
    """A job that was asked for over MQTT."""

    job_id: str
    media_store_id: int


def ask(client: Client, media_store_id: int, task: str = "face_detection", **body: Any) -> Asked:
    """Ask as a careful client does: own job_id, subscribed before."""
    job_id = body.pop("job_id", None) or str(uuid.uuid4())
    request = {"media_store_id": media_store_id, "job_id": job_id, **body}
    client.publish(f"inference/request/{task}", request)
    return Asked(job_id, media_store_id)


def finished(client: Client, asked: Asked, seconds: float = 60) -> dict[str, Any]:
    """Return the `completed` event of a job."""
    return dict(event_of(client, asked, "completed", seconds).json())


def event_of(client: Client, asked: Asked, event: str, seconds: float = 60) -> Message:
    """Return an event of a job, which must be as the contract says."""
    topic = f"inference/job/{asked.job_id}/{event}"
    found = client.wait_for(lambda message: message.topic == topic, seconds)
    MQTT.check(found.topic, found.payload, qos=found.qos)
    return found


def events(client: Client, asked: Asked) -> list[str]:
    """Return the names of all events of a job so far, in order, but for progress."""
    prefix = f"inference/job/{asked.job_id}/"
    names = [each.event for each in client.received if each.topic.startswith(prefix)]
    return [name for name in names if name != "progress"]
