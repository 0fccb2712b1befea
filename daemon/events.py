"""The one event shape of the wire, and which topics an event goes to."""

import hashlib
import uuid
from collections.abc import Mapping
from dataclasses import dataclass, replace
from enum import StrEnum
from functools import partial

from daemon import topics
from daemon.errors import ConflictError, InferdError, InvalidRequestError
from daemon.jobs import Job, JobState, JsonObject, dump_event, dump_scalar

NAMESPACE = uuid.UUID("8d4a1a0e-33f4-5e0c-9a53-6d1d3a1f6d5b")
"""Namespace of event ids: the same event has the same id however often it is sent."""

_SHA1 = hashlib.sha1(NAMESPACE.bytes, usedforsecurity=False)
_VARIANT = {digit: f"{int(digit, 16) & 0x3 | 0x8:x}" for digit in "0123456789abcdef"}
"""The digit that RFC 9562 makes of each, where a UUID tells its variant."""


class Event(StrEnum):
    """Last level of an event's topic; the event field says `job_` before it."""

    ACCEPTED = "accepted"
    REJECTED = "rejected"
    STARTED = "started"
    PROGRESS = "progress"
    COMPLETED = "completed"
    FAILED = "failed"


@dataclass(frozen=True, slots=True)
class Message:
    """One message for the broker, not retained; QoS 1, but 0 for progress."""

    topic: str
    payload: str
    correlation_data: str | None = None
    """MQTT 5 correlation data in base64."""


def job_messages(
    event: Event,
    job: Job,
    *,
    worker_id: str,
    now: int,
    result_text: str | None = None,
    extra: Mapping[str, bool] | None = None,
) -> list[Message]:
    """Return an event of a job as messages: its own topic, and the client's reply topic if any.

    `extra` stands beside `data` in the envelope; `result_text` is the job's result as JSON, where
    that is known. The job's `seq` must be that of this event.
    """
    # Written out, since each job has three: as dictionaries they took a fifth of its transactions.
    payload = (
        f'{{"v":1,"event":"job_{event}"'
        f',"event_id":"{_event_id(job, event)}"'
        f',"seq":{job.seq}'
        f',"timestamp":{now}'
        f',"job_id":{dump_scalar(job.job_id)}'
        f',"request_id":{dump_scalar(job.request_id)}'
        f',"worker_id":{dump_scalar(worker_id)}'
        f',"status":"{job.status}"'
        f',"data":{job.to_wire_text(result_text)}'
        f"{_more(extra)}}}"
    )
    topic = topics.job_event(job.job_id, event)
    return _addressed(topic, payload, job.reply_to, job.correlation_data)


def progress_messages(
    job: Job, stage: str, *, fraction: float, worker_id: str, now: int
) -> list[Message]:
    """Return a `progress` event, which no outbox keeps; its seq is that of the last event kept."""
    name = f"{job.job_id}:{job.created_at}:{job.seq}:{Event.PROGRESS}:{stage}"
    envelope: JsonObject = {
        "v": 1,
        "event": f"job_{Event.PROGRESS}",
        "event_id": _uuid5(name),
        "seq": job.seq,
        "timestamp": now,
        "job_id": job.job_id,
        "request_id": job.request_id,
        "worker_id": worker_id,
        "status": job.status.value,
        "data": {"stage": stage, "fraction": fraction},
    }
    topic = topics.job_event(job.job_id, Event.PROGRESS)
    return _addressed(topic, dump_event(envelope), job.reply_to, job.correlation_data)


def terminal_events(status: JobState) -> int:
    """Return how many events are sent on reaching a state, which is how far seq rises."""
    if not status.is_terminal:
        return 0
    return 1 if status is JobState.COMPLETED else 2


def terminal_messages(
    job: Job, *, worker_id: str, now: int, result_text: str | None = None
) -> list[Message]:
    """Return the events of a terminal state: always `completed`, and `failed` unless it succeeded.

    A client that knows only the documented topic must never wait for ever. The job's `seq` must
    be that of the last of these events; `result_text` is as for `job_messages`.
    """
    said = partial(job_messages, worker_id=worker_id, now=now, result_text=result_text)
    if job.status is JobState.COMPLETED:
        return said(Event.COMPLETED, job)
    first = replace(job, seq=job.seq - 1)
    return [*said(Event.COMPLETED, first), *said(Event.FAILED, job)]


def rejection_messages(
    *,
    error: InferdError | None = None,
    code: str | None = None,
    message: str | None = None,
    topic_task: str,
    body: bytes,
    job_id: str | None,
    request_id: str | None,
    worker_id: str,
    now: int,
    field: str | None = None,
    existing_job_id: str | None = None,
    retry_after_ms: int | None = None,
    sha256: str | None = None,
    index: int | None = None,
    reply_to: str | None = None,
    correlation_data: str | None = None,
) -> list[Message]:
    """Return a `rejected` event; a request without a usable job_id becomes a dead letter.

    Its seq is 0, since no job counts it, and its id follows from what came and why it was
    refused, so that a redelivered request repeats the event instead of making another.

    Of an entry of a batch `body` is the entry, `index` its place, `sha256` the whole message's.
    """
    data: JsonObject = {
        "code": error.code if error else code,
        "message": error.message if error else message,
    }
    if isinstance(error, InvalidRequestError):
        field = error.field
    if isinstance(error, ConflictError):
        existing_job_id = error.existing_job_id
    if field:
        data["field"] = field
    if existing_job_id:
        data["existing_job_id"] = existing_job_id
    if retry_after_ms is not None:
        data["retry_after_ms"] = retry_after_ms
    if index is not None:
        data["index"] = index
    digest = sha256 or hashlib.sha256(body).hexdigest()
    name = f"{topic_task}:{digest}:{data['code']}" + ("" if index is None else f":{index}")
    if job_id is None:
        data["sha256"] = digest
        data["body"] = body[:200].decode("utf-8", "replace")
    envelope: JsonObject = {
        "v": 1,
        "event": f"job_{Event.REJECTED}",
        "event_id": _uuid5(name),
        "seq": 0,
        "timestamp": now,
        "job_id": job_id,
        "request_id": request_id,
        "worker_id": worker_id,
        "status": "rejected",
        "data": data,
    }
    topic = topics.job_event(job_id, Event.REJECTED) if job_id else topics.dead_letter(topic_task)
    return _addressed(topic, dump_event(envelope), reply_to, correlation_data)


def removal_messages(
    media_store_id: int,
    removed: JsonObject,
    *,
    worker_id: str,
    now: int,
    reply_to: str | None = None,
    correlation_data: str | None = None,
) -> list[Message]:
    """Return the event that a daemon has removed all it had of a picture."""
    envelope: JsonObject = {
        "v": 1,
        "event": "media_deleted",
        # Each removal is one of its own, and sent as it was stored.
        "event_id": str(uuid.uuid4()),
        "timestamp": now,
        "media_store_id": media_store_id,
        "worker_id": worker_id,
        "data": removed,
    }
    return _addressed(
        topics.media_deleted(media_store_id), dump_event(envelope), reply_to, correlation_data
    )


def _event_id(job: Job, event: Event) -> str:
    # created_at tells a job from an earlier one of the same job_id, which was deleted since.
    return _uuid5(f"{job.job_id}:{job.created_at}:{job.seq}:{event}")


def _uuid5(name: str) -> str:
    """Return str(uuid.uuid5(NAMESPACE, name)) in a third of its time: each event needs one."""
    digest = _SHA1.copy()
    digest.update(name.encode())
    text = digest.hexdigest()
    variant = _VARIANT[text[16]]
    return f"{text[:8]}-{text[8:12]}-5{text[13:16]}-{variant}{text[17:20]}-{text[20:32]}"


def _more(extra: Mapping[str, bool] | None) -> str:
    """Return further members of a JSON object, from the comma on."""
    return f",{dump_event(dict(extra))[1:-1]}" if extra else ""


def _addressed(
    topic: str, payload: str, reply_to: str | None, correlation_data: str | None
) -> list[Message]:
    messages = [Message(topic, payload)]
    if reply_to:
        messages.append(Message(reply_to, payload, correlation_data))
    return messages
