"""Verbs by hand, over single jobs: cancel one, start it again, forget it."""

from collections.abc import Callable
from typing import Any

from daemon.errors import ConflictError, JobNotFoundError
from daemon.events import Event, Message
from daemon.jobs import Job, dump_json
from daemon.queue import statements as sql
from daemon.queue.backend import Connection, TakenError
from daemon.queue.job_rows import job_from_row, jobs_from_rows, pair
from daemon.queue.verbs.shared import Verbs


class ByHand(Verbs):
    """The verbs over one job that need no lease."""

    async def cancel(self, job_id: str) -> Job:
        """End a pending job in error cancelled.

        Raises:
            JobNotFoundError: no such job.
            ConflictError: it is no longer pending.
            StorageError: nothing changed.
        """
        return await self._change(
            sql.CANCEL,
            lambda now: (now, job_id),
            job_id,
            self._announcer.ended,
        )

    async def requeue(self, job_id: str) -> Job:
        """Start a job in error or sync_failed again, with all its attempts.

        A result that was kept is only delivered again.

        Raises:
            JobNotFoundError: no such job.
            ConflictError: it did not fail, or the pair has a newer job.
            StorageError: nothing changed.
        """
        job = await self._change(
            sql.REQUEUE,
            lambda _now: (job_id,),
            job_id,
            lambda job, now: self._announcer.happened(Event.ACCEPTED, job, now, duplicate=False),
        )
        self.ready[job.task_type].ring()
        return job

    async def forget(self, job_id: str) -> None:
        """Delete a finished job's row.

        Raises:
            JobNotFoundError: no such job.
            ConflictError: it is not finished.
            StorageError: nothing changed.
        """

        async def work(connection: Connection) -> int:
            return (await connection.execute(sql.FORGET, (job_id,))).rowcount

        if not await self._database.write(work):
            raise await self._unfit(job_id)

    async def _change(
        self,
        statement: str,
        parameters: Callable[[int], tuple[Any, ...]],
        job_id: str,
        messages: Callable[[Job, int], list[Message]],
    ) -> Job:
        async def work(connection: Connection) -> Job | None:
            now = self._clock()
            rows = await connection.execute_fetchall(statement, parameters(now))
            if not rows:
                return None
            job = job_from_row(rows[0])
            if not job.status.is_terminal:
                # It stands for its pair now: an older result is no longer delivered.
                await connection.execute(sql.SUPERSEDE_SYNC, (dump_json([pair(job)]),))
            await self._announcer.write(connection, messages(job, now))
            return job

        try:
            job = await self._database.write(work, durable=True)
        except TakenError as error:
            raise ConflictError(
                "a newer job stands for this picture and task",
                existing_job_id=await self._rival(job_id),
            ) from error
        if job is None:
            raise await self._unfit(job_id)
        if job.status.is_terminal:
            self._metrics.job_ended(job)
        self.message_ready.ring()
        return job

    async def _rival(self, job_id: str) -> str:
        jobs = jobs_from_rows(await self._database.read(sql.FIND, (job_id,)))
        pairs = dump_json([pair(job) for job in jobs])
        found = jobs_from_rows(await self._database.read(sql.FIND_PAIRS, (pairs,)))
        return found[0].job_id if found else job_id

    async def _unfit(self, job_id: str) -> Exception:
        try:
            job = await self.get(job_id)
        except JobNotFoundError as error:
            return error
        return ConflictError(f"the job is {job.status}", existing_job_id=job_id)
