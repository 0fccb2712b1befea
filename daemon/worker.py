"""Leases jobs, runs their handlers, and settles them; gives back what it cannot finish.

Task types run side by side. A job that is more urgent than what runs begins at once, a little
beyond the limit (daemon/room.py), and is first wherever jobs wait for one another. A job whose
process died while it held it is run alone, with nothing else in flight, so that a picture which
kills the process takes nobody with it.
"""

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable, Collection, Coroutine, Mapping, Sequence
from typing import Any, Protocol

from daemon import retry
from daemon.bell import Bell, wait_any
from daemon.clock_steps import ClockSteps
from daemon.errors import (
    DependencyDownError,
    HandlerError,
    LeaseLostError,
    PermanentError,
    StorageError,
)
from daemon.identity import is_alive, is_dead
from daemon.job_queue import JobQueue
from daemon.jobs import Clock, Job, JsonObject, Lease, TaskType, dump_result
from daemon.logs import about
from daemon.room import Room
from daemon.settings import QueueSettings, WorkerSettings
from daemon.stage import StageClosedError
from daemon.urgency import URGENCY

log = logging.getLogger(__name__)

Report = Callable[[str], None]
"""Told the name of each step as it begins: fetch, decode, infer, store, deliver."""

SYNC_BATCH = 8
RECLAIMS_PER_LEASE = 3
"""How often, within one lease time, leases that ran out are looked for and ours are renewed."""
HOLD_SECONDS = 2.0
"""Wait before a dependency that was found away is tried again."""
LEAST_WAIT_SECONDS = 0.001
"""Wait for a moment that has come: clocks count whole milliseconds."""
PRUNE_SECONDS = 60.0
STORE_AGAIN_SECONDS = 1.0
"""Wait before an outcome that could not be stored is stored again."""


class Handler(Protocol):
    """What the worker needs of a task type."""

    @property
    def task_type(self) -> TaskType:
        """Which jobs it takes."""

    @property
    def delivers(self) -> bool:
        """Whether its results go to the media store as well."""

    async def handle(self, job: Job, report: Report) -> JsonObject:
        """Return the job's result; everything it stores is stored when this returns.

        Raises:
            PermanentError: this picture can never work.
            RetryableError: it may work later.
        """

    async def deliver(self, job: Job, result: JsonObject) -> None:
        """Give the result to the media store; safe to repeat.

        Raises:
            HandlerError: it was not taken.
        """


class Worker:
    """Runs the handlers over the queue."""

    def __init__(
        self,
        queue: JobQueue,
        handlers: Sequence[Handler],
        *,
        settings: WorkerSettings,
        queue_settings: QueueSettings,
        clock: Clock,
        report: Callable[[Job, str], None] = lambda _job, _step: None,
        clock_steps: ClockSteps | None = None,
        suspects: Callable[[], Collection[str]] = tuple,
    ) -> None:
        """Wire it up.

        Args:
            queue: what is leased from and settled in.
            handlers: one for each task type that is worked on.
            settings: how many jobs run and how they end.
            queue_settings: leases, attempts and waits.
            clock: epoch milliseconds.
            report: told each step of a job as it begins.
            clock_steps: notices when somebody sets the wall clock.
            suspects: job_ids that some model has been busy with for too long.
        """
        self._queue = queue
        self._handlers: Mapping[TaskType, Handler] = {each.task_type: each for each in handlers}
        self._settings = settings
        self._policy = queue_settings
        self._clock = clock
        self._report = report
        self._clock_steps = clock_steps or ClockSteps()
        self._suspects = suspects
        self._running: dict[str, tuple[Lease, asyncio.Task[None]]] = {}
        self._cancelled: set[str] = set()
        self._jobs = _Nursery()
        self._gate = asyncio.Lock()
        self._taking = asyncio.Lock()
        self._rooms = {each: Room(settings.in_flight) for each in self._handlers}
        self._away: set[TaskType] = set()
        self._stopping = asyncio.Event()
        self._stopped = Bell()

    @property
    def in_flight(self) -> int:
        """How many jobs are leased and running."""
        return len(self._running)

    def has_room(self, task_type: TaskType) -> bool:
        """Whether a job of a task type that comes now is begun at once."""
        room = self._rooms.get(task_type)
        return room is not None and room.free > 0 and not self._stopping.is_set()

    async def run(self) -> None:
        """Work until `drain`; the caller cancels what is left."""
        async with asyncio.TaskGroup() as group:
            for task_type in self._handlers:
                group.create_task(self._lease_loop(task_type), name=f"lease-{task_type}")
            group.create_task(self._suspect_loop(), name="lease-suspects")
            group.create_task(self._keep_leases(), name="lease-renewer")
            group.create_task(self._sync_loop(), name="sync")
            if self._policy.prune_after_days:
                group.create_task(self._prune_loop(), name="prune")

    async def drain(self, grace_seconds: float | None = None) -> None:
        """Lease nothing more, wait for what runs, then give back what did not finish in time.

        Args:
            grace_seconds: how long what runs may take, where not as long as the settings say.
        """
        if grace_seconds is None:
            grace_seconds = self._settings.shutdown_grace_seconds
        self._stopping.set()
        self._stopped.ring()
        async with self._taking:
            # A lease that was under way when we stopped has begun by now, and is waited for too.
            pass
        running = [task for _, task in self._running.values()]
        if running:
            log.info("waiting for %d running jobs", len(running))
            await asyncio.wait(running, timeout=grace_seconds)
        await self._jobs.cancel()

    async def cancel(self, job_id: str) -> bool:
        """End a job that runs here in error cancelled; return False where none of this id does.

        An outcome that is being settled already wins.
        """
        async with self._taking:
            # Whatever is leased has begun by now.
            _, task = self._running.get(job_id, (None, None))
        if task is None:
            return False
        if job_id not in self._cancelled:
            self._cancelled.add(job_id)
            # A task that is cancelled before its first step could settle nothing.
            await asyncio.sleep(0)
            task.cancel()
        await asyncio.wait([task])
        return True

    # -- leasing -------------------------------------------------------------------------------

    async def _lease_loop(self, task_type: TaskType) -> None:
        room, ready = self._rooms[task_type], self._queue.ready[task_type]
        looked: int | None = None
        while not self._stopping.is_set():
            heard, freed = ready.rings, room.freed.rings
            limit = room.free
            if not limit and looked != heard and await self._is_urgent(task_type):
                limit = 1
            elif not limit:
                await self._wait({ready: heard, room.freed: freed})
                # After a wait for nothing others may have put something into the queue.
                looked = heard if room.freed.rings > freed else None
                continue
            if task_type in self._away:
                # One job tries whether the dependency is back; the others keep their place.
                await self._pause(HOLD_SECONDS)
                limit = 1
            async with self._gate:
                # Started within the gate: a suspect sees them as in flight.
                started = await self._take(task_type, limit)
            if task_type in self._away and started:
                await asyncio.wait(started)
            if started is None or len(started) < limit:
                # No more wait now. While there is room, an end of a job brings none either.
                bells = {ready: heard} if room.free else {ready: heard, room.freed: freed}
                await self._wait(bells, None if started is None else await self._next_moment())

    async def _is_urgent(self, task_type: TaskType) -> bool:
        """Whether the next job is too urgent to wait until there is room."""
        try:
            rank = await self._queue.next_rank(task_type)
        except StorageError as error:
            log.warning("cannot look for urgent jobs: %s", error)
            return False
        return rank is not None and self._rooms[task_type].may_exceed(rank)

    async def _next_moment(self) -> int | None:
        try:
            return await self._queue.next_moment()
        except StorageError as error:
            log.warning("cannot look for what waits for its moment: %s", error)
            return None

    async def _wait(self, heard: Mapping[Bell, int], until: int | None = None) -> None:
        """Wait for a bell, a moment (epoch ms) or the stop; the poll is the safety net."""
        seconds = self._settings.poll_seconds
        if until is not None:
            seconds = min(seconds, max(LEAST_WAIT_SECONDS, (until - self._clock()) / 1000))
        await wait_any({**heard, self._stopped: 0}, timeout_seconds=seconds)

    async def _take(self, task_type: TaskType, limit: int) -> list[asyncio.Task[None]] | None:
        """Start up to `limit` jobs; return None where the queue cannot be written."""
        async with self._taking:
            if self._stopping.is_set():
                return []
            try:
                leases = await self._queue.lease(
                    task_type, limit, seconds=self._policy.lease_seconds
                )
            except StorageError as error:
                log.warning("cannot lease: %s", error)
                return None
            return [self._start(lease) for lease in leases]

    async def _suspect_loop(self) -> None:
        task_types = list(self._handlers)
        while not self._stopping.is_set():
            heard = self._queue.suspect_ready.rings
            try:
                if await self._queue.has_suspect(task_types):
                    await self._run_suspect(task_types)
                    continue
            except StorageError as error:
                log.warning("cannot look for jobs that lost their lease: %s", error)
            await self._wait({self._queue.suspect_ready: heard})

    async def _run_suspect(self, task_types: Sequence[TaskType]) -> None:
        async with self._gate:
            running = [task for _, task in self._running.values()]
            if running:
                await asyncio.wait(running)
            async with self._taking:
                if self._stopping.is_set():
                    return
                lease = await self._queue.lease_suspect(
                    task_types, seconds=self._policy.lease_seconds
                )
                if lease is None:
                    return
                log.info(
                    "running a job alone that lost its lease %d times",
                    lease.job.lost,
                    extra={"job_id": lease.job.job_id},
                )
                task = self._start(lease)
            await asyncio.wait([task])

    def _start(self, lease: Lease) -> asyncio.Task[None]:
        job_id = lease.job.job_id
        task = self._jobs.start(self._work(lease), name=f"job-{job_id}")
        self._running[job_id] = lease, task
        self._rooms[lease.job.task_type].begin(job_id, lease.rank)
        task.add_done_callback(lambda task: self._ended(lease, task))
        return task

    def _ended(self, lease: Lease, task: asyncio.Task[None]) -> None:
        job_id = lease.job.job_id
        if self._running.get(job_id, (None, None))[1] is task:
            del self._running[job_id]
            self._cancelled.discard(job_id)
            self._rooms[lease.job.task_type].end(job_id)

    # -- one job -------------------------------------------------------------------------------

    async def _work(self, lease: Lease) -> None:
        # This task's own, for as long as it lasts.
        URGENCY.set(lease.rank)
        with about(lease.job):
            await self._carry_out(lease)

    async def _carry_out(self, lease: Lease) -> None:
        try:
            await self._attempt(lease)
        except asyncio.CancelledError:
            # Shutting down is not the job's fault. The release itself must not be cancelled.
            with contextlib.suppress(LeaseLostError, StorageError):
                await asyncio.shield(self._let_go(lease))
        except LeaseLostError as error:
            log.warning("%s: its result is dropped", error, extra={"job_id": lease.job.job_id})
        except StorageError as error:
            # The lease runs out and the job comes back: nothing is lost.
            log.error("cannot settle: %s", error, extra={"job_id": lease.job.job_id})  # noqa: TRY400 - the sentence has it all

    async def _let_go(self, lease: Lease) -> None:
        job_id = lease.job.job_id
        if job_id in self._cancelled:
            await self._queue.bury(
                lease, code="cancelled", message="the job was cancelled while it ran"
            )
        elif job_id in self._suspects():
            # Its picture may be why the model hangs: whoever takes the lease back counts it lost,
            # so that it runs alone the next time, and not for ever.
            log.error("left behind with a model that hangs", extra={"job_id": job_id})
        else:
            await self._queue.release(lease)

    async def _attempt(self, lease: Lease) -> None:
        job = lease.job
        handler = self._handlers[job.task_type]
        result, text = job.result, None
        if result is None:
            try:
                result = await self._infer(job, handler)
                # Raises here, as the handler's fault, what could not be stored later.
                text = dump_result(result)
            except StageClosedError:
                # We end without having drained, for a fault of our own, which is not the job's.
                await self._queue.release(lease)
                return
            except Exception as error:  # noqa: BLE001 - anything a handler raises becomes a fate
                is_away = isinstance(error, DependencyDownError)
                (self._away.add if is_away else self._away.discard)(job.task_type)
                await self._settle_failure(lease, error)
                return
            self._away.discard(job.task_type)
        if handler.delivers:
            self._report(job, "deliver")
            refusal = await self._deliver(job, handler, result)
            if refusal is not None:
                await self._settle_undelivered(lease, result, refusal)
                return
        await self._store(lambda: self._queue.complete(lease, result, text))

    async def _store(self, settle: Callable[[], Awaitable[Job]]) -> None:
        """Settle, however long the file cannot be written: a full disk costs no attempt.

        The lease is ours meanwhile, since it is renewed before those that ran out are looked for.

        Raises:
            LeaseLostError: the outcome is nobody's by now.
            StorageError: it can't be stored as it is, or we are stopping.
        """
        while True:
            try:
                # Shielded: an outcome that exists is written even while we are being cancelled.
                await asyncio.shield(settle())
            except StorageError as error:
                if self._stopping.is_set() or not error.may_pass:
                    raise
                log.warning("cannot settle yet: %s", error)
                await self._pause(STORE_AGAIN_SECONDS)
            else:
                return

    async def _infer(self, job: Job, handler: Handler) -> JsonObject:
        if job.expires_at is not None and job.expires_at <= self._clock():
            raise PermanentError("the request expired before its turn came", code="expired")
        try:
            async with asyncio.timeout(self._settings.job_timeout_seconds):
                result = await handler.handle(job, lambda step: self._report(job, step))
        except TimeoutError as error:
            limit = self._settings.job_timeout_seconds
            raise HandlerError(f"the job took longer than {limit:g} s", code="timeout") from error
        return result

    async def _settle_failure(self, lease: Lease, error: Exception) -> None:
        job = lease.job
        now = self._clock()
        fate = retry.decide(
            job,
            error,
            settings=self._policy,
            now=now,
            stepped_ms=self._clock_steps.ahead_ms_since(job.waiting_since or now),
        )
        is_bug = not isinstance(error, HandlerError)
        log.log(
            logging.ERROR if is_bug else logging.WARNING,
            "attempt %d ended with %s: %s",
            job.attempt,
            fate.code,
            fate.message,
            exc_info=error if is_bug else None,
            extra={"job_id": job.job_id},
        )
        if isinstance(fate, retry.Bury):
            buried = fate
            await self._store(
                lambda: self._queue.bury(lease, code=buried.code, message=buried.message)
            )
            return
        retried = fate
        await self._store(
            lambda: self._queue.retry(
                lease,
                run_at=retried.run_at,
                code=retried.code,
                message=retried.message,
                gives_back=retried.gives_back,
            )
        )

    # -- face results --------------------------------------------------------------------------

    async def _deliver(self, job: Job, handler: Handler, result: JsonObject) -> HandlerError | None:
        """Return why the result was not delivered, or None if it was."""
        try:
            async with asyncio.timeout(self._settings.job_timeout_seconds):
                await handler.deliver(job, result)
        except HandlerError as error:
            return error
        except Exception as error:
            log.exception("a result could not be delivered", extra={"job_id": job.job_id})
            code, message = retry.explain(error)
            return HandlerError(message, code=code)
        return None

    async def _settle_undelivered(
        self, lease: Lease, result: JsonObject, error: HandlerError
    ) -> None:
        """Keep the result; after as many tries as attempts the job is sync_failed, and goes on."""
        job = lease.job
        code, message = retry.explain(error)
        run_at = self._next_sync(job, error)
        log.warning("face results were not taken: %s", message, extra={"job_id": job.job_id})
        if run_at is not None and job.sync_attempt + 1 < self._policy.max_attempts:
            await self._store(
                lambda: self._queue.keep(lease, result, run_at=run_at, code=code, message=message)
            )
            return
        await self._store(
            lambda: self._queue.give_up_sync(
                lease, result, run_at=run_at, code=code, message=message
            )
        )

    def _next_sync(self, job: Job, error: HandlerError) -> int | None:
        if isinstance(error, PermanentError):
            return None
        return self._clock() + retry.backoff_ms(
            job.sync_attempt + 1,
            first_seconds=self._policy.backoff_seconds,
            most_seconds=self._policy.sync_backoff_max_seconds,
        )

    async def _sync_loop(self) -> None:
        delivering = {each.task_type: each for each in self._handlers.values() if each.delivers}
        while delivering and not self._stopping.is_set():
            try:
                for job in await self._queue.due_syncs(list(delivering), SYNC_BATCH):
                    with about(job):
                        await self._sync(job, delivering[job.task_type])
            except StorageError as error:
                log.warning("cannot look for undelivered results: %s", error)
            await self._pause(self._settings.poll_seconds)

    async def _sync(self, job: Job, handler: Handler) -> None:
        refusal = await self._deliver(job, handler, job.result or {})
        if refusal is not None:
            code, message = retry.explain(refusal)
            run_at = self._next_sync(job, refusal)
            await self._queue.delay_sync(job, run_at=run_at, code=code, message=message)
            return
        await self._queue.heal(job)
        log.info("face results were delivered at last", extra={"job_id": job.job_id})

    # -- housekeeping --------------------------------------------------------------------------

    async def _keep_leases(self) -> None:
        """Renew what we hold, cancel what we lost, take back what others let run out."""
        seconds = self._policy.lease_seconds
        while True:
            # Runs on while draining: jobs that still run must not be taken from us.
            await asyncio.sleep(seconds / RECLAIMS_PER_LEASE)
            try:
                held = {job_id: lease for job_id, (lease, _) in self._running.items()}
                if held:
                    still = await self._queue.renew(held.values(), seconds=seconds)
                    self._drop_lost(held, still)
                # What a dead process had still to say goes first, before what becomes of its jobs.
                for job in await self._queue.reclaim_dead(is_dead):
                    log.warning("taken back from a process that died", extra={"job_id": job.job_id})
                await self._queue.mend_moments()
                # A clock that was set ahead makes the leases of all others look run out: they
                # have the time of a lease to renew them.
                is_settled = self._clock_steps.seconds_since_last() > seconds
                for job in await self._queue.reclaim() if is_settled else ():
                    log.warning("its lease ran out", extra={"job_id": job.job_id})
                await self._queue.adopt_orphans(is_alive)
            except StorageError as error:
                log.warning("cannot renew leases: %s", error)

    def _drop_lost(self, held: Mapping[str, Lease], still: set[str]) -> None:
        for job_id in held.keys() - still:
            lease, task = self._running.get(job_id, (None, None))
            # A job that settled while we renewed is not lost.
            if task is not None and lease is held[job_id]:
                task.cancel()

    async def _prune_loop(self) -> None:
        age_ms = int(self._policy.prune_after_days * 86_400_000)
        while not self._stopping.is_set():
            try:
                more = True
                while more and not self._stopping.is_set():
                    more = await self._queue.prune(before=self._clock() - age_ms) > 0
            except StorageError as error:
                log.warning("cannot prune: %s", error)
            await self._pause(PRUNE_SECONDS)

    async def _pause(self, seconds: float) -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._stopping.wait()


class _Nursery:
    """Running jobs: one that fails does not end the others, and all can be cancelled."""

    def __init__(self) -> None:
        self._tasks: set[asyncio.Task[None]] = set()

    def start(self, work: Coroutine[Any, Any, None], *, name: str) -> asyncio.Task[None]:
        task = asyncio.create_task(work, name=name)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    async def cancel(self) -> None:
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)
