"""Pages of jobs, newest first: what narrows a list, where a page begins, and how rows are reached.

A page is told by the row behind which it begins, not by a job: that one may be deleted meanwhile.
Rows are numbered as jobs are accepted, so pages stay in order whatever comes and goes.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from daemon.errors import JobNotFoundError
from daemon.jobs import Job, JobState, TaskType
from daemon.queue import statements as sql
from daemon.queue.backend import QueueBackend, Row
from daemon.queue.job_rows import jobs_from_rows

STRETCH = 5000
"""Newest rows that are looked at one by one before a status is looked up in its indexes."""
CURSOR = re.compile(r"row\.([1-9][0-9]{0,18})")
LARGEST_ROW = 2**63 - 1
# Jobs that stand so, each part from an index that holds no others. Completed ones have none: they
# are most of a queue, and it would cost every job.
STANDING = {
    JobState.PENDING: sql.STANDS_PENDING,
    JobState.PROCESSING: sql.STANDS_PROCESSING,
    JobState.ERROR: sql.STANDS_IN_ERROR,
    JobState.SYNC_FAILED: sql.STANDS_IN_SYNC_FAILED,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class JobSelection:
    """Which jobs are listed; None is no condition."""

    status: JobState | None = None
    task_type: TaskType | None = None
    code: str | None = None
    """Only jobs that failed with it."""
    media_store_id: int | None = None
    since: int | None = None
    """Only jobs that were accepted then or later, in epoch milliseconds."""
    until: int | None = None
    """Only jobs that were accepted before."""

    def conditions(self) -> tuple[list[str], list[Any]]:
        """Return the conditions in SQL, and what is bound in them."""
        conditions, parameters = ["true"], list[Any]()
        if self.status is not None:
            conditions.append("status = ?")
            parameters.append(self.status.value)
        if self.task_type is not None:
            conditions.append("task_type = ?")
            parameters.append(self.task_type.value)
        if self.code is not None:
            conditions.append("status IN ('error', 'sync_failed') AND error_code = ?")
            parameters.append(self.code)
        if self.media_store_id is not None:
            conditions.append(sql.IS_OF_MEDIA)
            parameters += [self.media_store_id, self.media_store_id]
        if self.since is not None:
            conditions.append("created_at >= ?")
            parameters.append(self.since)
        if self.until is not None:
            conditions.append("created_at < ?")
            parameters.append(self.until)
        return conditions, parameters

    def standing(self) -> str | None:
        """Return the statement that finds those of the status, where nothing narrows them more."""
        if self.status is None or self.code is not None or self.media_store_id is not None:
            return None
        return STANDING.get(self.status)


@dataclass(frozen=True, slots=True)
class JobPage:
    """Some jobs, newest first."""

    jobs: list[Job]
    next: str | None
    """Where the next page begins; None at the end."""


def is_cursor(text: str) -> bool:
    """Whether a text may be the `next` of a page."""
    found = CURSOR.fullmatch(text)
    return found is not None and int(found[1]) <= LARGEST_ROW


async def read_page(
    database: QueueBackend, asked: JobSelection, *, limit: int, after: str | None
) -> JobPage:
    """Return the newest jobs, or those after `after`.

    Args:
        database: whose.
        asked: which.
        limit: at most.
        after: the `next` of the page before, or the job_id of its last job.

    Raises:
        JobNotFoundError: `after` is neither, or the job of that job_id is gone.
        StorageError: the queue cannot be read.
    """
    below = await _begin(database, after)
    # One more than asked for tells whether there is a next page.
    rows = await _rows(database, asked, below=below, limit=limit + 1)
    has_more = len(rows) > limit
    page = rows[:limit]
    return JobPage(jobs_from_rows(page), f"row.{page[-1]['id']}" if has_more else None)


async def _begin(database: QueueBackend, after: str | None) -> int:
    """Return the row below which the page begins."""
    if after is None:
        newest = (await database.read(sql.NEWEST_ROW))[0][0]
        return 0 if newest is None else int(newest) + 1
    if is_cursor(after):
        return int(after.removeprefix("row."))
    rows = await database.read(sql.FIND_ROW, (after,))
    if not rows:
        raise JobNotFoundError(f"there is no job {after}")
    return int(rows[0][0])


async def _rows(
    database: QueueBackend, asked: JobSelection, *, below: int, limit: int
) -> Sequence[Row]:
    conditions, bound = asked.conditions()
    standing = asked.standing()
    if standing is None:
        return await _select(database, [*conditions, "id < ?"], [*bound, below], limit)
    # Where many jobs stand so, a page is full soon; where few do, walking to them takes seconds.
    floor = below - STRETCH
    rows = await _select(
        database, [*conditions, "id < ?", "id >= ?"], [*bound, below, floor], limit
    )
    if len(rows) == limit or floor <= 0:
        return rows
    older = [*conditions, f"id IN ({standing})"]
    bounds = [floor] * standing.count("?")
    return rows + await _select(database, older, [*bound, *bounds], limit - len(rows))


async def _select(
    database: QueueBackend, conditions: Sequence[str], bound: Sequence[Any], limit: int
) -> list[Row]:
    # Only literals reach the text; values are bound.
    statement = f"SELECT * FROM jobs WHERE {' AND '.join(conditions)} ORDER BY id DESC LIMIT ?"  # noqa: S608
    return await database.read(statement, (*bound, limit))
