"""Looks into the queue: what waits, runs and ended. Changes nothing."""

from collections.abc import Sequence
from dataclasses import dataclass

from daemon.errors import JobNotFoundError
from daemon.jobs import Clock, Job, JsonObject, TaskType, dump_json
from daemon.queue import statements as sql
from daemon.queue.backend import QueueBackend
from daemon.queue.job_listing import JobPage, JobSelection, read_page
from daemon.queue.job_rows import jobs_from_rows

EVERY_JOB = JobSelection()


@dataclass(frozen=True, slots=True, kw_only=True)
class Snapshot:
    """What waits, runs and is owed at one moment; ages in seconds, 0 where there is nothing."""

    pending: int
    """Jobs that wait, `delayed` ones among them."""
    delayed: int
    """Jobs that wait for their next try."""
    processing: int
    undelivered: int
    """Face results in sync_failed that are still offered to the media store."""
    oldest_pending_seconds: float
    """Since the request of the longest waiting job was accepted."""
    outbox: int
    oldest_event_seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskDepth:
    """What waits and runs of one task type."""

    pending: int
    """Jobs that wait, those that wait for their next try among them."""
    processing: int
    is_paused: bool
    paused_until: int | None
    """When the pause ends by itself, in epoch milliseconds; None where it does not."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Failures:
    """The jobs of a task type that failed with one code and were not asked for again since."""

    code: str | None
    """Stable code of the error."""
    task_type: TaskType
    number: int
    latest: int
    """When the latest one failed, in epoch milliseconds."""
    message: str
    """`code: sentence` of the latest one."""
    media_store_id: int
    """The picture of the latest one."""


class JobReader:
    """Reads the latest commit, beside whatever is being written.

    Every method raises StorageError where the file cannot be read.
    """

    def __init__(self, database: QueueBackend, clock: Clock) -> None:
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
        self, asked: JobSelection = EVERY_JOB, *, limit: int = 100, after: str | None = None
    ) -> JobPage:
        """Return jobs, newest first, from `after` on: the `next` of a page, or a job_id.

        Raises:
            JobNotFoundError: `after` is neither, or the job of that job_id is gone.
        """
        return await read_page(self._database, asked, limit=limit, after=after)

    async def latest(self, limit: int) -> list[Job]:
        """Return the jobs that ended last, whatever became of them, the latest first."""
        return jobs_from_rows(await self._database.read(sql.LATEST, (limit,)))

    async def failures(self, limit: int) -> list[Failures]:
        """Return what failed by code and task type, the latest first; `limit` groups at most."""
        rows = await self._database.read(sql.COUNT_FAILURES)
        rows.sort(key=lambda row: -row["latest"])
        found = []
        for row in rows[:limit]:
            told = await self._database.read(
                sql.FAILURE_TOLD, (row["error_code"], row["task_type"])
            )
            # Between the two reads it may have been asked for again.
            found += [
                Failures(
                    code=row["error_code"],
                    task_type=TaskType(row["task_type"]),
                    number=row["number"],
                    latest=row["latest"],
                    message=each["error_message"],
                    media_store_id=each["media_store_id"],
                )
                for each in told
            ]
        return found

    async def depth(self) -> JsonObject:
        """Return how many jobs wait, run, and how many events wait for the broker."""
        found = await self.snapshot()
        return {
            "pending": found.pending,
            "delayed": found.delayed,
            "processing": found.processing,
            "outbox": found.outbox,
        }

    async def snapshot(self) -> Snapshot:
        """Return how much waits and runs, and for how long, in one read of one moment."""
        row = (await self._database.read(sql.COUNT_LIVE))[0]
        return Snapshot(
            pending=row["pending"],
            delayed=row["delayed"],
            processing=row["processing"],
            undelivered=row["undelivered"],
            oldest_pending_seconds=self._age_seconds(row["oldest_pending"]),
            outbox=row["outbox"],
            oldest_event_seconds=self._age_seconds(row["oldest_event"]),
        )

    async def depth_by_task(self) -> dict[TaskType, TaskDepth]:
        """Return how many jobs of each task type wait and run, and whether it is paused."""
        types = dump_json([task_type.value for task_type in TaskType])
        rows = await self._database.read(sql.COUNT_TASKS, (types, self._clock()))
        return {
            TaskType(row["task_type"]): TaskDepth(
                pending=row["pending"],
                processing=row["processing"],
                is_paused=bool(row["is_paused"]),
                paused_until=row["paused_until"],
            )
            for row in rows
        }

    def _age_seconds(self, since: int | None) -> float:
        return 0.0 if since is None else max(0, self._clock() - since) / 1000

    async def has_suspect(self, task_types: Sequence[TaskType]) -> bool:
        """Whether a job waits that must run alone, and whose task type is not paused."""
        types = dump_json([task_type.value for task_type in task_types])
        return bool(await self._database.read(sql.HAS_SUSPECT, (types, self._clock())))

    async def due_syncs(self, task_types: Sequence[TaskType], limit: int) -> list[Job]:
        """Return jobs in sync_failed whose result should be offered again now."""
        types = dump_json([task_type.value for task_type in task_types])
        return jobs_from_rows(
            await self._database.read(sql.DUE_SYNC, (self._clock(), types, limit))
        )
