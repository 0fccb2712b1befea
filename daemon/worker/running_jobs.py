"""RunningJobs: the jobs that run here, a task each, until they are settled or given back."""

import asyncio
import contextlib
import logging
from collections.abc import Callable, Collection, Coroutine, Mapping
from typing import Any

from daemon.errors import LeaseLostError, StorageError
from daemon.jobs import Lease, TaskType
from daemon.logs import about
from daemon.queue.job_queue import JobQueue
from daemon.urgency import URGENCY
from daemon.worker.room import Room

log = logging.getLogger(__name__)

STAY_SECONDS = 20.0
"""For a write that has begun, after the cancel: one that waits for a backup takes longer."""


class RunningJobs:
    """Runs leased jobs; one that fails does not end the others.

    Args:
        queue: what is settled in.
        carry_out: does a job's attempt and settles it.
        rooms: for each task type, how many more may be leased.
        suspects: job_ids that some model has been busy with for too long.
    """

    def __init__(
        self,
        queue: JobQueue,
        *,
        carry_out: Callable[[Lease], Coroutine[Any, Any, None]],
        rooms: Mapping[TaskType, Room],
        suspects: Callable[[], Collection[str]],
    ) -> None:
        self._queue = queue
        self._attempt = carry_out
        self._rooms = rooms
        self._suspects = suspects
        self._running: dict[str, tuple[Lease, asyncio.Task[None]]] = {}
        self._cancelled: set[str] = set()
        self._tasks: set[asyncio.Task[None]] = set()

    def __len__(self) -> int:
        return len(self._running)

    @property
    def tasks(self) -> list[asyncio.Task[None]]:
        """The tasks of the running jobs."""
        return [task for _, task in self._running.values()]

    def leases(self) -> Mapping[str, Lease]:
        """Return the leases that are held, by job_id."""
        return {job_id: lease for job_id, (lease, _) in self._running.items()}

    def start(self, lease: Lease) -> asyncio.Task[None]:
        """Begin a job."""
        job_id = lease.job.job_id
        task = asyncio.create_task(self._work(lease), name=f"job-{job_id}")
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        self._running[job_id] = lease, task
        self._rooms[lease.job.task_type].begin(job_id, lease.rank)
        task.add_done_callback(lambda task: self._ended(lease, task))
        return task

    async def cancel(self, job_id: str) -> bool:
        """End a job in error cancelled; return False where none of this id runs.

        An outcome that is being settled already wins.
        """
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

    async def give_back(self) -> None:
        """Cancel all running jobs, and return once each lease was given back.

        Who stays to the end of a write (Stage.submit_to_end) leaves when it is cancelled once more.
        """
        tasks = set(self._tasks)
        for seconds in (STAY_SECONDS, None):
            for task in tasks:
                task.cancel()
            if tasks:
                _, tasks = await asyncio.wait(tasks, timeout=seconds)

    def drop_lost(self, lost: Lease) -> None:
        """End a job whose lease is no longer ours; its result is dropped."""
        lease, task = self._running.get(lost.job.job_id, (None, None))
        # A job that settled meanwhile is not lost.
        if task is not None and lease is lost:
            task.cancel()

    def _ended(self, lease: Lease, task: asyncio.Task[None]) -> None:
        job_id = lease.job.job_id
        if self._running.get(job_id, (None, None))[1] is task:
            del self._running[job_id]
            self._cancelled.discard(job_id)
            self._rooms[lease.job.task_type].end(job_id)

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
