"""Events of jobs and of refused requests: one envelope, and a model for each event."""

from typing import Any, Literal

from pydantic import ConfigDict, Field
from pydantic.json_schema import SkipJsonSchema

from daemon.events import Event
from daemon.jobs import JobState, JsonObject
from daemon.requests import MAX_BATCH, MAX_REQUEST_ID
from daemon.wire.codes import DELETE_REFUSALS, REFUSALS
from daemon.wire.job import (
    COMPLETED_JOB,
    FAILED_JOB,
    PENDING_JOB,
    PROCESSING_JOB,
    JobBody,
    JobWithoutResult,
)
from daemon.wire.results import Unit
from daemon.wire.schema import (
    CREATED,
    JOB_ID,
    STARTED,
    WORKER_ID,
    Count,
    MediaStoreId,
    Milliseconds,
    Uuid,
    WireModel,
    WorkerId,
    ref,
)
from daemon.worker.progress import STAGES

_OTHER_JOB_ID = "7c9e6679-7425-40de-944b-e07fc1f90ae7"


def _example(event: Event, status: str, data: JsonObject, **more: Any) -> ConfigDict:
    """Return the model's configuration with an example; `status` is the job's where it has one."""
    moment = data.get("completed_at") or data.get("started_at") or CREATED
    shown = {
        "v": 1,
        "event": f"job_{event}",
        "event_id": "0c9a2c4e-7f0d-5b53-9a3c-2f1d6f1f7c11",
        "seq": 1,
        "timestamp": moment,
        "job_id": JOB_ID,
        "request_id": "mine",
        "worker_id": WORKER_ID,
        "status": status,
        "data": data,
        **more,
    }
    same = [
        {
            "if": {"properties": {"status": {"const": state.value}}},
            "then": {"properties": {"data": {"properties": {"status": {"const": state.value}}}}},
        }
        for state in JobState
    ]
    whole = {
        "if": {"not": {"required": ["result_truncated"]}},
        "then": {"properties": {"data": ref(JobBody)}},
    }
    rules: dict[str, Any] = {"allOf": [*same, whole]} if "status" in data else {}
    return ConfigDict(json_schema_extra={"examples": [shown], **rules})


class Envelope(WireModel):
    """What every event says."""

    v: Literal[1] = Field(description="Version of the envelope.")
    event_id: Uuid = Field(description="Never changes, however often the event is sent.")
    seq: Count = Field(description="Rises with each event of the job that is kept.")
    timestamp: Milliseconds = Field(description="When it happened.")
    job_id: Uuid
    request_id: str | None = Field(
        max_length=MAX_REQUEST_ID, description="The client's own word; null where it gave none."
    )
    worker_id: WorkerId = Field(description="The daemon that says so.")


class JobEvent(Envelope):
    """What every event that holds a job says."""

    data: JobBody | JobWithoutResult
    result_truncated: Literal[True] | SkipJsonSchema[None] = Field(
        None,
        description="The broker takes no message as large as the result: ask GET /job/{job_id}.",
    )


class JobAccepted(JobEvent):
    """The job is durably queued, or was there before under the same job_id."""

    model_config = _example(Event.ACCEPTED, "pending", PENDING_JOB, duplicate=False)

    event: Literal["job_accepted"]
    status: JobState = Field(description="The job's; a duplicate may have moved on already.")
    duplicate: bool = Field(description="The job_id was known already, and nothing was added.")


class JobStarted(JobEvent):
    """An attempt began."""

    model_config = _example(Event.STARTED, "processing", PROCESSING_JOB, seq=2)

    event: Literal["job_started"]
    status: Literal["processing"]


class Stage(WireModel):
    """How far a running job is."""

    stage: Literal[tuple(STAGES)] = Field(description="What begins now.")  # type: ignore[valid-type]
    fraction: Unit = Field(description="What lies behind it, roughly.")


class JobProgress(Envelope):
    """A stage began. It is not kept: it may be lost, and come before `started`."""

    model_config = _example(
        Event.PROGRESS, "processing", {"stage": "infer", "fraction": 0.6}, seq=2, timestamp=STARTED
    )

    event: Literal["job_progress"]
    status: Literal["processing"]
    data: Stage


class JobCompleted(JobEvent):
    """The job ended, well or not: `status` says how. It comes at every end."""

    model_config = _example(Event.COMPLETED, "completed", COMPLETED_JOB, seq=3)

    event: Literal["job_completed"]
    status: Literal["completed", "error", "sync_failed"]


class JobFailed(JobEvent):
    """The job ended in `error` or `sync_failed`; it comes after `completed`."""

    model_config = _example(Event.FAILED, "error", FAILED_JOB, seq=4)

    event: Literal["job_failed"]
    status: Literal["error", "sync_failed"]


class Refusal(WireModel):
    """Why a request or a cancel was refused."""

    code: Literal[tuple(REFUSALS)] = Field(description="A stable word.")  # type: ignore[valid-type]
    message: str = Field(description="A sentence for a person.")
    field: str | SkipJsonSchema[None] = Field(None, description="The field at fault.")
    existing_job_id: Uuid | SkipJsonSchema[None] = Field(
        None, description="Of `conflict`: the job that stands in the way."
    )
    retry_after_ms: Count | SkipJsonSchema[None] = Field(
        None, description="Of `queue_full`: when to ask again."
    )
    index: int | SkipJsonSchema[None] = Field(
        None, ge=0, lt=MAX_BATCH, description="The request's place in a batch."
    )


class JobRejected(Envelope):
    """The request was not queued, or the cancel not done."""

    model_config = _example(
        Event.REJECTED,
        "rejected",
        {
            "code": "conflict",
            "message": f"job {_OTHER_JOB_ID} for this picture and task is pending",
            "existing_job_id": _OTHER_JOB_ID,
        },
        seq=0,
    )

    event: Literal["job_rejected"]
    seq: Literal[0] = Field(description="No job counts it.")
    status: Literal["rejected"]
    data: Refusal


_REMOVED: dict[str, Any] = {
    "media_store_id": 12345,
    "jobs": 2,
    "cancelled": 0,
    "vectors": {"image_embeddings": 1, "face_embeddings": 3},
    "left": [],
}


class Removed(WireModel):
    """What a daemon removed of a picture; nothing where nothing was known."""

    model_config = ConfigDict(json_schema_extra={"examples": [_REMOVED]})

    media_store_id: MediaStoreId
    jobs: Count = Field(description="Jobs, whatever had become of them.")
    cancelled: Count = Field(description="Of these, jobs that waited or ran until now.")
    vectors: dict[str, Count] = Field(
        description="How many, by collection; all collections of this daemon are named."
    )
    left: list[Uuid] = Field(description="Jobs that run in another daemon, and stay.")


class MediaDeleted(WireModel):
    """A daemon has removed all it had of a picture."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "v": 1,
                    "event": "media_deleted",
                    "event_id": "0c9a2c4e-7f0d-4b53-9a3c-2f1d6f1f7c11",
                    "timestamp": CREATED,
                    "media_store_id": 12345,
                    "worker_id": WORKER_ID,
                    "data": _REMOVED,
                }
            ]
        }
    )

    v: Literal[1] = Field(description="Version of the envelope.")
    event: Literal["media_deleted"]
    event_id: Uuid = Field(description="Never changes, however often the event is sent.")
    timestamp: Milliseconds = Field(description="When it happened.")
    media_store_id: MediaStoreId
    worker_id: WorkerId = Field(description="The daemon that says so; each says it for itself.")
    data: Removed


class DeadRefusal(Refusal):
    """Why, and what came."""

    code: Literal[(*REFUSALS, *DELETE_REFUSALS)] = Field(  # type: ignore[valid-type]
        description="A stable word."
    )
    sha256: str = Field(
        pattern="^[0-9a-f]{64}$", max_length=64, description="Of the whole message that came."
    )
    body: str = Field(max_length=200, description="The first 200 bytes of the request, as text.")


class DeadLetter(Envelope):
    """A request without a usable job_id to answer to was refused."""

    model_config = _example(
        Event.REJECTED,
        "rejected",
        {
            "code": "invalid_request",
            "message": "media_store_id is missing",
            "field": "media_store_id",
            "sha256": "44136fa355b3678a1146ad16f7e8649e94fb4fc21fe77e8310c060f61caaff8a",
            "body": "{}",
        },
        seq=0,
        job_id=None,
        request_id=None,
    )

    event: Literal["job_rejected"]
    seq: Literal[0] = Field(description="No job counts it.")
    job_id: None = Field(description="None that could be answered to.")  # type: ignore[assignment]
    status: Literal["rejected"]
    data: DeadRefusal
