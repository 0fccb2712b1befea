"""Counts in words, for people."""


def counted(number: int, noun: str) -> str:
    """Return how many there are of what: 1 picture, 2,000 pictures."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"
