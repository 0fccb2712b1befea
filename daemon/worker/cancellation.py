"""Cancels over MQTT: a job that waits, or runs in this daemon, ends in error `cancelled`."""

import logging
from collections.abc import Awaitable, Callable

from daemon.errors import ConflictError, InferdError, InvalidRequestError, JobNotFoundError
from daemon.events import rejection_messages, terminal_messages
from daemon.jobs import Clock, Job, JobState
from daemon.queue.job_queue import JobQueue
from daemon.requests import MqttRequest
from daemon.topics import cancelled_job, is_job_id, is_reply_topic

log = logging.getLogger(__name__)

TRIES = 5
"""A job may move on while it is looked at, but not for ever."""


class Cancellation:
    """Answers each cancel by the job's terminal events or by a refusal; safe to repeat.

    A job that had ended already says again how: what is settled wins over a cancel.
    """

    def __init__(
        self,
        queue: JobQueue,
        *,
        stop_running: Callable[[str], Awaitable[bool]],
        clock: Clock,
        worker_id: str,
    ) -> None:
        """Wire it up.

        Args:
            queue: where the jobs are.
            stop_running: ends a job that runs here; False where none of this id does.
            clock: epoch milliseconds.
            worker_id: stands in what is told.
        """
        self._queue = queue
        self._stop_running = stop_running
        self._clock = clock
        self._worker_id = worker_id

    async def on_cancel(self, message: MqttRequest) -> None:
        """Take one message to `inference/cancel/{job_id}`; return once its answer is durable.

        Raises:
            StorageError: it is not, so the message must not be acknowledged.
        """
        job_id = cancelled_job(message.topic) or ""
        try:
            if message.is_retained:
                raise InvalidRequestError(
                    "cancels must not be retained: they would come again at every start",
                    code="retained_request",
                )
            if not is_job_id(job_id):
                raise InvalidRequestError("the topic must end in a job_id, a UUID", field="job_id")
            job, was_over = await self._end(job_id)
            if was_over:
                await self._say_again(job)
        except (InvalidRequestError, JobNotFoundError) as error:
            await self._refuse(message, job_id, error, is_known=False)
        except ConflictError as error:
            await self._refuse(message, job_id, error, is_known=True)

    async def end(self, job_id: str) -> Job:
        """End a job that waits, or runs in this daemon; return it as it ended.

        An outcome that was settled already, or is being settled, wins.

        Raises:
            JobNotFoundError: no such job.
            ConflictError: it runs in another daemon.
            StorageError: nothing changed.
        """
        return (await self._end(job_id))[0]

    async def _end(self, job_id: str) -> tuple[Job, bool]:
        """Return the job at its end, and whether it had ended before we came."""
        was_running = False
        for _ in range(TRIES):
            try:
                job = await self._queue.cancel(job_id)
            except ConflictError:
                job = await self._queue.get(job_id)
            else:
                log.info("a waiting job was cancelled", extra={"job_id": job_id})
                return job, False
            if job.status.is_terminal:
                return job, not was_running
            was_running = await self._stop_running(job_id)
            if not was_running and await self._is_processing(job_id):
                break
        raise ConflictError("the job runs in another daemon", existing_job_id=job_id)

    async def _is_processing(self, job_id: str) -> bool:
        return (await self._queue.get(job_id)).status is JobState.PROCESSING

    async def _say_again(self, job: Job) -> None:
        now = job.completed_at or self._clock()
        await self._queue.enqueue_all(terminal_messages(job, worker_id=self._worker_id, now=now))

    async def _refuse(
        self, message: MqttRequest, job_id: str, error: InferdError, *, is_known: bool
    ) -> None:
        log.info("a cancel was refused: %s", error.code, extra={"job_id": job_id})
        reply = message.response_topic
        await self._queue.enqueue_all(
            rejection_messages(
                error=error,
                topic_task="cancel",
                # The payload means nothing: what came is the id.
                body=job_id.encode(errors="replace"),
                job_id=job_id if is_known else None,
                request_id=None,
                worker_id=self._worker_id,
                now=self._clock(),
                reply_to=reply if reply is not None and is_reply_topic(reply) else None,
                correlation_data=message.correlation_data,
            )
        )
