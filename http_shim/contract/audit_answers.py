"""What the routes of stored vectors and of their audit answer, described."""

from typing import Any, Literal

from pydantic import Field

from daemon.jobs import TaskType
from daemon.queue.audit_findings import Kind, Outcome
from daemon.wire.schema import JOB_ID, Count, MediaStoreId, Uuid, WireModel


class StoredPoint(WireModel):
    """One stored vector, without its numbers."""

    point_id: int | str = Field(description="The media_store_id, or a face's UUID.")
    media_store_id: MediaStoreId | None
    job_id: str | None = Field(description="The job that stored it.", examples=[JOB_ID])
    payload: dict[str, Any] = Field(description="All that is stored with it.")


class StoredAnswer(WireModel):
    """What is stored, by the points' ids; numbers come before UUIDs."""

    collection: Literal["image_embeddings", "face_embeddings"]
    points: list[StoredPoint]
    next: str | None = Field(description="The `after` of the next page; null after the last one.")


class FindingBody(WireModel):
    """One thing that is wrong."""

    kind: Kind = Field(
        description="missing_vector, missing_faces: a job completed, and its vectors, or some, are "
        "not there; surplus_face: a face that the result does not have; other_job, other_model: "
        "stored by another job than the one that completed, or of another model than its "
        "collection; bad_vector: of another dimension, or without a direction; orphan_vector: the "
        "queue knows no job of the picture, as of one that was pruned; foreign_vector: another "
        "program's."
    )
    task_type: TaskType
    media_store_id: int | None = Field(description="The picture; null where the vector names none.")
    point_id: int | str | None = Field(description="The vector; null where one is missing.")
    job_id: str | None = Field(
        description="The completed job, or the one that stored an orphan.", examples=[JOB_ID]
    )
    detail: str = Field(description="A sentence for a person.")


class AuditStep(WireModel):
    """What one step of an audit looked at, and what is wrong with it."""

    findings: list[FindingBody]
    jobs: Count = Field(description="Completed jobs that were looked at.")
    vectors: Count = Field(description="Stored vectors that were looked at.")
    pruned: Count = Field(
        description="Of these, vectors that have no job and are older than INFERD_QUEUE__PRUNE_"
        "AFTER_DAYS keeps one: no findings."
    )
    total_vectors: Count | None = Field(
        description="Of the first step of a collection: how many vectors it has."
    )
    next: str | None = Field(description="The `after` of the next step; null after the last one.")


class Mended(WireModel):
    """What became of one finding."""

    outcome: Outcome = Field(
        description="requeued: a job waits; deleted; gone: it is no finding any more, or its "
        "picture has a job by now; queue_full: ask again later; unmendable."
    )
    job_id: Uuid | None = Field(description="Of `requeued`: the job that does the picture anew.")


class MendAnswer(WireModel):
    """What became of each finding, in their order."""

    results: list[Mended]
