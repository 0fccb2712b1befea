"""The database server's clock, estimated here without asking the server each time.

Daemons on several machines order and lease by it, so that none of their own clocks counts: what is
kept is how far the server's clock is ahead of one of this machine that nobody can set.
"""

import time

SLOW_MS = 2000.0
"""An answer that took longer tells too little: leases last some tens of seconds."""


def steady_ms() -> float:
    """Return milliseconds of a clock that is never set, and goes on while the machine sleeps."""
    boot: int | None = getattr(time, "CLOCK_BOOTTIME", None)
    return (time.monotonic_ns() if boot is None else time.clock_gettime_ns(boot)) / 1e6


class DatabaseClock:
    """Epoch milliseconds by the server, as of the latest comparison: call it as any clock."""

    def __init__(self) -> None:
        self._ahead = time.time_ns() / 1e6 - steady_ms()
        self._is_compared = False

    def __call__(self) -> int:
        """Return the server's epoch milliseconds."""
        return int(steady_ms() + self._ahead)

    def compare(self, server_ms: float, asked_at: float, answered_at: float) -> float:
        """Take a moment that the server told; return by how many ms that moved this clock.

        Where the answer took long, as to a daemon that was stopped meanwhile, it is not moved
        but the first time.

        Args:
            server_ms: what the server's clock showed, epoch ms.
            asked_at: when it was asked, of `steady_ms`.
            answered_at: when it had answered; it is taken to have looked halfway between.
        """
        if self._is_compared and answered_at - asked_at > SLOW_MS:
            return 0.0
        self._is_compared = True
        before = self._ahead
        self._ahead = server_ms - (asked_at + answered_at) / 2
        return self._ahead - before
