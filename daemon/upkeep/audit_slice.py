"""What one step of an audit found, and where the next one begins."""

from dataclasses import dataclass

from daemon.errors import InvalidRequestError
from daemon.jobs import MAX_MEDIA_STORE_ID, JsonObject, TaskType
from daemon.queue.audit_findings import Finding


@dataclass(frozen=True, slots=True, kw_only=True)
class Slice:
    """What one step found."""

    findings: list[Finding]
    jobs: int
    """Completed jobs that were looked at."""
    vectors: int
    """Vectors that were looked at."""
    pruned: int = 0
    """Vectors that have no job, most likely since jobs of their age are pruned."""
    total_vectors: int | None
    """How many the collection has; where a collection is begun only."""
    next: str | None
    """Where the next step begins; None after the last one."""

    def to_wire(self) -> JsonObject:
        """Return it as clients see it."""
        return {
            "findings": [each.to_wire() for each in self.findings],
            "jobs": self.jobs,
            "vectors": self.vectors,
            "pruned": self.pruned,
            "total_vectors": self.total_vectors,
            "next": self.next,
        }


@dataclass(frozen=True, slots=True)
class Cursor:
    """Where a step begins: `{task_type}.jobs.{media_store_id}` or `{task_type}.vectors.{id}`."""

    task_type: TaskType
    part: str
    after: str

    @classmethod
    def of(cls, text: str) -> "Cursor":
        """Parse a cursor.

        Raises:
            InvalidRequestError: it is not a cursor.
        """
        words = text.split(".")
        try:
            task_type, part, after = words
            cursor = cls(TaskType(task_type), part, after)
            is_place = part == "vectors" or (
                part == "jobs" and -1 <= int(after) <= MAX_MEDIA_STORE_ID
            )
            if not is_place:
                raise ValueError
        except ValueError:
            raise InvalidRequestError("after must be the `next` of a step", field="after") from None
        return cursor

    def __str__(self) -> str:
        return f"{self.task_type}.{self.part}.{self.after}"
