"""Delivers face results to the media store, and delivers again what it did not take."""

import asyncio
import logging
from collections.abc import Iterable

from daemon.bell import Bell
from daemon.errors import HandlerError, PermanentError, StorageError
from daemon.handler import Handler
from daemon.jobs import Clock, Job, JsonObject
from daemon.logs import about
from daemon.queue.job_queue import JobQueue
from daemon.settings import QueueSettings, WorkerSettings
from daemon.worker import retry

log = logging.getLogger(__name__)

SYNC_BATCH = 8


class Delivery:
    """Delivers, and knows when the next try is due."""

    def __init__(
        self,
        queue: JobQueue,
        *,
        settings: WorkerSettings,
        policy: QueueSettings,
        clock: Clock,
        stop: Bell,
    ) -> None:
        """Wire it up.

        Args:
            queue: where undelivered results wait.
            settings: how long a delivery may take, and how often is looked for those that are due.
            policy: waits between tries.
            clock: epoch milliseconds.
            stop: rung once, when nothing new is to be begun.
        """
        self._queue = queue
        self._settings = settings
        self._policy = policy
        self._clock = clock
        self._stop = stop

    async def deliver(self, job: Job, handler: Handler, result: JsonObject) -> HandlerError | None:
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

    def next_try(self, job: Job, error: HandlerError) -> int | None:
        """Return when to try again, in epoch milliseconds; None where no retry can help."""
        if isinstance(error, PermanentError):
            return None
        return self._clock() + retry.backoff_ms(
            job.sync_attempt + 1,
            first_seconds=self._policy.backoff_seconds,
            most_seconds=self._policy.sync_backoff_max_seconds,
        )

    async def run(self, handlers: Iterable[Handler]) -> None:
        """Deliver what is due, until the stop."""
        delivering = {each.task_type: each for each in handlers if each.delivers}
        while delivering and not self._stop.rings:
            try:
                for job in await self._queue.due_syncs(list(delivering), SYNC_BATCH):
                    with about(job):
                        await self._again(job, delivering[job.task_type])
            except StorageError as error:
                log.warning("cannot look for undelivered results: %s", error)
            await self._stop.wait(0, timeout_seconds=self._settings.poll_seconds)

    async def _again(self, job: Job, handler: Handler) -> None:
        # A delivery that lasts longer may be done twice, which its job_id makes harmless; after a
        # crash none is to wait for longer.
        if not await self._queue.claim_sync(job, seconds=self._policy.lease_seconds):
            return
        refusal = await self.deliver(job, handler, job.result or {})
        if refusal is not None:
            code, message = retry.explain(refusal)
            run_at = self.next_try(job, refusal)
            await self._queue.delay_sync(job, run_at=run_at, code=code, message=message)
            return
        await self._queue.heal(job)
        log.info("face results were delivered at last", extra={"job_id": job.job_id})
