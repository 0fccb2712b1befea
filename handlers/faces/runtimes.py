"""Which runtime runs a face model: another one only where it is quicker and answers the same."""

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import cycle, islice
from typing import Any

import numpy as np

from daemon.errors import ConfigError
from handlers.faces.batches import Answers
from handlers.inference import Pixels
from handlers.lanes.memory import is_out_of_memory
from handlers.lanes.side_by_side import SideBySide

log = logging.getLogger(__name__)

GAIN = 1.1
"""How many times as fast another runtime must be: less is within what a measurement errs."""
ROUNDS = 7
SECONDS = 1.0
"""Longest that rounds of one candidate are begun; one is always taken."""
MOST_WORDS = 200


@dataclass(frozen=True, slots=True, kw_only=True)
class Runtime:
    """What runs a model's file."""

    session: Any
    """For one picture at a time; ONNX Runtime's, or what speaks as it does."""
    several: Callable[[], Any]
    """Opens a session that takes any number; may raise whatever the vendor does."""
    precision: str
    name: str = ""
    """For provenance; empty for ONNX Runtime."""


class Trial:
    """One model, tried on the same pictures by several runtimes.

    Args:
        run: runs one picture on a session, outputs [1, ...].
        pictures: with real faces.
        fault: says what is wrong with the answers of another runtime, given the usual one's first.
        passes: runs side by side, as later at work.
        clock: in seconds.
    """

    def __init__(
        self,
        run: Callable[[Any, Pixels], Answers],
        pictures: Sequence[Pixels],
        fault: Callable[[Sequence[Answers], Sequence[Answers]], str],
        *,
        passes: int,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self.fault = fault
        self._run = run
        self._pictures = pictures
        self._passes = passes
        self._clock = clock

    def answers(self, session: Any) -> list[Answers]:
        """Return what the session gives for each picture."""
        return [self._run(session, picture) for picture in self._pictures]

    def gain(self, usual: Any, other: Any) -> float:
        """Return how many times as fast as the usual session the other one is, at least.

        In turns, so that a slow spell of the machine meets both; each has run before. What three
        rounds of four reach: the median of two runtimes that are as fast is above 1 every second
        time.
        """
        work = list(islice(cycle(self._pictures), 2 * self._passes))
        sides = SideBySide(self._passes, "trial")
        began = self._clock()
        found: list[float] = []
        try:
            while len(found) < ROUNDS and (not found or self._clock() - began < SECONDS):
                seconds = []
                for session in (usual, other):
                    start = self._clock()
                    sides.map(partial(self._run, session), work)
                    seconds.append(self._clock() - start)
                found.append(seconds[0] / seconds[1])
        finally:
            sides.close()
        return float(np.quantile(found, 0.25, method="lower"))


def chosen(
    usual: Runtime,
    others: Mapping[str, Callable[[], Runtime]],
    trial: Trial,
    *,
    what: str,
    must: bool = False,
) -> Runtime:
    """Return what should run the model, and write into the log why.

    The first that is clearly quicker is taken, so that a load does not wait for the rest.

    Args:
        usual: ONNX Runtime.
        others: what opens each of another runtime's, by precision.
        trial: how they are compared.
        what: names the model in log and errors.
        must: one of the others is demanded: that it is slower is no reason against it.

    Raises:
        ConfigError: one is demanded, and none answers as the usual one.
        Exception: one is demanded, and memory ran out, in the vendor's words.
    """
    expected = trial.answers(usual.session)
    best, most = None, 0.0
    said = []
    for precision, opened in others.items():
        try:
            other = opened()
            fault = trial.fault(expected, trial.answers(other.session))
            gain = 0.0 if fault else trial.gain(usual.session, other.session)
        except Exception as error:
            if must and is_out_of_memory(error):
                raise
            # An operator that it does not know, most likely: OpenVINO's errors have many lines.
            log.debug("%s: the trial in %s failed", what, precision, exc_info=True)
            said.append(f"{precision} fails ({_words(error)})")
            continue
        if fault:
            said.append(f"{precision} answers otherwise ({fault})")
            continue
        said.append(f"{precision} is {gain:.2f} times as fast")
        if gain > most:
            best, most = other, gain
        if gain >= GAIN:
            break
    reasons = "; ".join(said)
    if best is not None and (must or most >= GAIN):
        log.info("%s runs by %s in %s: %s", what, best.name, best.precision, reasons)
        return best
    if must:
        raise ConfigError(
            f"INFERD_FACES__RUNTIME=openvino: it cannot take the place of ONNX Runtime for {what}: "
            f"{reasons}; set INFERD_FACES__RUNTIME=auto"
        )
    log.info("%s stays with ONNX Runtime: OpenVINO in %s", what, reasons)
    return usual


def _words(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return (lines[-1] if lines else type(error).__name__)[:MOST_WORDS]
