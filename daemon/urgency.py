"""The urgency of a running job, and the waiting line that is ordered by it."""

import heapq
import itertools
from contextvars import ContextVar
from typing import Generic, TypeVar

T = TypeVar("T")

SOONEST = -(2**63)
"""Before any job, whatever its rank: a caller waits for the answer."""

LATEST = 2**63 - 1
"""After every job: nobody waits."""

URGENCY: ContextVar[int] = ContextVar("urgency", default=SOONEST)
"""The running job's rank, as the queue orders by it: less is sooner."""

EVERY = 8
"""One turn of so many goes to whoever has waited longest: a less urgent job of another task type
would otherwise wait out a whole backlog, until it times out, holding what others need."""


class Waiting(Generic[T]):
    """Those who wait: the most urgent is next, then who came first; at times the oldest."""

    def __init__(self) -> None:
        self._entries: list[tuple[int, int, T]] = []
        """A heap: urgency, arrival, which is no other's, and who waits."""
        self._arrivals = itertools.count()
        self._taken = 0

    def __len__(self) -> int:
        """Return how many wait."""
        return len(self._entries)

    def put(self, item: T) -> None:
        """Let one more wait, as urgent as its caller."""
        heapq.heappush(self._entries, (URGENCY.get(), next(self._arrivals), item))

    def pop(self) -> T:
        """Return who is next; only where somebody waits."""
        self._taken += 1
        if self._taken % EVERY:
            return heapq.heappop(self._entries)[2]
        oldest = min(range(len(self._entries)), key=lambda place: self._entries[place][1])
        entry = self._entries.pop(oldest)
        heapq.heapify(self._entries)
        return entry[2]
