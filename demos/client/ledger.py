"""What is under way of a bulk submission, and what of it is due: pure, without threads or a clock.

Everything here is guarded by the lock of whoever owns the ledger. Times are those of
`time.monotonic`.
"""

import json
import math
import random
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from daemon.jobs import JsonObject
from demos.client.errors import RejectedError
from demos.client.outcomes import Outcome, Submitted

FIRST_REPEAT_SECONDS = 5.0
LONGEST_REPEAT_SECONDS = 30.0
PATIENCE_SECONDS = 15.0
"""Age of a request before it is repeated although answers to others are coming."""
BUSY_SECONDS = 1.0
"""Answers that are no older than this are coming."""
LINGER_SECONDS = 1.0
"""How long a batch that is not full waits for more while others are unanswered."""
PAUSE_SECONDS = 0.02
"""So long nothing more came: the source has paused, and what is there may go."""
BATCH_OVERHEAD = 16
"""Bytes of a batch around its requests, and more than enough."""

T = TypeVar("T")


@dataclass(slots=True, eq=False)
class Entry(Generic[T]):
    """One request that is under way."""

    tag: T
    request: Mapping[str, Any]
    """As for `InferdClient.submit`, with its job_id."""
    task_type: str
    text: str
    """The request as JSON, without what holds for its first time only."""
    first: str
    """The same with it."""
    deadline: float
    asked_at: float = math.inf
    next_ask: float = 0.0
    repeat: float = FIRST_REPEAT_SECONDS
    submitted: Submitted | None = None
    is_careful: bool = False
    """Somebody asks for it one by one, and will see its end."""

    @property
    def job_id(self) -> str:
        """The job's id."""
        return str(self.request["job_id"])


class Ledger(Generic[T]):
    """The requests that are under way, by job_id.

    Args:
        batch: most requests of one message.
        max_bytes: most bytes of one message.
        timeout: seconds a request may be without an answer.
        wait: until the jobs end; else until they are accepted.
    """

    def __init__(self, *, batch: int, max_bytes: int, timeout: float, wait: bool) -> None:
        self.max_bytes = max_bytes
        self._batch, self._timeout, self._wait = batch, timeout, wait
        self._open: dict[str, Entry[T]] = {}
        self._fresh: dict[str, deque[Entry[T]]] = {}
        self._waiting = 0
        """How many are fresh: not asked for yet."""
        self._fresh_since = math.inf
        self._added_at = -math.inf
        self._unanswered: set[str] = set()
        self.hold_until = 0.0
        """The daemon's queue is full until then."""
        self.heard_at = -math.inf
        """When the latest answer came."""

    def __len__(self) -> int:
        return len(self._open)

    def get(self, job_id: str) -> Entry[T] | None:
        """Return the request of a job, if it is under way."""
        return self._open.get(job_id)

    def add(self, tag: T, request: Mapping[str, Any], now: float) -> Entry[T]:
        """Take a request, to be asked for the first time."""
        body: JsonObject = {
            "media_store_id": request["media_store_id"],
            "job_id": request["job_id"],
            "priority": request["priority"],
        }
        text = json.dumps(body)
        first = json.dumps(body | {"force": True}) if request.get("force") else text
        entry = Entry(tag, request, request["task_type"], text, first, now + self._timeout)
        self._open[entry.job_id] = entry
        self._fresh.setdefault(entry.task_type, deque()).append(entry)
        self._waiting += 1
        self._fresh_since = min(self._fresh_since, now)
        self._added_at = now
        return entry

    def remove(self, entry: Entry[T]) -> bool:
        """Take a request out; False where that was done before."""
        if self._open.pop(entry.job_id, None) is None:
            return False
        self._unanswered.discard(entry.job_id)
        return True

    def send_at(self, *, is_fed: bool) -> float:
        """Return when there is something to be sent for the first time; infinity for never.

        A batch that is not full waits until the source pauses, and while others are unanswered a
        little longer.

        Args:
            is_fed: no further requests will come.
        """
        if not self._waiting:
            return math.inf
        if is_fed or self._waiting >= self._batch:
            return self.hold_until
        at = self._fresh_since + LINGER_SECONDS
        if not self._unanswered:
            at = min(at, self._added_at + PAUSE_SECONDS)
        return max(at, self.hold_until)

    def take_fresh(self, now: float) -> list[tuple[str, list[Entry[T]]]]:
        """Return messages for what was not asked for yet: each a task_type and its requests."""
        found = []
        for task_type, fresh in self._fresh.items():
            found += [(task_type, part) for part in self._parts(list(fresh))]
            fresh.clear()
        self._waiting, self._fresh_since = 0, math.inf
        self._ask(found, now)
        return found

    def take_repeats(self, now: float) -> list[tuple[str, list[Entry[T]]]]:
        """Return messages for what was asked for and has had no answer for too long."""
        found = []
        if now >= self.hold_until:
            for task_type, entries in self._repeats(now).items():
                found += [(task_type, part) for part in self._parts(entries)]
        self._ask(found, now)
        return found

    def payload(self, entries: Sequence[Entry[T]]) -> str:
        """Return the message for some requests of one task type."""
        texts = [entry.first if entry.submitted is None else entry.text for entry in entries]
        return texts[0] if len(texts) == 1 else f'{{"requests": [{", ".join(texts)}]}}'

    def all_again(self, now: float) -> None:
        """Ask for everything once more: answers may have been missed."""
        for entry in self._open.values():
            if entry.asked_at < math.inf:
                entry.next_ask = now
                entry.repeat = FIRST_REPEAT_SECONDS
                entry.asked_at = -math.inf

    def accepted(self, entry: Entry[T], job: JsonObject, *, is_duplicate: bool) -> None:
        """Note that a job is durably queued."""
        self._unanswered.discard(entry.job_id)
        entry.next_ask = math.inf
        if entry.submitted is None:
            media_store_id: int = entry.request["media_store_id"]
            entry.submitted = Submitted(
                entry.job_id, entry.task_type, media_store_id, job, "mqtt", is_duplicate
            )

    def full(self, entry: Entry[T], wait_seconds: float, now: float) -> None:
        """Note that the queue was full: come again then. It is an answer, so the time begins anew.

        Nothing is sent meanwhile: it would be refused as well.
        """
        entry.next_ask = now + wait_seconds * random.uniform(1, 1.25)
        entry.deadline = entry.next_ask + self._timeout
        entry.asked_at = -math.inf
        self.hold_until = max(self.hold_until, now + wait_seconds)

    def outcome(self, entry: Entry[T], job: JsonObject | None) -> Outcome:
        """Return what became of a request that was accepted."""
        return Outcome(entry.request, entry.submitted, job if self._wait else None)

    def refusal(self, entry: Entry[T], told: Mapping[str, Any]) -> Outcome:
        """Return what became of a request that was rejected."""
        error = RejectedError(
            str(told.get("code", "rejected")),
            str(told.get("message", "")),
            job_id=entry.job_id,
            existing_job_id=told.get("existing_job_id"),
            field=told.get("field"),
        )
        return Outcome(entry.request, error=error)

    def overdue(self, now: float) -> list[Entry[T]]:
        """Return the requests whose time is over."""
        return [
            each for each in self._open.values() if each.deadline <= now and not each.is_careful
        ]

    def take_undecided(self) -> Entry[T] | None:
        """Return the oldest request that nobody has answered, for whoever asks one by one."""
        for entry in self._open.values():
            if entry.submitted is None and not entry.is_careful:
                entry.is_careful = True
                self._unanswered.discard(entry.job_id)
                if entry.asked_at == math.inf:
                    self._fresh[entry.task_type].remove(entry)
                    self._waiting -= 1
                return entry
        return None

    def is_silent(self, since: float) -> bool:
        """Whether something was asked before a moment, and nothing at all was answered since."""
        return self.heard_at < since and any(
            -math.inf < entry.asked_at < since and entry.submitted is None
            for entry in self._open.values()
        )

    def _repeats(self, now: float) -> dict[str, list[Entry[T]]]:
        is_busy = now < self.heard_at + BUSY_SECONDS
        found: dict[str, list[Entry[T]]] = {}
        for entry in self._open.values():
            is_asked = entry.asked_at < math.inf and not entry.is_careful
            is_patient = is_busy and now < entry.asked_at + PATIENCE_SECONDS
            if is_asked and entry.next_ask <= now and not is_patient:
                found.setdefault(entry.task_type, []).append(entry)
        return found

    def _ask(self, messages: list[tuple[str, list[Entry[T]]]], now: float) -> None:
        for _, entries in messages:
            for entry in entries:
                if entry.asked_at != math.inf:
                    entry.repeat = min(2 * entry.repeat, LONGEST_REPEAT_SECONDS)
                if entry.submitted is None:
                    self._unanswered.add(entry.job_id)
                entry.asked_at = now
                entry.next_ask = now + entry.repeat * random.uniform(0.8, 1.2)

    def _parts(self, entries: Sequence[Entry[T]]) -> Iterator[list[Entry[T]]]:
        part: list[Entry[T]] = []
        size = BATCH_OVERHEAD
        for entry in entries:
            length = len(entry.first) + 2
            if part and (len(part) == self._batch or size + length > self.max_bytes):
                yield part
                part, size = [], BATCH_OVERHEAD
            part.append(entry)
            size += length
        if part:
            yield part
