"""Between rows and jobs: the only place that knows the columns."""

from collections.abc import Iterable

from daemon.jobs import Job, JobState, JsonObject, TaskType, load_json
from daemon.queue_backend import Row

_TASK_TYPES = {each.value: each for each in TaskType}
_STATES = {each.value: each for each in JobState}


def job_from_row(row: Row, result: JsonObject | None = None) -> Job:
    """Return the job in a row; `result` is what its result is known to hold, where it is known."""
    if result is None and row["result"] is not None:
        result = load_json(row["result"])
    return Job(
        job_id=row["job_id"],
        task_type=_TASK_TYPES[row["task_type"]],
        media_store_id=row["media_store_id"],
        priority=row["priority"],
        status=_STATES[row["status"]],
        created_at=row["created_at"],
        started_at=row["started_at"],
        completed_at=row["completed_at"],
        error_code=row["error_code"],
        error_message=row["error_message"],
        result=result,
        request_id=row["request_id"],
        expires_at=row["expires_at"],
        attempt=row["attempt"],
        lost=row["lost"],
        sync_attempt=row["sync_attempt"],
        waiting_since=row["waiting_since"],
        seq=row["seq"],
        reply_to=row["reply_to"],
        correlation_data=row["correlation_data"],
    )


def jobs_from_rows(rows: Iterable[Row]) -> list[Job]:
    """Return the jobs in rows, in their order."""
    return [job_from_row(row) for row in rows]


def pair(job: Job) -> tuple[int, str]:
    """Return what at most one live or completed job may stand for: picture and task."""
    return job.media_store_id, job.task_type.value
