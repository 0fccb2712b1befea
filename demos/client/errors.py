"""What can go wrong for a client of inferd. Every error has a sentence for people."""


class ClientError(Exception):
    """Anything the client library raises on purpose."""


class UnreachableError(ClientError):
    """The broker, the REST API or the media store is away, or does not let us in."""


class NoAnswerError(ClientError, TimeoutError):
    """What was asked for did not happen in the time it was given."""

    def __init__(self, message: str, *, job_id: str) -> None:
        super().__init__(message)
        self.job_id = job_id


class RejectedError(ClientError):
    """The request was refused and would be refused again.

    Attributes:
        code: stable word, such as `conflict` or `invalid_request`.
        message: the daemon's sentence.
        job_id: the id the request had.
        existing_job_id: with `conflict`, the job that stands for the same picture and task.
        field: the field at fault, where one is.
    """

    def __init__(
        self,
        code: str,
        message: str,
        *,
        job_id: str,
        existing_job_id: str | None = None,
        field: str | None = None,
    ) -> None:
        super().__init__(f"{code}: {message}")
        self.code = code
        self.message = message
        self.job_id = job_id
        self.existing_job_id = existing_job_id
        self.field = field


class UploadRefusedError(ClientError):
    """The media store answered, and does not take the picture."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(f"the media store refused the picture ({status}): {message}")
        self.status = status


class ClosedError(ClientError):
    """The client was closed while somebody waited on it."""
