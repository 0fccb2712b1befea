"""Durations in words, for people."""

MINUTE, HOUR = 60, 3600


def span(seconds: float) -> str:
    """Return a span of time: 90 s, 45 min, 3 h 5 min."""
    if seconds < 2 * MINUTE:
        return f"{seconds:.0f} s"
    if seconds < 2 * HOUR:
        return f"{seconds / MINUTE:.0f} min"
    hours, rest = divmod(int(seconds), HOUR)
    return f"{hours} h {rest // MINUTE} min"
