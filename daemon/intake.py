"""Turns a client's request into a job in the queue: the only way in, for MQTT and REST alike."""

import base64
import hashlib
import json
import logging
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from daemon.errors import ConflictError, InvalidRequestError, QueueFullError
from daemon.events import Message, rejection_messages
from daemon.jobs import Clock, Job, JobState, TaskType
from daemon.metrics import Metrics
from daemon.queue.admission import Accepted, Outcome, Submission
from daemon.queue.job_queue import JobQueue
from daemon.requests import (
    MAX_CORRELATION_BYTES,
    JobRequest,
    MqttRequest,
    parse_batch,
    parse_json,
    parse_request,
    parse_task_type,
)
from daemon.topics import is_reply_topic, requested_task
from daemon.wall_clock import epoch_ms

log = logging.getLogger(__name__)


class Intake:
    """Checks requests and puts them into the queue."""

    def __init__(
        self,
        queue: JobQueue,
        *,
        clock: Clock,
        worker_id: str,
        max_request_bytes: int,
        metrics: Metrics | None = None,
    ) -> None:
        self._queue = queue
        self._metrics = metrics or Metrics()
        self._clock = clock
        self._worker_id = worker_id
        self._max_request_bytes = max_request_bytes

    async def on_request(self, request: MqttRequest) -> None:
        """Take one MQTT message, a request or a batch; return once all of it is durable.

        Each request of a batch is accepted or refused as if it had come alone.

        Raises:
            StorageError: some were neither; the message must not be acknowledged.
        """
        task = requested_task(request.topic) or "unknown"
        try:
            entries = self._entries(request)
        except InvalidRequestError as error:
            log.info("a message was rejected: %s", error.code)
            items: list[Submission | Message] = [
                *self._refuse(task, request, _Entry(body=request.payload), error)
            ]
            entries = []
        else:
            items = [item for entry in entries for item in self._take(task, request, entry)]
        if len(entries) > 1 and any(isinstance(item, Message) for item in items):
            log.info("a batch of %d requests came with bad ones among them", len(entries))
        await self._queue.enqueue_all(items)

    async def submit(self, task_type: TaskType, request: JobRequest) -> Accepted:
        """Take one checked REST request.

        Raises:
            InvalidRequestError: it has expired.
            ConflictError: the pair has a live or completed job, or the job_id another meaning.
            QueueFullError: too many jobs wait.
            StorageError: nothing was stored.
        """
        outcome = await self._queue.enqueue(
            Submission(job=self._new_job(task_type, request), force=request.force)
        )
        return _raise_refusal(outcome)

    def _entries(self, request: MqttRequest) -> list["_Entry"]:
        if len(request.payload) > self._max_request_bytes:
            raise InvalidRequestError(
                f"{len(request.payload)} bytes; at most {self._max_request_bytes} are read",
                code="too_large",
            )
        if len(base64.b64decode(request.correlation_data or "")) > MAX_CORRELATION_BYTES:
            raise InvalidRequestError(
                f"correlation data of more than {MAX_CORRELATION_BYTES} bytes",
                field="correlation_data",
            )
        body = parse_json(request.payload)
        batch = parse_batch(body)
        if batch is None:
            return [_Entry(body=request.payload, value=body)]
        digest = hashlib.sha256(request.payload).hexdigest()
        return [
            _Entry(body=_rewritten(value), value=value, sha256=digest, index=index)
            for index, value in enumerate(batch)
        ]

    def _take(
        self, task: str, request: MqttRequest, entry: "_Entry"
    ) -> Sequence[Submission | Message]:
        try:
            return [self._read(task, request, entry)]
        except InvalidRequestError as error:
            if entry.index is None:
                log.info("a request was rejected: %s", error.code, extra={"job_id": error.job_id})
            return self._refuse(task, request, entry, error)

    def _refuse(
        self, task: str, request: MqttRequest, entry: "_Entry", error: InvalidRequestError
    ) -> list[Message]:
        self._metrics.request_rejected("mqtt", error.code)
        return rejection_messages(
            error=error,
            topic_task=task,
            body=entry.body,
            job_id=error.job_id,
            request_id=error.request_id,
            worker_id=self._worker_id,
            now=self._clock(),
            sha256=entry.sha256,
            index=entry.index,
            reply_to=_usable_reply(entry.value, request),
            correlation_data=request.correlation_data,
        )

    def _read(self, task: str, request: MqttRequest, entry: "_Entry") -> Submission:
        if not isinstance(entry.value, dict):
            raise InvalidRequestError("a request must be a JSON object")
        checked = parse_request(entry.value)
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
        except InvalidRequestError as error:
            error.job_id, error.request_id = checked.job_id, checked.request_id
            raise
        return Submission(
            job=self._new_job(task_type, checked, reply_to, request.correlation_data),
            force=checked.force,
            body=entry.body,
            sha256=entry.sha256,
            index=entry.index,
            has_client_job_id=checked.job_id is not None,
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


@dataclass(frozen=True, slots=True, kw_only=True)
class _Entry:
    """One request of a message, which may hold many."""

    body: bytes
    """Its own bytes, to be shown in a dead letter."""
    value: Any = None
    sha256: str | None = None
    index: int | None = None


def _rewritten(value: Any) -> bytes:
    try:
        return json.dumps(value).encode()
    except RecursionError:
        return b"nested too deeply"


def _usable_reply(value: Any, request: MqttRequest) -> str | None:
    """Return where a refusal is told besides; a topic that is refused itself hears nothing."""
    asked = value.get("reply_to") if isinstance(value, dict) else None
    for topic in (asked, request.response_topic):
        if isinstance(topic, str) and is_reply_topic(topic):
            return topic
    return None


def new_job_id() -> str:
    """Return a UUID of version 7: ids that rise with time keep the index's pages together."""
    value = epoch_ms() << 80 | uuid.uuid4().int & (1 << 76) - 1
    value = value & ~(0xF << 76) | 0x7 << 76
    value = value & ~(0x3 << 62) | 0x2 << 62
    return str(uuid.UUID(int=value))


def _raise_refusal(outcome: Outcome) -> Accepted:
    if isinstance(outcome, Accepted):
        return outcome
    if outcome.code == "queue_full":
        raise QueueFullError(outcome.message, retry_after_ms=outcome.retry_after_ms or 0)
    if outcome.code == "expired":
        raise InvalidRequestError(outcome.message, code=outcome.code, field=outcome.field)
    raise ConflictError(outcome.message, existing_job_id=outcome.existing_job_id or "")
