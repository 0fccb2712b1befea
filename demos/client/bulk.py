"""Asks for any number of jobs in batch messages, at the daemon's pace, in memory that stays flat.

A few threads: one takes requests from their source, one sends and repeats, paho's hears answers,
and whoever iterates over `run` takes the outcomes. A request keeps its job_id however often it is
sent, so that a lost answer or a lost connection costs a repeat and never a second job. Where the
broker is away or silent, `InferdClient` asks for them one by one, which knows REST as well.
"""

import contextlib
import hashlib
import json
import threading
import time
import uuid
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from queue import SimpleQueue
from typing import Any, Generic, TypeAlias, TypeVar

from daemon.jobs import JobState, JsonObject
from demos.client.client import InferdClient
from demos.client.errors import ClientError, ClosedError, NoAnswerError, UnreachableError
from demos.client.http import is_job
from demos.client.ledger import Entry, Ledger
from demos.client.link import Link
from demos.client.outcomes import Outcome

MAX_BATCH = 1000
"""The most requests that a daemon takes in one message."""
SMALLEST_MESSAGE = 1024
QUIET_SECONDS = 5.0
"""Silence after which requests are asked for one by one as well, where that may help."""
DOWN_SECONDS = 2.0
"""The same for a broker that does not let us in."""
REACH_SECONDS = 10.0
"""How long to try for a first sign of life of a broker, where there is no other way."""
CAREFUL = 16
"""How many are asked for one by one at a time."""
TICK_SECONDS = 0.25
NO_ANSWER = "no answer"
SENT_REMEMBERED = 64
_TERMINAL = frozenset(state.value for state in JobState if state.is_terminal)
_HEARD = ("accepted", "rejected", "completed")

T = TypeVar("T")
Connect: TypeAlias = Callable[..., Link]
"""Makes the line to the broker, given Link's callbacks."""


@dataclass(frozen=True, slots=True)
class Asked(Generic[T]):
    """One thing that is wanted: whose it is, and the request, or why there can be none."""

    tag: T
    request: Mapping[str, Any] | ClientError
    """As for `InferdClient.submit`."""


@dataclass(frozen=True, slots=True)
class Settled(Generic[T]):
    """What became of one thing that was wanted."""

    tag: T
    outcome: Outcome | ClientError


class Bulk(Generic[T]):
    """One bulk submission; `run` may be called once.

    Args:
        connect: makes the line to the broker.
        careful: makes the client that asks one by one; it is entered at its first use.
        has_rest: whether that client knows a REST API.
        in_flight: requests under way at a time, of which half make a batch.
        wait: until the jobs end; else until they are accepted.
        timeout: seconds a request may be without an answer; a full queue is an answer.
        max_bytes: most bytes of a message; less is used once a daemon says that it takes less.
        on_hold: told a sentence when the daemon's queue is full, and when nothing answers.
    """

    def __init__(
        self,
        connect: Connect,
        careful: Callable[[], InferdClient],
        *,
        has_rest: bool,
        in_flight: int,
        wait: bool,
        timeout: float,
        max_bytes: int,
        on_hold: Callable[[str], None],
    ) -> None:
        self._has_rest, self._wait, self._timeout = has_rest, wait, timeout
        self._on_hold = on_hold
        self._make_careful = careful
        self._stack = contextlib.ExitStack()
        self._careful: InferdClient | None = None
        batch = max(1, min(MAX_BATCH, in_flight // 2))
        self._ledger: Ledger[T] = Ledger(
            batch=batch, max_bytes=max_bytes, timeout=timeout, wait=wait
        )
        # Each outcome holds its place until it is taken, so that these cannot pile up either.
        self._room = threading.Semaphore(in_flight)
        self._results: SimpleQueue[Settled[T] | BaseException | None] = SimpleQueue()
        self._lock = threading.Lock()
        self._changed = threading.Condition(self._lock)
        self._stuck = threading.Condition(self._lock)
        self._topics = {f"inference/job/+/{name}" for name in _HEARD[: 3 if wait else 2]}
        self._topics.add("inference/rejected/+")
        self._unheard = set(self._topics)
        self._sent: deque[str] = deque(maxlen=SENT_REMEMBERED)
        self._sleeps_until = 0.0
        self._began = time.monotonic()
        self._down_since: float | None = self._began
        self._trouble = NO_ANSWER
        self._refusal: str | None = None
        self._was_heard = self._is_fed = self._is_closed = False
        self._is_holding = False
        self._quiet: str | None = None
        self._link = connect(
            on_message=self._message,
            on_heard=self._heard,
            on_refused=self._refused,
            on_lost=self._lost,
        )

    def run(self, wanted: Iterable[Asked[T]]) -> Iterator[Settled[T]]:
        """Ask for all; yield what became of each as soon as it is known.

        The source is read as there is room. Who stops early leaves what is under way to itself.

        Raises:
            Exception: whatever the source raises.
        """
        try:
            for topic in sorted(self._topics):
                self._link.listen(topic)
            self._link.open()
            self._start(lambda: self._feed(wanted), "inferd-bulk-source")
            self._start(self._send, "inferd-bulk-sender")
            for number in range(CAREFUL if self._has_rest else 0):
                self._start(self._ask_carefully, f"inferd-bulk-{number}")
            while (found := self._results.get()) is not None:
                if isinstance(found, BaseException):
                    raise found
                self._room.release()
                yield found
        finally:
            self._close()

    def _start(self, work: Callable[[], None], name: str) -> None:
        def guarded() -> None:
            try:
                work()
            except BaseException as error:  # noqa: BLE001 - it is raised again where results are taken
                self._results.put(error)

        # Daemons: a source that stands still must not hold who leaves.
        threading.Thread(target=guarded, name=name, daemon=True).start()

    def _close(self) -> None:
        with self._changed:
            self._is_closed = True
            self._changed.notify_all()
            self._stuck.notify_all()
        self._room.release()
        self._link.close()
        self._stack.close()

    # -- in ------------------------------------------------------------------------------------

    def _feed(self, wanted: Iterable[Asked[T]]) -> None:
        for asked in wanted:
            self._room.acquire()
            if self._is_closed:
                return
            if isinstance(asked.request, ClientError):
                self._results.put(Settled(asked.tag, asked.request))
                continue
            request = {"job_id": str(uuid.uuid4()), **asked.request}
            with self._changed:
                self._ledger.add(asked.tag, request, time.monotonic())
                self._wake()
        with self._changed:
            self._is_fed = True
            self._changed.notify_all()
            if not self._ledger:
                self._results.put(None)

    # -- out -----------------------------------------------------------------------------------

    def _wake(self) -> None:
        """Wake the sender where it would sleep too long; called with the lock."""
        if not self._unheard and self._ledger.send_at(is_fed=self._is_fed) < self._sleeps_until:
            self._changed.notify_all()

    def _send(self) -> None:
        looks_at = 0.0
        while True:
            with self._changed:
                if self._is_closed:
                    return
                now = time.monotonic()
                found: list[tuple[str, list[Entry[T]]]] = []
                is_heard = not self._unheard
                if is_heard and self._ledger.send_at(is_fed=self._is_fed) <= now:
                    found = self._ledger.take_fresh(now)
                if now >= looks_at:
                    # Looks at each request: too much work to be done at every turn.
                    looks_at = now + TICK_SECONDS
                    self._give_up(now)
                    self._tell_quiet(now)
                    if is_heard:
                        found += self._ledger.take_repeats(now)
                    if self._is_stuck(now):
                        self._stuck.notify_all()
                messages = [(task_type, self._payload(some)) for task_type, some in found]
                if not messages:
                    at = self._ledger.send_at(is_fed=self._is_fed) if is_heard else looks_at
                    self._sleeps_until = min(looks_at, at)
                    self._changed.wait(max(0.0, self._sleeps_until - now))
                    self._sleeps_until = 0.0
            # Without the lock: paho calls us back under locks of its own.
            for task_type, payload in messages:
                topic = f"inference/request/{task_type}"
                self._link.publish(topic, payload, about=topic)

    def _payload(self, entries: list[Entry[T]]) -> str:
        payload = self._ledger.payload(entries)
        self._sent.append(hashlib.sha256(payload.encode()).hexdigest())
        return payload

    def _give_up(self, now: float) -> None:
        """End what has had its time, and everything where there is no way at all."""
        is_lost = not self._was_heard and now >= self._began + min(self._timeout, REACH_SECONDS)
        if not self._has_rest and (self._refusal is not None or is_lost):
            while (entry := self._ledger.take_undecided()) is not None:
                self._settle(entry, UnreachableError(self._refusal or self._trouble))
        for entry in self._ledger.overdue(now):
            self._settle(entry, self._no_answer(entry))

    def _tell_quiet(self, now: float) -> None:
        """Say so once where nothing answers; called with the lock."""
        since = now - QUIET_SECONDS
        quiet: str | None = None
        why = ""
        if self._down_since is not None:
            if self._was_heard and self._ledger and self._down_since < since:
                # Why may change from try to try: that is no news.
                quiet, why = "the broker is away", f" ({self._trouble})"
        elif self._ledger.is_silent(since):
            quiet = "no daemon answers, though the broker does"
        if quiet not in {None, self._quiet}:
            how = "asking over REST too" if self._has_rest else "asking again"
            self._on_hold(f"{quiet}{why}; {how}, for up to {self._timeout:g} s a request")
        self._quiet = quiet

    def _no_answer(self, entry: Entry[T]) -> NoAnswerError:
        if entry.submitted is not None:
            text = f"the job has not ended within {self._timeout:g} s; it goes on"
        else:
            text = (
                f"no daemon accepted the request within {self._timeout:g} s ({self._trouble}): is"
                " it running, and on the same broker?"
            )
        return NoAnswerError(text, job_id=entry.job_id)

    def _settle(self, entry: Entry[T], outcome: Outcome | ClientError) -> None:
        """Give an outcome out; called with the lock."""
        if self._ledger.remove(entry):
            if isinstance(outcome, ClientError):
                outcome = Outcome(entry.request, entry.submitted, error=outcome)
            self._results.put(Settled(entry.tag, outcome))
            if self._is_fed and not self._ledger:
                self._results.put(None)
            self._wake()

    # -- one by one ----------------------------------------------------------------------------

    def _ask_carefully(self) -> None:
        while (found := self._take_stuck()) is not None:
            client, entry = found
            seconds = max(0.1, entry.deadline - time.monotonic())
            try:
                outcome = client.submit_one(entry.request, wait=self._wait, timeout=seconds)
            except ClosedError:
                return
            with self._changed:
                self._settle(entry, outcome)

    def _take_stuck(self) -> tuple[InferdClient, Entry[T]] | None:
        """Return what had better be asked for by itself, once there is such a thing."""
        with self._stuck:
            while not self._is_closed:
                entry = None
                if self._is_stuck(time.monotonic()):
                    entry = self._ledger.take_undecided()
                if entry is not None:
                    return self._client(), entry
                self._stuck.wait()
        return None

    def _is_stuck(self, now: float) -> bool:
        """Whether what waits had better be asked for one by one, over REST where need be."""
        if not self._has_rest:
            return False
        if self._refusal is not None:
            return True
        if self._down_since is not None:
            is_hopeless = not self._was_heard and self._trouble != NO_ANSWER
            return is_hopeless or now >= self._down_since + DOWN_SECONDS
        return self._ledger.is_silent(now - QUIET_SECONDS)

    def _client(self) -> InferdClient:
        if self._careful is None:
            self._careful = self._stack.enter_context(self._make_careful())
        return self._careful

    # -- what the broker says; in paho's thread --------------------------------------------------

    def _message(self, topic: str, payload: bytes) -> None:
        levels = topic.split("/")
        with self._lock:
            is_ours = levels[1] == "rejected" or self._ledger.get(levels[2]) is not None
        if not is_ours:
            return
        try:
            event = json.loads(payload)
            data = event["data"]
        except (ValueError, KeyError, TypeError):
            return  # not ours to judge: whoever may publish there is the broker's business
        if isinstance(data, dict):
            with self._changed:
                if levels[1] == "rejected":
                    self._dead_letter(data)
                elif (entry := self._ledger.get(levels[2])) is not None:
                    self._ledger.heard_at = time.monotonic()
                    self._event(entry, levels[3], event, data)

    def _event(self, entry: Entry[T], name: str, event: JsonObject, data: JsonObject) -> None:
        now = time.monotonic()
        wait_ms = data.get("retry_after_ms")
        if name == "rejected" and entry.submitted is None:
            if data.get("code") == "queue_full" and isinstance(wait_ms, int | float):
                self._hold(entry, max(0.1, wait_ms / 1000), now)
            else:
                self._settle(entry, self._ledger.refusal(entry, data))
        elif name != "rejected" and is_job(data):
            self._is_holding = False
            self._ledger.accepted(entry, data, is_duplicate=event.get("duplicate") is True)
            is_over = data["status"] in _TERMINAL
            if is_over or not self._wait:
                self._settle(entry, self._ledger.outcome(entry, data if is_over else None))

    def _hold(self, entry: Entry[T], seconds: float, now: float) -> None:
        self._ledger.full(entry, seconds, now)
        if not self._is_holding:
            self._is_holding = True
            self._on_hold(f"the daemon's queue is full; asking again every {seconds:.0f} s or so")

    def _dead_letter(self, data: JsonObject) -> None:
        """Send less at a time where a daemon says that a whole message of ours was too long."""
        if data.get("code") == "too_large" and data.get("sha256") in self._sent:
            self._ledger.max_bytes = max(SMALLEST_MESSAGE, self._ledger.max_bytes // 2)
            self._ledger.all_again(time.monotonic())
            self._changed.notify_all()

    def _heard(self, topics: list[str]) -> None:
        with self._changed:
            self._unheard -= set(topics)
            if not self._unheard:
                self._was_heard, self._down_since, self._trouble = True, None, NO_ANSWER
                # What was said while we were away is said again to who asks again.
                self._ledger.all_again(time.monotonic())
                self._changed.notify_all()

    def _refused(self, _about: str, reason: str) -> None:
        with self._changed:
            self._refusal = self._trouble = reason
            self._changed.notify_all()

    def _lost(self, reason: str) -> None:
        with self._changed:
            self._unheard = set(self._topics)
            self._trouble = reason
            if self._down_since is None:
                self._down_since = time.monotonic()
            self._changed.notify_all()
