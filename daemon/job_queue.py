"""The queue's verbs: the only place that moves a job from state to state.

Every verb is one transaction. Whoever leaves `processing` shows a lease, and the statement is
guarded by its fence; whatever a client must hear of is written to the outbox in the same
transaction. Enqueues and settles that come together share one commit.
"""

import asyncio
import contextlib
from collections.abc import Callable, Iterable, Sequence
from types import TracebackType
from typing import Any, Self, TypeVar

from daemon import statements as sql
from daemon.admission import Accepted, Admission, Outcome, Submission
from daemon.announcer import Announcer, Listener
from daemon.bell import Bell
from daemon.errors import ConflictError, JobNotFoundError, LeaseLostError, StorageError
from daemon.events import Event, Message
from daemon.job_batches import JobBatches
from daemon.job_reader import JobReader
from daemon.job_rows import job_from_row, jobs_from_rows, pair
from daemon.jobs import Clock, Job, JobState, JsonObject, Lease, TaskType, dump_json, dump_result
from daemon.metrics import Metrics
from daemon.pauses import Pauses
from daemon.queue_backend import Connection, QueueBackend, TakenError, Turn
from daemon.settings import QueueSettings
from daemon.settlement import Settlement, lost_lease, settle, told
from daemon.stage import Stage, StageClosedError

ENQUEUE_BATCH = 256
FEW = 4
"""Up to so many items of one message need no commit of their own."""
SETTLE_BATCH = 64
LONGEST_DELAY_SECONDS = 300.0
"""What a dependency may ask for, and what an event that was refused may wait."""
FAR = 1.25
"""A moment this many longest delays ahead was set by another clock."""
ORPHANED_MS = 300_000
"""Age at which another daemon's event is no longer taken to be on its way."""

_In = TypeVar("_In")
_Out = TypeVar("_Out")


class JobQueue(JobReader):
    """The verbs; a context manager, since commits are gathered by background tasks.

    Attributes:
        ready: by task type, rings when a job may be leased.
        suspect_ready: rings when a job may be leased by `lease_suspect`.
        message_ready: rings when the outbox has something new.
        pauses: which task types are not leased for now.
        batches: the verbs over many jobs.
    """

    def __init__(
        self,
        database: QueueBackend,
        settings: QueueSettings,
        *,
        clock: Clock,
        worker: str,
        worker_id: str,
        metrics: Metrics | None = None,
        listener: Listener | None = None,
    ) -> None:
        super().__init__(database, clock)
        self._settings = settings
        self._metrics = metrics or Metrics()
        self._worker = worker
        self._announcer = Announcer(
            owner=worker, worker_id=worker_id, clock=clock, listener=listener
        )
        self._admission = Admission(settings, self._announcer)
        self.ready = {task_type: Bell() for task_type in TaskType}
        self.suspect_ready = Bell()
        self.message_ready = Bell()
        self.pauses = Pauses(database, clock, resumed=self._wake)
        self.batches = JobBatches(
            database,
            self._announcer,
            clock=clock,
            have_waiting=self._have_moved,
            message_ready=self.message_ready,
        )
        self._intake: Stage[Submission | Message, Outcome | None] = Stage(
            "enqueue", self._enqueue_batch, max_batch=ENQUEUE_BATCH
        )
        # One commit a group, and one group at a time: leases and settles get their turn between.
        self._groups: Stage[Sequence[Submission | Message], Sequence[Outcome | Exception | None]]
        self._groups = Stage("enqueue-group", self._enqueue_groups)
        # Both of them: what admission remembers of the room is for one at a time.
        self._admitting = asyncio.Lock()
        self._settling: Stage[Settlement, Job] = Stage(
            "settle", self._settle_batch, max_batch=SETTLE_BATCH
        )

    async def __aenter__(self) -> Self:
        await self._intake.__aenter__()
        await self._groups.__aenter__()
        await self._settling.__aenter__()
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self._intake.close()
        await self._groups.close()
        await self._settling.close()

    def ended(self) -> dict[str, dict[str, int]]:
        """Return how many jobs this daemon ended since its start: by task type, by status."""
        return self._metrics.ended()

    async def check(self) -> JsonObject:
        """Return the queue's depth, if the file can be written too; for health.

        Raises:
            StorageError: it cannot be read, or not be written.
        """
        await self._database.check()
        return await self.depth()

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

    async def enqueue_all(self, items: Sequence[Submission | Message]) -> None:
        """Return once all requests and messages of one MQTT message are durable.

        Many go into one commit of their own, a few share one with whatever else comes.

        Raises:
            StorageError: they are not, and must come again.
        """
        if len(items) > FEW:
            await _submit(self._groups, items)
        else:
            await asyncio.gather(*(_submit(self._intake, item) for item in items))

    async def _enqueue_groups(
        self, groups: Sequence[Sequence[Submission | Message]]
    ) -> list[Sequence[Outcome | Exception | None]]:
        return [await self._enqueue_batch(group) for group in groups]

    async def _enqueue_batch(
        self, items: Sequence[Submission | Message]
    ) -> Sequence[Outcome | Exception | None]:
        async def work(connection: Connection) -> list[Outcome | None]:
            submissions = [item for item in items if isinstance(item, Submission)]
            outcomes, messages = await self._admission.admit(connection, submissions, self._clock())
            messages += [item for item in items if isinstance(item, Message)]
            await self._announcer.write(connection, messages)
            answers = iter(outcomes)
            return [next(answers) if isinstance(item, Submission) else None for item in items]

        async with self._admitting:
            outcomes = await self._database.write(work, durable=True)
        self._count_outcomes(items, outcomes)
        self.message_ready.ring()
        for task_type in {each.job.task_type for each in outcomes if isinstance(each, Accepted)}:
            self.ready[task_type].ring()
        return outcomes

    def _count_outcomes(
        self, items: Sequence[Submission | Message], outcomes: Sequence[Outcome | None]
    ) -> None:
        for item, outcome in zip(items, outcomes, strict=True):
            if isinstance(outcome, Accepted):
                self._metrics.request_accepted(
                    outcome.job.task_type, is_duplicate=outcome.is_duplicate
                )
                if outcome.superseded is not None:
                    self._metrics.job_ended(outcome.superseded)
            elif outcome is not None and isinstance(item, Submission) and item.body is not None:
                # What REST refuses is counted there, with what never comes so far.
                self._metrics.request_rejected("mqtt", outcome.code)

    # -- out of the queue ----------------------------------------------------------------------

    async def lease(self, task_type: TaskType, limit: int, *, seconds: float) -> list[Lease]:
        """Take up to `limit` jobs in the queue's order; their attempt counts from now.

        Jobs that ever lost a lease are left to `lease_suspect`; a paused task type gives none.

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

    async def _lease(
        self, statement: str, parameters: tuple[Any, ...], seconds: float
    ) -> list[Lease]:
        async def work(connection: Connection) -> list[Lease]:
            await connection.take_turn(Turn.PAUSES, shared=True)
            now = self._clock()
            promoted = (await connection.execute(sql.PROMOTE, (now,))).rowcount
            if promoted:
                # Of any task type, perhaps suspects.
                connection.after_commit(self._wake)
            until = now + int(seconds * 1000)
            rows = list(
                await connection.execute_fetchall(
                    statement, (self._worker, now, until, *parameters)
                )
            )
            # RETURNING has no order of its own.
            rows.sort(key=lambda row: (row["rank"], row["id"]))
            leases = [Lease(job_from_row(row), row["fence"], row["rank"]) for row in rows]
            messages: list[Message] = []
            for lease in leases:
                messages += self._announcer.happened(Event.STARTED, lease.job, now)
            await self._announcer.write(connection, messages)
            return leases

        leases = await self._database.write(work, is_repeatable=True)
        for lease in leases:
            self._metrics.attempt_began(lease.job)
        if leases:
            self.message_ready.ring()
        return leases

    async def next_rank(self, task_type: TaskType) -> int | None:
        """Return the rank of the job that `lease` would take next; None where none waits.

        Raises:
            StorageError: it cannot be read.
        """
        rows = await self._database.read(sql.NEXT_RANK, (task_type.value,))
        return rows[0][0] if rows else None

    async def next_moment(self) -> int | None:
        """Return when (epoch ms) a job's wait for its moment or a pause ends next, if any does.

        Raises:
            StorageError: it cannot be read.
        """
        moment: int | None = (await self._database.read(sql.NEXT_MOMENT, (self._clock(),)))[0][0]
        return moment

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

        return await self._database.write(work, is_repeatable=True)

    async def complete(self, lease: Lease, result: JsonObject, text: str | None = None) -> Job:
        """End a job well, with its event, in one commit.

        Args:
            lease: of the job.
            result: what the handler made.
            text: what `dump_result` made of it, where that was done before.

        Raises:
            LeaseLostError: somebody else owns it by now; nothing changed.
            StorageError: nothing changed.
            ValueError, TypeError: the result cannot be stored; nothing changed.
        """
        return await self._settle_lease(
            Settlement(
                lease=lease,
                status=JobState.COMPLETED,
                result=result,
                result_text=text or dump_result(result),
            )
        )

    async def retry(
        self, lease: Lease, *, run_at: int, code: str, message: str, gives_back: bool = False
    ) -> Job:
        """Put a job back until `run_at`; `gives_back` does not count the attempt.

        Raises:
            LeaseLostError, StorageError: as `complete`.
        """
        return await self._settle_lease(
            Settlement(
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
            Settlement(
                lease=lease,
                status=JobState.PENDING,
                run_at=run_at,
                given_back=1,
                error_code=code,
                error_message=message,
                result=result,
                result_text=dump_result(result),
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
            Settlement(
                lease=lease,
                status=JobState.SYNC_FAILED,
                run_at=run_at,
                error_code=code,
                error_message=message,
                result=result,
                result_text=dump_result(result),
                sync_attempt=1,
            )
        )

    async def bury(self, lease: Lease, *, code: str, message: str) -> Job:
        """End a job in error, with its events, in one commit.

        Raises:
            LeaseLostError, StorageError: as `complete`.
        """
        return await self._settle_lease(
            Settlement(lease=lease, status=JobState.ERROR, error_code=code, error_message=message)
        )

    async def release(self, lease: Lease) -> Job:
        """Give a job back as if it had not been leased: shutting down is not its fault.

        Raises:
            LeaseLostError, StorageError: as `complete`.
        """
        return await self._settle_lease(
            Settlement(
                lease=lease,
                status=JobState.PENDING,
                given_back=1,
                # A restart does not begin the wait for a dependency anew.
                is_waiting=lease.job.waiting_since is not None,
            )
        )

    async def _settle_lease(self, settlement: Settlement) -> Job:
        return await _submit(self._settling, settlement)

    async def _settle_batch(self, batch: Sequence[Settlement]) -> Sequence[Job | Exception]:
        # A lease is settled once: a release that follows its completion into the same batch, as
        # when the job is cancelled meanwhile, must not undo it.
        first: dict[tuple[str, int], Settlement] = {}
        for settlement in batch:
            first.setdefault(settlement.key, settlement)
        settled = await self._database.write(
            lambda connection: settle(
                connection, list(first.values()), self._announcer, self._clock()
            )
        )
        for key, job in settled.items():
            settlement = first[key]
            if settlement.status is JobState.PENDING and settlement.error_code is not None:
                self._metrics.put_back(
                    job, settlement.error_code, costs_attempt=not settlement.given_back
                )
        self._have_moved(settled.values())
        lost = [LeaseLostError(f"job {each.lease.job.job_id} is no longer ours") for each in batch]
        return [
            settled.get(each.key, error) if first[each.key] is each else error
            for each, error in zip(batch, lost, strict=True)
        ]

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
        dead = sorted({name for name in {*workers, *owners} if is_dead(name)})
        if not dead:
            return []
        await self._adopt(dead)
        return await self._reclaim(sql.FIND_HELD_BY, lambda: dump_json(dead))

    async def mend_moments(self) -> None:
        """Bring back what a clock that has gone back since has put into the far future.

        Raises:
            StorageError: nothing changed.
        """
        policy = self._settings
        delay_ms = 1000 * max(
            policy.backoff_max_seconds, policy.sync_backoff_max_seconds, LONGEST_DELAY_SECONDS
        )
        lease_ms = 1000 * policy.lease_seconds

        async def work(connection: Connection) -> int:
            now = self._clock()
            mended = 0
            for statement in (sql.HASTEN_JOBS, sql.HASTEN_SYNCS, sql.HASTEN_EVENTS):
                cursor = await connection.execute(statement, (now, now + int(FAR * delay_ms)))
                mended += cursor.rowcount
            # Whoever lives renews in time.
            cursor = await connection.execute(
                sql.SHORTEN_LEASES, (now + int(lease_ms), now + int(10 * lease_ms))
            )
            return mended + cursor.rowcount

        if await self._database.write(work):
            self._wake()
            self.message_ready.ring()

    async def adopt_orphans(self, is_alive: Callable[[str], bool]) -> None:
        """Take over events that nobody published for long, unless their owner is known to live.

        A container that was made anew has another name: its former events have no owner whose
        death could be seen. If the owner lives elsewhere after all, an event is sent twice.

        Raises:
            StorageError: nothing changed.
        """
        before = self._clock() - ORPHANED_MS
        rows = await self._database.read(sql.FIND_OLD_OWNERS, (self._worker, before))
        orphaned = [row[0] for row in rows if not is_alive(row[0])]
        if orphaned:
            await self._adopt(orphaned)

    async def _adopt(self, owners: list[str]) -> None:
        async def work(connection: Connection) -> None:
            await connection.execute(sql.ADOPT, (self._worker, dump_json(owners)))

        await self._database.write(work)
        self.message_ready.ring()

    async def _reclaim(self, statement: str, parameter: Callable[[], Any]) -> list[Job]:
        async def work(connection: Connection) -> list[Job]:
            rows = await connection.execute_fetchall(statement, (parameter(),))
            most = self._settings.max_attempts
            settlements = [lost_lease(Lease(job_from_row(row), row["fence"]), most) for row in rows]
            settled = await settle(connection, settlements, self._announcer, self._clock())
            return list(settled.values())

        jobs = await self._database.write(work)
        for job in jobs:
            self._metrics.lease_reclaimed(job)
        self._have_moved(jobs)
        return jobs

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
            self._announcer.ended,
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
            lambda job, now: self._announcer.happened(Event.ACCEPTED, job, now, duplicate=False),
        )
        self.ready[job.task_type].ring()
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
            rows = await connection.execute_fetchall(statement, parameters(now))
            if not rows:
                return None
            job = job_from_row(rows[0])
            await self._announcer.write(connection, messages(job, now))
            return job

        try:
            job = await self._database.write(work, durable=True)
        except TakenError as error:
            raise ConflictError(
                "a newer job stands for this picture and task",
                existing_job_id=await self._rival(job_id),
            ) from error
        if job is None:
            raise await self._unfit(job_id)
        if job.status.is_terminal:
            self._metrics.job_ended(job)
        self.message_ready.ring()
        return job

    async def _rival(self, job_id: str) -> str:
        jobs = jobs_from_rows(await self._database.read(sql.FIND, (job_id,)))
        pairs = dump_json([pair(job) for job in jobs])
        found = jobs_from_rows(await self._database.read(sql.FIND_PAIRS, (pairs,)))
        return found[0].job_id if found else job_id

    async def _unfit(self, job_id: str) -> Exception:
        try:
            job = await self.get(job_id)
        except JobNotFoundError as error:
            return error
        return ConflictError(f"the job is {job.status}", existing_job_id=job_id)

    # -- face results that the media store did not take ------------------------------------------

    async def heal(self, job: Job) -> None:
        """Complete a job in sync_failed whose result was delivered at last, with its event.

        Does nothing where a newer job of the pair has taken over meanwhile.

        Raises:
            StorageError: nothing changed.
        """

        async def work(connection: Connection) -> list[Job]:
            now = self._clock()
            rows = await connection.execute_fetchall(sql.HEAL, (now, job.job_id))
            jobs = jobs_from_rows(rows)
            for healed in jobs:
                await self._announcer.write(connection, self._announcer.ended(healed, now))
            return jobs

        with contextlib.suppress(TakenError):
            for healed in await self._database.write(work):
                self._metrics.job_ended(healed)
            self.message_ready.ring()

    async def delay_sync(self, job: Job, *, run_at: int | None, code: str, message: str) -> None:
        """Note that the result was refused again; without `run_at` it is offered no more.

        Raises:
            StorageError: nothing changed.
        """

        async def work(connection: Connection) -> None:
            await connection.execute(
                sql.DELAY_SYNC, (run_at, code, told(code, message), job.job_id)
            )

        await self._database.write(work)

    async def prune(self, *, before: int, limit: int = 1000) -> int:
        """Delete up to `limit` jobs that finished before a moment (epoch ms); return how many.

        Raises:
            StorageError: nothing changed.
        """

        async def work(connection: Connection) -> int:
            return (await connection.execute(sql.PRUNE, (before, limit))).rowcount

        return await self._database.write(work)

    # -- shared ----------------------------------------------------------------------------------

    def _wake(self) -> None:
        """Let all look for jobs."""
        for bell in (*self.ready.values(), self.suspect_ready):
            bell.ring()

    def _have_moved(self, jobs: Iterable[Job]) -> None:
        """Count the ends among jobs that left `processing`, and wake who waits for them."""
        jobs = list(jobs)
        for job in jobs:
            if job.status.is_terminal:
                self._metrics.job_ended(job)
        waiting = [job for job in jobs if job.status is JobState.PENDING]
        for task_type in {job.task_type for job in waiting}:
            self.ready[task_type].ring()
        if any(job.lost for job in waiting):
            self.suspect_ready.ring()
        if any(job.status.is_terminal for job in jobs):
            self.message_ready.ring()


async def _submit(stage: Stage[_In, _Out], item: _In) -> _Out:
    try:
        return await stage.submit(item)
    except StageClosedError as error:
        raise StorageError("the queue is closed") from error
