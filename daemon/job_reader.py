"""Looks into the queue: what waits, runs and ended. Changes nothing."""

from collections.abc import Sequence
from typing import Any

from daemon import statements as sql
from daemon.database import Database
from daemon.errors import JobNotFoundError
from daemon.job_rows import jobs_from_rows
from daemon.jobs import Clock, Job, JobState, JsonObject, TaskType, dump_json


class JobReader:
    """Reads the latest commit, beside whatever is being written.

    Every method raises StorageError where the file cannot be read.
    """

    def __init__(self, database: Database, clock: Clock) -> None:
        self._database = database
        self._clock = clock

    async def get(self, job_id: str) -> Job:
        """Return a job.

        Raises:
            JobNotFoundError: no such job.
        """
        jobs = jobs_from_rows(await self._database.read(sql.FIND, (job_id,)))
        if not jobs:
            raise JobNotFoundError(f"there is no job {job_id}")
        return jobs[0]

    async def list_jobs(
        self,
        *,
        status: JobState | None = None,
        task_type: TaskType | None = None,
        limit: int = 100,
        after: str | None = None,
    ) -> list[Job]:
        """Return jobs, newest first, from the one after the job_id `after`.

        Raises:
            JobNotFoundError: `after` is no job.
        """
        conditions, parameters = ["1"], list[Any]()
        if after is not None:
            rows = await self._database.read("SELECT id FROM jobs WHERE job_id = ?", (after,))
            if not rows:
                raise JobNotFoundError(f"there is no job {after}")
            conditions.append("id < ?")
            parameters.append(rows[0][0])
        if status is not None:
            conditions.append("status = ?")
            parameters.append(status.value)
        if task_type is not None:
            conditions.append("task_type = ?")
            parameters.append(task_type.value)
        # Only the literals above reach the text; values are bound.
        statement = f"SELECT * FROM jobs WHERE {' AND '.join(conditions)} ORDER BY id DESC LIMIT ?"  # noqa: S608
        return jobs_from_rows(await self._database.read(statement, (*parameters, limit)))

    async def depth(self) -> JsonObject:
        """Return how many jobs wait, run, and how many events wait for the broker."""
        ready, delayed, suspect, processing, outbox = (await self._database.read(sql.COUNT_LIVE))[0]
        return {
            "pending": ready + delayed + suspect,
            "delayed": delayed,
            "processing": processing,
            "outbox": outbox,
        }

    async def has_suspect(self, task_types: Sequence[TaskType]) -> bool:
        """Whether a job waits that must run alone."""
        types = dump_json([task_type.value for task_type in task_types])
        return bool(await self._database.read(sql.HAS_SUSPECT, (types,)))

    async def due_syncs(self, task_types: Sequence[TaskType], limit: int) -> list[Job]:
        """Return jobs in sync_failed whose result should be offered again now."""
        types = dump_json([task_type.value for task_type in task_types])
        return jobs_from_rows(
            await self._database.read(sql.DUE_SYNC, (self._clock(), types, limit))
        )
