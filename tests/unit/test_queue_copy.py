"""What a backup's copy of the queue becomes where jobs went while the vectors were copied."""

import sqlite3
from contextlib import closing
from pathlib import Path

from daemon.backup.queue_copy import (
    DROP_REMOVED,
    REDO_REPLACED,
    PinnedQueue,
    follow_removals,
    look_into,
)
from daemon.queue.database import Database

COMPLETED = ("completed", 1, '{"faces": []}', None)
FAILED = ("error", 1, None, "it failed")
PENDING = ("pending", None, None, None)
INSERT = (
    "INSERT INTO jobs (job_id, media_store_id, task_type, priority, rank, created_at, expires_at,"
    " status, completed_at, result, error_message) VALUES (?, ?, ?, 5, 0, 1, 9, ?, ?, ?, ?)"
)
Row = tuple[str | int | None, ...]


def job(name: str, media: int, as_it_is: Row, task_type: str = "image_embedding") -> Row:
    """Return a row of the queue."""
    return (name.ljust(36, "-"), media, task_type, *as_it_is)


def insert(queue: Path, *jobs: Row) -> None:
    """Add rows to a queue."""
    with closing(sqlite3.connect(queue)) as file:
        file.executemany(INSERT, jobs)
        file.commit()


def forget(queue: Path, *names: str) -> None:
    """Remove jobs from a queue."""
    with closing(sqlite3.connect(queue)) as file:
        file.executemany("DELETE FROM jobs WHERE job_id = ?", [(n.ljust(36, "-"),) for n in names])
        file.commit()


def statuses(queue: Path) -> dict[str, str]:
    """Return the status of each job by its name."""
    with closing(sqlite3.connect(queue)) as file:
        return {
            name.rstrip("-"): status
            for name, status in file.execute("SELECT job_id, status FROM jobs")
        }


async def test_a_copy_calls_no_job_completed_whose_vector_went_meanwhile(tmp_path: Path) -> None:
    live, copy = tmp_path / "queue.db", tmp_path / "copy.db"
    async with Database(live):
        insert(
            live,
            job("stays", 1, COMPLETED),
            job("gone", 2, COMPLETED),
            job("asked-again", 3, COMPLETED),
            job("failed-before", 4, FAILED),
            job("gone-too", 4, COMPLETED),
            job("other-task", 5, COMPLETED),
            job("failed-again", 6, COMPLETED),
            job("failed", 7, FAILED),
            job("waited", 8, PENDING),
        )
        with PinnedQueue(live) as pinned:
            forget(live, "gone", "asked-again", "gone-too", "other-task", "failed-again", "failed")
            forget(live, "waited")
            insert(
                live,
                job("newer", 3, PENDING),
                job("faces", 5, PENDING, "face_embedding"),
                job("gone-bad", 6, FAILED),
                job("better", 7, COMPLETED),
                job("waits", 8, PENDING),
            )
            pinned.copy_to(copy, lambda _: None)

        follow_removals(copy, live)

    assert statuses(copy) == {
        "stays": "completed",
        # Deleted, then asked for again; or replaced by force.
        "asked-again": "pending",
        "failed-again": "pending",
        # Failed before the moment of the copy, so it took nobody's place since.
        "failed-before": "error",
        "failed": "error",
        "waited": "pending",
    }
    with closing(sqlite3.connect(copy)) as file:
        assert file.execute(
            "SELECT completed_at, expires_at, result FROM jobs WHERE job_id LIKE 'asked%'"
        ).fetchone() == (None, None, None)
    assert look_into(copy).jobs == {"completed": 1, "error": 2, "pending": 3}


async def test_a_job_that_was_asked_for_again_under_its_own_id_waits_in_the_copy(
    tmp_path: Path,
) -> None:
    live, copy = tmp_path / "queue.db", tmp_path / "copy.db"
    async with Database(live):
        insert(live, job("own-id", 1, COMPLETED))
        with PinnedQueue(live) as pinned:
            forget(live, "own-id")
            insert(live, job("own-id", 1, PENDING))
            with closing(sqlite3.connect(live)) as file:
                file.execute("UPDATE jobs SET created_at = 2")
                file.commit()
            pinned.copy_to(copy, lambda _: None)

        follow_removals(copy, live)

    assert statuses(copy) == {"own-id": "pending"}


async def test_a_job_that_is_gone_costs_no_scan_of_the_queue(tmp_path: Path) -> None:
    live, copy = tmp_path / "queue.db", tmp_path / "copy.db"
    async with Database(live), Database(copy):
        pass

    with closing(sqlite3.connect(copy)) as file:
        file.execute("ATTACH ? AS live", (str(live),))
        for sql in (DROP_REMOVED, REDO_REPLACED):
            plan = [row[3] for row in file.execute(f"EXPLAIN QUERY PLAN {sql}")]
            # Of the copy itself, once.
            assert sum(step.startswith("SCAN") for step in plan) <= 1, plan
