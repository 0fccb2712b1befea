"""ModelLife: one copy of a model on its lane's own thread: loaded, tested, run and unloaded.

No result leaves it while its self-test fails: vectors are stored for good.
"""

import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Generic

from daemon.errors import (
    ConfigError,
    DependencyDownError,
    HandlerError,
    OutOfMemoryError,
    RetryableError,
)
from daemon.jobs import JsonObject
from handlers.inference import Buffers, MLInference, Result
from handlers.lanes.copy_standing import Standing
from handlers.lanes.degradation import Degradation
from handlers.lanes.lane import DeviceLane, Work
from handlers.lanes.memory import HOST
from handlers.lanes.memory_ladder import Item, MemoryLadder, Outcome
from handlers.lanes.self_test import SelfTest

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Elsewhere:
    """No result, which is this copy's fault: another one may do better with the same picture."""

    error: HandlerError


class ModelLife(Generic[Result]):
    """Runs batches; what it could not do it says, and another copy may.

    What happens when memory runs out is MemoryLadder's business.

    Attributes:
        load_error: why the latest attempt to load it failed; None once one went well.
        idle_unloads: how often it was unloaded because nobody used it.
    """

    def __init__(
        self,
        name: str,
        inference: MLInference[Result],
        lane: DeviceLane,
        *,
        max_batch: int,
        require_gpu: bool,
        retry_seconds: float,
        idle_seconds: float,
        is_only: bool,
        expected: Callable[[], str | None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Put a copy on its lane.

        Args:
            name: of the model.
            inference: the copy.
            lane: where it runs.
            max_batch: most buffers in one pass.
            require_gpu: it never moves to the CPU.
            retry_seconds: how long after memory ran out, or it failed, more is tried again.
            idle_seconds: after so long without use `unload_if_idle` unloads it.
            is_only: there is no other copy.
            expected: the fingerprint that all copies must have; None while it is not known.
            clock: seconds that only rise.
        """
        self.name = name
        self.inference = inference
        self.lane = lane
        self._idle_seconds = idle_seconds
        self._is_only = is_only
        self._expected = expected
        self._clock = clock
        self._used_at = clock()
        self._ladder = MemoryLadder(
            name,
            inference,
            max_batch=max_batch,
            require_gpu=require_gpu,
            retry_seconds=retry_seconds,
            unload_others=lambda device: lane.unload_others(inference, device),
            begin=self._begin,
            clock=clock,
        )
        self._self_test = SelfTest(name, inference)
        self._standing = Standing(name, lane.name, retry_seconds=retry_seconds, is_only=is_only)
        self.load_error: str | None = None
        self.idle_unloads = 0
        lane.add(inference)

    # -- what is told: from any thread ---------------------------------------------------------

    @property
    def degradation(self) -> Degradation | None:
        """What it makes do with since memory ran out; None where nothing is amiss."""
        return self._ladder.state

    @property
    def memory_steps(self) -> dict[str, int]:
        """How often each step was taken because memory ran out."""
        return dict(self._ladder.steps)

    @property
    def error(self) -> str | None:
        """Why it cannot be used: it could not be loaded, or failed its self-test."""
        if self.load_error is not None:
            return self.load_error
        found = self._self_test.error
        return f"it failed its self-test: {found}" if found else None

    @property
    def self_tests(self) -> tuple[int, int]:
        """How often it was tested, and how often it failed."""
        return self._self_test.runs, self._self_test.failures

    @property
    def is_fit(self) -> bool:
        """Whether nothing is amiss that another copy would not be better for."""
        short = self.degradation
        return (
            self.error is None
            and not self._standing.is_out
            and (short is None or short.device != HOST)
        )

    @property
    def is_due(self) -> bool:
        """Whether it is time to try again what is amiss; False where nothing is."""
        if self.is_fit:
            return False
        now = self._clock()
        return self._standing.is_over(now) and (
            self.degradation is None or self._ladder.is_due(now)
        )

    @property
    def is_well(self) -> bool:
        """Whether it is loaded, and nothing at all is amiss."""
        return self.is_fit and self.degradation is None and self.inference.is_loaded

    def to_wire(self) -> JsonObject:
        """Return what health and the worker's info tell of it beside others."""
        is_loaded = self.inference.is_loaded
        ran = self.inference.provenance if is_loaded else None
        told: JsonObject = {"lane": self.lane.name, "loaded": is_loaded}
        if ran is not None:
            told |= {"device": ran.device, "precision": ran.precision}
            if ran.runtime:
                told["runtime"] = ran.runtime
        if self.error is not None or self._standing.is_out:
            # Not its words: everybody reads the worker's info, and the log has them.
            told["error"] = "model_error"
        if (short := self.degradation) is not None:
            told["degraded"] = short.to_wire()
        return told

    def mark_use(self) -> None:
        """Count as used from now on."""
        self._used_at = self._clock()

    # -- on the lane's own thread --------------------------------------------------------------

    def load(self) -> None:
        """Load it where it is not, and test it.

        Raises:
            ConfigError: it cannot be loaded.
            OutOfMemoryError: there is no room for it for now.
        """
        self.mark_use()
        if self.inference.is_loaded:
            return
        self._begin("load", ())
        try:
            self._ladder.load()
            self._require_same()
        except OutOfMemoryError:
            # Its state tells; the model itself is fine.
            raise
        except Exception as error:
            self.load_error = str(error) or type(error).__name__
            self._standing.go_out(self.load_error, self._clock())
            raise
        self.load_error = None
        # Every load is tested: what was read again must be what was read before.
        self._begin("self_test", ())
        self._self_test.run()
        if self._self_test.error is not None:
            self._standing.go_out(self._self_test.error, self._clock())
        else:
            self._standing.come_back(self._clock())

    def _require_same(self) -> None:
        expected = self._expected()
        if expected is not None and self.inference.fingerprint != expected:
            self.inference.unload()
            raise ConfigError(
                f"the file of {self.name} changed since it was found: results of two models must"
                " not mix; start again"
            )

    def settle_on_cpu(self) -> None:
        """Run on the CPU from now on, for good.

        Raises:
            ConfigError: it cannot be loaded there either.
            OutOfMemoryError: there is no room for it.
        """
        self.inference.move_to(HOST)
        self.load()

    def test(self) -> None:
        """Test it where it is loaded; `error` tells what was found."""
        if self.inference.is_loaded:
            self._begin("self_test", ())
            self._self_test.run()
            if self._self_test.error is not None:
                self._reload()

    def _reload(self) -> None:
        """Read the weights again: a bit that flipped in memory is mended by that."""
        log.warning("%s is loaded again", self.name)
        self._begin("unload", ())
        self.inference.unload()
        self.load()

    def _refuse_if_broken(self) -> None:
        """Let no result out of a model that gives wrong ones: vectors are stored for good."""
        if self._self_test.error is not None:
            self._reload()
        if self._self_test.error is not None:
            raise self._broken()

    def _broken(self) -> DependencyDownError:
        reason = f"{self.name} failed its self-test: {self._self_test.error}"
        return DependencyDownError(reason, code="model_error")

    def infer(
        self, items: Sequence[Item], prepared: Buffers | None
    ) -> Sequence[Outcome[Result] | Elsewhere]:
        """Return an outcome for each item, in order; `prepared` is what was made of them before."""
        try:
            self.load()
            self._refuse_if_broken()
            found = self._ladder.run(items, prepared)
        except OutOfMemoryError as error:
            self._standing.go_out(error.message, self._clock())
            return [Elsewhere(error)] * len(items)
        except DependencyDownError as error:
            return [Elsewhere(error)] * len(items)
        except ConfigError as error:
            return [self._cannot_run(error, error.message)] * len(items)
        except Exception as error:
            # No picture's: the ladder tells those as outcomes. A GPU that broke fails at anything,
            # even at letting go of a model.
            log.exception("%s cannot run on %s", self.name, self.lane.name)
            if self._standing.is_over(self._clock()):
                self._standing.go_out(str(error), self._clock())
            reason = f"{self.name} cannot run: {type(error).__name__}; the daemon's log has more"
            return [self._cannot_run(error, reason)] * len(items)
        finally:
            self._used_at = self._clock()
        return self._told_apart(found)

    def _cannot_run(self, error: Exception, why: str) -> Elsewhere:
        """Return what each picture is told: as all that every picture needs it costs no attempt."""
        failure = DependencyDownError(why, code="model_error")
        failure.__cause__ = error
        return Elsewhere(failure)

    def infer_beside(self, items: Sequence[Item]) -> Sequence[Outcome[Result]] | None:
        """Return what the ladder gives beside others; on a thread beside the lane's."""
        try:
            return self._ladder.run_beside(items)
        finally:
            self._used_at = self._clock()

    def _told_apart(
        self, found: Sequence[Outcome[Result]]
    ) -> Sequence[Outcome[Result] | Elsewhere]:
        """Return the same, where what failed may go well elsewhere marked so."""
        if all(_is_models_fault(each) for each in found) and self._is_broken():
            return [Elsewhere(self._broken())] * len(found)
        is_short = all(isinstance(each, OutOfMemoryError) for each in found)
        if not is_short:
            # Of one that is alone, too: until then it takes one batch at a time.
            self._standing.come_back(self._clock())
        if self._is_only:
            return found
        if is_short:
            self._standing.go_out("not one picture fits", self._clock())
        return [Elsewhere(each) if isinstance(each, OutOfMemoryError) else each for each in found]

    def _is_broken(self) -> bool:
        """Whether the device fails, and not the pictures: the built-in one does not go either."""
        self._begin("self_test", ())
        self._self_test.run()
        if self._self_test.error is None:
            return False
        self._standing.go_out(self._self_test.error, self._clock())
        return True

    def idle_left(self) -> float:
        """Return the seconds after which it is idle for long enough; from any thread."""
        return self._used_at + self._idle_seconds - self._clock()

    def unload_if_idle(self) -> None:
        """Unload it where nobody used it for long; it loads again by itself."""
        if self.inference.is_loaded and self.idle_left() <= 0:
            self._begin("unload", ())
            self.inference.unload()
            self.idle_unloads += 1
            log.info("unloaded %s: nobody used it for %g s", self.name, self._idle_seconds)

    def _begin(self, work: Work, items: Sequence[Item]) -> None:
        self.lane.begin(self.name, work, [context for _, context in items])


def _is_models_fault(outcome: Outcome[Any]) -> bool:
    return isinstance(outcome, RetryableError) and outcome.code == "model_error"
