"""The daemon over quick models, pictures that say what must come of them, a careful client."""

import io
import subprocess
import sys
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, Protocol

from PIL import Image

from tests.acceptance.rig import ROOT, Daemon
from tests.broker import Client
from tests.faults.stand_ins import SIDE, colour

TASKS = ("image_embedding", "face_detection", "face_embedding")
PATIENCE = 60.0
"""Seconds that a fault may take to heal."""


class Located(Protocol):
    """Anything with a URL: a broker, a media store, a proxy before one."""

    @property
    def url(self) -> str: ...


class FaultyDaemon(Daemon):
    """The daemon as `tests.faults.daemon` starts it; quick to start, all three task types."""

    def __init__(self, folder: Path, broker: Located, media_store: Located, **environ: str) -> None:
        folder.mkdir(exist_ok=True)
        self.clock = folder / "clock"
        ours = {
            "INFERD_WORKER__TASK_TYPES": ",".join(TASKS),
            "INFERD_QUEUE__BACKOFF_SECONDS": "0.2",
            "INFERD_QUEUE__BACKOFF_MAX_SECONDS": "1",
            "INFERD_QUEUE__SYNC_BACKOFF_MAX_SECONDS": "1",
            "INFERD_IMAGES__DECODERS": "1",
            "TEST_CLOCK": str(self.clock),
        }
        # The rig asks them for no more than their URL.
        super().__init__(folder, broker, media_store, **{**ours, **environ})  # type: ignore[arg-type]

    @property
    def environ(self) -> dict[str, str]:
        """What it is started with."""
        return dict(self._environ)

    def environ_without(self, name: str) -> None:
        """Start it without a setting from now on."""
        del self._environ[name]

    def launch(self, *, stderr: IO[bytes] | None = None) -> None:
        """Start it, without waiting; it logs to `stderr` where that is given."""
        with (self.folder / "daemon.log").open("ab") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "tests.faults.daemon"],
                cwd=ROOT,
                env=self._environ,
                stderr=stderr or log,
            )

    @property
    def pid(self) -> int:
        """Its process id; it must run."""
        assert self._process is not None
        assert self._process.poll() is None, self.text()
        return self._process.pid

    def turn_clock(self, seconds: float) -> None:
        """Let its wall clock be off by so much from now on."""
        part = self.clock.with_suffix(".part")
        part.write_text(str(seconds), encoding="ascii")
        part.replace(self.clock)

    def health(self) -> dict[str, Any]:
        """Return the whole report."""
        status, found = self.request("GET", "/health")
        assert status == 200, found
        return dict(found)

    def wait_for_health(
        self, predicate: Callable[[dict[str, Any]], bool], seconds: float = PATIENCE
    ) -> dict[str, Any]:
        """Return the first report that fits."""
        return wait(self.health, predicate, seconds)

    def job_of(self, media_id: int) -> dict[str, Any]:
        """Return the newest job of a picture."""
        status, found = self.request("GET", "/job?limit=1000")
        assert status == 200, found
        return next(job for job in found["jobs"] if job["media_store_id"] == media_id)

    def counters(self) -> dict[str, Any]:
        """Return the retained depths that health knows of the queue."""
        return dict(self.health()["checks"]["database"])


def wait(
    look: Callable[[], dict[str, Any]],
    predicate: Callable[[dict[str, Any]], bool],
    seconds: float = PATIENCE,
) -> dict[str, Any]:
    """Return what `look` saw once it fits."""
    ends_at = time.monotonic() + seconds
    while True:
        seen = look()
        if predicate(seen):
            return seen
        assert time.monotonic() < ends_at, f"not within {seconds} s: {seen}"
        time.sleep(0.1)


def picture(media_id: int, faces: int = 1) -> bytes:
    """Return a PNG that the stand-ins read their answer from."""
    buffer = io.BytesIO()
    Image.new("RGB", (SIDE, SIDE), colour(media_id, faces)).save(buffer, "PNG")
    return buffer.getvalue()


@dataclass(frozen=True)
class Promise:
    """What was asked for, and how it must end."""

    job_id: str
    task: str
    media_id: int
    faces: int = 1
    code: str | None = None
    """The code of its error; None where it must be completed."""


@dataclass
class Asker:
    """Asks as a careful client does: repeats with the same job_id until accepted or rejected."""

    client: Client
    promises: dict[str, Promise] = field(default_factory=dict)
    _sent: list[int] = field(default_factory=list)
    _over_rest: set[str] = field(default_factory=set)

    def ask(
        self,
        media_id: int,
        task: str = "image_embedding",
        *,
        faces: int = 1,
        code: str | None = None,
    ) -> Promise:
        """Publish a request once; `settle` repeats it where need be."""
        promise = Promise(str(uuid.uuid4()), task, media_id, faces, code)
        self.promises[promise.job_id] = promise
        self._send(promise)
        return promise

    def promise_over_rest(self, daemon: FaultyDaemon, media_id: int) -> Promise:
        """Ask over REST, whose answer is the acceptance."""
        status, job = daemon.request(
            "POST", "/job/image_embedding", {"media_store_id": media_id, "priority": 5}
        )
        assert status == 201, job
        promise = Promise(job["job_id"], "image_embedding", media_id)
        self.promises[promise.job_id] = promise
        self._over_rest.add(promise.job_id)
        return promise

    def confirm(self) -> None:
        """Return once the broker acknowledged everything that was sent."""
        while self._sent:
            self.client.confirm(self._sent.pop(), seconds=PATIENCE)

    def ask_all(self, media_ids: range, tasks: tuple[str, ...] = TASKS) -> list[Promise]:
        """Ask for all tasks of some pictures."""
        return [self.ask(media_id, task) for media_id in media_ids for task in tasks]

    def accepted(self) -> set[str]:
        """Return the job_ids whose acceptance was heard."""
        return self._heard("accepted")

    def ended(self) -> set[str]:
        """Return the job_ids whose end was heard, be it in the answer to a repetition."""
        return self._heard("completed") | {
            message.topic.split("/")[2]
            for message in self.client.received
            if message.event == "accepted"
            and message.json()["data"]["status"] in ("completed", "error", "sync_failed")
        }

    def settle(self, seconds: float = PATIENCE) -> None:
        """Repeat what did not end yet until every job has told its end."""
        ends_at = time.monotonic() + seconds
        repeat_at = time.monotonic() + 5
        while missing := self.promises.keys() - self.ended():
            now = time.monotonic()
            assert now < ends_at, f"{len(missing)} without an end after {seconds} s: {missing}"
            if now > repeat_at:
                repeat_at = now + 5
                for job_id in missing - self._over_rest:
                    self._send(self.promises[job_id])
            time.sleep(0.1)

    def _send(self, promise: Promise) -> None:
        body = {"media_store_id": promise.media_id, "job_id": promise.job_id}
        self._sent.append(self.client.send(f"inference/request/{promise.task}", body))

    def _heard(self, event: str) -> set[str]:
        return {
            message.topic.split("/")[2]
            for message in self.client.received
            if message.topic.startswith("inference/job/") and message.event == event
        }
