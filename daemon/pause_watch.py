"""Tells what is paused: into the log, and to the link, which tells the broker's clients."""

import logging
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Protocol

from daemon.errors import PublishError, StorageError
from daemon.jobs import Clock, TaskType
from daemon.queue.pauses import Pause, Pauses

log = logging.getLogger(__name__)

LEAST_SECONDS = 0.05
"""Between two looks, however near the end of a pause is."""


class Link(Protocol):
    """What is needed of the link."""

    async def tell_paused(self, until: Mapping[str, int | None], *, is_all: bool) -> None:
        """Publish the availability anew, and say so again at each connect.

        Raises:
            PublishError: nobody was told; it is to be tried again.
        """


class PauseWatch:
    """Notices pauses that begin or end, by whomever: this daemon, another one, or the clock."""

    def __init__(
        self,
        pauses: Pauses,
        link: Link,
        *,
        task_types: Sequence[TaskType],
        clock: Clock,
        poll_seconds: float,
    ) -> None:
        """Wire it up.

        Args:
            pauses: is looked at.
            link: is told, of this daemon's task types.
            task_types: what this daemon works on.
            clock: epoch milliseconds.
            poll_seconds: how soon a pause by another daemon is noticed.
        """
        self._pauses = pauses
        self._link = link
        self._task_types = task_types
        self._clock = clock
        self._poll_seconds = poll_seconds
        self._logged: dict[TaskType, Pause] = {}
        self._told: dict[str, int | None] = {}

    async def run(self) -> None:
        """Watch until cancelled."""
        while True:
            heard = self._pauses.changed.rings
            seconds = self._poll_seconds
            try:
                seconds = self._until_next_end(await self.look())
            except (PublishError, StorageError) as error:
                # Tried again at the next look.
                log.debug("what is paused could not be told: %s", error)
            await self._pauses.changed.wait(heard, timeout_seconds=seconds)

    async def look(self) -> Mapping[TaskType, Pause]:
        """Log and tell what changed; return what is paused.

        Raises:
            PublishError: the broker was not told; the next look does.
            StorageError: the queue's file cannot be read.
        """
        paused = await self._pauses.active()
        self._log_changes(paused)
        ours = {each.value: paused[each].until for each in self._task_types if each in paused}
        if ours != self._told:
            await self._link.tell_paused(ours, is_all=len(ours) == len(self._task_types))
            self._told = ours
        return paused

    def _log_changes(self, paused: dict[TaskType, Pause]) -> None:
        for task_type in self._logged.keys() - paused.keys():
            log.info("%s is resumed", task_type, extra={"task_type": task_type.value})
        for task_type, pause in paused.items():
            if self._logged.get(task_type) != pause:
                log.warning(
                    "%s is paused until %s",
                    task_type,
                    "somebody resumes it" if pause.until is None else _moment(pause.until),
                    extra={"task_type": task_type.value},
                )
        self._logged = paused

    def _until_next_end(self, paused: Mapping[TaskType, Pause]) -> float:
        now = self._clock()
        ends = [(each.until - now) / 1000 for each in paused.values() if each.until is not None]
        return max(LEAST_SECONDS, min([self._poll_seconds, *ends]))


def _moment(milliseconds: int) -> str:
    try:
        return datetime.fromtimestamp(milliseconds / 1000, UTC).isoformat(timespec="seconds")
    except (OverflowError, ValueError, OSError):
        # Beyond the calendar's last year.
        return f"{milliseconds} ms"
