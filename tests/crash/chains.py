"""Puts every fault point into a chain of few, so that each is struck once in little time."""

from collections.abc import Iterator
from itertools import zip_longest

from tests.crash.points import POINTS, Phase

LEAVES_WORK = "after the commit of LEASE"
"""A death that leaves jobs and events for the next life to take back."""


def chains() -> list[tuple[str, ...]]:
    """Return names of points in the order in which one daemon can die of them.

    One before the work, one at it, one after: what is struck later is still to be done then.
    """
    dead = [name for name, point in POINTS.items() if point.needs_dead]
    rest = [point for point in POINTS.values() if not point.needs_dead]
    early = [point.name for point in rest if point.phase < Phase.WORK]
    work = [point.name for point in rest if point.phase == Phase.WORK]
    late = [point.name for point in rest if point.phase > Phase.WORK]
    found = [
        tuple(name for name in names if name is not None)
        for names in zip_longest(early, work, late)
    ]
    return [*found, *((LEAVES_WORK, *pair) for pair in _pairs(dead))]


def _pairs(names: list[str]) -> Iterator[tuple[str, ...]]:
    for start in range(0, len(names), 2):
        yield tuple(names[start : start + 2])
