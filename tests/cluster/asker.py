"""Asker: a careful client that asks in messages of many, and repeats until each is answered."""

import time
import uuid
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice

from tests.broker import Client
from tests.crash.invariants import Expected
from tests.crash.recorder import Heard

TASKS = (
    *("image_embedding", "image_embedding", "face_detection"),
    *("image_embedding", "image_embedding", "face_embedding"),
)
"""Which jobs are asked for, in turn."""
IN_A_MESSAGE = 100
REPEAT_SECONDS = 5.0
"""After which a request that nobody answered is sent again; each time twice as long, up to
LONGEST_SECONDS."""
LONGEST_SECONDS = 20.0
ASK_AGAIN_SECONDS = 10.0
"""After which the end of a job is asked for, by asking for the job again: a broker that dies takes
with it what it had not passed on."""


def jobs(count: int) -> list[Expected]:
    """Return so many jobs, each of a picture of its own, to be asked for."""
    return [
        Expected(str(uuid.uuid4()), TASKS[number % len(TASKS)], number, "completed", faces=1)
        for number in range(1, count + 1)
    ]


class Asker:
    """Asks for jobs, all of which must complete."""

    def __init__(self, client: Client, heard: Heard, wanted: Sequence[Expected]) -> None:
        """Take who asks, what it hears, and what it asks for."""
        self._client, self._heard = client, heard
        self._wanted = wanted
        self._fresh = iter(wanted)
        self._open: dict[str, Expected] = {}
        self._due: dict[str, tuple[float, float]] = {}
        """When each is to be asked for again, and after how long the last time."""
        self.asked = 0
        """How many were asked for."""
        self.done = 0
        """How many are known to have ended."""
        self.repeats = 0

    def step(self, most_open: int, most_asked: int) -> None:
        """Listen, repeat what nobody answered, and ask for more while few are open.

        Args:
            most_open: how many may be asked for and not ended.
            most_asked: how many may be asked for by now.
        """
        self._heard.listen()
        now, late = time.monotonic(), list[Expected]()
        for job_id, each in list(self._open.items()):
            if self._heard.ended(job_id):
                del self._open[job_id]
                self.done += 1
            else:
                answered = self._heard.is_answered(job_id)
                due, waited = self._due[job_id]
                if now > due + (ASK_AGAIN_SECONDS if answered else 0):
                    longer = min(2 * waited, LONGEST_SECONDS)
                    self._due[job_id] = now + longer, longer
                    late.append(each)
        self.repeats += len(late)
        room = min(most_open - len(self._open), most_asked - self.asked)
        fresh = list(islice(self._fresh, max(0, room)))
        self.asked += len(fresh)
        self._open |= {each.job_id: each for each in fresh}
        self._due |= {each.job_id: (now + REPEAT_SECONDS, REPEAT_SECONDS) for each in fresh}
        self._ask([*late, *fresh])

    def finish(
        self,
        until: Callable[[], bool],
        most_open: int,
        most_asked: Callable[[], int],
        seconds: float,
    ) -> None:
        """Step until something is true.

        Raises:
            AssertionError: it does not become true in time.
        """
        deadline = time.monotonic() + seconds
        while not until():
            assert time.monotonic() < deadline, (
                f"{self.done} of {len(self._wanted)} ended within {seconds:g} s"
            )
            self.step(most_open, most_asked())
            time.sleep(0.05)

    def _ask(self, wanted: Iterable[Expected]) -> None:
        by_task: dict[str, list[Expected]] = {}
        for each in wanted:
            by_task.setdefault(each.task_type, []).append(each)
        for task, group in by_task.items():
            for part in _parts(group, IN_A_MESSAGE):
                requests = [
                    {"media_store_id": each.media_id, "job_id": each.job_id} for each in part
                ]
                # Not waited for: while the broker is away paho keeps it.
                self._client.send(f"inference/request/{task}", {"requests": requests})


def _parts(group: Sequence[Expected], size: int) -> Iterator[Sequence[Expected]]:
    for start in range(0, len(group), size):
        yield group[start : start + size]
