"""POST, GET and DELETE of jobs: checks what came, asks intake or the queue, says what they said."""

from typing import Annotated

from aiohttp import web
from pydantic import BaseModel, ConfigDict, Field

from daemon.errors import ConflictError, InvalidRequestError, JobNotFoundError
from daemon.jobs import MAX_MEDIA_STORE_ID, Job, JobState, TaskType, dump_json
from daemon.queue.job_listing import JobSelection, is_cursor
from daemon.requests import (
    MAX_TIME_MS,
    is_missing_or_mistyped,
    parse_json,
    parse_request,
    parse_task_type,
)
from daemon.topics import is_job_id
from http_shim.auth import WRITE_PERMISSION
from http_shim.bodies import read_body
from http_shim.callers import authorize
from http_shim.errors import DrainingError, error_response
from http_shim.keys import CANCELLATION, FORGET_VECTORS, HEALTH, INTAKE, QUEUE
from http_shim.queries import parse_body, parse_query

MAX_LISTED = 1000
MAX_RETRIED = 10_000
CODE = "^[a-z][a-z0-9_]*$"


class JobFilter(BaseModel):
    """The query of GET /job; unknown names are refused, as in a request's body."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    status: JobState | None = None
    task_type: TaskType | None = None
    code: Annotated[str, Field(pattern=CODE, max_length=64)] | None = None
    media_store_id: Annotated[int, Field(ge=0, le=MAX_MEDIA_STORE_ID)] | None = None
    since: Annotated[int, Field(ge=0, le=MAX_TIME_MS)] | None = None
    until: Annotated[int, Field(ge=0, le=MAX_TIME_MS)] | None = None
    limit: int = Field(100, ge=1, le=MAX_LISTED)
    after: str | None = None


class RetryRequest(BaseModel):
    """The body of POST /job/retry."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    code: Annotated[str, Field(pattern=CODE, max_length=64)]
    """What the jobs failed with."""
    task_type: Annotated[TaskType, Field(strict=False)] | None = None
    """Only jobs of this one."""
    limit: Annotated[int, Field(ge=1, le=MAX_RETRIED)] = 1000
    """How many jobs are started, at most."""
    before: Annotated[int, Field(ge=0, le=MAX_TIME_MS)] | None = None
    """Only jobs that had failed by then, in epoch milliseconds; now if not given."""


def add_job_routes(app: web.Application) -> None:
    """Add the routes of jobs."""
    app.router.add_get("/job", list_jobs)
    # Before the one that takes any word.
    app.router.add_post("/job/retry", retry_failed)
    app.router.add_post("/job/{task_type}", create_job)
    app.router.add_get("/job/{job_id}", get_job)
    app.router.add_delete("/job/{job_id}", delete_job)
    app.router.add_post("/job/{job_id}/retry", retry_job)
    app.router.add_post("/job/{job_id}/cancel", cancel_job)


async def create_job(request: web.Request) -> web.Response:
    """Answer 201 with the job once it is durably queued; a repeated job_id gives the same job."""
    authorize(request, WRITE_PERMISSION)
    _refuse_while_draining(request)
    task_type = parse_task_type(request.match_info["task_type"])
    body = parse_json(await read_body(request))
    try:
        asked = parse_request(body)
    except InvalidRequestError as error:
        status = 422 if is_missing_or_mistyped(body, error.field) else 400
        return error_response(error, status)
    if asked.reply_to is not None:
        raise InvalidRequestError(
            "reply_to is an MQTT topic; ask over MQTT, or poll the job", field="reply_to"
        )
    accepted = await request.app[INTAKE].submit(task_type, asked)
    response = _job_response(accepted.job, status=201)
    response.headers["Location"] = f"/job/{accepted.job.job_id}"
    return response


async def get_job(request: web.Request) -> web.Response:
    """Answer the job; public, since only who asked for it knows its id."""
    return _job_response(await _find(request))


async def list_jobs(request: web.Request) -> web.Response:
    """Answer one page of jobs, newest first; needs a token, since it gives away job_ids."""
    authorize(request)
    asked = _parse_filter(request)
    selection = JobSelection(
        status=asked.status,
        task_type=asked.task_type,
        code=asked.code,
        media_store_id=asked.media_store_id,
        since=asked.since,
        until=asked.until,
    )
    try:
        page = await request.app[QUEUE].list_jobs(selection, limit=asked.limit, after=asked.after)
    except JobNotFoundError:
        raise InvalidRequestError(
            "after: there is no such job (any more); give the `next` of the page before",
            field="after",
        ) from None
    return web.json_response(
        {"jobs": [job.to_wire() for job in page.jobs], "next": page.next}, dumps=dump_json
    )


async def delete_job(request: web.Request) -> web.Response:
    """Cancel a pending job, or forget a finished one together with its vectors; answer 204."""
    authorize(request, WRITE_PERMISSION)
    job = await _find(request)
    queue = request.app[QUEUE]
    if job.status is JobState.PENDING:
        await queue.cancel(job.job_id)
        return web.Response(status=204)
    if job.status is JobState.PROCESSING:
        # It may complete before the queue could refuse it, and its vectors would stay.
        raise ConflictError("the job is processing", existing_job_id=job.job_id)
    if job.status is JobState.COMPLETED:
        # Before the row: should it fail, the job is still there to ask again with.
        await request.app[FORGET_VECTORS](job)
    await queue.forget(job.job_id)
    return web.Response(status=204)


async def retry_job(request: web.Request) -> web.Response:
    """Start a job that failed again; answer the job."""
    authorize(request, WRITE_PERMISSION)
    _refuse_while_draining(request)
    return _job_response(await request.app[QUEUE].requeue(_job_id(request)))


async def retry_failed(request: web.Request) -> web.Response:
    """Start jobs that failed with one code again, a bounded number; answer how many."""
    authorize(request, WRITE_PERMISSION)
    _refuse_while_draining(request)
    asked = parse_body(await read_body(request), RetryRequest)
    done = await request.app[QUEUE].batches.retry_failed(
        asked.code, task_type=asked.task_type, before=asked.before, limit=asked.limit
    )
    body = {
        "retried": done.retried,
        "left_out": done.left_out,
        "more": done.more,
        "before": done.before,
    }
    return web.json_response(body, dumps=dump_json)


async def cancel_job(request: web.Request) -> web.Response:
    """End a job that waits, or runs in this daemon; answer the job as it ended.

    One that had ended before stays as it is, and is answered.
    """
    authorize(request, WRITE_PERMISSION)
    cancellation = request.app[CANCELLATION]
    if cancellation is None:
        raise web.HTTPNotFound
    return _job_response(await cancellation.end(_job_id(request)))


def _refuse_while_draining(request: web.Request) -> None:
    if request.app[HEALTH].is_draining:
        raise DrainingError("the daemon is stopping and takes no more jobs")


def _job_id(request: web.Request) -> str:
    job_id = request.match_info["job_id"]
    if not is_job_id(job_id):
        raise JobNotFoundError("no job has such an id")
    return job_id


async def _find(request: web.Request) -> Job:
    return await request.app[QUEUE].get(_job_id(request))


def _parse_filter(request: web.Request) -> JobFilter:
    asked = parse_query(request, JobFilter)
    if asked.after is not None and not (is_cursor(asked.after) or is_job_id(asked.after)):
        raise InvalidRequestError(
            "after must be the `next` of the page before, or the job_id of a job", field="after"
        )
    return asked


def _job_response(job: Job, *, status: int = 200) -> web.Response:
    return web.json_response(job.to_wire(), status=status, dumps=dump_json)
