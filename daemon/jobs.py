"""What a job and a lease are: plain types without I/O that everybody may import."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, TypeAlias

JsonObject: TypeAlias = dict[str, Any]

Clock: TypeAlias = Callable[[], int]
"""Returns epoch milliseconds; injected, so that tests can set the time."""

MAX_MEDIA_STORE_ID = 2**63 - 1
"""Largest id that SQLite's INTEGER and Qdrant's u64 both hold."""


class TaskType(StrEnum):
    """Which handler a job needs; the words are part of topics, paths and rows."""

    IMAGE_EMBEDDING = "image_embedding"
    FACE_DETECTION = "face_detection"
    FACE_EMBEDDING = "face_embedding"


class JobState(StrEnum):
    """Where a job stands. Every arrow out of `processing` is guarded by the lease's fence."""

    PENDING = "pending"
    """Waits for a worker; `lease` moves it on, `cancel` ends it."""
    PROCESSING = "processing"
    """A worker holds the lease; it completes, retries, buries or releases it, or `reclaim` does."""
    COMPLETED = "completed"
    """Terminal: `result` is set."""
    ERROR = "error"
    """Terminal: `error_message` is set; `requeue` starts it again."""
    SYNC_FAILED = "sync_failed"
    """Terminal for now: the media store did not take `result`; becomes completed once it does."""

    @property
    def is_terminal(self) -> bool:
        """Whether no worker will lease the job again on its own."""
        return self in (JobState.COMPLETED, JobState.ERROR, JobState.SYNC_FAILED)


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """One row of the queue. Times are epoch milliseconds."""

    job_id: str
    """UUID text, made by the client or by intake; kept letter by letter, since topics carry it."""
    task_type: TaskType
    """Which handler runs it."""
    media_store_id: int
    """The picture, as the media store knows it: 0 .. 2**63-1."""
    priority: int
    """0 (last) to 10 (first); never changed by a retry."""
    status: JobState
    """Moved by the queue's verbs only."""
    created_at: int
    """When intake committed it; compared (with priority) to order the queue."""
    started_at: int | None = None
    """When the latest lease began; empty before the first one."""
    completed_at: int | None = None
    """When it became terminal; empty until then."""
    error_code: str | None = None
    """Stable code of the last error; empty while none happened."""
    error_message: str | None = None
    """`code: sentence` of the last error; shown once status is error or sync_failed."""
    result: JsonObject | None = None
    """What the handler made of the picture; stored as soon as inference is over."""
    request_id: str | None = None
    """The client's own name for the request; echoed in every event."""
    expires_at: int | None = None
    """After this moment the client no longer wants it; checked at intake and at each lease."""
    attempt: int = 0
    """Counted when leased; not counted where a shutdown or a missing dependency ended the lease."""
    lost: int = 0
    """Leases lost to a dead process; above 0 the job is leased alone."""
    sync_attempt: int = 0
    """How often delivering the result to the media store failed."""
    waiting_since: int | None = None
    """When a dependency first kept it waiting; bounds the wait."""
    seq: int = 0
    """Number of the job's latest event; rises by one an event."""
    reply_to: str | None = None
    """MQTT 5 response topic under inference/reply/; events are repeated there."""
    correlation_data: str | None = None
    """MQTT 5 correlation data of the request in base64, returned on `reply_to`."""

    def to_wire(self) -> JsonObject:
        """Return the body of GET /job/{job_id}: exactly the documented keys.

        The result is shown once the job is terminal; a result that still waits for the media
        store is the daemon's own business.
        """
        has_failed = self.status in (JobState.ERROR, JobState.SYNC_FAILED)
        return {
            "job_id": self.job_id,
            "task_type": self.task_type.value,
            "media_store_id": self.media_store_id,
            "status": self.status.value,
            "priority": self.priority,
            "created_at": self.created_at,
            "started_at": self.started_at,
            "completed_at": self.completed_at,
            "error_message": self.error_message if has_failed else None,
            "result": self.result if self.status.is_terminal else None,
        }

    def to_wire_text(self, result_text: str | None = None) -> str:
        """Return `to_wire` as JSON, in a third of the time that its encoding takes.

        Args:
            result_text: the result as JSON, where that is known.
        """
        has_failed = self.status in (JobState.ERROR, JobState.SYNC_FAILED)
        has_result = self.status.is_terminal and self.result is not None
        result = (result_text or dump_event(self.result)) if has_result else "null"
        return (
            f'{{"job_id":{dump_json(self.job_id)}'
            f',"task_type":"{self.task_type}"'
            f',"media_store_id":{self.media_store_id}'
            f',"status":"{self.status}"'
            f',"priority":{self.priority}'
            f',"created_at":{self.created_at}'
            f',"started_at":{dump_scalar(self.started_at)}'
            f',"completed_at":{dump_scalar(self.completed_at)}'
            f',"error_message":{dump_scalar(self.error_message if has_failed else None)}'
            f',"result":{result}}}'
        )


@dataclass(frozen=True, slots=True)
class Lease:
    """Proof of temporary ownership: whoever settles a job shows it."""

    job: Job
    fence: int
    """Rises with every lease of the job; a settle with an older fence changes nothing."""
    rank: int = 0
    """Its place in the order, less is sooner: created_at minus aging_ms for each priority level."""


_ENCODER = json.JSONEncoder(separators=(",", ":"), ensure_ascii=False, allow_nan=False)
"""Made once: json.dumps would make one for each of a job's events."""
_EVENT_ENCODER = json.JSONEncoder(
    separators=(",", ":"), ensure_ascii=False, allow_nan=False, check_circular=False
)
"""For what this program built itself, which holds no circle: looking for one is a third of it."""


def dump_json(value: Any) -> str:
    """Return compact JSON text; refuses NaN and infinity, which are not JSON.

    Raises:
        ValueError: the value holds NaN or infinity.
    """
    return _ENCODER.encode(value)


def dump_event(event: JsonObject | None) -> str:
    """Return the JSON text of an event, as `dump_json` does, in less time."""
    return _EVENT_ENCODER.encode(event)


def dump_scalar(value: str | int | None) -> str:
    """Return the JSON text of a single value: what makes an object ready takes longer."""
    if isinstance(value, str):
        return dump_json(value)
    return "null" if value is None else str(value)


def dump_result(result: JsonObject) -> str:
    """Return a handler's result as JSON text that can be stored and sent.

    Raises:
        ValueError: it holds NaN, infinity or a lone surrogate.
        TypeError: it is no JSON object.
    """
    text = dump_json(result)
    if not text.startswith("{"):
        raise TypeError("a result must be a JSON object")
    text.encode()  # raises UnicodeEncodeError, a ValueError, for lone surrogates
    return text


def load_json(text: str) -> JsonObject:
    """Return the JSON object in a text that this program wrote itself."""
    value: JsonObject = json.loads(text)
    return value
