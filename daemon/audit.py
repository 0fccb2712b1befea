"""Audit: compares completed jobs with stored vectors, slice by slice, and mends on request.

Nothing is kept between two slices: each comes with a cursor, which is sent back for the next one.
What looks wrong at first is looked at once more, the jobs before the vectors and again after them:
a picture whose jobs live, or changed in between, is no finding. A mend does the same, and then asks
for what only holds while nothing has changed: a job that takes the place of one job alone, a delete
of what one job stored. So neither harms what somebody else does to the picture meanwhile.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Protocol

from daemon.admission import Accepted, Submission
from daemon.audit_findings import (
    DELETED_BY_MEND,
    UNMENDABLE,
    Finding,
    Kind,
    Outcome,
    completed,
    is_live,
    may_be_pruned,
    of_job,
    of_point,
)
from daemon.errors import InvalidRequestError
from daemon.intake import new_job_id
from daemon.job_ledger import JobLedger
from daemon.job_queue import JobQueue
from daemon.jobs import MAX_MEDIA_STORE_ID, Clock, Job, JobState, JsonObject, TaskType
from daemon.stored_filter import StoredVector

JOBS_A_SLICE = 500
VECTORS_A_SLICE = 1000
LOWEST_PRIORITY = 0
DAY_MS = 86_400_000


class Vectors(Protocol):
    """The collections, as `handlers.stored_vectors` reads them."""

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


@dataclass(frozen=True, slots=True, kw_only=True)
class Slice:
    """What one step found."""

    findings: list[Finding]
    jobs: int
    """Completed jobs that were looked at."""
    vectors: int
    """Vectors that were looked at."""
    pruned: int = 0
    """Vectors that have no job, most likely since jobs of their age are pruned."""
    total_vectors: int | None
    """How many the collection has; where a collection is begun only."""
    next: str | None
    """Where the next step begins; None after the last one."""

    def to_wire(self) -> JsonObject:
        """Return it as clients see it."""
        return {
            "findings": [each.to_wire() for each in self.findings],
            "jobs": self.jobs,
            "vectors": self.vectors,
            "pruned": self.pruned,
            "total_vectors": self.total_vectors,
            "next": self.next,
        }


@dataclass(frozen=True, slots=True)
class _Cursor:
    """Where a step begins: `{task_type}.jobs.{media_store_id}` or `{task_type}.vectors.{id}`."""

    task_type: TaskType
    part: str
    after: str

    @classmethod
    def of(cls, text: str) -> "_Cursor":
        words = text.split(".")
        try:
            task_type, part, after = words
            cursor = cls(TaskType(task_type), part, after)
            is_place = part == "vectors" or (
                part == "jobs" and -1 <= int(after) <= MAX_MEDIA_STORE_ID
            )
            if not is_place:
                raise ValueError
        except ValueError:
            raise InvalidRequestError("after must be the `next` of a step", field="after") from None
        return cursor

    def __str__(self) -> str:
        return f"{self.task_type}.{self.part}.{self.after}"


class Audit:
    """Finds what does not fit, and mends it.

    Args:
        queue: takes the jobs that mend.
        ledger: the jobs, in bulk.
        vectors: what is stored.
        clock: epoch milliseconds.
        prune_after_days: how long jobs are kept; 0 is for ever. A vector that is older and has no
            job is counted, and is no finding.
    """

    def __init__(
        self,
        queue: JobQueue,
        ledger: JobLedger,
        vectors: Vectors,
        *,
        clock: Clock,
        prune_after_days: float = 0,
    ) -> None:
        self._queue, self._ledger, self._vectors = queue, ledger, vectors
        self._clock = clock
        self._kept_ms = int(prune_after_days * DAY_MS)

    async def step(self, after: str | None, *, deep: bool = False) -> Slice:
        """Look at the next few hundred jobs or vectors.

        Args:
            after: the `next` of the step before; None begins.
            deep: look at the vectors themselves too, not only at what is stored with them.

        Raises:
            InvalidRequestError: `after` is none.
            HandlerError: the vector database failed.
            StorageError: the queue's database failed.
        """
        kinds = sorted(self._vectors.task_types)
        if after is None:
            if not kinds:
                return Slice(findings=[], jobs=0, vectors=0, total_vectors=None, next=None)
            cursor = _Cursor(kinds[0], "jobs", "-1")
        else:
            cursor = _Cursor.of(after)
            if cursor.task_type not in kinds:
                raise InvalidRequestError(f"{cursor.task_type} does not run here", field="after")
        if cursor.part == "jobs":
            return await self._jobs(cursor)
        return await self._stored(cursor, kinds, deep=deep)

    @property
    def task_types(self) -> Collection[TaskType]:
        """Those whose vectors can be looked at."""
        return self._vectors.task_types

    async def missing(self, task_type: TaskType, pictures: Sequence[int]) -> list[Finding]:
        """Return which of these pictures have a completed job whose vectors are not all there.

        Raises:
            HandlerError: the vector database failed.
            StorageError: the queue's database failed.
        """
        return [
            each
            for each in await self._examine(task_type, pictures)
            if each.kind in (Kind.MISSING_VECTOR, Kind.MISSING_FACES)
        ]

    async def mend(self, asked: Sequence[Finding]) -> list[tuple[Outcome, str | None]]:
        """Mend findings: ask for the picture again, or delete what has no job.

        Each is looked at anew; jobs have the lowest priority, and one is enough for a picture.

        Returns:
            For each what became of it, and the job that was asked for.

        Raises:
            InvalidRequestError: one is of a task type that does not run here.
            HandlerError: the vector database failed; what was mended until then is.
            StorageError: the queue's database failed; the same.
        """
        if not {each.task_type for each in asked} <= set(self._vectors.task_types):
            raise InvalidRequestError("a finding is of no task type here", field="findings")
        redone: dict[tuple[TaskType, int | None], tuple[Outcome, str | None]] = {}
        outcomes: list[tuple[Outcome, str | None]] = []
        for each in asked:
            pair = each.task_type, each.media_store_id
            if each.kind in UNMENDABLE or each.media_store_id is None:
                outcomes.append((Outcome.UNMENDABLE, None))
            elif each.kind in DELETED_BY_MEND:
                outcomes.append((await self._delete(each, each.media_store_id), None))
            else:
                if pair not in redone:
                    redone[pair] = await self._redo(each, each.media_store_id)
                outcomes.append(redone[pair])
        return outcomes

    @property
    def _pruned_before(self) -> int | None:
        return self._clock() - self._kept_ms if self._kept_ms else None

    # ---- steps

    async def _jobs(self, cursor: _Cursor) -> Slice:
        task_type = cursor.task_type
        jobs = await self._ledger.completed(task_type, after=int(cursor.after), limit=JOBS_A_SLICE)
        wanted = [(job.media_store_id, index) for job in jobs for index in range(job.vectors)]
        there = await self._vectors.has(task_type, wanted)
        suspects = {
            picture for (picture, _), is_there in zip(wanted, there, strict=True) if not is_there
        }
        findings = await self.missing(task_type, sorted(suspects))
        is_last = len(jobs) < JOBS_A_SLICE
        follows = (
            _Cursor(task_type, "vectors", "")
            if is_last
            else _Cursor(task_type, "jobs", str(jobs[-1].media_store_id))
        )
        return Slice(
            findings=findings,
            jobs=len(jobs),
            vectors=0,
            total_vectors=await self._vectors.count(task_type) if cursor.after == "-1" else None,
            next=str(follows),
        )

    async def _stored(self, cursor: _Cursor, kinds: Sequence[TaskType], *, deep: bool) -> Slice:
        task_type = cursor.task_type
        points, last = await self._vectors.page(
            task_type, after=cursor.after or None, limit=VECTORS_A_SLICE, deep=deep
        )
        pictures = {point.media_store_id for point in points if point.media_store_id is not None}
        jobs = await self._ledger.of_pictures(task_type, sorted(pictures))
        findings = [
            found
            for point in points
            if not point.is_ours and (found := of_point(task_type, point, []))
        ]
        ours = {point.point_id: point for point in points if point.is_ours}
        suspects = {
            point.media_store_id
            for point in ours.values()
            if point.media_store_id is not None
            and of_point(task_type, point, jobs.get(point.media_store_id, []), self._pruned_before)
        }
        pruned = sum(
            may_be_pruned(point, jobs.get(point.media_store_id or 0, []), self._pruned_before)
            for point in ours.values()
        )
        findings += [
            each
            for each in await self._examine(task_type, sorted(suspects), deep=deep)
            if each.point_id in ours
        ]
        follows = None
        if last is not None:
            follows = str(_Cursor(task_type, "vectors", last))
        elif later := [kind for kind in kinds if kind > task_type]:
            follows = str(_Cursor(later[0], "jobs", "-1"))
        return Slice(
            findings=findings,
            jobs=0,
            vectors=len(points),
            pruned=pruned,
            total_vectors=None,
            next=follows,
        )

    async def _examine(
        self, task_type: TaskType, pictures: Sequence[int], *, deep: bool = False
    ) -> list[Finding]:
        """Return all that is wrong with some pictures whose jobs do not change meanwhile."""
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
                        of_point(task_type, point, jobs, self._pruned_before)
                        for point in points
                        if point.has_face
                    ),
                )
                if finding is not None
            ]
        return found

    # ---- mends

    async def _delete(self, asked: Finding, picture: int) -> Outcome:
        for found in await self._examine(asked.task_type, [picture]):
            if (found.kind, found.point_id, found.job_id) == (
                asked.kind,
                asked.point_id,
                asked.job_id,
            ):
                if found.job_id is None or found.point_id is None:
                    return Outcome.UNMENDABLE
                await self._vectors.remove(asked.task_type, [found.point_id], found.job_id)
                return Outcome.DELETED
        return Outcome.GONE

    async def _redo(self, asked: Finding, picture: int) -> tuple[Outcome, str | None]:
        deep = asked.kind is Kind.BAD_VECTOR
        found = await self._examine(asked.task_type, [picture], deep=deep)
        if not any(each.kind is asked.kind for each in found):
            return Outcome.GONE, None
        jobs = (await self._ledger.of_pictures(asked.task_type, [picture])).get(picture, [])
        old = completed(jobs)
        if old is None:
            # Another model's vector of a picture whose job failed, or was pruned.
            return Outcome.UNMENDABLE, None
        job = Job(
            job_id=new_job_id(),
            task_type=asked.task_type,
            media_store_id=picture,
            priority=LOWEST_PRIORITY,
            status=JobState.PENDING,
            created_at=self._clock(),
            request_id=old.request_id,
        )
        outcome = await self._queue.enqueue(Submission(job=job, force=True, instead_of=old.job_id))
        if isinstance(outcome, Accepted):
            return Outcome.REQUEUED, job.job_id
        return (Outcome.QUEUE_FULL if outcome.code == "queue_full" else Outcome.GONE), None
