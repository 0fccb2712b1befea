"""From what a client sent to a job in the queue: the one way in, for MQTT and REST alike."""

import logging
import time
import uuid

from daemon.admission import Accepted, Outcome, Submission
from daemon.errors import ConflictError, InvalidRequestError, QueueFullError
from daemon.events import rejection_message
from daemon.job_queue import JobQueue
from daemon.jobs import Clock, Job, JobState, TaskType
from daemon.requests import JobRequest, MqttRequest, parse_json, parse_request, parse_task_type
from daemon.topics import is_reply_topic, requested_task

log = logging.getLogger(__name__)


class Intake:
    """Checks requests and puts them into the queue."""

    def __init__(
        self, queue: JobQueue, *, clock: Clock, worker_id: str, max_request_bytes: int
    ) -> None:
        self._queue = queue
        self._clock = clock
        self._worker_id = worker_id
        self._max_request_bytes = max_request_bytes

    async def on_request(self, request: MqttRequest) -> None:
        """Take one MQTT request; return once it is durably accepted or durably refused.

        Raises:
            StorageError: neither, so it must not be acknowledged.
        """
        task = requested_task(request.topic) or "unknown"
        try:
            submission = self._read(task, request)
        except InvalidRequestError as error:
            log.info("a request was rejected: %s", error.code, extra={"job_id": error.job_id})
            await self._queue.announce(
                rejection_message(
                    error=error,
                    topic_task=task,
                    body=request.payload,
                    job_id=error.job_id,
                    request_id=error.request_id,
                    worker_id=self._worker_id,
                    now=self._clock(),
                )
            )
            return
        await self._queue.enqueue(submission)

    async def submit(self, task_type: TaskType, request: JobRequest) -> Accepted:
        """Take one checked REST request.

        Raises:
            InvalidRequestError: it has expired.
            ConflictError: the pair has a live or completed job, or the job_id another meaning.
            QueueFullError: too many jobs wait.
            StorageError: nothing was stored.
        """
        self._refuse_expired(request)
        outcome = await self._queue.enqueue(
            Submission(job=self._new_job(task_type, request), force=request.force)
        )
        return _raise_refusal(outcome)

    def _read(self, task: str, request: MqttRequest) -> Submission:
        if len(request.payload) > self._max_request_bytes:
            raise InvalidRequestError(
                f"{len(request.payload)} bytes; at most {self._max_request_bytes} are read",
                code="too_large",
            )
        body = parse_json(request.payload)
        checked = parse_request(body)
        try:
            task_type = parse_task_type(task)
            if request.is_retained:
                raise InvalidRequestError(
                    "requests must not be retained: they would come again at every start",
                    code="retained_request",
                )
            reply_to = checked.reply_to or request.response_topic
            if reply_to is not None and not is_reply_topic(reply_to):
                raise InvalidRequestError(
                    "the response topic must lie below inference/reply/", field="reply_to"
                )
            self._refuse_expired(checked)
        except InvalidRequestError as error:
            error.job_id, error.request_id = checked.job_id, checked.request_id
            raise
        job = self._new_job(task_type, checked, reply_to, request.correlation_data)
        return Submission(
            job=job,
            force=checked.force,
            body=request.payload,
            has_client_job_id=checked.job_id is not None,
        )

    def _refuse_expired(self, request: JobRequest) -> None:
        if request.expires_at is not None and request.expires_at <= self._clock():
            raise InvalidRequestError(
                "the request expired before it came", code="expired", field="expires_at"
            )

    def _new_job(
        self,
        task_type: TaskType,
        request: JobRequest,
        reply_to: str | None = None,
        correlation_data: str | None = None,
    ) -> Job:
        return Job(
            job_id=request.job_id or new_job_id(),
            task_type=task_type,
            media_store_id=request.media_store_id,
            priority=request.priority,
            status=JobState.PENDING,
            created_at=self._clock(),
            request_id=request.request_id,
            expires_at=request.expires_at,
            reply_to=reply_to or request.reply_to,
            correlation_data=correlation_data,
        )


def new_job_id() -> str:
    """Return a UUID of version 7: ids that rise with time keep the index's pages together."""
    value = time.time_ns() // 1_000_000 << 80 | uuid.uuid4().int & (1 << 76) - 1
    value = value & ~(0xF << 76) | 0x7 << 76
    value = value & ~(0x3 << 62) | 0x2 << 62
    return str(uuid.UUID(int=value))


def _raise_refusal(outcome: Outcome) -> Accepted:
    if isinstance(outcome, Accepted):
        return outcome
    if outcome.code == "queue_full":
        raise QueueFullError(outcome.message, retry_after_ms=outcome.retry_after_ms or 0)
    raise ConflictError(outcome.message, existing_job_id=outcome.existing_job_id or "")
