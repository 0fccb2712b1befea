"""What the daemon needs of a task type: a handler's two verbs, and how it tells its steps."""

from collections.abc import Callable
from typing import Protocol

from daemon.jobs import Job, JsonObject, TaskType

Report = Callable[[str], None]
"""Told the name of each step as it begins: fetch, decode, infer, store, deliver."""


class Handler(Protocol):
    """Does the jobs of one task type."""

    @property
    def task_type(self) -> TaskType:
        """Which jobs it takes."""

    @property
    def delivers(self) -> bool:
        """Whether its results go to the media store as well."""

    async def handle(self, job: Job, report: Report) -> JsonObject:
        """Return the job's result; everything it stores is stored when this returns.

        Raises:
            PermanentError: this picture can never work.
            RetryableError: it may work later.
        """

    async def deliver(self, job: Job, result: JsonObject) -> None:
        """Give the result to the media store; safe to repeat.

        Raises:
            HandlerError: it was not taken.
        """
