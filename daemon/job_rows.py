"""Between rows and jobs: the only place that knows the columns."""

from collections.abc import Iterable

from daemon.database import Row
from daemon.jobs import Job, JobState, TaskType, load_json


def job_from_row(row: Row) -> Job:
    """Return the job in a row."""
    return Job(
        job_id=row["job_id"],
        task_type=TaskType(row["task_type"]),
        media_store_id=row["media_store_id"],
        priority=row["priority"],
        status=JobState(row["status"]),
        created_at=row["created_at"],
        started_at=row["started_at"],
        completed_at=row["completed_at"],
        error_code=row["error_code"],
        error_message=row["error_message"],
        result=None if row["result"] is None else load_json(row["result"]),
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
