"""Room: how many more jobs of a task type may be leased, with a little more for urgent ones."""

from daemon.bell import Bell

LEASES_PER_FILL = 4
"""Leases are taken when this part of the room is free: few statements, big batches."""
URGENT_SHARE = 4
"""Urgent jobs may exceed the room by this part of it."""


class Room:
    """Tracks the ranks of the jobs in flight; a lower rank is more urgent.

    Attributes:
        freed: rings when enough has become free for the next leases.
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self._enough = max(1, most // LEASES_PER_FILL)
        self._urgent = max(1, most // URGENT_SHARE)
        self._ranks: dict[str, int] = {}
        self.freed = Bell()

    @property
    def free(self) -> int:
        """How many jobs may be leased now: enough of them, or 0."""
        free = self._most - len(self._ranks)
        return free if free >= self._enough else 0

    def may_exceed(self, rank: int) -> bool:
        """Whether a job may begin although there is no room.

        It must be among the first that are in flight here: a flood of urgent jobs fills what they
        may have beyond the room, and then waits for its turn like all others.
        """
        if len(self._ranks) >= self._most + self._urgent:
            return False
        return sum(other <= rank for other in self._ranks.values()) < self._urgent

    def begin(self, job_id: str, rank: int) -> None:
        """Note that a job is in flight."""
        self._ranks[job_id] = rank

    def end(self, job_id: str) -> None:
        """Note that it is no longer; safe twice."""
        if self._ranks.pop(job_id, None) is not None and self.free:
            self.freed.ring()
