"""What REST answers, described: errors, health, the queue, searches; jobs are in daemon/wire/job.

As daemon/wire these models are documentation and the tests' oracle; no route needs them.
"""

from typing import Annotated, Any, Literal, TypeAlias

from pydantic import ConfigDict, Field
from pydantic.json_schema import SkipJsonSchema

from daemon.jobs import TaskType
from daemon.wire.results import Box, Face, ImageSize, Provenance, Unit
from daemon.wire.schema import (
    JOB_ID,
    Code,
    Count,
    MediaStoreId,
    Milliseconds,
    Uuid,
    WireModel,
    WorkerId,
)

Cosine: TypeAlias = Annotated[float, Field(ge=-1, le=1)]


class ErrorBody(WireModel):
    """Every answer of 400 and above; `code` never changes its meaning, `detail` may be reworded."""

    detail: str = Field(description="A sentence for a person.")
    code: Code = Field(description="A stable word for a program.")
    field: str | SkipJsonSchema[None] = Field(None, description="The field at fault.")
    existing_job_id: Uuid | SkipJsonSchema[None] = Field(
        None, description="Of `conflict`: the job that stands in the way."
    )


class Greeting(WireModel):
    """Who answers here, and where to go on."""

    message: str = Field(examples=["inferd is running"])
    jobs: str = Field(examples=["/job"])
    health: str = Field(examples=["/health"])


class Live(WireModel):
    """The process answers; nothing else is asked."""

    status: Literal["ok"]


class Stalled(WireModel):
    """The process answers, but a model's call hangs, which only a new start ends."""

    status: Literal["stalled"]
    code: Literal["model_stalled"]
    message: str


class CheckPassed(WireModel):
    """A part that works, and what is known of it, which differs from part to part."""

    model_config = ConfigDict(extra="allow")

    ok: Literal[True]


class CheckFailed(WireModel):
    """A part that is away."""

    ok: Literal[False]
    code: Code = Field(examples=["broker_unreachable"])
    message: str = Field(description="A sentence for the operator.")


class Health(WireModel):
    """What the daemon says of itself and of all that it depends on."""

    status: Literal["ok", "degraded", "unavailable", "draining"] = Field(
        description="degraded: a part that is not needed is away, or one is short of something; "
        "unavailable: a part that is needed is away."
    )
    version: str = Field(description="Of the daemon.")
    worker_id: WorkerId = Field(description="INFERD_MQTT__CLIENT_ID.")
    uptime_seconds: float = Field(ge=0)
    checks: dict[str, CheckPassed | CheckFailed] = Field(
        description="By part: broker, database, worker, media_store, models, vectors, auth."
    )


class FullHealth(Health):
    """The same, and the words that the first service had."""

    database: Literal["ok", "unavailable"]
    worker: Literal["ok", "unavailable", "unknown"]
    queue_size: Count | None = Field(description="Jobs that wait; null where nobody can tell.")


class RetriedBody(WireModel):
    """What became of jobs that were to be started again."""

    retried: Count
    left_out: Count = Field(description="A newer job stands for their picture and task.")
    more: bool = Field(
        description="The limit was reached: asking again, with the same `before`, goes on."
    )
    before: Milliseconds = Field(description="Jobs that failed later were not looked at.")


class TaskQueue(WireModel):
    """The jobs of one task type."""

    pending: Count = Field(description="Jobs that wait.")
    processing: Count = Field(description="Jobs that a worker holds.")
    paused: bool = Field(description="No job of it is begun.")
    paused_until: Milliseconds | None = Field(
        description="When the pause ends by itself; null where it does not, or there is none."
    )


class QueueReport(WireModel):
    """How much waits and runs, in all and by task type."""

    pending: Count = Field(description="Jobs that wait, delayed ones included.")
    delayed: Count = Field(description="Jobs that wait for their next try.")
    processing: Count = Field(description="Jobs that a worker holds.")
    oldest_pending_ms: Count = Field(description="Age of the longest waiting job; 0 if none waits.")
    outbox: Count = Field(description="Events the broker has not confirmed.")
    task_types: dict[TaskType, TaskQueue]


class PauseState(WireModel):
    """Whether a task type is paused."""

    task_type: TaskType
    paused: bool
    paused_until: Milliseconds | None = Field(
        description="When the pause ends by itself; null where it does not, or there is none."
    )


class TextQuery(WireModel):
    """A text was asked for."""

    kind: Literal["text"]
    text: str
    truncated: Literal[True] | SkipJsonSchema[None] = Field(
        None, description="The model read the text's beginning only; absent where it read all."
    )


class LikeQuery(WireModel):
    """What is stored of a picture was asked for."""

    kind: Literal["like"]
    media_store_id: MediaStoreId
    face_index: Count | SkipJsonSchema[None] = Field(None, description="Of faces: which one.")


class PictureQuery(WireModel):
    """The picture that was sent was asked for."""

    kind: Literal["picture"]


class QueryFace(WireModel):
    """The face that was compared."""

    bbox: Box
    confidence: Unit


class FaceQuery(WireModel):
    """A face of the picture that was sent was asked for."""

    kind: Literal["face"]
    face_index: Count = Field(description="Which of the picture's faces, as face_detection has it.")
    face: QueryFace
    face_count: int = Field(ge=1, description="How many faces the picture has.")


class Match(WireModel):
    """One stored vector, and how near it is."""

    point_id: int | Uuid
    score: Cosine = Field(description="Cosine of the two vectors.")
    media_store_id: MediaStoreId | None
    job_id: Uuid | None = Field(description="The job that stored it.", examples=[JOB_ID])
    payload: dict[str, Any] = Field(description="All that is stored with it.")


class SearchAnswer(WireModel):
    """The nearest vectors, best first."""

    collection: Literal["image_embeddings", "face_embeddings"]
    model: Provenance = Field(description="The model whose vectors were compared.")
    query: TextQuery | LikeQuery | PictureQuery | FaceQuery
    results: list[Match]
    next: Count | None = Field(
        description="The `offset` at which the search goes on; null where nothing follows. Beyond "
        "10000 a search does not go: narrow it."
    )


class DuplicatesQuestion(WireModel):
    """The cluster of a stored picture was asked for."""

    kind: Literal["duplicates"]
    media_store_id: MediaStoreId
    min_score: Cosine


class Duplicate(WireModel):
    """One picture of a cluster."""

    point_id: int | str = Field(description="The media_store_id, but for points of scripts.")
    media_store_id: MediaStoreId | None
    score: Cosine = Field(
        description="Cosine to the picture that was asked for; low at the end of a long chain."
    )
    near: int | str = Field(description="The point of the cluster that brought it in.")
    near_score: Cosine = Field(description="Cosine to that one.")
    job_id: Uuid | None = Field(description="The job that stored it.", examples=[JOB_ID])


class DuplicatesAnswer(WireModel):
    """A picture's near-duplicates, theirs, and so on; the most alike first."""

    collection: Literal["image_embeddings"]
    model: Provenance = Field(description="The model whose vectors were compared.")
    query: DuplicatesQuestion
    complete: bool = Field(description="False where there may be more than `limit`.")
    results: list[Duplicate]


class VectorSnapshot(WireModel):
    """A copy of the embedded vectors, on the daemon's disk."""

    snapshot_id: str
    folder: str = Field(description="Where it is; it holds one folder, named as the engine.")
    engine: Literal["edge", "local"]
    collections: list[str]
    size: Count = Field(description="Bytes on the disk, holes left out.")


class RemovedSnapshot(WireModel):
    """A copy of the embedded vectors is not there any more."""

    removed: bool = Field(description="Whether there was one.")


class KnownFace(Face):
    """One face of a picture, as its newest result has it."""

    stored: bool | None = Field(
        description="Whether its vector is stored; null where this daemon has no faces' vectors."
    )


class FaceVector(WireModel):
    """The stored vector of one face."""

    point_id: Uuid
    face_index: Count | None
    job_id: Uuid | None = Field(description="The job that stored it.", examples=[JOB_ID])


class FacesAnswer(WireModel):
    """What is known of the faces of a picture."""

    media_store_id: MediaStoreId
    job_id: Uuid | None = Field(
        description="The job whose result this is: the newest face_embedding, else face_detection; "
        "null where only vectors are left."
    )
    task_type: Literal["face_embedding", "face_detection"] | None
    image: ImageSize | None
    faces: list[KnownFace]
    vectors: list[FaceVector] | None = Field(
        description="What is stored; null where this daemon has no faces' vectors."
    )
