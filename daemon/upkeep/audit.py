"""Audit: compares completed jobs with stored vectors, slice by slice, and mends on request.

Nothing is kept between two slices: each comes with a cursor, which is sent back for the next one.
What looks wrong at first is looked at once more (audit_examination): a picture whose jobs live, or
changed meanwhile, is no finding. A mend does the same, and then asks for what only holds while
nothing has changed: a job that takes the place of one job alone, a delete of what one job stored.
So neither harms what somebody else does to the picture meanwhile.
"""

from collections.abc import Collection, Sequence

from daemon.errors import InvalidRequestError
from daemon.intake import new_job_id
from daemon.jobs import Clock, Job, JobState, TaskType
from daemon.queue.admission import Accepted, Submission
from daemon.queue.audit_findings import (
    DELETED_BY_MEND,
    UNMENDABLE,
    Finding,
    Kind,
    Outcome,
    completed,
    may_be_pruned,
    of_point,
)
from daemon.queue.job_ledger import JobLedger
from daemon.queue.job_queue import JobQueue
from daemon.upkeep.audit_examination import Examination, Vectors
from daemon.upkeep.audit_slice import Cursor, Slice

JOBS_A_SLICE = 500
VECTORS_A_SLICE = 1000
LOWEST_PRIORITY = 0


class Audit:
    """Finds where jobs and vectors disagree, and mends it.

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
        self._pictures = Examination(
            ledger, vectors, clock=clock, prune_after_days=prune_after_days
        )

    async def step(self, after: str | None, *, deep: bool = False) -> Slice:
        """Look at the next few hundred jobs or vectors.

        Args:
            after: the `next` of the step before; None begins.
            deep: look at the vectors themselves too, not only at what is stored with them.

        Raises:
            InvalidRequestError: `after` is not a cursor.
            HandlerError: the vector database failed.
            StorageError: the queue's database failed.
        """
        kinds = sorted(self._vectors.task_types)
        if after is None:
            if not kinds:
                return Slice(findings=[], jobs=0, vectors=0, total_vectors=None, next=None)
            cursor = Cursor(kinds[0], "jobs", "-1")
        else:
            cursor = Cursor.of(after)
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
            for each in await self._pictures.look(task_type, pictures)
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
                # One that is gone says nothing of the picture's others.
                if pair not in redone or redone[pair][0] is Outcome.GONE:
                    redone[pair] = await self._redo(each, each.media_store_id)
                outcomes.append(redone[pair])
        return outcomes

    # ---- steps

    async def _jobs(self, cursor: Cursor) -> Slice:
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
            Cursor(task_type, "vectors", "")
            if is_last
            else Cursor(task_type, "jobs", str(jobs[-1].media_store_id))
        )
        return Slice(
            findings=findings,
            jobs=len(jobs),
            vectors=0,
            total_vectors=await self._vectors.count(task_type) if cursor.after == "-1" else None,
            next=str(follows),
        )

    async def _stored(self, cursor: Cursor, kinds: Sequence[TaskType], *, deep: bool) -> Slice:
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
        pruned_before = self._pictures.pruned_before
        suspects = {
            point.media_store_id
            for point in ours.values()
            if point.media_store_id is not None
            and of_point(task_type, point, jobs.get(point.media_store_id, []), pruned_before)
        }
        pruned = sum(
            may_be_pruned(point, jobs.get(point.media_store_id or 0, []), pruned_before)
            for point in ours.values()
        )
        findings += [
            each
            for each in await self._pictures.look(task_type, sorted(suspects), deep=deep)
            if each.point_id in ours
        ]
        follows = None
        if last is not None:
            follows = str(Cursor(task_type, "vectors", last))
        elif later := [kind for kind in kinds if kind > task_type]:
            follows = str(Cursor(later[0], "jobs", "-1"))
        return Slice(
            findings=findings,
            jobs=0,
            vectors=len(points),
            pruned=pruned,
            total_vectors=None,
            next=follows,
        )

    # ---- mends

    async def _delete(self, asked: Finding, picture: int) -> Outcome:
        for found in await self._pictures.look(asked.task_type, [picture]):
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
        found = await self._pictures.look(asked.task_type, [picture], deep=deep)
        if not any(each.kind is asked.kind for each in found):
            return Outcome.GONE, None
        return await self._ask_again(asked, picture)

    async def _ask_again(self, asked: Finding, picture: int) -> tuple[Outcome, str | None]:
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
