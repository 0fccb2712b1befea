"""Enqueueing: requests become jobs, durably; those that come together share a commit."""

import asyncio
from collections.abc import Sequence

from daemon.errors import StorageError
from daemon.events import Message
from daemon.queue.admission import Accepted, Admission, Outcome, Submission
from daemon.queue.backend import Connection
from daemon.queue.verbs.shared import Needs, Verbs, submit
from daemon.stage import Stage

ENQUEUE_BATCH = 256
FEW = 4
"""Up to so many items of one message need no commit of their own."""


class Enqueueing(Verbs):
    """The verbs that turn requests into jobs."""

    def __init__(self, needs: Needs) -> None:
        super().__init__(needs)
        self._admission = Admission(needs.settings, needs.announcer)
        self._intake: Stage[Submission | Message, Outcome | None] = Stage(
            "enqueue", self._enqueue_batch, max_batch=ENQUEUE_BATCH
        )
        # One commit a group, and one group at a time: leases and settles get their turn between.
        self._groups: Stage[Sequence[Submission | Message], Sequence[Outcome | Exception | None]]
        self._groups = Stage("enqueue-group", self._enqueue_groups)
        self._stages += [self._intake, self._groups]
        # Both of them: what admission remembers of the room is for one at a time.
        self._admitting = asyncio.Lock()

    async def enqueue(self, submission: Submission) -> Outcome:
        """Return once the request is durably accepted or durably refused.

        Raises:
            StorageError: neither; it must be asked again.
        """
        outcome = await submit(self._intake, submission)
        if outcome is None:
            raise StorageError("an enqueue gave no outcome")
        return outcome

    async def enqueue_all(self, items: Sequence[Submission | Message]) -> None:
        """Return once all requests and messages of one MQTT message are durable.

        Many go into one commit of their own, a few share one with whatever else comes.

        Raises:
            StorageError: they are not; the message must be delivered again.
        """
        if len(items) > FEW:
            await submit(self._groups, items)
        else:
            await asyncio.gather(*(submit(self._intake, item) for item in items))

    async def _enqueue_groups(
        self, groups: Sequence[Sequence[Submission | Message]]
    ) -> list[Sequence[Outcome | Exception | None]]:
        return [await self._enqueue_batch(group) for group in groups]

    async def _enqueue_batch(
        self, items: Sequence[Submission | Message]
    ) -> Sequence[Outcome | Exception | None]:
        async def work(connection: Connection) -> list[Outcome | None]:
            submissions = [item for item in items if isinstance(item, Submission)]
            outcomes, messages = await self._admission.admit(connection, submissions, self._clock())
            messages += [item for item in items if isinstance(item, Message)]
            await self._announcer.write(connection, messages)
            answers = iter(outcomes)
            return [next(answers) if isinstance(item, Submission) else None for item in items]

        async with self._admitting:
            outcomes = await self._database.write(work, durable=True)
        self._count_outcomes(items, outcomes)
        self.message_ready.ring()
        for task_type in {each.job.task_type for each in outcomes if isinstance(each, Accepted)}:
            self.ready[task_type].ring()
        return outcomes

    def _count_outcomes(
        self, items: Sequence[Submission | Message], outcomes: Sequence[Outcome | None]
    ) -> None:
        for item, outcome in zip(items, outcomes, strict=True):
            if isinstance(outcome, Accepted):
                self._metrics.request_accepted(
                    outcome.job.task_type, is_duplicate=outcome.is_duplicate
                )
                if outcome.superseded is not None:
                    self._metrics.job_ended(outcome.superseded)
            elif outcome is not None and isinstance(item, Submission) and item.body is not None:
                # What REST refuses is counted there, with what never comes so far.
                self._metrics.request_rejected("mqtt", outcome.code)
