"""The operations on the queue, described."""

from daemon.jobs import JsonObject
from daemon.wire.schema import CREATED, ref
from http_shim.contract.answers import PauseState, QueueReport
from http_shim.contract.job_operations import TASK_TYPE
from http_shim.contract.operations import (
    BODY_ERRORS,
    QUEUE_ERRORS,
    Answer,
    Operation,
    query_parameters,
)
from http_shim.queue_routes import PauseRequest, SeenQuery

_SEEN = query_parameters(
    SeenQuery,
    {
        "seen": "What GET /queue said: `running` of what is not paused, `open` of a pause without "
        "an end, or `paused_until`. Where it is another by now nothing is changed."
    },
)

_PAUSE: JsonObject = {
    "required": False,
    "description": "When the pause ends by itself: `until` in epoch milliseconds, or after "
    "`seconds`; not both. An empty body is a pause without an end.",
    "content": {
        "application/json": {
            "schema": {
                "allOf": [
                    ref(PauseRequest),
                    {
                        "anyOf": [
                            {"properties": {"until": {"type": "null"}}},
                            {"properties": {"seconds": {"type": "null"}}},
                        ]
                    },
                ]
            },
            "example": {"seconds": 600},
        }
    },
}

QUEUE_OPERATIONS = (
    Operation(
        method="get",
        path="/queue",
        name="showQueue",
        tag="queue",
        summary="Show how much waits and runs.",
        access="token",
        answers={
            200: Answer(
                text="The queue.",
                model=QueueReport,
                example={
                    "pending": 3,
                    "delayed": 1,
                    "processing": 2,
                    "oldest_pending_ms": 1500,
                    "outbox": 0,
                    "task_types": {
                        "image_embedding": {
                            "pending": 3,
                            "processing": 2,
                            "paused": False,
                            "paused_until": None,
                        }
                    },
                },
            )
        },
        errors=(QUEUE_ERRORS,),
    ),
    Operation(
        method="post",
        path="/queue/{task_type}/pause",
        name="pauseTaskType",
        tag="queue",
        summary="Begin no more jobs of a task type, in any daemon on the queue.",
        text="Requests are taken still, and what runs ends. Pausing again replaces the end.",
        access="write",
        path_parameters={"task_type": TASK_TYPE},
        query=_SEEN,
        body=_PAUSE,
        answers={
            200: Answer(
                text="It is paused.",
                model=PauseState,
                example={
                    "task_type": "image_embedding",
                    "paused": True,
                    "paused_until": CREATED,
                },
            )
        },
        errors=(
            BODY_ERRORS,
            QUEUE_ERRORS,
            {
                400: ["unknown_task"],
                409: ["changed_meanwhile"],
                422: ["invalid_request", "invalid_json"],
            },
        ),
    ),
    Operation(
        method="post",
        path="/queue/{task_type}/resume",
        name="resumeTaskType",
        tag="queue",
        summary="Begin jobs of a task type again.",
        access="write",
        path_parameters={"task_type": TASK_TYPE},
        query=_SEEN,
        answers={
            200: Answer(
                text="It is not paused.",
                model=PauseState,
                example={
                    "task_type": "image_embedding",
                    "paused": False,
                    "paused_until": None,
                },
            )
        },
        errors=(
            QUEUE_ERRORS,
            {
                400: ["unknown_task"],
                409: ["changed_meanwhile"],
                422: ["invalid_request"],
            },
        ),
    ),
)
