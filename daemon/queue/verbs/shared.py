"""What the verbs share: the database, the clock, the announcer of events, and the bells."""

from collections.abc import Iterable
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from typing import TypeVar

from daemon.bell import Bell
from daemon.errors import StorageError
from daemon.jobs import Clock, Job, JobState, TaskType
from daemon.metrics import Metrics
from daemon.queue.announcer import Announcer
from daemon.queue.backend import QueueBackend
from daemon.queue.job_reader import JobReader
from daemon.settings import QueueSettings
from daemon.stage import Stage, StageClosedError

_In = TypeVar("_In")
_Out = TypeVar("_Out")


@dataclass(frozen=True, slots=True, kw_only=True)
class Needs:
    """The parts that a queue is built from."""

    database: QueueBackend
    settings: QueueSettings
    clock: Clock
    worker: str
    """The identity that owns the leases and events."""
    announcer: Announcer
    metrics: Metrics


class Verbs(JobReader):
    """The base of each group of verbs.

    Attributes:
        ready: by task type, rings when a job may be leased.
        suspect_ready: rings when a job may be leased by `lease_suspect`.
        message_ready: rings when the outbox has something new.
    """

    def __init__(self, needs: Needs) -> None:
        super().__init__(needs.database, needs.clock)
        self._settings = needs.settings
        self._metrics = needs.metrics
        self._worker = needs.worker
        self._announcer = needs.announcer
        self.ready = {task_type: Bell() for task_type in TaskType}
        self.suspect_ready = Bell()
        self.message_ready = Bell()
        self._stages: list[AbstractAsyncContextManager[object]] = []
        """Where things wait to be written together; open while the queue is, closed in order."""

    def _wake(self) -> None:
        """Let all look for jobs."""
        for bell in (*self.ready.values(), self.suspect_ready):
            bell.ring()

    def _have_moved(self, jobs: Iterable[Job]) -> None:
        """Count the ends among jobs that left `processing`, and wake who waits for them."""
        waiting: list[Job] = []
        have_ended = False
        for job in jobs:
            if job.status is JobState.PENDING:
                waiting.append(job)
            elif job.status.is_terminal:
                self._metrics.job_ended(job)
                have_ended = True
        for task_type in {job.task_type for job in waiting}:
            self.ready[task_type].ring()
        if any(job.lost for job in waiting):
            self.suspect_ready.ring()
        if have_ended:
            self.message_ready.ring()


async def submit(stage: Stage[_In, _Out], item: _In) -> _Out:
    """Return the outcome of an item.

    Raises:
        StorageError: the queue is closed.
    """
    try:
        return await stage.submit(item)
    except StageClosedError as error:
        raise StorageError("the queue is closed") from error
