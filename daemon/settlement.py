"""How leases end: new values for their rows, written only where the fence still fits."""

from collections.abc import Sequence
from dataclasses import dataclass

from daemon import statements as sql
from daemon.announcer import Announcer
from daemon.events import Message, terminal_events
from daemon.job_rows import job_from_row
from daemon.jobs import Job, JobState, JsonObject, Lease, dump_json
from daemon.queue_backend import Connection


@dataclass(frozen=True, slots=True, kw_only=True)
class Settlement:
    """How a lease ends: the new values of the row."""

    lease: Lease
    status: JobState
    run_at: int | None = None
    given_back: int = 0
    lost: int = 0
    error_code: str | None = None
    error_message: str | None = None
    result: JsonObject | None = None
    result_text: str | None = None
    """The same in JSON, made before the batch, so that one bad result fails no neighbour."""
    sync_attempt: int = 0
    is_waiting: bool = False

    @property
    def key(self) -> tuple[str, int]:
        """Which lease it ends."""
        return self.lease.job.job_id, self.lease.fence

    def to_row(self, now: int) -> JsonObject:
        """Return what the statement SETTLE takes."""
        return {
            "job_id": self.lease.job.job_id,
            "fence": self.lease.fence,
            "status": self.status.value,
            "completed_at": now if self.status.is_terminal else None,
            "run_at": self.run_at,
            "given_back": self.given_back,
            "lost": self.lost,
            "error_code": self.error_code,
            "error_message": told(self.error_code, self.error_message) if self.error_code else None,
            "result": self.result_text,
            "sync_attempt": self.sync_attempt,
            "is_waiting": int(self.is_waiting),
            "events": terminal_events(self.status),
        }


async def settle(
    connection: Connection, batch: Sequence[Settlement], announcer: Announcer, now: int
) -> dict[tuple[str, int], Job]:
    """End the leases that are still held, with their events; return the jobs by job_id and fence.

    Whoever is missing in what is returned had lost the lease.
    """
    rows = await connection.execute_fetchall(
        sql.SETTLE, (now, dump_json([settlement.to_row(now) for settlement in batch]))
    )
    # By fence too: a zombie's settlement may stand beside the owner's in one batch.
    results = {settlement.key: settlement.result for settlement in batch}
    jobs = {}
    for row in rows:
        key = row["job_id"], row["fence"]
        jobs[key] = job_from_row(row, results[key])
    messages: list[Message] = []
    for job in jobs.values():
        if job.status.is_terminal:
            messages += announcer.ended(job, now)
    await announcer.write(connection, messages)
    return jobs


def lost_lease(lease: Lease, max_attempts: int) -> Settlement:
    """Return what becomes of a job whose process died or hung."""
    if lease.job.attempt < max_attempts:
        return Settlement(lease=lease, status=JobState.PENDING, lost=1)
    return Settlement(
        lease=lease,
        status=JobState.ERROR,
        lost=1,
        error_code="worker_lost",
        error_message=f"its process died or hung {lease.job.lost + 1} times",
    )


def told(code: str, message: str | None) -> str:
    """Return an error as clients see it."""
    # A vendor's words may hold lone surrogates, which no database takes, or NULs, which PostgreSQL
    # does not.
    return f"{code}: {message}".encode(errors="replace").decode().replace("\0", "?")
