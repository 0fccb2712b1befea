"""How jobs and stored vectors can disagree, decided from their data alone: pure functions."""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

from daemon.jobs import JobState, JsonObject, TaskType
from daemon.queue.job_ledger import KnownJob
from daemon.stored_filter import StoredVector


class Kind(StrEnum):
    """What is wrong."""

    MISSING_VECTOR = "missing_vector"
    """A job completed, and none of its vectors is there."""
    MISSING_FACES = "missing_faces"
    """A job completed, and some of its faces have no vector."""
    SURPLUS_FACE = "surplus_face"
    """A vector of a face that the job's result does not have."""
    OTHER_JOB = "other_job"
    """A vector that another job stored than the one that completed last."""
    OTHER_MODEL = "other_model"
    """A vector that says that it is of another model than its collection."""
    BAD_VECTOR = "bad_vector"
    """A vector of another dimension, or that has no direction."""
    ORPHAN_VECTOR = "orphan_vector"
    """A vector of a picture of which the queue knows no job, and that is younger than jobs which
    were pruned; where none are pruned by now, those that were before look so as well."""
    FOREIGN_VECTOR = "foreign_vector"
    """A vector under an id that no job stores under: another program's."""


class Outcome(StrEnum):
    """What became of a finding that was to be mended."""

    REQUEUED = "requeued"
    DELETED = "deleted"
    GONE = "gone"
    """It is no finding any more, or its picture has a job by now."""
    QUEUE_FULL = "queue_full"
    UNMENDABLE = "unmendable"


DELETED_BY_MEND = frozenset({Kind.ORPHAN_VECTOR})
UNMENDABLE = frozenset({Kind.FOREIGN_VECTOR})


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One thing that is wrong."""

    kind: Kind
    task_type: TaskType
    media_store_id: int | None
    point_id: int | str | None = None
    """The vector; None where one is missing."""
    job_id: str | None = None
    """The completed job; of a vector without one, the job that stored it."""
    detail: str
    """A sentence for a person."""

    def to_wire(self) -> JsonObject:
        """Return it as clients see it."""
        return {
            "kind": self.kind.value,
            "task_type": self.task_type.value,
            "media_store_id": self.media_store_id,
            "point_id": self.point_id,
            "job_id": self.job_id,
            "detail": self.detail,
        }


def is_live(jobs: Sequence[KnownJob]) -> bool:
    """Whether one of a picture's jobs waits or runs."""
    return any(not job.status.is_terminal for job in jobs)


def completed(jobs: Sequence[KnownJob]) -> KnownJob | None:
    """Return the one of a picture's jobs that completed, if one did."""
    return next((job for job in jobs if job.status is JobState.COMPLETED), None)


def counts_otherwise(job: KnownJob, points: Sequence[StoredVector]) -> bool:
    """Whether a picture's faces were found by another detector than the job's result tells of.

    So it is after a change of the model: how many there are is the detector's business.
    """
    return job.found_by is not None and any(
        point.found_by not in (None, job.found_by) and point.job_id == job.job_id
        for point in points
    )


def of_job(
    task_type: TaskType, jobs: Sequence[KnownJob], points: Sequence[StoredVector]
) -> Finding | None:
    """Return what is missing of a picture's completed job."""
    job = completed(jobs)
    if job is None or not job.vectors or counts_otherwise(job, points):
        return None
    indexes = {point.face_index for point in points if point.has_face}
    lacking = sum(index not in indexes for index in range(job.vectors))
    if not lacking:
        return None
    is_whole = lacking == job.vectors
    return Finding(
        kind=Kind.MISSING_VECTOR if is_whole else Kind.MISSING_FACES,
        task_type=task_type,
        media_store_id=job.media_store_id,
        job_id=job.job_id,
        detail="no vector is stored of its completed job"
        if is_whole
        else f"{lacking} of {job.vectors} faces have no vector",
    )


def may_be_pruned(point: StoredVector, jobs: Sequence[KnownJob], pruned_before: int | None) -> bool:
    """Whether a vector's job is not there since jobs of its age are pruned."""
    # What does not say when it was stored is older than all that does.
    is_old = pruned_before is not None and (point.stored_at or 0) < pruned_before
    return point.is_ours and not jobs and is_old


def of_point(
    task_type: TaskType,
    point: StoredVector,
    jobs: Sequence[KnownJob],
    pruned_before: int | None = None,
) -> Finding | None:
    """Return what is wrong with a stored vector, the worst first; its jobs do not live.

    Args:
        task_type: whose collection it is in.
        point: the vector.
        jobs: all jobs of its picture.
        pruned_before: jobs that ended before then may be gone, in epoch milliseconds; None where
            none are.
    """
    job = completed(jobs)

    def found(kind: Kind, detail: str, job_id: str | None) -> Finding:
        return Finding(
            kind=kind,
            task_type=task_type,
            media_store_id=point.media_store_id,
            point_id=point.point_id,
            job_id=job_id,
            detail=detail,
        )

    if not point.is_ours:
        return found(Kind.FOREIGN_VECTOR, "no job stores under this id", point.job_id)
    if is_live(jobs) or may_be_pruned(point, jobs, pruned_before):
        return None
    if not jobs:
        unknown = "the queue knows no job of the picture; one that was pruned looks so too"
        return found(Kind.ORPHAN_VECTOR, unknown, point.job_id)
    job_id = job.job_id if job is not None else point.job_id
    if point.fault is not None:
        return found(Kind.BAD_VECTOR, point.fault, job_id)
    if point.has_other_model:
        return found(Kind.OTHER_MODEL, "it says that it is of another model", job_id)
    # A failed job is told by `jobs list`; the vector of the time before it is still good.
    if job is not None and point.face_index >= job.vectors and not counts_otherwise(job, [point]):
        faces = f"the result has {job.vectors} faces, counted from 0"
        return found(Kind.SURPLUS_FACE, faces, job_id)
    if job is not None and point.job_id not in (None, job.job_id):
        return found(Kind.OTHER_JOB, f"job {point.job_id} stored it", job_id)
    return None
