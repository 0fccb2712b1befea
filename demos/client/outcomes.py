"""What a caller of the client library gets: plain values that change no more."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

from daemon.jobs import JobState, JsonObject
from demos.client.errors import ClientError

Way = Literal["mqtt", "rest"]


@dataclass(frozen=True, slots=True)
class Submitted:
    """A request that the daemon has durably accepted."""

    job_id: str
    task_type: str
    media_store_id: int
    job: JsonObject
    """The job as it stood when it was accepted."""
    over: Way
    """Which way the answer came."""
    is_duplicate: bool = False
    """The daemon knew this job_id before this request; REST does not tell, and it is False."""


@dataclass(frozen=True, slots=True)
class Progress:
    """How a job stands while somebody waits for it."""

    job_id: str
    stage: str
    """`asking`, `accepted`, `started`, or a stage that the daemon names."""
    seconds: float
    """Since the waiting began."""
    fraction: float | None = None


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of one of many requests."""

    request: Mapping[str, Any]
    submitted: Submitted | None = None
    job: JsonObject | None = None
    """The job at its end; None where there is none, or with `wait=False`."""
    error: ClientError | None = None


@dataclass(frozen=True, slots=True)
class Tally:
    """How far many requests are."""

    total: int
    completed: int = 0
    failed: int = 0
    """Jobs that ended in `error` or `sync_failed`."""
    refused: int = 0
    """Requests that never became a job of ours, or whose end did not come in time."""

    @property
    def done(self) -> int:
        """Requests that need nothing more."""
        return self.completed + self.failed + self.refused

    def plus(self, outcome: Outcome) -> "Tally":
        """Return the tally with one more outcome."""
        if outcome.error is not None:
            return replace(self, refused=self.refused + 1)
        if outcome.job is not None and outcome.job["status"] != JobState.COMPLETED:
            return replace(self, failed=self.failed + 1)
        return replace(self, completed=self.completed + 1)
