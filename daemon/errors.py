"""Every error of the project: who raises it, who acts on it, and the stable code a client sees.

Codes are part of the wire: they may be added, never renamed. Modules that speak to a vendor
translate the vendor's exceptions into these, so that no vendor error crosses a file.
"""

from typing import ClassVar


class InferdError(Exception):
    """Base of all errors; never raised itself.

    Attributes:
        code: stable snake_case word that goes on the wire.
        message: one sentence a person can act on.
    """

    default_code: ClassVar[str] = "internal"

    def __init__(self, message: str, *, code: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.code = code or self.default_code


class ConfigError(InferdError):
    """The environment or the machine does not allow a start.

    Raised while opening; `__main__` prints it without a traceback and exits with 78.
    """

    default_code = "config"


class InvalidRequestError(InferdError):
    """A request that can never be accepted as it stands.

    Raised by intake; MQTT answers `rejected` and acknowledges, HTTP answers 400, 413 or 422.

    Attributes:
        field: the field at fault, or None where the whole body is.
        job_id: the job_id found in the body, when there is a usable one to answer to.
        request_id: the request_id found in the body, echoed in the answer.
    """

    default_code = "invalid_request"

    def __init__(
        self,
        message: str,
        *,
        code: str | None = None,
        field: str | None = None,
        job_id: str | None = None,
        request_id: str | None = None,
    ) -> None:
        super().__init__(message, code=code)
        self.field = field
        self.job_id = job_id
        self.request_id = request_id


class ConflictError(InferdError):
    """There is another live or completed job for the same picture and task type.

    Raised by intake for HTTP (409); MQTT answers `rejected` with `existing_job_id`.
    """

    default_code = "conflict"

    def __init__(self, message: str, *, existing_job_id: str) -> None:
        super().__init__(message)
        self.existing_job_id = existing_job_id


class QueueFullError(InferdError):
    """As many jobs wait as the configuration allows; HTTP 503 with Retry-After."""

    default_code = "queue_full"

    def __init__(self, message: str, *, retry_after_ms: int) -> None:
        super().__init__(message)
        self.retry_after_ms = retry_after_ms


class JobNotFoundError(InferdError):
    """No job has this id; HTTP 404."""

    default_code = "job_not_found"


class NotFoundError(InferdError):
    """Something that a search refers to does not exist; HTTP 404, and the code says what."""

    default_code = "not_found"


class ModelChangeError(InferdError):
    """A collection's model cannot be changed now; HTTP 409, and the code says why."""

    default_code = "model_change_running"


class ChangedError(InferdError):
    """Somebody else changed it since the caller last read it; HTTP 409, nothing was changed."""

    default_code = "changed_meanwhile"


class LeaseLostError(InferdError):
    """The lease is no longer held: drop the result, log, carry on."""

    default_code = "lease_lost"


class StorageError(InferdError):
    """The queue's database could not store or read: nothing was acknowledged.

    Attributes:
        may_pass: whether the same may work later (a full disk, another's lock); else the data
            to be stored is at fault.
    """

    default_code = "storage"

    def __init__(self, message: str, *, may_pass: bool = False) -> None:
        super().__init__(message)
        self.may_pass = may_pass


class PublishError(InferdError):
    """An event was not confirmed by the broker; its outbox row stays.

    Attributes:
        reason_code: the PUBACK's reason code when the broker refused, else None.
    """

    default_code = "publish"

    def __init__(self, message: str, *, reason_code: int | None = None) -> None:
        super().__init__(message)
        self.reason_code = reason_code


class HandlerError(InferdError):
    """A handler failed on one picture; the worker decides by it what becomes of the job."""

    default_code = "internal"


class RetryableError(HandlerError):
    """It may work later: the job is queued again after a delay, and the attempt counts."""

    default_code = "internal"

    def __init__(
        self, message: str, *, code: str | None = None, retry_after_seconds: float | None = None
    ) -> None:
        super().__init__(message, code=code)
        self.retry_after_seconds = retry_after_seconds


class OutOfMemoryError(RetryableError):
    """Memory ran out while a model was loaded or run; no picture is at fault yet.

    Raised by the files that speak to a model's vendor; the runner takes smaller steps, and only
    what does not fit by itself reaches the worker.

    Attributes:
        device: whose memory it was, such as cuda:0; `cpu` is the machine's own.
    """

    default_code = "out_of_memory"

    def __init__(self, message: str, *, device: str) -> None:
        super().__init__(message)
        self.device = device


class DependencyDownError(RetryableError):
    """Something every job needs is away (media store, Qdrant); no picture is at fault.

    The attempt is given back and the worker leases nothing for a while.
    """

    default_code = "dependency_down"


class PermanentError(HandlerError):
    """It can never work: the job is buried at once with this code."""

    default_code = "internal"
