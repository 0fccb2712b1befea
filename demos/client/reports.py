"""What a command line says of one request among many: a line of JSON, a sentence, an exit code."""

from dataclasses import dataclass

from daemon.jobs import JsonObject
from demos.client.errors import (
    ClientError,
    NoAnswerError,
    RejectedError,
    UnreachableError,
    UploadRefusedError,
)
from demos.client.exit_codes import COMPLETED, JOB_FAILED, exit_code
from demos.client.outcomes import Outcome
from demos.client.sources import SourceError, Subject, shown

GOOD = ("accepted", "completed", "exists")


@dataclass(frozen=True, slots=True)
class Wish:
    """One task for one picture."""

    subject: Subject
    task_type: str


@dataclass(frozen=True, slots=True)
class Report:
    """What became of a wish."""

    line: JsonObject
    """What is printed as JSON."""
    error: ClientError | None = None

    @property
    def status(self) -> str:
        """The line's word for it."""
        return str(self.line["status"])

    @property
    def is_good(self) -> bool:
        """Whether nobody need care."""
        return self.status in GOOD

    @property
    def exit_code(self) -> int:
        """What it means for the command: a file that could not be used is as bad as a job."""
        if self.is_good:
            return COMPLETED
        if self.error is None or isinstance(self.error, SourceError | UploadRefusedError):
            return JOB_FAILED
        return exit_code(self.error)

    @property
    def sentence(self) -> str:
        """The line for people."""
        about = self.line.get("file") or self.line["media_store_id"]
        place = f"{about} " if about is not None else ""
        return shown(f"{place}{self.line['task_type']}: {self.status}: {self.line['error']}")


def report(wish: Wish, media_store_id: int | None, outcome: Outcome | ClientError) -> Report:
    """Say what became of a wish.

    Args:
        wish: what was asked for.
        media_store_id: the picture's id, where it has one.
        outcome: of the request; an error where there never was one.
    """
    line: JsonObject = {
        "job_id": None,
        "media_store_id": media_store_id,
        "task_type": wish.task_type,
        "status": "accepted",
        "error": None,
    }
    if wish.subject.name is not None:
        line["file"] = wish.subject.name
    if isinstance(outcome, ClientError):
        return Report(line | _told(outcome), outcome)
    if outcome.submitted is not None:
        line["job_id"] = outcome.submitted.job_id
    if outcome.job is not None:
        line |= {"status": outcome.job["status"], "error": outcome.job["error_message"]}
    return Report(line | _told(outcome.error), outcome.error)


def _told(error: ClientError | None) -> JsonObject:
    match error:
        case None:
            return {}
        case RejectedError(code="conflict", existing_job_id=str(existing)):
            return {"status": "exists", "existing_job_id": existing}
        case NoAnswerError():
            return {"status": "no_answer", "error": str(error), "job_id": error.job_id}
        case RejectedError():
            status = "rejected"
        case UnreachableError():
            status = "unreachable"
        case _:
            status = "unusable"
    return {"status": status, "error": str(error)}
