"""Converts between rows and jobs: the only place that knows the columns."""

from collections.abc import Iterable

from daemon.jobs import Job, JobState, JsonObject, TaskType, load_json
from daemon.queue.backend import Row

_TASK_TYPES = {each.value: each for each in TaskType}
_STATES = {each.value: each for each in JobState}


def job_from_row(row: Row, result: JsonObject | None = None) -> Job:
    """Return the job in a row of the whole table, whose columns have the order of its first step.

    Args:
        row: of a `SELECT *` or `RETURNING *`.
        result: what its result is known to hold, where it is known.
    """
    # By place: by name, SQLite compares each name with those before it. Later steps may add columns
    # at the end.
    (
        _id,
        job_id,
        task_type,
        media_store_id,
        priority,
        _rank,
        status,
        created_at,
        started_at,
        completed_at,
        expires_at,
        _run_at,
        attempt,
        _fence,
        lost,
        _worker,
        _lease_until,
        waiting_since,
        seq,
        request_id,
        reply_to,
        correlation_data,
        error_code,
        error_message,
        result_text,
        sync_attempt,
        *_later,
    ) = row
    if result is None and result_text is not None:
        result = load_json(result_text)
    return Job(
        job_id=job_id,
        task_type=_TASK_TYPES[task_type],
        media_store_id=media_store_id,
        priority=priority,
        status=_STATES[status],
        created_at=created_at,
        started_at=started_at,
        completed_at=completed_at,
        error_code=error_code,
        error_message=error_message,
        result=result,
        request_id=request_id,
        expires_at=expires_at,
        attempt=attempt,
        lost=lost,
        sync_attempt=sync_attempt,
        waiting_since=waiting_since,
        seq=seq,
        reply_to=reply_to,
        correlation_data=correlation_data,
    )


def jobs_from_rows(rows: Iterable[Row]) -> list[Job]:
    """Return the jobs in rows, in their order."""
    return [job_from_row(row) for row in rows]


def pair(job: Job) -> tuple[int, str]:
    """Return what at most one live or completed job may stand for: picture and task."""
    return job.media_store_id, job.task_type.value
