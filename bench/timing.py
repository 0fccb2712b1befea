"""How long things take, as steadily as a busy machine can tell."""

import time
from collections.abc import Callable, Sequence
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

T = TypeVar("T")


def in_turns(works: Sequence[Callable[[], T]], rounds: int) -> list[tuple[T, float]]:
    """Return what each returned, and its fewest CPU milliseconds of several rounds.

    In turns, so that a slow spell of the machine meets all; this thread's CPU time, since other
    programs disturb it least.
    """
    results: list[tuple[T, float]] = []
    for number in range(rounds):
        for place, work in enumerate(works):
            began = time.thread_time()
            result = work()
            milliseconds = (time.thread_time() - began) * 1000
            if number:
                milliseconds = min(milliseconds, results[place][1])
                results[place] = result, milliseconds
            else:
                results.append((result, milliseconds))
    return results


def rounds_in_turns(
    works: Sequence[Callable[[], T]], rounds: int, clock: Callable[[], float]
) -> list[tuple[T, NDArray[np.float64]]]:
    """Return what each returned, and the seconds of each round; one more before is not counted.

    Args:
        works: done one after the other in each round.
        rounds: how often.
        clock: time.process_time for work on threads of its own; time.perf_counter for work on
            another device.
    """
    results = [work() for work in works]
    seconds = np.zeros((len(works), rounds))
    for number in range(rounds):
        for place, work in enumerate(works):
            began = clock()
            work()
            seconds[place, number] = clock() - began
    return list(zip(results, seconds, strict=True))
