"""The wall clock, in the milliseconds that all moments are told and stored in."""

import time


def epoch_ms() -> int:
    """Return the milliseconds since 1970; somebody may set this clock."""
    return time.time_ns() // 1_000_000
