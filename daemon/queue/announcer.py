"""Writes what clients must hear of to the outbox, inside the transaction that caused it."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import TypeAlias

from daemon.events import Event, Message, job_messages, terminal_messages
from daemon.jobs import Clock, Job
from daemon.queue import statements as sql
from daemon.queue.backend import Connection

Listener: TypeAlias = Callable[[Sequence[Message]], None]
"""Called with messages once they are committed; must neither raise nor wait."""


class Announcer:
    """Writes one daemon's messages: `owner` will relay them, `worker_id` is in each."""

    def __init__(
        self,
        *,
        owner: str,
        worker_id: str,
        clock: Clock,
        listener: Listener | None = None,
    ) -> None:
        self._listener = listener
        self.worker_id = worker_id
        self._owner = owner
        self._clock = clock

    def happened(self, event: Event, job: Job, now: int, **extra: bool) -> list[Message]:
        """Return the messages of one event; the job's seq must be that of the event."""
        return job_messages(event, job, worker_id=self.worker_id, now=now, extra=extra)

    def ended(self, job: Job, now: int, result_text: str | None = None) -> list[Message]:
        """Return the messages of a terminal state; the job's seq must be that of the last."""
        return terminal_messages(job, worker_id=self.worker_id, now=now, result_text=result_text)

    async def write(self, connection: Connection, messages: Sequence[Message]) -> None:
        """Put the messages into the outbox; they are published once the transaction committed."""
        if messages:
            about = self._owner, self._clock()
            rows = [(*about, each.topic, each.payload, each.correlation_data) for each in messages]
            # Cheaper than one statement over their JSON: payloads would be escaped and parsed.
            await connection.executemany(sql.ANNOUNCE, rows)
            if self._listener is not None:
                connection.after_commit(partial(self._listener, messages))
