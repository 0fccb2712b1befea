"""Examination: all that is wrong with some pictures, whose jobs must not change meanwhile.

The jobs are read before the vectors and again after them: a picture whose jobs live, or changed in
between, is no finding.
"""

from collections.abc import Collection, Sequence
from typing import Protocol

from daemon.jobs import Clock, TaskType
from daemon.queue.audit_findings import Finding, is_live, of_job, of_point
from daemon.queue.job_ledger import JobLedger
from daemon.stored_filter import StoredVector

DAY_MS = 86_400_000


class Vectors(Protocol):
    """The collections, as `handlers.search.stored_vectors` reads them."""

    @property
    def task_types(self) -> Collection[TaskType]:
        """Those whose vectors can be looked at."""

    async def count(self, task_type: TaskType) -> int:
        """Return how many vectors of a task type are stored."""

    async def page(
        self, task_type: TaskType, *, after: str | None, limit: int, deep: bool
    ) -> tuple[list[StoredVector], str | None]:
        """Return the next vectors by id, and the last of these where more follow."""

    async def has(self, task_type: TaskType, wanted: Sequence[tuple[int, int]]) -> list[bool]:
        """Return of each picture and face_index whether its vector is stored."""

    async def of_pictures(
        self, task_type: TaskType, media_store_ids: Sequence[int], *, deep: bool = False
    ) -> list[StoredVector]:
        """Return all that is stored of some pictures."""

    async def remove(
        self, task_type: TaskType, point_ids: Sequence[int | str], job_id: str
    ) -> None:
        """Delete those of the points that this job stored."""


class Examination:
    """Compares the jobs of pictures with what is stored of them.

    Args:
        ledger: the jobs, in bulk.
        vectors: what is stored.
        clock: epoch milliseconds.
        prune_after_days: how long jobs are kept; 0 is for ever. A vector that is older and has no
            job is no finding.
    """

    def __init__(
        self, ledger: JobLedger, vectors: Vectors, *, clock: Clock, prune_after_days: float
    ) -> None:
        self._ledger, self._vectors = ledger, vectors
        self._clock = clock
        self._kept_ms = int(prune_after_days * DAY_MS)

    @property
    def pruned_before(self) -> int | None:
        """Jobs that ended before then (epoch ms) may be gone; None where none are."""
        return self._clock() - self._kept_ms if self._kept_ms else None

    async def look(
        self, task_type: TaskType, pictures: Sequence[int], *, deep: bool = False
    ) -> list[Finding]:
        """Return all that is wrong with some pictures.

        Args:
            task_type: whose jobs and vectors.
            pictures: by their media_store_id.
            deep: look at the vectors themselves too.

        Raises:
            HandlerError: the vector database failed.
            StorageError: the queue's database failed.
        """
        if not pictures:
            return []
        before = await self._ledger.of_pictures(task_type, pictures)
        stored: dict[int, list[StoredVector]] = {}
        for point in await self._vectors.of_pictures(task_type, pictures, deep=deep):
            if point.is_ours and point.media_store_id is not None:
                stored.setdefault(point.media_store_id, []).append(point)
        after = await self._ledger.of_pictures(task_type, pictures)
        found: list[Finding] = []
        for picture in pictures:
            jobs, points = after.get(picture, []), stored.get(picture, [])
            if jobs != before.get(picture, []) or is_live(jobs):
                continue
            found += [
                finding
                for finding in (
                    of_job(task_type, jobs, points),
                    *(
                        of_point(task_type, point, jobs, self.pruned_before)
                        for point in points
                        if point.has_face
                    ),
                )
                if finding is not None
            ]
        return found
