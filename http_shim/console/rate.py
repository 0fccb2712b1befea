"""How many jobs end in a second, and how long the rest takes: a moving rate. Pure."""

from collections import deque

WINDOW_SECONDS = 30.0
LEAST_SECONDS = 2.0
"""After less time a rate would be a guess."""
LEAST_ENDED = 3
"""Fewer tell nothing of how long the rest takes."""


class Rate:
    """The rate of one counter over the latest stretch of work, at most the window long.

    Idle time, in which nothing ended and nothing was asked for, is left out: the rate of the first
    jobs after a quiet night is right at once.
    """

    def __init__(self) -> None:
        self._samples: deque[tuple[float, int]] = deque()

    def add(self, now: float, total: int, *, is_busy: bool) -> None:
        """Note a counter at a moment in seconds, and whether there is anything to do."""
        if not is_busy and (not self._samples or total == self._samples[-1][1]):
            self._samples.clear()
        self._samples.append((now, total))
        while now - self._samples[0][0] > WINDOW_SECONDS:
            self._samples.popleft()

    @property
    def per_second(self) -> float | None:
        """How many ended a second; None while that is not known."""
        if not self._samples:
            return None
        (began, before), (now, total) = self._samples[0], self._samples[-1]
        return (total - before) / (now - began) if now - began >= LEAST_SECONDS else None

    def seconds_left(self, waiting: int) -> float | None:
        """Return how long so many take; None while that is not known."""
        rate = self.per_second
        if not rate or self._samples[-1][1] - self._samples[0][1] < LEAST_ENDED:
            return None
        return waiting / rate
