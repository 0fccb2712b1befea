"""When the embedded engine's index is built: once enough changed, and in quiet hours."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime, time

from daemon.jobs import JsonObject

QUIET_SECONDS = 60.0
"""So long nothing was stored or deleted: nobody is at work."""
LEAST_CHANGED = 50_000
"""Fewer are searched one by one as fast as through an index (3.5 ms at 20,000), and exactly."""
CHANGED_SHARE = 0.1
RETRY_SECONDS = 3600.0
BUILD_FAILED = "index_build_failed"
"""What the log, /health and doctor call it."""


@dataclass(frozen=True, slots=True)
class Schedule:
    """What was configured: at any quiet moment, within hours of the day, or never."""

    is_on: bool = True
    hours: tuple[time, time] | None = None

    @classmethod
    def parse(cls, text: str) -> "Schedule":
        """Return the schedule of `auto`, `off` or `HH:MM-HH:MM` (local time).

        Raises:
            ValueError: it is none of these.
        """
        if text in ("auto", "off"):
            return cls(is_on=text == "auto")
        begin, _, end = text.partition("-")
        return cls(hours=(time.fromisoformat(begin), time.fromisoformat(end)))

    def allows(self, now: datetime, quiet_seconds: float) -> bool:
        """Return whether it may begin now, `quiet_seconds` after the latest change."""
        if not self.is_on:
            return False
        if self.hours is None:
            return quiet_seconds >= QUIET_SECONDS
        begin, end = self.hours
        if begin < end:
            return begin <= now.time() < end
        return now.time() >= begin or now.time() < end  # over midnight, or all day


NEVER = Schedule(is_on=False)


def is_enough(changed: int, points: int) -> bool:
    """Return whether so many changes since the last time are worth it."""
    return changed >= max(LEAST_CHANGED, CHANGED_SHARE * points)


@dataclass(slots=True)
class IndexState:
    """How a collection's index stands."""

    points: int = 0
    changed: int = 0
    """Stored or deleted since the index was built; an estimate. Searched one by one."""
    is_optimising: bool = False
    optimised: int = 0
    """How often it was, since the start."""
    failed: int = 0
    seconds: float = 0.0
    """How long the latest took."""
    failed_since: int = 0
    """How often it failed since it last was optimised, or there was nothing to do."""
    failure: str = ""
    """Why, the last time."""

    def has_failed(self, why: str) -> None:
        """Take note of a failure."""
        self.failed += 1
        self.failed_since += 1
        self.failure = why

    def told(self) -> JsonObject:
        """Return what /health says of it."""
        told: JsonObject = {"changed": self.changed, "optimising": self.is_optimising}
        if self.failed_since:
            told["failed"] = self.failed_since
            told["code"] = BUILD_FAILED
            told["message"] = self.failure
        return told


@dataclass(slots=True)
class IndexBoard:
    """What the embedded engine says of its indexes; nothing where there is none."""

    _states: dict[str, IndexState] = field(default_factory=dict)

    def state(self, collection: str) -> IndexState:
        """Return a collection's state, to be written."""
        return self._states.setdefault(collection, IndexState())

    def remove(self, collection: str) -> None:
        """Take a collection off the board."""
        self._states.pop(collection, None)

    def forget(self) -> None:
        """Take everything off the board."""
        self._states.clear()

    def states(self) -> Mapping[str, IndexState]:
        """Return all states by collection, to be read."""
        return self._states
