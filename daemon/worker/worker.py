"""Leases jobs and has them run (running_jobs); gives back what does not finish in time.

Task types run side by side. A job that is more urgent than what runs begins at once, a little
beyond the limit (room.py), and is first wherever jobs wait for one another. A job whose
process died while it held it is run alone, with nothing else in flight, so that a picture which
kills the process takes nobody with it.
"""

import asyncio
import logging
from collections.abc import Callable, Collection, Mapping, Sequence

from daemon.bell import Bell, wait_any
from daemon.clock_steps import ClockSteps
from daemon.errors import StorageError
from daemon.handler import Handler
from daemon.jobs import Clock, Job, Lease, TaskType
from daemon.queue.job_queue import JobQueue
from daemon.settings import QueueSettings, WorkerSettings
from daemon.upkeep.pruning import prune
from daemon.worker.attempt import Attempts
from daemon.worker.delivery import Delivery
from daemon.worker.lease_keeper import LeaseKeeper
from daemon.worker.room import Room
from daemon.worker.running_jobs import RunningJobs

log = logging.getLogger(__name__)

HOLD_SECONDS = 2.0
"""Wait before a dependency that was found away is tried again."""
LEAST_WAIT_SECONDS = 0.001
"""Wait for a moment that has come: clocks count whole milliseconds."""


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
        self._gate = asyncio.Lock()
        self._taking = asyncio.Lock()
        self._rooms = {each: Room(settings.in_flight) for each in self._handlers}
        self._stop = Bell()
        steps = clock_steps or ClockSteps()
        self._delivery = Delivery(
            queue, settings=settings, policy=queue_settings, clock=clock, stop=self._stop
        )
        self._attempts = Attempts(
            queue,
            self._delivery,
            settings=settings,
            policy=queue_settings,
            clock=clock,
            clock_steps=steps,
            report=report,
            stop=self._stop,
        )
        self._running = RunningJobs(
            queue,
            carry_out=self._carry_out,
            rooms=self._rooms,
            suspects=suspects,
        )
        self._keeper = LeaseKeeper(
            queue,
            lease_seconds=queue_settings.lease_seconds,
            clock_steps=steps,
            held=self._running.leases,
            lost=self._running.drop_lost,
        )

    @property
    def in_flight(self) -> int:
        """How many jobs are leased and running."""
        return len(self._running)

    def has_room(self, task_type: TaskType) -> bool:
        """Whether a job of a task type that comes now is begun at once."""
        room = self._rooms.get(task_type)
        return room is not None and room.free > 0 and not self._stop.rings

    async def run(self) -> None:
        """Work until `drain`; the caller cancels what is left."""
        async with asyncio.TaskGroup() as group:
            for task_type in self._handlers:
                group.create_task(self._lease_loop(task_type), name=f"lease-{task_type}")
            group.create_task(self._suspect_loop(), name="lease-suspects")
            group.create_task(self._keeper.run(), name="lease-renewer")
            group.create_task(self._delivery.run(self._handlers.values()), name="sync")
            if self._policy.prune_after_days:
                pruning = prune(
                    self._queue,
                    after_days=self._policy.prune_after_days,
                    clock=self._clock,
                    stop=self._stop,
                )
                group.create_task(pruning, name="prune")

    async def drain(self, grace_seconds: float | None = None) -> None:
        """Lease nothing more, wait for what runs, then give back what did not finish in time.

        Args:
            grace_seconds: how long what runs may take, where not as long as the settings say.
        """
        if grace_seconds is None:
            grace_seconds = self._settings.shutdown_grace_seconds
        self._stop.ring()
        async with self._taking:
            # A lease that was under way when we stopped has begun by now, and is waited for too.
            pass
        running = self._running.tasks
        if running:
            log.info("waiting for %d running jobs", len(running))
            await asyncio.wait(running, timeout=grace_seconds)
        await self._running.give_back()

    async def cancel(self, job_id: str) -> bool:
        """End a job that runs here in error cancelled; return False where none of this id does.

        An outcome that is being settled already wins.
        """
        async with self._taking:
            # Whatever is leased has begun by now.
            pass
        return await self._running.cancel(job_id)

    # -- leasing -------------------------------------------------------------------------------

    async def _lease_loop(self, task_type: TaskType) -> None:
        room, ready = self._rooms[task_type], self._queue.ready[task_type]
        looked: int | None = None
        while not self._stop.rings:
            heard, freed = ready.rings, room.freed.rings
            limit = room.free
            if not limit and looked != heard and await self._is_urgent(task_type):
                limit = 1
            elif not limit:
                await self._wait({ready: heard, room.freed: freed})
                # After a wait for nothing others may have put something into the queue.
                looked = heard if room.freed.rings > freed else None
                continue
            if task_type in self._attempts.away:
                # One job tries whether the dependency is back; the others keep their place.
                await self._stop.wait(0, timeout_seconds=HOLD_SECONDS)
                limit = 1
            async with self._gate:
                # Started within the gate: a suspect sees them as in flight.
                started = await self._take(task_type, limit)
            if task_type in self._attempts.away and started:
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
        await wait_any({**heard, self._stop: 0}, timeout_seconds=seconds)

    async def _take(self, task_type: TaskType, limit: int) -> list[asyncio.Task[None]] | None:
        """Start up to `limit` jobs; return None where the queue cannot be written."""
        async with self._taking:
            if self._stop.rings:
                return []
            try:
                leases = await self._queue.lease(
                    task_type, limit, seconds=self._policy.lease_seconds
                )
            except StorageError as error:
                log.warning("cannot lease: %s", error)
                return None
            return [self._running.start(lease) for lease in leases]

    async def _suspect_loop(self) -> None:
        task_types = list(self._handlers)
        while not self._stop.rings:
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
            if running := self._running.tasks:
                await asyncio.wait(running)
            async with self._taking:
                if self._stop.rings:
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
                task = self._running.start(lease)
            await asyncio.wait([task])

    async def _carry_out(self, lease: Lease) -> None:
        await self._attempts.carry_out(lease, self._handlers[lease.job.task_type])
