"""The queue's verbs over many jobs: those that failed with one code, and all of one picture.

Each works in bounded transactions, so that leases and settles get their turn between.
"""

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass

from daemon.bell import Bell
from daemon.events import Event, Message
from daemon.jobs import Clock, Job, TaskType, dump_json
from daemon.queue import statements as sql
from daemon.queue.announcer import Announcer
from daemon.queue.backend import Connection, QueueBackend
from daemon.queue.job_rows import jobs_from_rows, pair

RETRY_BATCH = 256
"""Jobs started again in one transaction."""


@dataclass(frozen=True, slots=True)
class Retried:
    """What became of jobs that were to be started again."""

    retried: int
    left_out: int
    """A newer job stands for their picture and task, so that they stay as they are."""
    more: bool
    """The limit was reached; asking again, with the same `before`, goes on."""
    before: int
    """Jobs that failed later were not looked at, in epoch milliseconds."""


class JobBatches:
    """The verbs. Every one raises StorageError; what was committed until then stays.

    Args:
        database: the queue's.
        announcer: speaks for this daemon.
        clock: epoch milliseconds.
        have_waiting: called once jobs wait that did not before.
        message_ready: rings when the outbox has something new.
    """

    def __init__(
        self,
        database: QueueBackend,
        announcer: Announcer,
        *,
        clock: Clock,
        have_waiting: Callable[[Sequence[Job]], None],
        message_ready: Bell,
    ) -> None:
        self._database, self._announcer, self._clock = database, announcer, clock
        self._have_waiting, self._message_ready = have_waiting, message_ready

    async def retry_failed(
        self,
        code: str,
        *,
        task_type: TaskType | None = None,
        before: int | None = None,
        limit: int,
    ) -> Retried:
        """Start jobs in error or sync_failed again, with all their attempts, the oldest first.

        Args:
            code: what they failed with, such as `media_store_timeout`.
            task_type: only jobs of this one.
            before: only jobs that had failed by then, in epoch milliseconds; now if not given, so
                that those which fail once more are not started a second time.
            limit: how many are started, at most.
        """
        until = self._clock() if before is None else before
        left_out = retried = 0
        for each in [task_type] if task_type is not None else list(TaskType):
            after = (-1, "", 0)
            while retried < limit:
                batch = min(RETRY_BATCH, limit - retried)
                rows = await self._database.read(
                    sql.FIND_FAILED, (code, each.value, *after, until, batch)
                )
                if not rows:
                    break
                after = (rows[-1]["completed_at"], rows[-1]["status"], rows[-1]["id"])
                started = len(await self._requeue([row["id"] for row in rows]))
                retried += started
                left_out += len(rows) - started
        return Retried(retried, left_out, more=retried == limit, before=until)

    async def _requeue(self, ids: Sequence[int]) -> list[Job]:
        async def work(connection: Connection) -> list[Job]:
            now = self._clock()
            jobs = jobs_from_rows(
                await connection.execute_fetchall(sql.REQUEUE_ALL, (dump_json(ids),))
            )
            # They stand for their pairs now: older results are no longer delivered.
            pairs = dump_json([pair(job) for job in jobs])
            await connection.execute(sql.SUPERSEDE_SYNC, (pairs,))
            messages: list[Message] = []
            for job in jobs:
                messages += self._announcer.happened(Event.ACCEPTED, job, now, duplicate=False)
            await self._announcer.write(connection, messages)
            return jobs

        jobs = await self._database.write(work, durable=True)
        if jobs:
            self._have_waiting(jobs)
            self._message_ready.ring()
        return jobs

    async def of_media(self, media_store_id: int) -> list[Job]:
        """Return all jobs of a picture, the oldest first."""
        return jobs_from_rows(
            await self._database.read(sql.FIND_MEDIA, (media_store_id, media_store_id))
        )

    async def forget(
        self,
        media_store_id: int,
        job_ids: Sequence[str],
        messages: Callable[[int], Sequence[Message]],
        *,
        staying: Collection[str] = (),
    ) -> tuple[int, list[str]]:
        """Delete the rows of a picture's jobs that have ended, and tell it if it has no others.

        In one commit: a job that is asked for meanwhile is seen here, or finds these gone.

        Args:
            media_store_id: the picture's.
            job_ids: which; those that have not ended stay.
            messages: what is told, given how many there were.
            staying: jobs that it may still have.

        Returns:
            How many there were, and which others it has; with any, nothing is told.
        """

        async def work(connection: Connection) -> tuple[int, list[str]]:
            # First, so that a transaction beside this one that replaces one of them is waited for.
            cursor = await connection.execute(sql.FORGET_ALL, (dump_json(job_ids),))
            rows = await connection.execute_fetchall(
                sql.FIND_MEDIA, (media_store_id, media_store_id)
            )
            others = [row["job_id"] for row in rows if row["job_id"] not in staying]
            if not others:
                await self._announcer.write(connection, messages(cursor.rowcount))
            return cursor.rowcount, others

        forgotten = await self._database.write(work, durable=True)
        self._message_ready.ring()
        return forgotten
