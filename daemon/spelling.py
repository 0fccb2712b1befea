"""Guesses which known word was meant by one that is unknown: pure."""

import difflib
from collections.abc import Iterable


def did_you_mean(word: str, known: Iterable[str], *, prefix: str = "") -> str:
    """Return the end of a sentence that names the nearest known word, or nothing.

    Args:
        word: the unknown one.
        known: those that there are.
        prefix: how all of them begin; it is not compared, as it would make any two alike.
    """
    bare = sorted(each.removeprefix(prefix) for each in known)
    near = difflib.get_close_matches(word.removeprefix(prefix), bare, n=1)
    return f": did you mean {prefix}{near[0]}?" if near else ""
