"""A broker and the daemon of bench/free_daemon.py, asked over MQTT: what the machinery takes."""

import json
import sys
import threading
import time
import urllib.request
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from bench.raw_queue import first_picture
from bench.used import core_seconds
from demos.client.link import Link
from demos.stack import Stack

TASK = "image_embedding"
SECONDS = 120.0
"""For whatever is waited for."""


class _FreeStack(Stack):
    def start_daemon(self) -> None:
        self._start("daemon", [sys.executable, "-m", "bench.free_daemon"])


class FreeRig:
    """Asks for jobs and waits for their events."""

    def __init__(self, stack: Stack) -> None:
        self._stack = stack
        self._next = first_picture()
        self._changed = threading.Condition()
        self._seen: dict[str, float] = {}
        self._accepted = self._completed = 0
        self._heard = threading.Event()
        self._link = Link(
            f"mqtt://127.0.0.1:{stack.broker_port}",
            on_message=self._came,
            on_heard=lambda _topics: self._heard.set(),
            on_refused=lambda _topic, _reason: None,
            on_lost=lambda _reason: None,
        )

    def open(self) -> None:
        """Return once nothing is missed any more.

        Raises:
            RuntimeError: the broker does not answer.
        """
        self._link.open()
        for topic in ("inference/job/+/accepted", "inference/job/+/completed", "inference/bench"):
            self._heard.clear()
            self._link.listen(topic)
            if not self._heard.wait(SECONDS):
                raise RuntimeError("the broker does not answer")

    def close(self) -> None:
        """Say goodbye."""
        self._link.close()

    def pause(self) -> None:
        """Let jobs wait."""
        self._post("pause")

    def resume(self) -> None:
        """Let them run."""
        self._post("resume")

    def seconds_to_accept(self, count: int, size: int) -> float:
        """Ask for jobs, so many a message; return the seconds until all are durable."""
        messages = [self._requests(size) for _ in range(count // size)]
        before, began = self._accepted, time.perf_counter()
        for message in messages:
            self._ask(message)
        self._wait(lambda: self._accepted >= before + count)
        return time.perf_counter() - began

    def core_ms(self, jobs: int) -> float:
        """Return what the daemon uses of the cores a job, from request to last event."""
        before = self._completed
        used = self._used()
        self.pause()
        self.seconds_to_accept(jobs, jobs)
        self.resume()
        self._wait(lambda: self._completed >= before + jobs)
        self._settle()
        return (self._used() - used) * 1000 / jobs

    def milliseconds_of_one(self) -> float:
        """Return the time from one request to its job's `completed`, while nothing else runs."""
        message = self._requests(1)
        job_id = message[0]["job_id"]
        began = time.perf_counter()
        self._ask(message)
        self._wait(lambda: f"{job_id}/completed" in self._seen)
        return (self._seen.pop(f"{job_id}/completed") - began) * 1000

    def round_trip_ms(self) -> float:
        """Return the time of a message of the same size to the broker and back, with QoS 1."""
        mark = str(uuid.uuid4())
        began = time.perf_counter()
        self._link.publish("inference/bench", mark + 400 * ".", about="a message")
        self._wait(lambda: mark in self._seen)
        return (self._seen.pop(mark) - began) * 1000

    def _settle(self) -> None:
        while self._queue()["outbox"]:
            time.sleep(0.05)

    def _requests(self, size: int) -> list[dict[str, object]]:
        numbers = range(self._next, self._next + size)
        self._next += size
        return [{"media_store_id": each, "job_id": str(uuid.uuid4())} for each in numbers]

    def _ask(self, requests: Sequence[dict[str, object]]) -> None:
        body = requests[0] if len(requests) == 1 else {"requests": requests}
        self._link.publish(f"inference/request/{TASK}", json.dumps(body), about="requests")

    def _came(self, topic: str, payload: bytes) -> None:
        now = time.perf_counter()
        with self._changed:
            if topic == "inference/bench":
                self._seen[payload[:36].decode()] = now
            elif topic.endswith("accepted"):
                self._accepted += 1
            else:
                self._completed += 1
                self._seen[topic.removeprefix("inference/job/")] = now
            self._changed.notify_all()

    def _wait(self, fact: Callable[[], bool]) -> None:
        with self._changed:
            if not self._changed.wait_for(fact, SECONDS):
                raise RuntimeError(f"not within {SECONDS:g} s")

    def _used(self) -> float:
        return core_seconds(self._stack.pid("daemon"))

    def _queue(self) -> dict[str, int]:
        with urllib.request.urlopen(f"{self._stack.inferd_url}/queue", timeout=10) as answer:
            return dict(json.load(answer))

    def _post(self, verb: str) -> None:
        url = f"{self._stack.inferd_url}/queue/{TASK}/{verb}"
        with urllib.request.urlopen(urllib.request.Request(url, method="POST"), timeout=10):
            pass


@contextmanager
def free_rig(folder: Path) -> Iterator[FreeRig]:
    """Give a rig whose parts are up.

    Raises:
        StackError: they do not come up.
    """
    environ = {"INFERD_WORKER__TASK_TYPES": TASK, "INFERD_LOG__LEVEL": "warning"}
    with _FreeStack(folder / "stack", environ) as stack:
        rig = FreeRig(stack)
        rig.open()
        try:
            yield rig
        finally:
            rig.close()
