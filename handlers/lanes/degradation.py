"""What is told of a model that is short of memory: the steps taken, and how long it waits."""

from dataclasses import dataclass
from enum import StrEnum

from daemon.errors import OutOfMemoryError
from daemon.jobs import JsonObject

LONGEST_WAIT = 60
"""The quiet time doubles with each failure in a row, up to so many times the first."""


class Step(StrEnum):
    """What was done when memory ran out; also the words of the metric."""

    FREE = "free"
    """What is kept only to be faster was given back."""
    HALVE_BATCH = "halve_batch"
    UNLOAD_OTHERS = "unload_others"
    """The other models on the device were unloaded; each loads again when it is needed."""
    CPU = "cpu"
    """The model moved to the CPU."""
    GIVE_UP = "give_up"
    """One picture did not fit by itself: its job fails, and is tried again later."""
    RETRY = "retry"
    """The full batch and the device were tried again."""
    RECOVER = "recover"
    """That try succeeded."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Degradation:
    """How a model runs with less than was configured, since memory ran out."""

    device: str
    """Where it runs for now."""
    max_batch: int
    """How many pictures it takes at a time for now."""
    since: int
    """When it began, in epoch milliseconds."""
    retry_at: int
    """When the full batch and the device are tried again at the earliest."""

    def to_wire(self) -> JsonObject:
        """Return it as health and the worker's info tell it."""
        return {
            "device": self.device,
            "why": OutOfMemoryError.default_code,
            "max_batch": self.max_batch,
            "since": self.since,
            "retry_at": self.retry_at,
        }


class QuietTime:
    """How long to wait before the next try to recover: longer after each that failed."""

    def __init__(self, first_seconds: float) -> None:
        self.first_seconds = first_seconds
        self.seconds = first_seconds
        self._recovered_at = -float("inf")
        self._ends_at = 0.0

    def is_over(self, now: float) -> bool:
        """Whether it is time to try to recover."""
        return now >= self._ends_at

    def begin(self, now: float) -> None:
        """Begin the wait."""
        self._ends_at = now + self.seconds

    def note_failure(self, now: float) -> None:
        """Note that memory ran out undegraded; soon after a recovery, the next wait is longer."""
        if now - self._recovered_at <= self.seconds:
            self.note_failed_climb()
        else:
            self.seconds = self.first_seconds

    def note_failed_climb(self) -> None:
        """Wait twice as long the next time."""
        self.seconds = min(2 * self.seconds, LONGEST_WAIT * self.first_seconds)

    def note_recovery(self, now: float) -> None:
        """Note when it recovered."""
        self._recovered_at = now
