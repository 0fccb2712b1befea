"""How two arithmetics of one model are measured against each other, and which one is better.

Fewer bits are taken only where they are faster on this machine and the vectors stay the same.
Knows no vendor.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from handlers.inference import Vector

EXACT = "fp32"
LEAST_COSINE = 0.999
"""Of each vector to that of fp32: what may stand beside it in one collection."""
LEAST_GAIN = 1.1
"""Times as fast with a full batch; less is noise, and fp32 is what nobody need wonder about."""
MOST_LOSS = 1.5
"""Times as slow with a single picture, at most: who asks for one waits for it."""
BUDGET_SECONDS = 2.0
"""Of a whole calibration, about: a pass that has begun is finished."""
PASSES = 5


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """One arithmetic on this machine."""

    batch_size: int
    batch_seconds: float
    """Median of a few passes."""
    single_seconds: float
    vectors: Vector
    """Of the calibration's inputs, [batch_size, dim], of any length."""

    @property
    def seconds_each(self) -> float:
        """What one input of a full batch takes."""
        return self.batch_seconds / self.batch_size


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """What was found, for the log."""

    is_reduced: bool
    """Whether the fewer bits are to be taken."""
    why: str


def measure(
    run: Callable[[int], Vector],
    batch_size: int,
    *,
    seconds: float = BUDGET_SECONDS / 2,
    clock: Callable[[], float] = time.perf_counter,
) -> Measured:
    """Time a tower, with fewer inputs than asked for where those would take too long.

    Args:
        run: one pass over so many inputs, the same ones each time; it ends when the device has.
        batch_size: inputs of a full pass.
        seconds: what all passes may take, about.
        clock: seconds that only rise.
    """
    ends = clock() + seconds
    # The first pass makes kernels and buffers that later ones find.
    vectors = run(1)
    single = _timed(run, 1, clock)
    taken = [single]
    if batch_size > 1:
        # Two passes at least are to fit: the first of a new size is slow as well.
        batch_size = max(1, min(batch_size, int((ends - clock()) / (2 * max(single, 1e-9)))))
    if batch_size > 1:
        vectors = run(batch_size)
        taken = [_timed(run, batch_size, clock)]
    while len(taken) < PASSES and clock() + taken[-1] < ends:
        taken.append(_timed(run, batch_size, clock))
    return Measured(
        batch_size=batch_size,
        batch_seconds=float(np.median(taken)),
        single_seconds=single,
        vectors=vectors,
    )


def _timed(run: Callable[[int], Vector], size: int, clock: Callable[[], float]) -> float:
    began = clock()
    run(size)
    return clock() - began


def judge(exact: Measured, reduced: Measured, name: str) -> Verdict:
    """Return whether the reduced precision is worth it.

    Args:
        exact: fp32.
        reduced: the other.
        name: of the other, such as bf16.
    """
    # The same inputs come first in both, also where one had time for fewer.
    common = min(exact.batch_size, reduced.batch_size)
    cosine = least_cosine(exact.vectors[:common], reduced.vectors[:common])
    gain = exact.seconds_each / reduced.seconds_each
    is_reduced = (
        # As one expression: NaN fails it too.
        cosine >= LEAST_COSINE
        and gain >= LEAST_GAIN
        and reduced.single_seconds <= MOST_LOSS * exact.single_seconds
    )
    why = (
        f"{name} takes {reduced.batch_seconds * 1000:.1f} ms for {reduced.batch_size} and"
        f" {reduced.single_seconds * 1000:.1f} for one, {EXACT}"
        f" {exact.batch_seconds * 1000:.1f} for {exact.batch_size} and"
        f" {exact.single_seconds * 1000:.1f} for one; least cosine {cosine:.6f}"
    )
    return Verdict(is_reduced=is_reduced, why=why)


def least_cosine(one: Vector, other: Vector) -> float:
    """Return the least cosine of two arrays' vectors, row by row; NaN where one is no vector."""
    a: NDArray[np.float64] = one.astype(np.float64)
    b: NDArray[np.float64] = other.astype(np.float64)
    with np.errstate(invalid="ignore", divide="ignore", over="ignore"):
        lengths = np.sqrt((a * a).sum(1) * (b * b).sum(1))
        return float(((a * b).sum(1) / lengths).min())
