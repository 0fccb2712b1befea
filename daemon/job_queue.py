"""The queue's verbs over SQLite: the only place that moves a job from state to state.

Every verb is one transaction. Whoever leaves `processing` shows a lease, and the statement is
guarded by its fence; whatever a client must hear of is written to the outbox in the same
transaction. Enqueues and settles that come together share one commit.
"""

import logging
import sqlite3
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from types import TracebackType
from typing import Any, Self, TypeAlias, TypeVar

from daemon import statements as sql
from daemon.bell import Bell
from daemon.database import Connection, Database, Row
from daemon.errors import ConflictError, JobNotFoundError, LeaseLostError, StorageError
from daemon.events import (
    Event,
    Message,
    job_messages,
    rejection_message,
    terminal_events,
    terminal_messages,
)
from daemon.jobs import (
    Clock,
    Job,
    JobState,
    JsonObject,
    Lease,
    TaskType,
    dump_json,
    dump_result,
    load_json,
)
from daemon.settings import QueueSettings
from daemon.stage import Stage, StageClosedError

log = logging.getLogger(__name__)

STRICT_LEVEL_MS = 10**13
"""What a priority level is worth where aging is off: more than any waiting time."""
ENQUEUE_BATCH = 256
SETTLE_BATCH = 64


@dataclass(frozen=True, slots=True, kw_only=True)
class Submission:
    """One request on its way into the queue."""

    job: Job
    """A pending job as it will be if it is accepted."""
    force: bool = False
    """Take the place of the pair's old job, unless that is being processed."""
    body: bytes | None = None
    """What came over MQTT, to answer a refusal with; None where the caller answers itself."""
    has_client_job_id: bool = False
    """The client chose the job_id, so that a refusal can be told on its topic."""


@dataclass(frozen=True, slots=True)
class Accepted:
    """The job is durably in the queue."""

    job: Job
    is_duplicate: bool
    """The job_id was there before: nothing was added."""


@dataclass(frozen=True, slots=True)
class Refused:
    """The request was not queued, and says so."""

    code: str
    message: str
    existing_job_id: str | None = None
    retry_after_ms: int | None = None


Outcome: TypeAlias = Accepted | Refused

_In = TypeVar("_In")
_Out = TypeVar("_Out")


@dataclass(frozen=True, slots=True, kw_only=True)
class _Settlement:
    """How a lease ends: the new values of the row."""

    lease: Lease
    status: JobState
    run_at: int | None = None
    given_back: int = 0
    lost: int = 0
    error_code: str | None = None
    error_message: str | None = None
    result: str | None = None
    """JSON text, made before the batch, so that one bad result cannot fail its neighbours."""
    sync_attempt: int = 0
    is_waiting: bool = False

    @property
    def key(self) -> tuple[str, int]:
        return self.lease.job.job_id, self.lease.fence

    def to_row(self, now: int) -> JsonObject:
        return {
            "job_id": self.lease.job.job_id,
            "fence": self.lease.fence,
            "status": self.status.value,
            "completed_at": now if self.status.is_terminal else None,
            "run_at": self.run_at,
            "given_back": self.given_back,
            "lost": self.lost,
            "error_code": self.error_code,
            "error_message": _told(self.error_code, self.error_message)
            if self.error_code
            else None,
            "result": self.result,
            "sync_attempt": self.sync_attempt,
            "is_waiting": int(self.is_waiting),
            "events": terminal_events(self.status),
        }


@dataclass(slots=True)
class _Changes:
    """What a transaction has to tell, gathered while it runs."""

    messages: list[Message] = field(default_factory=list)
    told: dict[str, int] = field(default_factory=dict)


class JobQueue:
    """The verbs; a context manager, since commits are gathered by background tasks.

    Attributes:
        job_ready: rings when a job may be leased.
        message_ready: rings when the outbox has something new.
    """

    def __init__(
        self,
        database: Database,
        settings: QueueSettings,
        *,
        clock: Clock,
        worker: str,
        worker_id: str,
    ) -> None:
        self._database = database
        self._settings = settings
        self._clock = clock
        self._worker = worker
        self._worker_id = worker_id
        self._room_left = 0
        self._room_expires_at = 0
        self.job_ready = Bell()
        self.message_ready = Bell()
        self._intake: Stage[Submission | Message, Outcome | None] = Stage(
            "enqueue", self._enqueue_batch, max_batch=ENQUEUE_BATCH, queue_size=4 * ENQUEUE_BATCH
        )
        self._settling: Stage[_Settlement, Job] = Stage(
            "settle", self._settle_batch, max_batch=SETTLE_BATCH, queue_size=4 * SETTLE_BATCH
        )

    async def __aenter__(self) -> Self:
        await self._intake.__aenter__()
        await self._settling.__aenter__()
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self._intake.close()
        await self._settling.close()

    # -- into the queue ------------------------------------------------------------------------

    async def enqueue(self, submission: Submission) -> Outcome:
        """Return once the request is durably accepted or durably refused.

        Raises:
            StorageError: neither; it must be asked again.
        """
        outcome = await _submit(self._intake, submission)
        if outcome is None:
            raise StorageError("an enqueue gave no outcome")
        return outcome

    async def announce(self, message: Message) -> None:
        """Return once a message of no job (a dead letter) is durably in the outbox.

        Raises:
            StorageError: it is not.
        """
        await _submit(self._intake, message)

    async def _enqueue_batch(
        self, items: Sequence[Submission | Message]
    ) -> Sequence[Outcome | Exception | None]:
        async def work(connection: Connection) -> list[Outcome | None]:
            submissions = [item for item in items if isinstance(item, Submission)]
            changes = _Changes([item for item in items if isinstance(item, Message)])
            outcomes = iter(await self._enqueue(connection, submissions, changes))
            await self._tell(connection, changes)
            return [next(outcomes) if isinstance(item, Submission) else None for item in items]

        outcomes = await self._database.write(work, durable=True)
        self.message_ready.ring()
        if any(isinstance(outcome, Accepted) for outcome in outcomes):
            self.job_ready.ring()
        return outcomes

    async def _enqueue(
        self, connection: Connection, submissions: Sequence[Submission], changes: _Changes
    ) -> list[Outcome]:
        now = self._clock()
        ids = dump_json([submission.job.job_id for submission in submissions])
        pairs = dump_json([_pair(submission.job) for submission in submissions])
        by_id = {
            job.job_id: job
            for job in _jobs(await connection.execute_fetchall(sql.FIND_JOBS, (ids,)))
        }
        by_pair = {
            _pair(job): job
            for job in _jobs(await connection.execute_fetchall(sql.FIND_PAIRS, (pairs,)))
        }
        room = await self._room(connection, len(submissions), now)
        fresh: dict[str, Job] = {}
        outcomes: list[Outcome] = []
        for submission in submissions:
            job = submission.job
            known, rival = by_id.get(job.job_id), by_pair.get(_pair(job))
            if known is not None:
                outcome = self._repeat(known, job, changes, now)
            elif rival is not None and not (
                submission.force and rival.status is not JobState.PROCESSING
            ):
                outcome = Refused(
                    "conflict",
                    f"job {rival.job_id} for this picture and task is {rival.status}",
                    existing_job_id=rival.job_id,
                )
            elif len(fresh) >= room:
                outcome = Refused("queue_full", "too many jobs wait already", retry_after_ms=10_000)
            else:
                if rival is not None:
                    fresh.pop(rival.job_id, None)
                    by_id.pop(rival.job_id, None)
                    await self._replace(connection, rival, changes, now)
                job = replace(job, seq=1)
                by_id[job.job_id] = by_pair[_pair(job)] = fresh[job.job_id] = job
                outcome = Accepted(job, is_duplicate=False)
                changes.messages += self._messages(Event.ACCEPTED, job, now, duplicate=False)
            if isinstance(outcome, Refused) and submission.body is not None:
                changes.messages.append(self._rejection(submission, outcome, now))
            outcomes.append(outcome)
        self._room_left -= len(fresh)
        if fresh:
            rows = dump_json([self._new_row(job) for job in fresh.values()])
            await connection.execute(sql.INSERT, (rows,))
            taken = dump_json([_pair(job) for job in fresh.values()])
            await connection.execute(sql.SUPERSEDE_SYNC, (taken,))
        return outcomes

    async def _room(self, connection: Connection, wanted: int, now: int) -> int:
        """Return how many more jobs may wait; counted anew once a second, since it costs."""
        most = self._settings.max_pending
        if not most:
            return wanted
        if now >= self._room_expires_at or self._room_left < wanted:
            rows = list(await connection.execute_fetchall(sql.COUNT_PENDING, (most,)))
            self._room_left = most - int(rows[0][0])
            self._room_expires_at = now + 1000
        return self._room_left

    def _repeat(self, known: Job, asked: Job, changes: _Changes, now: int) -> Outcome:
        if _pair(known) != _pair(asked):
            return Refused(
                "conflict",
                "this job_id belongs to another picture or task",
                existing_job_id=known.job_id,
            )
        changes.told[known.job_id] = changes.told.get(known.job_id, 0) + 1
        known = replace(known, seq=known.seq + changes.told[known.job_id])
        changes.messages += self._messages(Event.ACCEPTED, known, now, duplicate=True)
        return Accepted(known, is_duplicate=True)

    async def _replace(
        self, connection: Connection, rival: Job, changes: _Changes, now: int
    ) -> None:
        """Drop the pair's old row; one that was still waiting ends with an event."""
        if rival.status is JobState.PENDING:
            ended = replace(
                rival,
                status=JobState.ERROR,
                completed_at=now,
                seq=rival.seq + changes.told.get(rival.job_id, 0) + terminal_events(JobState.ERROR),
                error_message="superseded: a newer request with force took its place",
            )
            changes.messages += terminal_messages(ended, worker_id=self._worker_id, now=now)
        await connection.execute(sql.DROP, (rival.job_id,))

    def _new_row(self, job: Job) -> list[Any]:
        level_ms = int(self._settings.aging_seconds * 1000) or STRICT_LEVEL_MS
        return [
            job.job_id,
            job.task_type.value,
            job.media_store_id,
            job.priority,
            job.created_at - job.priority * level_ms,
            job.created_at,
            job.expires_at,
            job.request_id,
            job.reply_to,
            job.correlation_data,
        ]

    def _rejection(self, submission: Submission, refused: Refused, now: int) -> Message:
        job = submission.job
        return rejection_message(
            code=refused.code,
            message=refused.message,
            topic_task=job.task_type.value,
            body=submission.body or b"",
            job_id=job.job_id if submission.has_client_job_id else None,
            request_id=job.request_id,
            worker_id=self._worker_id,
            now=now,
            existing_job_id=refused.existing_job_id,
            retry_after_ms=refused.retry_after_ms,
        )

    # -- out of the queue ----------------------------------------------------------------------

    async def lease(self, task_type: TaskType, limit: int, *, seconds: float) -> list[Lease]:
        """Take up to `limit` jobs in the queue's order; their attempt counts from now.

        Jobs that ever lost a lease are left to `lease_suspect`.

        Raises:
            StorageError: nothing was taken.
        """
        return await self._lease(sql.LEASE, (task_type.value, limit), seconds)

    async def lease_suspect(
        self, task_types: Sequence[TaskType], *, seconds: float
    ) -> Lease | None:
        """Take one job whose process died while it held it; the caller runs it alone.

        Raises:
            StorageError: nothing was taken.
        """
        types = dump_json([task_type.value for task_type in task_types])
        leases = await self._lease(sql.LEASE_SUSPECT, (types,), seconds)
        return leases[0] if leases else None

    async def has_suspect(self, task_types: Sequence[TaskType]) -> bool:
        """Whether a job waits that must run alone."""
        types = dump_json([task_type.value for task_type in task_types])
        return bool(await self._database.read(sql.HAS_SUSPECT, (types,)))

    async def _lease(
        self, statement: str, parameters: tuple[Any, ...], seconds: float
    ) -> list[Lease]:
        async def work(connection: Connection) -> list[Lease]:
            now = self._clock()
            await connection.execute(sql.PROMOTE, (now,))
            until = now + int(seconds * 1000)
            rows = list(
                await connection.execute_fetchall(
                    statement, (self._worker, now, until, *parameters)
                )
            )
            # RETURNING has no order of its own.
            rows.sort(key=lambda row: (row["rank"], row["id"]))
            leases = [Lease(job_from_row(row), row["fence"]) for row in rows]
            changes = _Changes()
            for lease in leases:
                changes.messages += self._messages(Event.STARTED, lease.job, now)
            await self._tell(connection, changes)
            return leases

        leases = await self._database.write(work)
        if leases:
            self.message_ready.ring()
        return leases

    async def renew(self, leases: Iterable[Lease], *, seconds: float) -> set[str]:
        """Extend all leases in one statement; return the job_ids that are still held.

        Raises:
            StorageError: nothing was extended.
        """
        held = dump_json([[lease.job.job_id, lease.fence] for lease in leases])

        async def work(connection: Connection) -> set[str]:
            until = self._clock() + int(seconds * 1000)
            rows = await connection.execute_fetchall(sql.RENEW, (until, held))
            return {row["job_id"] for row in rows}

        return await self._database.write(work)

    async def complete(self, lease: Lease, result: JsonObject) -> Job:
        """End a job well, with its event, in one commit.

        Raises:
            LeaseLostError: somebody else owns it by now; nothing changed.
            StorageError: nothing changed.
            ValueError, TypeError: the result cannot be stored; nothing changed.
        """
        return await self._settle_lease(
            _Settlement(lease=lease, status=JobState.COMPLETED, result=dump_result(result))
        )

    async def retry(
        self, lease: Lease, *, run_at: int, code: str, message: str, gives_back: bool = False
    ) -> Job:
        """Put a job back until `run_at`; `gives_back` does not count the attempt.

        Raises:
            LeaseLostError, StorageError: as `complete`.
        """
        return await self._settle_lease(
            _Settlement(
                lease=lease,
                status=JobState.PENDING,
                run_at=run_at,
                given_back=int(gives_back),
                error_code=code,
                error_message=message,
                is_waiting=gives_back,
            )
        )

    async def keep(
        self, lease: Lease, result: JsonObject, *, run_at: int, code: str, message: str
    ) -> Job:
        """Keep a result the media store did not take, to deliver it later without inferring.

        Raises:
            LeaseLostError, StorageError: as `complete`.
        """
        return await self._settle_lease(
            _Settlement(
                lease=lease,
                status=JobState.PENDING,
                run_at=run_at,
                given_back=1,
                error_code=code,
                error_message=message,
                result=dump_result(result),
                sync_attempt=1,
            )
        )

    async def give_up_sync(
        self, lease: Lease, result: JsonObject, *, run_at: int | None, code: str, message: str
    ) -> Job:
        """End a job whose result was not delivered; with `run_at` delivery is tried on.

        Raises:
            LeaseLostError, StorageError: as `complete`.
        """
        return await self._settle_lease(
            _Settlement(
                lease=lease,
                status=JobState.SYNC_FAILED,
                run_at=run_at,
                error_code=code,
                error_message=message,
                result=dump_result(result),
                sync_attempt=1,
            )
        )

    async def bury(self, lease: Lease, *, code: str, message: str) -> Job:
        """End a job in error, with its events, in one commit.

        Raises:
            LeaseLostError, StorageError: as `complete`.
        """
        return await self._settle_lease(
            _Settlement(lease=lease, status=JobState.ERROR, error_code=code, error_message=message)
        )

    async def release(self, lease: Lease) -> Job:
        """Give a job back as if it had not been leased: shutting down is not its fault.

        Raises:
            LeaseLostError, StorageError: as `complete`.
        """
        return await self._settle_lease(
            _Settlement(lease=lease, status=JobState.PENDING, given_back=1)
        )

    async def _settle_lease(self, settlement: _Settlement) -> Job:
        return await _submit(self._settling, settlement)

    async def _settle_batch(self, batch: Sequence[_Settlement]) -> Sequence[Job | Exception]:
        # A lease is settled once: a release that follows its completion into the same batch, as
        # when the job is cancelled meanwhile, must not undo it.
        first: dict[tuple[str, int], _Settlement] = {}
        for settlement in batch:
            first.setdefault(settlement.key, settlement)
        settled = await self._database.write(
            lambda connection: self._settle(connection, list(first.values()))
        )
        self._ring_for(settled.values())
        lost = [LeaseLostError(f"job {each.lease.job.job_id} is no longer ours") for each in batch]
        return [
            settled.get(each.key, error) if first[each.key] is each else error
            for each, error in zip(batch, lost, strict=True)
        ]

    async def _settle(
        self, connection: Connection, batch: Sequence[_Settlement]
    ) -> dict[tuple[str, int], Job]:
        now = self._clock()
        rows = await connection.execute_fetchall(
            sql.SETTLE, (now, dump_json([settlement.to_row(now) for settlement in batch]))
        )
        # By fence too: a zombie's settlement may stand beside the owner's in one batch.
        jobs = {(row["job_id"], row["fence"]): job_from_row(row) for row in rows}
        changes = _Changes()
        for job in jobs.values():
            if job.status.is_terminal:
                changes.messages += terminal_messages(job, worker_id=self._worker_id, now=now)
        await self._tell(connection, changes)
        return jobs

    # -- what others left behind ---------------------------------------------------------------

    async def reclaim(self) -> list[Job]:
        """Take back jobs whose lease ran out; out of attempts they end in error worker_lost.

        Raises:
            StorageError: nothing changed.
        """
        return await self._reclaim(sql.FIND_EXPIRED, self._clock)

    async def reclaim_dead(self, is_dead: Callable[[str], bool]) -> list[Job]:
        """Take back the jobs of processes that `is_dead` knows to be gone, and their events.

        Raises:
            StorageError: nothing changed.
        """
        workers = [row[0] for row in await self._database.read(sql.FIND_WORKERS)]
        owners = [row[0] for row in await self._database.read(sql.FIND_OWNERS)]
        dead = dump_json(sorted({name for name in {*workers, *owners} if is_dead(name)}))
        if dead == "[]":
            return []

        async def adopt(connection: Connection) -> None:
            await connection.execute(sql.ADOPT, (self._worker, dead))

        await self._database.write(adopt)
        self.message_ready.ring()
        return await self._reclaim(sql.FIND_HELD_BY, lambda: dead)

    async def _reclaim(self, statement: str, parameter: Callable[[], Any]) -> list[Job]:
        async def work(connection: Connection) -> list[Job]:
            rows = await connection.execute_fetchall(statement, (parameter(),))
            settlements = [self._lost_lease(Lease(job_from_row(row), row["fence"])) for row in rows]
            return list((await self._settle(connection, settlements)).values())

        jobs = await self._database.write(work)
        self._ring_for(jobs)
        return jobs

    def _lost_lease(self, lease: Lease) -> _Settlement:
        if lease.job.attempt < self._settings.max_attempts:
            return _Settlement(lease=lease, status=JobState.PENDING, lost=1)
        return _Settlement(
            lease=lease,
            status=JobState.ERROR,
            lost=1,
            error_code="worker_lost",
            error_message=f"its process died or hung {lease.job.lost + 1} times",
        )

    # -- by hand -------------------------------------------------------------------------------

    async def cancel(self, job_id: str) -> Job:
        """End a pending job in error cancelled.

        Raises:
            JobNotFoundError: no such job.
            ConflictError: it is no longer pending.
            StorageError: nothing changed.
        """
        return await self._change(
            sql.CANCEL,
            lambda now: (now, job_id),
            job_id,
            lambda job, now: terminal_messages(job, worker_id=self._worker_id, now=now),
        )

    async def requeue(self, job_id: str) -> Job:
        """Start a job in error or sync_failed again, with all its attempts.

        A result that was kept is only delivered again.

        Raises:
            JobNotFoundError: no such job.
            ConflictError: it did not fail, or the pair has a newer job.
            StorageError: nothing changed.
        """
        job = await self._change(
            sql.REQUEUE,
            lambda _now: (job_id,),
            job_id,
            lambda job, now: self._messages(Event.ACCEPTED, job, now, duplicate=False),
        )
        self.job_ready.ring()
        return job

    async def forget(self, job_id: str) -> None:
        """Delete a finished job's row.

        Raises:
            JobNotFoundError: no such job.
            ConflictError: it is not finished.
            StorageError: nothing changed.
        """

        async def work(connection: Connection) -> int:
            return (await connection.execute(sql.FORGET, (job_id,))).rowcount

        if not await self._database.write(work):
            raise await self._unfit(job_id)

    async def _change(
        self,
        statement: str,
        parameters: Callable[[int], tuple[Any, ...]],
        job_id: str,
        messages: Callable[[Job, int], list[Message]],
    ) -> Job:
        async def work(connection: Connection) -> Job | None:
            now = self._clock()
            try:
                rows = list(await connection.execute_fetchall(statement, parameters(now)))
            except sqlite3.IntegrityError as error:
                rival = await self._rival(connection, job_id)
                raise ConflictError(
                    "a newer job stands for this picture and task", existing_job_id=rival
                ) from error
            if not rows:
                return None
            job = job_from_row(rows[0])
            await self._tell(connection, _Changes(messages(job, now)))
            return job

        job = await self._database.write(work)
        if job is None:
            raise await self._unfit(job_id)
        self.message_ready.ring()
        return job

    async def _rival(self, connection: Connection, job_id: str) -> str:
        jobs = _jobs(await connection.execute_fetchall(sql.FIND, (job_id,)))
        pairs = dump_json([_pair(job) for job in jobs])
        found = _jobs(await connection.execute_fetchall(sql.FIND_PAIRS, (pairs,)))
        return found[0].job_id if found else job_id

    async def _unfit(self, job_id: str) -> Exception:
        try:
            job = await self.get(job_id)
        except JobNotFoundError as error:
            return error
        return ConflictError(f"the job is {job.status}", existing_job_id=job_id)

    # -- face results that the media store did not take ------------------------------------------

    async def due_syncs(self, task_types: Sequence[TaskType], limit: int) -> list[Job]:
        """Return jobs in sync_failed whose result should be offered again now."""
        types = dump_json([task_type.value for task_type in task_types])
        return _jobs(await self._database.read(sql.DUE_SYNC, (self._clock(), types, limit)))

    async def heal(self, job: Job) -> None:
        """Complete a job in sync_failed whose result was delivered at last, with its event.

        Does nothing where a newer job of the pair has taken over meanwhile.

        Raises:
            StorageError: nothing changed.
        """

        async def work(connection: Connection) -> None:
            now = self._clock()
            try:
                rows = await connection.execute_fetchall(sql.HEAL, (now, job.job_id))
            except sqlite3.IntegrityError:
                return
            for healed in _jobs(rows):
                await self._tell(
                    connection,
                    _Changes(terminal_messages(healed, worker_id=self._worker_id, now=now)),
                )

        await self._database.write(work)
        self.message_ready.ring()

    async def delay_sync(self, job: Job, *, run_at: int | None, code: str, message: str) -> None:
        """Note that the result was refused again; without `run_at` it is offered no more.

        Raises:
            StorageError: nothing changed.
        """

        async def work(connection: Connection) -> None:
            await connection.execute(
                sql.DELAY_SYNC, (run_at, code, _told(code, message), job.job_id)
            )

        await self._database.write(work)

    # -- to look at ----------------------------------------------------------------------------

    async def get(self, job_id: str) -> Job:
        """Return a job.

        Raises:
            JobNotFoundError: no such job.
        """
        jobs = _jobs(await self._database.read(sql.FIND, (job_id,)))
        if not jobs:
            raise JobNotFoundError(f"there is no job {job_id}")
        return jobs[0]

    async def list_jobs(
        self,
        *,
        status: JobState | None = None,
        task_type: TaskType | None = None,
        limit: int = 100,
        after: str | None = None,
    ) -> list[Job]:
        """Return jobs, newest first, from the one after the job_id `after`.

        Raises:
            JobNotFoundError: `after` is no job.
        """
        conditions, parameters = ["1"], list[Any]()
        if after is not None:
            rows = await self._database.read("SELECT id FROM jobs WHERE job_id = ?", (after,))
            if not rows:
                raise JobNotFoundError(f"there is no job {after}")
            conditions.append("id < ?")
            parameters.append(rows[0][0])
        if status is not None:
            conditions.append("status = ?")
            parameters.append(status.value)
        if task_type is not None:
            conditions.append("task_type = ?")
            parameters.append(task_type.value)
        # Only the literals above reach the text; values are bound.
        statement = f"SELECT * FROM jobs WHERE {' AND '.join(conditions)} ORDER BY id DESC LIMIT ?"  # noqa: S608
        return _jobs(await self._database.read(statement, (*parameters, limit)))

    async def depth(self) -> JsonObject:
        """Return how many jobs wait, run, and how many events wait for the broker."""
        ready, delayed, suspect, processing, outbox = (await self._database.read(sql.COUNT_LIVE))[0]
        return {
            "pending": ready + delayed + suspect,
            "delayed": delayed,
            "processing": processing,
            "outbox": outbox,
        }

    async def prune(self, *, before: int, limit: int = 1000) -> int:
        """Delete up to `limit` jobs that finished before a moment (epoch ms); return how many.

        Raises:
            StorageError: nothing changed.
        """

        async def work(connection: Connection) -> int:
            return (await connection.execute(sql.PRUNE, (before, limit))).rowcount

        return await self._database.write(work)

    # -- shared ----------------------------------------------------------------------------------

    def _messages(self, event: Event, job: Job, now: int, **extra: bool) -> list[Message]:
        return job_messages(event, job, worker_id=self._worker_id, now=now, **extra)

    async def _tell(self, connection: Connection, changes: _Changes) -> None:
        if changes.told:
            await connection.execute(sql.COUNT_EVENTS, (dump_json(list(changes.told.items())),))
        if changes.messages:
            rows = [[told.topic, told.payload, told.correlation_data] for told in changes.messages]
            await connection.execute(sql.ANNOUNCE, (self._worker, self._clock(), dump_json(rows)))

    def _ring_for(self, jobs: Iterable[Job]) -> None:
        jobs = list(jobs)
        if any(job.status is JobState.PENDING for job in jobs):
            self.job_ready.ring()
        if any(job.status.is_terminal for job in jobs):
            self.message_ready.ring()


def job_from_row(row: Row) -> Job:
    """Return the job in a row; the only place that knows the columns."""
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


async def _submit(stage: Stage[_In, _Out], item: _In) -> _Out:
    try:
        return await stage.submit(item)
    except StageClosedError as error:
        raise StorageError("the queue is closed") from error


def _told(code: str, message: str | None) -> str:
    # A vendor's words may hold lone surrogates, which no database takes.
    return f"{code}: {message}".encode(errors="replace").decode()


def _jobs(rows: Iterable[Row]) -> list[Job]:
    return [job_from_row(row) for row in rows]


def _pair(job: Job) -> tuple[int, str]:
    return job.media_store_id, job.task_type.value
