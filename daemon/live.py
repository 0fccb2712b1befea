"""Live events for who watches this daemon over HTTP: a bounded fan-out that never waits.

What the outbox gets for the broker is told here too, once it is committed, and in the same words.
A watcher that reads too slowly is dropped and comes back for a fresh start; nothing is kept for
one that is away. While nobody watches, an event costs a comparison.
"""

import asyncio
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from daemon import topics
from daemon.errors import RetryableError
from daemon.events import Message
from daemon.jobs import Job, JsonObject, dump_json

MOST_WATCHERS = 32
MOST_WAITING_BYTES = 1 << 20
"""What may wait for one watcher; more, and it is dropped."""
MOST_EVENT_BYTES = 1 << 16
"""Larger events of jobs are not told: a watcher asks for the job if it wants to."""
MOST_A_SECOND = 200
"""Events of jobs: a bound on the cost where jobs are quicker than anybody can watch."""
ENDS_ONLY = 100
"""After so many in a second only ends are told."""

_ENDS = ("completed", "failed")


class TooManyWatchersError(RetryableError):
    """As many watch as may; try again later."""

    default_code = "busy"

    def __init__(self) -> None:
        super().__init__("too many watch already", retry_after_seconds=5)


class Watcher:
    """The queue of one watcher: events in the format of server-sent events."""

    def __init__(self) -> None:
        self._waiting: deque[bytes] = deque()
        self._bytes = 0
        self._ready = asyncio.Event()
        self.is_over = False
        """Nothing comes any more: it was too slow, or the daemon stops."""

    def put(self, event: bytes) -> None:
        """Let an event wait; never blocks."""
        if self.is_over:
            return
        self._bytes += len(event)
        if self._bytes > MOST_WAITING_BYTES:
            self.end()
            return
        self._waiting.append(event)
        self._ready.set()

    def end(self) -> None:
        """Drop what waits, and say that nothing comes any more."""
        self.is_over = True
        self._waiting.clear()
        self._bytes = 0
        self._ready.set()

    async def take(self, timeout_seconds: float) -> bytes:
        """Return all that waits, as soon as anything does; nothing after the timeout or the end."""
        try:
            async with asyncio.timeout(timeout_seconds):
                await self._ready.wait()
        except TimeoutError:
            return b""
        found = b"".join(self._waiting)
        self._waiting.clear()
        self._bytes = 0
        if not self.is_over:
            self._ready.clear()
        return found


class Live:
    """Tells every watcher what happens; belongs to one event loop."""

    def __init__(self, *, monotonic: Callable[[], float] = time.monotonic) -> None:
        self._watchers: set[Watcher] = set()
        self._monotonic = monotonic
        self._second = 0
        self._told = 0
        self._is_closed = False

    @property
    def is_watched(self) -> bool:
        """Whether anybody watches."""
        return bool(self._watchers)

    @contextmanager
    def watch(self) -> Iterator[Watcher]:
        """Give a watcher, which hears whatever is told while the block runs.

        Raises:
            TooManyWatchersError: there are too many.
        """
        if len(self._watchers) >= MOST_WATCHERS:
            raise TooManyWatchersError
        watcher = Watcher()
        if self._is_closed:
            watcher.end()
        self._watchers.add(watcher)
        try:
            yield watcher
        finally:
            self._watchers.discard(watcher)

    def close(self) -> None:
        """End all watching, so that whoever waits for the watchers need not wait long."""
        self._is_closed = True
        for watcher in self._watchers:
            watcher.end()

    def hear(self, messages: Sequence[Message]) -> None:
        """Tell events of jobs that were committed; copies on reply topics are their client's."""
        if not self._watchers:
            return
        for message in messages:
            event = topics.event_of(message.topic)
            if event is not None and self._has_room(is_end=event in _ENDS):
                told = encode("job", message.payload)
                if len(told) <= MOST_EVENT_BYTES:
                    self._tell(told)

    def progress(self, job: Job, stage: str) -> None:
        """Tell that a stage of a running job begins."""
        if self._watchers and self._has_room(is_end=False):
            self.tell("stage", {"job_id": job.job_id, "stage": stage})

    def tell(self, name: str, value: JsonObject) -> None:
        """Tell something of the daemon's own, however much there was this second."""
        if self._watchers:
            self._tell(encode(name, dump_json(value)))

    def _tell(self, event: bytes) -> None:
        for watcher in self._watchers:
            watcher.put(event)

    def _has_room(self, *, is_end: bool) -> bool:
        second = int(self._monotonic())
        if second != self._second:
            self._second, self._told = second, 0
        if self._told >= (MOST_A_SECOND if is_end else ENDS_ONLY):
            return False
        self._told += 1
        return True


def encode(name: str, text: str) -> bytes:
    """Return a server-sent event; `text` is JSON on one line."""
    return f"event: {name}\ndata: {text}\n\n".encode()
