"""The other side of the queue's figures: `sqlite3` alone, in one thread, the same transactions.

No checks, no JSON, no event loop and no fence: rows of the same size go into the same tables with
the same durability. Nothing that keeps inferd's promises in Python can be quicker.
"""

import sqlite3
import time
import uuid
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

PAYLOAD = "x" * 450
"""As large as an event without a result."""
RESULT = '{"embedding_dimension":512,"collection":"image_embeddings","padding":"' + 200 * "x" + '"}'

_ENQUEUE = """
INSERT INTO jobs (job_id, task_type, media_store_id, priority, rank, created_at, seq)
VALUES (?, 'image_embedding', ?, 5, ?, ?, 1)
"""
_TELL = "INSERT INTO outbox (owner, created_at, topic, payload) VALUES ('raw', ?, ?, ?)"
_CLAIM = """
UPDATE jobs SET status = 'processing', attempt = attempt + 1, fence = fence + 1, seq = seq + 1,
                worker = 'raw', started_at = ?1, lease_until = ?1 + 30000
WHERE id IN (SELECT id FROM jobs WHERE status = 'pending' AND run_at IS NULL AND lost = 0
             AND task_type = 'image_embedding' ORDER BY rank, id LIMIT ?2)
RETURNING id, job_id
"""
_COMPLETE = """
UPDATE jobs SET status = 'completed', completed_at = ?, result = ?, worker = NULL,
                lease_until = NULL, seq = seq + 1
WHERE id = ? AND status = 'processing'
"""
_FINISHED = """
WITH RECURSIVE numbers (n) AS (SELECT ?1 UNION ALL SELECT n + 1 FROM numbers WHERE n + 1 < ?2)
INSERT INTO jobs (job_id, task_type, media_store_id, priority, rank, created_at, started_at,
                  completed_at, status, attempt, fence, seq, result)
SELECT printf('%08x-0000-7000-8000-%012x', n, n), 'image_embedding', n, 5, n, n, n, n, 'completed',
       1, 1, 3, ?3 FROM numbers
"""
FINISHED_FROM = 10**9
"""Picture ids from here on belong to jobs that were finished before."""


class RawQueue:
    """The tables of a queue that inferd has made; a context manager."""

    def __init__(self, path: Path) -> None:
        self._db = sqlite3.connect(path, isolation_level=None)
        self._next = first_picture()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._db.close()

    def enqueue(self, count: int) -> None:
        """Put jobs in, with an event each, in one durable transaction."""
        now = _now()
        jobs = [
            (str(uuid.uuid4()), number, now, now)
            for number in range(self._next, self._next + count)
        ]
        self._next += count
        self._db.execute("PRAGMA synchronous = FULL")
        self._begin()
        self._db.executemany(_ENQUEUE, jobs)
        self._tell(now, [job_id for job_id, *_ in jobs])
        self._db.execute("COMMIT")

    def work(self, batch: int) -> int:
        """Claim a batch, complete it, each with its events; return how many."""
        self._db.execute("PRAGMA synchronous = NORMAL")
        now = _now()
        self._begin()
        claimed = self._db.execute(_CLAIM, (now, batch)).fetchall()
        job_ids = [job_id for _, job_id in claimed]
        self._tell(now, job_ids)
        self._db.execute("COMMIT")
        self._begin()
        self._db.executemany(_COMPLETE, [(now, RESULT, row_id) for row_id, _ in claimed])
        self._tell(now, job_ids)
        self._db.execute("COMMIT")
        return len(claimed)

    def add_finished(self, count: int) -> None:
        """Let the file have so many completed jobs."""
        self._begin()
        self._db.execute(_FINISHED, (FINISHED_FROM, FINISHED_FROM + count, RESULT))
        self._db.execute("COMMIT")
        self._db.execute("PRAGMA wal_checkpoint(TRUNCATE)")

    def forget_events(self) -> None:
        """Empty the outbox, as if all had been published."""
        self._db.execute("DELETE FROM outbox")

    def _begin(self) -> None:
        self._db.execute("BEGIN IMMEDIATE")

    def _tell(self, now: int, job_ids: Sequence[str]) -> None:
        self._db.executemany(
            _TELL, [(now, f"inference/job/{job_id}/event", PAYLOAD) for job_id in job_ids]
        )


def first_picture() -> int:
    """Return an id from which on none was taken before, if no more than one a microsecond was."""
    return time.time_ns() // 1000 % FINISHED_FROM


def _now() -> int:
    return time.time_ns() // 1_000_000
