"""Several forward passes at a time on a CPU, a thread each, and how many of them are best.

Torch spreads one pass over all cores, and at each of its hundred products the fastest core waits
for the slowest. Where decoders want the cores as well, that costs: two passes on a core each made
33 pictures a second of 2 MP on two cores, one pass on both 30, for the same processor time or less.
Here nobody waits for anybody: whoever is done with a pass has the next one, of the same batch or of
another, and meanwhile the decoders have the core.

Torch counts its threads for each thread that calls it, so a pass of our own thread has its share.
"""

import logging
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import TYPE_CHECKING, Any

from daemon.cores import usable_cores
from handlers.lanes.memory import is_out_of_memory
from handlers.lanes.side_by_side import all_of

if TYPE_CHECKING:
    import torch

log = logging.getLogger(__name__)

NEAR_ENOUGH = 0.95
"""Of the most pictures a second: among so near ones more passes are better, since it is measured
while nothing else wants the cores."""
BUDGET_SECONDS = 1.5
"""Of a whole calibration, about: a round that has begun is finished."""
MOST_ROUNDS = 5

START_SECONDS = 60.0
"""For threads to start: a limit only so that every wait ends."""

Forward = Callable[[Any], "torch.Tensor"]


class Passes:
    """Runs `count` passes at a time, of at most `size` inputs each: of one batch, or of several.

    A batch that comes while nothing runs is spread over all of them, or, where it has too few
    inputs for that, over all cores on its caller's thread.
    """

    def __init__(self, torch: Any, *, count: int, size: int) -> None:
        """Start the threads.

        Args:
            torch: the imported library.
            count: passes at a time.
            size: most inputs of a pass.
        """
        self.count = count
        self.size = size
        self._torch = torch
        self._pool: ThreadPoolExecutor | None = None
        self._lock = threading.Lock()
        self._running = 0
        """Batches."""
        cores = usable_cores()
        if count > 1:
            self._pool = ThreadPoolExecutor(count, thread_name_prefix="clip-pass")
            began = threading.Barrier(count)
            # Told if it fails: with all cores each, the threads would stand in each other's way.
            all_of(self._pool, partial(self._share, began), [cores // count] * count)
        # After theirs: a thread that has not counted yet takes over the last number that was set.
        torch.set_num_threads(cores)

    @property
    def batch_size(self) -> int:
        """Inputs that keep all passes busy."""
        return self.count * self.size

    def run(self, forward: Forward, batch: "torch.Tensor") -> "torch.Tensor":
        """Return what `forward` gives for a batch of any length, in order; from any thread.

        Raises:
            Exception: whatever `forward` raised first, after all passes of the batch have ended.
        """
        with self._lock:
            is_alone = not self._running
            self._running += 1
        try:
            pool = self._pool
            if pool is None or (is_alone and len(batch) < self.count):
                return self._joined([forward(part) for part in self._parts(batch, 1)])
            parts = self._parts(batch, self.count if is_alone else 1)
            return self._joined(all_of(pool, partial(self._pass, forward), parts))
        finally:
            with self._lock:
                self._running -= 1

    def close(self) -> None:
        """End the threads. Safe twice."""
        if self._pool is not None:
            self._pool.shutdown()
            self._pool = None

    def _parts(self, batch: "torch.Tensor", least: int) -> Sequence["torch.Tensor"]:
        parts: Sequence[torch.Tensor] = batch.tensor_split(max(-(-len(batch) // self.size), least))
        return parts

    def _joined(self, found: Sequence["torch.Tensor"]) -> "torch.Tensor":
        joined: torch.Tensor = found[0] if len(found) == 1 else self._torch.cat(list(found))
        return joined

    def _share(self, began: threading.Barrier, threads: int) -> None:
        """Give this thread of ours its part of the cores."""
        # None of them gets a second turn before all of them had theirs.
        began.wait(START_SECONDS)
        # Asked first: a thread counts when it is first asked, which would undo what was set before.
        self._torch.get_num_threads()
        self._torch.set_num_threads(max(1, threads))

    def _pass(self, forward: Forward, part: "torch.Tensor") -> "torch.Tensor":
        # The mode is the thread's own.
        with self._torch.inference_mode():
            return forward(part)


def best_passes(
    torch: Any,
    forward: Forward,
    samples: "torch.Tensor",
    *,
    most: int,
    clock: Callable[[], float] = time.perf_counter,
) -> Passes:
    """Return the passes that do the most inputs a second on this machine, now; blocks.

    Args:
        torch: the imported library.
        forward: a pass, on the CPU.
        samples: inputs of one full pass.
        most: passes at a time, at most.
        clock: seconds that only rise.

    Raises:
        RuntimeError: torch's own.
    """
    size = len(samples)
    found = [Passes(torch, count=count, size=size) for count in _counts(most)]
    try:
        chosen = found[0] if len(found) == 1 else _fastest(found, forward, samples, clock)
    except BaseException:
        for passes in found:
            passes.close()
        raise
    for passes in found:
        if passes is not chosen:
            passes.close()
    return chosen


def _counts(most: int) -> list[int]:
    """Return one, its doubles, and a pass a core; at most so many, and no more than cores."""
    most = max(1, min(most, usable_cores()))
    return sorted({most, *(1 << power for power in range(most.bit_length()))})


def _fastest(
    found: Sequence[Passes],
    forward: Forward,
    samples: "torch.Tensor",
    clock: Callable[[], float],
) -> Passes:
    ends = clock() + BUDGET_SECONDS
    seconds = [float("inf")] * len(found)
    # The first round makes what later ones find, and counts only where there is no time for more.
    for number in range(MOST_ROUNDS):
        for place, passes in enumerate(found):
            took = _timed(passes, forward, samples, clock)
            seconds[place] = took if number < 2 else min(seconds[place], took)  # noqa: PLR2004
        if clock() > ends:
            break
    rates = [passes.batch_size / took for passes, took in zip(found, seconds, strict=True)]
    chosen = max(
        (
            passes
            for passes, rate in zip(found, rates, strict=True)
            if rate >= NEAR_ENOUGH * max(rates)
        ),
        key=lambda passes: passes.count,
    )
    log.info(
        "%d passes at a time: %s",
        chosen.count,
        ", ".join(
            f"{passes.count} of {passes.size} make {rate:.1f}/s"
            for passes, rate in zip(found, rates, strict=True)
        ),
    )
    return chosen


def _timed(
    passes: Passes, forward: Forward, samples: "torch.Tensor", clock: Callable[[], float]
) -> float:
    batch = samples.repeat(passes.count, *(1 for _ in samples.shape[1:]))
    began = clock()
    try:
        passes.run(forward, batch)
    except RuntimeError as error:
        # So many at a time do not fit: fewer may.
        if passes.count == 1 or not is_out_of_memory(error):
            raise
        return float("inf")
    return clock() - began
