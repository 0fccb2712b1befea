"""The operations on jobs, described."""

from daemon.jobs import JsonObject, TaskType
from daemon.requests import JobRequest
from daemon.wire.job import COMPLETED_JOB, PENDING_JOB, JobBody, JobPage
from daemon.wire.schema import CREATED, ref
from http_shim.contract.answers import RetriedBody
from http_shim.contract.operations import (
    BODY_ERRORS,
    QUEUE_ERRORS,
    VECTOR_CODES,
    VECTOR_SETUP_CODES,
    Answer,
    Operation,
    query_parameters,
)
from http_shim.job_routes import JobFilter, RetryRequest

_JOB_ID: JsonObject = {
    "description": "The job's id, a UUID in its usual spelling.",
    "schema": {"type": "string", "examples": [PENDING_JOB["job_id"]]},
}
TASK_TYPE: JsonObject = {
    "description": "The task_type: what is to be done.",
    "schema": {"type": "string", "examples": [task.value for task in TaskType]},
}
_ASK: JsonObject = {
    "required": True,
    "description": "As over MQTT, but without `reply_to`.",
    "content": {
        "application/json": {
            "schema": {"allOf": [ref(JobRequest), {"properties": {"reply_to": {"type": "null"}}}]},
            "example": {"media_store_id": 12345, "priority": 7},
        }
    },
}

_RETRY: JsonObject = {
    "required": True,
    "description": "Which jobs.",
    "content": {
        "application/json": {
            "schema": ref(RetryRequest),
            "example": {"code": "media_store_unreachable", "task_type": "image_embedding"},
        }
    },
}

JOB_OPERATIONS = (
    Operation(
        method="post",
        # POST takes a task_type here and GET a job_id: for OpenAPI that is one path.
        path="/job/{target}",
        name="createJob",
        tag="jobs",
        summary="Ask for a job.",
        text="POST /job/{task_type}. The job is durably queued once 201 is answered; a repeated "
        "`job_id` gives the same job again.",
        access="write",
        path_parameters={"target": TASK_TYPE},
        body=_ASK,
        answers={
            201: Answer(
                text="The job is queued.",
                model=JobBody,
                example=PENDING_JOB,
                headers={"Location": "Path of the job."},
            )
        },
        errors=(
            BODY_ERRORS,
            QUEUE_ERRORS,
            {
                400: ["unknown_task", "invalid_request"],
                409: ["conflict"],
                422: ["invalid_request", "invalid_json", "expired"],
                503: ["draining", "queue_full"],
            },
        ),
    ),
    Operation(
        method="get",
        path="/job/{target}",
        name="getJob",
        tag="jobs",
        summary="Show a job.",
        text="GET /job/{job_id}. Public: only who asked for a job knows its id.",
        path_parameters={"target": _JOB_ID},
        answers={200: Answer(text="The job.", model=JobBody, example=COMPLETED_JOB)},
        errors=(QUEUE_ERRORS, {404: ["job_not_found"]}),
    ),
    Operation(
        method="delete",
        path="/job/{target}",
        name="deleteJob",
        tag="jobs",
        summary="Cancel a waiting job, or forget one that ended, with its vectors.",
        text="DELETE /job/{job_id}. A job that runs is cancelled over MQTT.",
        access="write",
        path_parameters={"target": _JOB_ID},
        answers={204: Answer(text="Done.", media_type=None)},
        errors=(
            QUEUE_ERRORS,
            {
                404: ["job_not_found"],
                409: ["conflict"],
                500: VECTOR_SETUP_CODES,
                503: VECTOR_CODES,
            },
        ),
    ),
    Operation(
        method="get",
        path="/job",
        name="listJobs",
        tag="jobs",
        summary="List jobs, newest first.",
        text="Other names in the query are refused; an empty value is no filter.",
        access="token",
        query=query_parameters(
            JobFilter,
            {
                "status": "Only jobs that stand so.",
                "task_type": "Only jobs of this task type.",
                "code": "Only jobs that failed with this code.",
                "media_store_id": "Only jobs of this picture.",
                "since": "Only jobs that were accepted then or later, in epoch milliseconds.",
                "until": "Only jobs that were accepted before then, in epoch milliseconds.",
                "limit": "How many at most.",
                "after": "The `next` of the page before, or a job_id: only jobs older than it.",
            },
        ),
        answers={
            200: Answer(
                text="One page.",
                model=JobPage,
                example={"jobs": [COMPLETED_JOB], "next": "row.1200"},
            )
        },
        errors=(QUEUE_ERRORS, {422: ["invalid_request"]}),
    ),
    Operation(
        method="post",
        path="/job/retry",
        name="retryFailed",
        tag="jobs",
        summary="Start jobs that failed with one code again.",
        text="The oldest first, at most `limit` of them. Where `more` is true, asking again with "
        "the answer's `before` goes on, and starts none twice that fails once more. A job for "
        "whose picture and task a newer one stands is left out.",
        access="write",
        body=_RETRY,
        answers={
            200: Answer(
                text="They are pending.",
                model=RetriedBody,
                example={"retried": 120, "left_out": 3, "more": False, "before": CREATED},
            )
        },
        errors=(
            BODY_ERRORS,
            QUEUE_ERRORS,
            {422: ["invalid_request", "invalid_json"], 503: ["draining"]},
        ),
    ),
    Operation(
        method="post",
        path="/job/{job_id}/cancel",
        name="cancelJob",
        tag="jobs",
        summary="End a job that waits, or runs in this daemon.",
        text="It ends in `error`, code `cancelled`, unless its outcome is settled already, which "
        "wins: the answer tells how it ended. Over MQTT a cancel reaches all daemons.",
        access="write",
        path_parameters={"job_id": _JOB_ID},
        answers={200: Answer(text="The job, ended.", model=JobBody, example=COMPLETED_JOB)},
        errors=(QUEUE_ERRORS, {404: ["job_not_found"], 409: ["conflict"]}),
    ),
    Operation(
        method="post",
        path="/job/{job_id}/retry",
        name="retryJob",
        tag="jobs",
        summary="Start a job in `error` or `sync_failed` again.",
        text="With all its attempts; a result that was kept is only delivered again.",
        access="write",
        path_parameters={"job_id": _JOB_ID},
        answers={200: Answer(text="The job, pending.", model=JobBody, example=PENDING_JOB)},
        errors=(
            QUEUE_ERRORS,
            {404: ["job_not_found"], 409: ["conflict"], 503: ["draining"]},
        ),
    ),
)
