"""One attempt of a leased job: its handler runs, its result is delivered, the job is settled."""

import asyncio
import logging
from collections.abc import Awaitable, Callable

from daemon.bell import Bell
from daemon.clock_steps import ClockSteps
from daemon.errors import DependencyDownError, HandlerError, PermanentError, StorageError
from daemon.handler import Handler
from daemon.jobs import Clock, Job, JsonObject, Lease, TaskType, dump_result
from daemon.queue.job_queue import JobQueue
from daemon.settings import QueueSettings, WorkerSettings
from daemon.stage import StageClosedError
from daemon.worker import retry
from daemon.worker.delivery import Delivery

log = logging.getLogger(__name__)

STORE_AGAIN_SECONDS = 1.0
"""Wait before an outcome that could not be stored is stored again."""


class Attempts:
    """Carries out attempts, any number at a time.

    Attributes:
        away: task types whose latest attempt found a dependency away.
    """

    def __init__(
        self,
        queue: JobQueue,
        delivery: Delivery,
        *,
        settings: WorkerSettings,
        policy: QueueSettings,
        clock: Clock,
        clock_steps: ClockSteps,
        report: Callable[[Job, str], None],
        stop: Bell,
    ) -> None:
        """Wire it up.

        Args:
            queue: what is settled in.
            delivery: takes the results that the media store is given.
            settings: how long an attempt may take.
            policy: attempts and waits.
            clock: epoch milliseconds.
            clock_steps: how far the wall clock was set while a job waited.
            report: told each step of a job as it begins.
            stop: rung once, when an outcome that cannot be stored is given up.
        """
        self._queue = queue
        self._delivery = delivery
        self._settings = settings
        self._policy = policy
        self._clock = clock
        self._clock_steps = clock_steps
        self._report = report
        self._stop = stop
        self.away: set[TaskType] = set()

    async def carry_out(self, lease: Lease, handler: Handler) -> None:
        """Run the handler, unless the job has its result already, and settle what came of it.

        Raises:
            LeaseLostError: the lease is no longer held.
            StorageError: the outcome can't be stored.
        """
        job = lease.job
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
                (self.away.add if is_away else self.away.discard)(job.task_type)
                await self._settle_failure(lease, error)
                return
            self.away.discard(job.task_type)
        if handler.delivers:
            self._report(job, "deliver")
            refusal = await self._delivery.deliver(job, handler, result)
            if refusal is not None:
                await self._settle_undelivered(lease, result, refusal)
                return
        await self._store(lambda: self._queue.complete(lease, result, text))

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
                if self._stop.rings or not error.may_pass:
                    raise
                log.warning("cannot settle yet: %s", error)
                await self._stop.wait(0, timeout_seconds=STORE_AGAIN_SECONDS)
            else:
                return

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

    async def _settle_undelivered(
        self, lease: Lease, result: JsonObject, error: HandlerError
    ) -> None:
        """Keep the result; after as many tries as attempts the job is sync_failed, and goes on."""
        job = lease.job
        code, message = retry.explain(error)
        run_at = self._delivery.next_try(job, error)
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
