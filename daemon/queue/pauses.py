"""Which task types are paused, kept in the database: a restart and every daemon on it obey.

The statements that lease look here themselves, within their transaction: once `pause` returned,
no daemon on the file begins another lease of that task type. What runs is not touched.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

from daemon.bell import Bell
from daemon.errors import ChangedError, InvalidRequestError
from daemon.jobs import Clock, TaskType
from daemon.queue import statements as sql
from daemon.queue.backend import Connection, QueueBackend, Turn


@dataclass(frozen=True, slots=True)
class Pause:
    """One task type that is not leased."""

    since: int
    """When it began, in epoch milliseconds."""
    until: int | None
    """When it ends by itself, in epoch milliseconds; None until somebody resumes."""


@dataclass(frozen=True, slots=True)
class Seen:
    """What somebody saw of a task type before they asked to change it."""

    is_paused: bool
    until: int | None = None
    """When that pause ended by itself, in epoch milliseconds; None where it did not."""


class Pauses:
    """The verbs. Each may be given what the caller saw, and is refused where that has changed.

    Attributes:
        changed: rings when this daemon paused or resumed; what others did is found by looking.
    """

    def __init__(
        self, database: QueueBackend, clock: Clock, *, resumed: Callable[[], None]
    ) -> None:
        self._database = database
        self._clock = clock
        self._resumed = resumed
        self.changed = Bell()

    async def pause(
        self,
        task_type: TaskType,
        *,
        until: int | None = None,
        seconds: float | None = None,
        seen: Seen | None = None,
    ) -> int | None:
        """Lease no more jobs of a task type; pausing again sets another end.

        Args:
            task_type: which jobs.
            until: when the pause ends by itself, in epoch milliseconds.
            seconds: the same, counted from now; at most one of the two is given.
            seen: what the asker saw; None is no matter what.

        Returns:
            The end, in epoch milliseconds; None where only `resume` ends it.

        Raises:
            InvalidRequestError: the end is not in the future.
            ChangedError: it is not as it was seen.
            StorageError: nothing changed.
        """
        now = self._clock()
        end = until if seconds is None else now + math.ceil(seconds * 1000)
        if end is not None and end <= now:
            field = "until" if seconds is None else "seconds"
            raise InvalidRequestError(f"{field}: must be in the future", field=field)

        async def work(connection: Connection) -> None:
            await connection.take_turn(Turn.PAUSES)
            await _require_unchanged(connection, task_type, seen, now)
            await connection.execute(sql.PAUSE, (task_type.value, now, end))

        await self._database.write(work, durable=True)
        self.changed.ring()
        return end

    async def resume(self, task_type: TaskType, *, seen: Seen | None = None) -> None:
        """Lease the jobs of a task type again, at once; nothing where it is not paused.

        Args:
            task_type: which jobs.
            seen: what the asker saw; None is no matter what.

        Raises:
            ChangedError: it is not as it was seen.
            StorageError: nothing changed.
        """

        async def work(connection: Connection) -> None:
            now = self._clock()
            await connection.take_turn(Turn.PAUSES)
            await _require_unchanged(connection, task_type, seen, now)
            await connection.execute(sql.RESUME, (task_type.value, now))

        await self._database.write(work, durable=True)
        self._resumed()
        self.changed.ring()

    async def active(self) -> dict[TaskType, Pause]:
        """Return the pauses of this moment, in the order of the task types.

        Raises:
            StorageError: they cannot be read.
        """
        rows = await self._database.read(sql.FIND_PAUSES, (self._clock(),))
        found = {row["task_type"]: Pause(row["paused_at"], row["until"]) for row in rows}
        # A newer version on the same file may have paused what we do not know.
        return {each: found[each.value] for each in TaskType if each.value in found}


async def _require_unchanged(
    connection: Connection, task_type: TaskType, seen: Seen | None, now: int
) -> None:
    if seen is None:
        return
    rows = await connection.execute_fetchall(sql.FIND_PAUSES, (now,))
    found = [row["until"] for row in rows if row["task_type"] == task_type.value]
    if found != ([seen.until] if seen.is_paused else []):
        is_now = "is not paused" if not found else "is paused without an end"
        if found and found[0] is not None:
            is_now = f"is paused until {found[0]}"
        raise ChangedError(f"somebody changed it since you looked: {task_type} {is_now} by now")
