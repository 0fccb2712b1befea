"""How leases end: new values for their rows, written only where the fence still matches."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from daemon.events import Message, terminal_events
from daemon.jobs import Job, JobState, JsonObject, Lease, dump_json
from daemon.queue import statements as sql
from daemon.queue.announcer import Announcer
from daemon.queue.backend import Connection, Row


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
        """The lease that it ends: job_id and fence."""
        return self.lease.job.job_id, self.lease.fence

    def to_row(self, now: int) -> tuple[str | int | None, ...]:
        """Return what the statements SETTLE and SETTLE_ONE take, in their order."""
        lease, code = self.lease, self.error_code
        return (
            lease.job.job_id,
            lease.fence,
            self.status.value,
            now if self.status.is_terminal else None,
            self.run_at,
            self.given_back,
            self.lost,
            code,
            told(code, self.error_message) if code else None,
            self.result_text,
            self.sync_attempt,
            int(self.is_waiting),
            terminal_events(self.status),
        )

    def to_job(self, row: Row, now: int) -> Job:
        """Return the job as it is now: what nobody else changes while it is leased, and the row."""
        job, code = self.lease.job, self.error_code
        return replace(
            job,
            status=self.status,
            completed_at=now if self.status.is_terminal else None,
            error_code=code,
            error_message=told(code, self.error_message) if code else None,
            result=job.result if self.result is None else self.result,
            attempt=row["attempt"],
            lost=row["lost"],
            sync_attempt=row["sync_attempt"],
            waiting_since=row["waiting_since"],
            seq=row["seq"],
        )


async def settle(
    connection: Connection, batch: Sequence[Settlement], announcer: Announcer, now: int
) -> dict[tuple[str, int], Job]:
    """End the leases that are still held, with their events; return the jobs by job_id and fence.

    Whoever is missing in what is returned had lost the lease.
    """
    values = [settlement.to_row(now) for settlement in batch]
    if len(values) == 1:
        rows = await connection.execute_fetchall(sql.SETTLE_ONE, (now, *values[0]))
    else:
        rows = await connection.execute_fetchall(sql.SETTLE, (now, dump_json(values)))
    # By fence too: a zombie's settlement may stand beside the owner's in one batch.
    asked = {settlement.key: settlement for settlement in batch}
    jobs = {}
    messages: list[Message] = []
    for row in rows:
        key = row["job_id"], row["fence"]
        jobs[key] = job = asked[key].to_job(row, now)
        if job.status.is_terminal:
            messages += announcer.ended(job, now, asked[key].result_text)
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
