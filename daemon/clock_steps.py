"""Notices when the wall clock is set, by comparing it with the monotonic clock."""

import time
from collections.abc import Callable
from dataclasses import dataclass

from daemon.wall_clock import epoch_ms

SMALLEST_MS = 2_000
"""Less than this is a clock that is slewed, or a process that was not given its turn."""


@dataclass(frozen=True, slots=True)
class _Step:
    before: int
    """The wall clock's last moment before it was set, epoch ms."""
    ahead_ms: int
    """How far it went; negative is back."""
    seen_at: int
    """Of the steady clock, ms."""


class ClockSteps:
    """Compares the wall clock to the steady one at each question; ask every few seconds.

    A machine that was suspended looks like a clock that was set ahead: nobody worked meanwhile.

    Args:
        wall: the clock that moments are told and stored by, epoch ms.
        steady: one that is never set, ms.
    """

    def __init__(
        self,
        wall: Callable[[], int] = epoch_ms,
        steady: Callable[[], int] = lambda: time.monotonic_ns() // 1_000_000,
    ) -> None:
        self._wall, self._steady = wall, steady
        self._last = wall(), steady()
        self._steps: list[_Step] = []

    def ahead_ms_since(self, moment: int) -> int:
        """Return how far the clock was set ahead after a moment that it told, epoch ms."""
        self._look()
        return sum(max(0, step.ahead_ms) for step in self._steps if step.before >= moment)

    def seconds_since_last(self) -> float:
        """Return how long ago the latest step was seen; infinite where there was none."""
        self._look()
        if not self._steps:
            return float("inf")
        return (self._steady() - self._steps[-1].seen_at) / 1000

    def _look(self) -> None:
        wall, steady = self._wall(), self._steady()
        expected = self._last[0] + steady - self._last[1]
        self._last = wall, steady
        if abs(wall - expected) >= SMALLEST_MS:
            self._steps.append(_Step(expected, wall - expected, steady))
