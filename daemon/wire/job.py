"""A job as everybody sees it: GET /job/{job_id}, and the `data` of its events."""

from typing import Any

from pydantic import ConfigDict, Field

from daemon.jobs import JobState, JsonObject, TaskType
from daemon.wire.results import (
    RESULTS,
    FaceDetectionResult,
    FaceEmbeddingResult,
    ImageEmbeddingResult,
)
from daemon.wire.schema import (
    COMPLETED,
    CREATED,
    JOB_ID,
    STARTED,
    MediaStoreId,
    Milliseconds,
    Uuid,
    WireModel,
    ref,
)

PENDING_JOB: JsonObject = {
    "job_id": JOB_ID,
    "task_type": "image_embedding",
    "media_store_id": 12345,
    "status": "pending",
    "priority": 7,
    "created_at": CREATED,
    "started_at": None,
    "completed_at": None,
    "error_message": None,
    "result": None,
}
PROCESSING_JOB: JsonObject = {**PENDING_JOB, "status": "processing", "started_at": STARTED}
COMPLETED_JOB: JsonObject = {
    **PROCESSING_JOB,
    "status": "completed",
    "completed_at": COMPLETED,
    "result": ImageEmbeddingResult.model_config["json_schema_extra"]["examples"][0],  # type: ignore[index]
}
FAILED_JOB: JsonObject = {
    **PROCESSING_JOB,
    "status": "error",
    "completed_at": COMPLETED,
    "error_message": "media_not_found: the media store has no picture 12345",
}


def _when(field: str, values: list[str], **then: JsonObject) -> JsonObject:
    return {
        "if": {"properties": {field: {"enum": values}}},
        "then": {"properties": then},
    }


def _rules(schema: dict[str, Any]) -> None:
    """Add what holds between the fields."""
    nothing = {"type": "null"}
    schema["examples"] = [PENDING_JOB, COMPLETED_JOB, FAILED_JOB]
    schema["allOf"] = [
        _when("status", ["pending", "processing"], error_message=nothing, result=nothing),
        _when("status", ["processing"], started_at={"type": "integer"}),
        _when(
            "status",
            ["completed"],
            error_message=nothing,
            completed_at={"type": "integer"},
            result={"type": "object"},
        ),
        _when(
            "status",
            ["error", "sync_failed"],
            error_message={"type": "string"},
            completed_at={"type": "integer"},
        ),
        _when("status", ["sync_failed"], result={"type": "object"}),
        *(
            _when("task_type", [task.value], result={"anyOf": [ref(result), nothing]})
            for task, result in RESULTS.items()
        ),
    ]


class JobBody(WireModel):
    """One picture that one task is done with. Times are epoch milliseconds."""

    model_config = ConfigDict(json_schema_extra=_rules)

    job_id: Uuid = Field(description="Made by the client or by the daemon.")
    task_type: TaskType
    media_store_id: MediaStoreId = Field(description="The picture's id in the media store.")
    status: JobState = Field(
        description="pending, processing, or an end: completed, error, or sync_failed: the "
        "result is here but the media store did not take it."
    )
    priority: int = Field(ge=0, le=10, description="0 (last) to 10 (first).")
    created_at: Milliseconds = Field(description="When it was durably accepted.")
    started_at: Milliseconds | None = Field(description="When its latest attempt began.")
    completed_at: Milliseconds | None = Field(description="When it ended.")
    error_message: str | None = Field(
        pattern="^[a-z][a-z0-9_]*: ", description="`code: sentence`, where it failed."
    )
    result: ImageEmbeddingResult | FaceDetectionResult | FaceEmbeddingResult | None = Field(
        description="What its task type gives; null until it ended, and where there is none."
    )


class JobWithoutResult(JobBody):
    """A job in an event that was too large for the broker; GET /job/{job_id} has its result."""

    model_config = ConfigDict(json_schema_extra={"examples": [{**COMPLETED_JOB, "result": None}]})

    result: None = Field(description="Left out.")


class JobPage(WireModel):
    """Some jobs, newest first."""

    jobs: list[JobBody]
    next: str | None = Field(
        description="Give it as `after` for the next page, as it is; null at the end. Good for as "
        "long as you like: no job that is deleted meanwhile breaks it."
    )
