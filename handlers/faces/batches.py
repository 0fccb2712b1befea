"""How many pictures a face model is given at a time: as many as pay, where no answer changes."""

import logging
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from daemon.cores import usable_cores
from handlers.inference import Batch, Pixels
from handlers.lanes.memory import HOST, is_out_of_memory
from handlers.lanes.self_test import synthetic_picture

log = logging.getLogger(__name__)

GPU_BATCH = 16
MOST_PASSES = 4
"""Runs side by side on a CPU: each has a picture in memory, and more than a few gain little."""
FARTHEST = 1e-3
"""Largest distance of an answer in a batch from the one alone, as a part of its length. Kernels of
another batch size round otherwise and stay far below; one that scales over its batch is above."""

T = TypeVar("T")
Answers = Sequence[NDArray[Any]]
"""The outputs of one run, each [n, ...]."""


def wanted(asked: int, device: str) -> Batch:
    """Return what would be best, were the model to take it.

    Args:
        asked: INFERD_FACES__BATCH_SIZE; 0 leaves it to us.
        device: where it runs.
    """
    if asked:
        return Batch(asked, "as configured")
    if device.startswith("cuda"):
        return Batch(GPU_BATCH, "a GPU is faster so")
    # Measured by bench.faces: 0.9 to 1.1 times as fast with eight, and the first waits for all.
    return Batch(1, f"on {device} a batch gains next to nothing")


def passes(asked: int, device: str) -> int:
    """Return how many runs of one session go side by side.

    On a CPU two runs share the cores better than one whose parts wait for each other: two cores
    found faces in 1.1 times as many pictures, and made 1.6 times as many face vectors.

    Args:
        asked: INFERD_FACES__PASSES; 0 leaves it to us.
        device: where it runs.
    """
    if device != HOST:
        return 1
    return asked or min(MOST_PASSES, usable_cores())


def tried(
    batch: Batch,
    alone: Callable[[Pixels], Answers],
    together: Callable[[list[Pixels]], Answers],
    side: tuple[int, int],
) -> Batch:
    """Return the batch where the model gives each picture the answer that it gives it alone.

    Args:
        batch: what would be best.
        alone: runs one picture, outputs [1, ...].
        together: runs several, outputs [n, ...].
        side: height and width of a picture.

    Returns:
        The same batch, or one of 1 that says why.

    Raises:
        Exception: memory ran out, in the vendor's words.
    """
    if batch.size == 1:
        return batch
    pictures = probes(*side)
    try:
        apart = farthest([alone(picture) for picture in pictures], together(pictures))
    except Exception as error:
        if is_out_of_memory(error):
            raise
        log.debug("a batch fails", exc_info=True)
        return Batch(1, "the model takes one at a time")
    # As one expression: NaN fails it too.
    if apart <= FARTHEST:
        return batch
    return Batch(1, f"a batch changes the model's answers, by {apart:.2%}")


def chunks(items: Sequence[T], size: int) -> Iterator[Sequence[T]]:
    """Yield the items in order, at most so many at a time."""
    for start in range(0, len(items), size):
        yield items[start : start + size]


def probes(height: int, width: int) -> list[Pixels]:
    """Return pictures so unlike each other that scales shared among them show."""
    waves = synthetic_picture(height, width)
    faint = (waves // 16 + 120).astype(np.uint8)
    return [faint, waves, np.zeros_like(waves)]


def farthest(alone: Sequence[Answers], together: Answers) -> float:
    """Return the largest distance of an answer together from the one alone, by its length.

    Infinite where they are not even of the same shape.
    """
    found = [0.0]
    for number, outputs in enumerate(alone):
        for one, many in zip(outputs, together, strict=True):
            if many.shape != (len(alone), *one.shape[1:]):
                return float("inf")
            expected = one[0].astype(np.float64)
            length = float(np.linalg.norm(expected)) or 1.0
            found.append(float(np.linalg.norm(many[number] - expected)) / length)
    # numpy's, which passes NaN on.
    return float(np.max(found))
