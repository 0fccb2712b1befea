"""JobLedger: which jobs stand for which pictures, in bulk; for the audit of what is stored.

Its statements are such that every engine of the queue understands them as they are.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from daemon.jobs import JobState, TaskType, load_json
from daemon.queue.backend import QueueBackend, Row

MANY = 500
"""Pictures looked up in one statement."""

# The first condition is that of the index jobs_pair, which has them by media_store_id.
COMPLETED = """
SELECT job_id, media_store_id, status, request_id, result FROM jobs
WHERE status IN ('pending', 'processing', 'completed') AND status = 'completed'
  AND task_type = ? AND media_store_id > ?
ORDER BY media_store_id LIMIT ?
"""


NEWEST = """
SELECT completed_at FROM jobs WHERE completed_at IS NOT NULL AND status = 'completed'
ORDER BY completed_at DESC LIMIT 1
"""
SINCE = """
SELECT id, completed_at, job_id, media_store_id, status, request_id, result FROM jobs
WHERE completed_at IS NOT NULL AND (completed_at, id) > (?, ?)
  AND status = 'completed' AND task_type = ?
ORDER BY completed_at, id LIMIT ?
"""


def of_pictures(count: int) -> str:
    """Return the statement that looks up the jobs of `count` pictures, in whatever state.

    In two parts, each with an index of its own; the pictures and the task type are given twice.
    """
    ids = ", ".join("?" * count)
    parts = [
        "SELECT job_id, media_store_id, status, request_id, result FROM jobs"  # noqa: S608 - placeholders
        f" WHERE media_store_id IN ({ids}) AND task_type = ? AND status IN ({states})"
        for states in ("'pending', 'processing', 'completed'", "'error', 'sync_failed'")
    ]
    return " UNION ALL ".join(parts)


@dataclass(frozen=True, slots=True, kw_only=True)
class KnownJob:
    """One job, as far as its vectors go."""

    job_id: str
    media_store_id: int
    status: JobState
    request_id: str | None
    vectors: int
    """How many its result says that it stored; 0 where it has none."""
    found_by: str | None = None
    """Of faces: what looked for them, as its result says."""


class JobLedger:
    """Reads the latest commit. Every method raises StorageError where it cannot be read."""

    def __init__(self, database: QueueBackend) -> None:
        self._database = database

    async def completed(self, task_type: TaskType, *, after: int, limit: int) -> list[KnownJob]:
        """Return completed jobs by media_store_id, from the one after `after` on."""
        rows = await self._database.read(COMPLETED, (task_type.value, after, limit))
        return [_job(task_type, row) for row in rows]

    async def newest(self) -> int | None:
        """Return when (epoch ms) the last job completed; None where none did."""
        rows = await self._database.read(NEWEST)
        moment: int | None = rows[0]["completed_at"] if rows else None
        return moment

    async def since(
        self, task_type: TaskType, after: tuple[int, int], *, limit: int
    ) -> list[tuple[tuple[int, int], KnownJob]]:
        """Return jobs by when they completed, each with the `after` of the page behind it."""
        rows = await self._database.read(SINCE, (*after, task_type.value, limit))
        return [((row["completed_at"], row["id"]), _job(task_type, row)) for row in rows]

    async def of_pictures(
        self, task_type: TaskType, media_store_ids: Sequence[int]
    ) -> dict[int, list[KnownJob]]:
        """Return all jobs of some pictures, by picture; those that have none are absent."""
        found: dict[int, list[KnownJob]] = {}
        for start in range(0, len(media_store_ids), MANY):
            some = media_store_ids[start : start + MANY]
            both = (*some, task_type.value) * 2
            for row in await self._database.read(of_pictures(len(some)), both):
                job = _job(task_type, row)
                found.setdefault(job.media_store_id, []).append(job)
        return found


def _job(task_type: TaskType, row: Row) -> KnownJob:
    result = load_json(row["result"]) if row["result"] else {}
    vectors, found_by = 0, None
    if result:
        if detector := result.get("inference", {}).get("detector"):
            # As handlers.vectors.faceless keeps it with each face.
            found_by = f"{detector.get('model')} {detector.get('weights')}"
        vectors = len(result.get("faces", ())) if task_type is TaskType.FACE_EMBEDDING else 1
    return KnownJob(
        job_id=row["job_id"],
        media_store_id=row["media_store_id"],
        status=JobState(row["status"]),
        request_id=row["request_id"],
        vectors=vectors,
        found_by=found_by,
    )
