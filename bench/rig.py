"""inferd as a whole for a measurement: broker, media store and daemon, asked over MQTT.

What is timed is from the first request's publication to the last job's `completed` event, with
everything durable and every vector stored.
"""

import json
import os
import threading
import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from bench.used import core_seconds, own_core_seconds
from demos.client import upload
from demos.client.link import Link
from demos.stack import Stack

REQUESTS_A_MESSAGE = 1000
AROUND = ("broker", "media store")
PARTS = ("daemon", *AROUND)
ANSWER_SECONDS = 20.0
END_SECONDS = 200.0
"""Less than a section has, so that one that hangs says what the daemon said."""
LEAST_OF_A_LINE = 3


@dataclass(frozen=True, slots=True)
class Took:
    """What some jobs took."""

    jobs: int
    seconds: float
    core_seconds: Mapping[str, float]
    """By part: daemon (with its decoders), broker, media store, bench."""
    events: Sequence[Mapping[str, Any]]
    """The jobs' last events."""
    ended: Sequence[float]
    """When each of them came, in seconds since the first request."""

    @property
    def rate(self) -> float:
        """Jobs a second."""
        return self.jobs / self.seconds

    @property
    def rate_in_full_swing(self) -> float:
        """Jobs a second of the middle, by the line that fits its ends best.

        Without the first tenth of the ends, and the last. They come in batches, so that the time
        between any two of them would say more of where a batch ended than of the speed.
        """
        times = sorted(self.ended)
        tenth = len(times) // 10
        middle = np.array(times[tenth : len(times) - tenth])
        if len(middle) < LEAST_OF_A_LINE or middle[-1] <= middle[0]:
            return self.rate
        return float(np.polyfit(middle, np.arange(len(middle)), 1)[0])

    def core_ms(self, *parts: str) -> float:
        """Return core-milliseconds a job of some parts."""
        return 1000 * sum(self.core_seconds[part] for part in parts) / self.jobs


class Rig:
    """A running inferd, and a client that counts what it completes."""

    def __init__(self, stack: Stack, link: Link, ended: "_Ended") -> None:
        self.stack = stack
        self._link = link
        self._ended = ended

    def put(self, files: Sequence[bytes], count: int) -> list[int]:
        """Upload so many pictures, each file again and again; return their ids."""
        url = self.stack.media_store_url
        ids = [upload(url, files[number % len(files)], f"{number}.bin") for number in range(count)]
        # Otherwise the kernel writes them to the disk while something is timed.
        os.sync()
        return ids

    def run(
        self,
        wanted: Sequence[tuple[str, int]],
        *,
        seconds: float = END_SECONDS,
        may_fail: bool = False,
    ) -> Took:
        """Ask for jobs, each a task type and an id, and wait until all have ended.

        Raises:
            RuntimeError: they did not end in time, or one failed.
        """
        messages: dict[str, list[dict[str, object]]] = {}
        for task, media_store_id in wanted:
            request = {"media_store_id": media_store_id, "job_id": str(uuid.uuid4())}
            messages.setdefault(task, []).append(request)
        ids = {str(each["job_id"]) for some in messages.values() for each in some}
        self._ended.expect(ids)
        used, began = self._used(), time.monotonic()
        for task, requests in messages.items():
            for start in range(0, len(requests), REQUESTS_A_MESSAGE):
                some = requests[start : start + REQUESTS_A_MESSAGE]
                payload = json.dumps({"requests": some})
                self._link.publish(f"inference/request/{task}", payload, about="a batch")
        try:
            events = self._ended.wait(seconds)
        except TimeoutError as error:
            raise RuntimeError(f"{error}; the daemon:\n{self.stack.last_words('daemon')}") from None
        took = time.monotonic() - began
        spent = {part: now - used[part] for part, now in self._used().items()}
        if not may_fail and (bad := [each for each in events if each["status"] != "completed"]):
            raise RuntimeError(f"{len(bad)} jobs failed, the first so: {bad[0]}")
        ended = [each - began for each in self._ended.times]
        return Took(len(wanted), took, spent, events, ended)

    def _used(self) -> dict[str, float]:
        used = {part: core_seconds(self.stack.pid(part)) for part in PARTS}
        return used | {"bench": own_core_seconds()}


@contextmanager
def running(folder: Path, environ: Mapping[str, str]) -> Iterator[Rig]:
    """Give inferd with its models loaded.

    Args:
        folder: everything lies in it.
        environ: its settings beside this process's INFERD_ ones.

    Raises:
        StackError: it does not come up.
    """
    ended = _Ended()
    with Stack(folder, environ) as stack:
        link = Link(
            f"mqtt://127.0.0.1:{stack.broker_port}",
            on_message=ended.message,
            on_heard=lambda _topics: ended.heard.set(),
            on_refused=lambda _topic, reason: ended.refuse(reason),
            on_lost=lambda _reason: None,
        )
        link.open()
        try:
            stack.wait_for_models(seconds=END_SECONDS)
            link.listen("inference/job/+/completed")
            if not ended.heard.wait(ANSWER_SECONDS):
                raise RuntimeError("the broker does not answer")
            yield Rig(stack, link, ended)
        finally:
            link.close()


class _Ended:
    """Collects the last events of the jobs that are expected; paho's thread tells them."""

    def __init__(self) -> None:
        self.heard = threading.Event()
        self._changed = threading.Condition()
        self._missing: set[str] = set()
        self._payloads: list[bytes] = []
        self.times: list[float] = []
        """When the events came, by time.monotonic()."""
        self._refusal = ""

    def expect(self, job_ids: set[str]) -> None:
        with self._changed:
            self._missing = set(job_ids)
            self._payloads, self.times = [], []

    def message(self, topic: str, payload: bytes) -> None:
        # Only kept: what is read of it here would cost the cores that are measured.
        job_id = topic.split("/")[2]
        with self._changed:
            if job_id in self._missing:
                self._missing.discard(job_id)
                self._payloads.append(payload)
                self.times.append(time.monotonic())
                if not self._missing:
                    self._changed.notify_all()

    def refuse(self, reason: str) -> None:
        with self._changed:
            self._refusal = reason
            self._changed.notify_all()

    def wait(self, seconds: float) -> list[Mapping[str, Any]]:
        with self._changed:
            self._changed.wait_for(lambda: not self._missing or self._refusal, seconds)
            if self._refusal:
                raise RuntimeError(f"the broker refuses a request: {self._refusal}")
            if self._missing:
                some = ", ".join(sorted(self._missing)[:3])
                raise TimeoutError(
                    f"{len(self._missing)} jobs did not end in {seconds:.0f} s, such as {some}"
                )
            return [json.loads(payload) for payload in self._payloads]
