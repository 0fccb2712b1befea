"""ModelCopy: one copy of a model on one lane: loaded, run, tested and unloaded there."""

import asyncio
import logging
import math
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
from handlers.degradation import Degradation, QuietTime
from handlers.inference import Buffers, MLInference, Result
from handlers.lane import DeviceLane, Work
from handlers.memory import HOST
from handlers.memory_ladder import Item, MemoryLadder, Outcome
from handlers.self_test import SelfTest

log = logging.getLogger(__name__)

MORE_THAN_A_SHARE = 4 / 3
"""What a pass takes of its share of what waits. With the default of jobs in flight, 16 a core, some
10 wait for two passes of 8: at 1 these would be 5 to 8, and cost 1 % more a picture."""


@dataclass(frozen=True, slots=True)
class Elsewhere:
    """No result, which is this copy's fault: another one may do better with the same picture."""

    error: HandlerError


class ModelCopy(Generic[Result]):
    """Runs batches on its lane; what it could not do it says, and another copy may.

    What happens when memory runs out is MemoryLadder's business.

    Attributes:
        load_error: why the latest attempt to load it failed; None once one went well.
        idle_unloads: how often it was unloaded because nobody used it.
        batches: how many it was given.
        inputs: how many pictures, faces or texts were in them.
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
            idle_seconds: after so long without use it is unloaded; 0 = never.
            is_only: there is no other copy.
            expected: the fingerprint that all copies must have; None while it is not known.
            clock: seconds that only rise.
        """
        self.name = name
        self.inference = inference
        self.lane = lane
        self._max_batch = max_batch
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
        self._quiet = QuietTime(retry_seconds)
        self._is_out = False
        self._has_lane = 0
        """How many batches have the lane's own thread, or wait for it."""
        self.load_error: str | None = None
        self.idle_unloads = 0
        self.batches = 0
        self.inputs = 0
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
        return self.error is None and not self._is_out and (short is None or short.device != HOST)

    @property
    def is_due(self) -> bool:
        """Whether it is time to try again what is amiss; False where nothing is."""
        if self.is_fit:
            return False
        now = self._clock()
        return self._quiet.is_over(now) and (self.degradation is None or self._ladder.is_due(now))

    @property
    def room(self) -> int:
        """How many batches may be in hand on its lane, one of its own included."""
        if self.inference.prepares:
            return 2
        return 1 if self._has_lane or not self._is_well else self.inference.beside

    def most(self, waiting: int) -> int:
        """Return how many of those that wait it takes together, with a turn.

        Beside others a pass takes its share of what waits and a little more. So at the end of a
        backlog all cores end at about the same time, where the last full pass would leave the
        others nothing to do; and amid it passes are full, which take less time a picture.
        """
        batch = self.inference.batch
        if batch is None:
            return self._max_batch
        if not (self._may_go_beside and self.lane.in_hand > 1):
            return min(self._max_batch, batch.size)
        share = math.ceil(waiting * MORE_THAN_A_SHARE / batch.passes)
        return min(self._max_batch, batch.per_pass, max(1, share))

    def to_wire(self) -> JsonObject:
        """Return what health and the worker's info tell of it beside others."""
        is_loaded = self.inference.is_loaded
        ran = self.inference.provenance if is_loaded else None
        told: JsonObject = {"lane": self.lane.name, "loaded": is_loaded}
        if ran is not None:
            told |= {"device": ran.device, "precision": ran.precision}
        if self.error is not None or self._is_out:
            # Not its words: everybody reads the worker's info, and the log has them.
            told["error"] = "model_error"
        if (short := self.degradation) is not None:
            told["degraded"] = short.to_wire()
        return told

    # -- in the event loop ---------------------------------------------------------------------

    def mark_use(self) -> None:
        """Count as used from now on."""
        self._used_at = self._clock()

    async def load(self) -> None:
        """Load it now instead of at first use.

        Raises:
            ConfigError: it cannot be loaded.
            OutOfMemoryError: there is no room for it for now.
        """
        await self.lane.run(self._load)

    async def wait_for_lane(self) -> None:
        """Return once a batch would not wait for whatever has the lane's own thread; with a turn.

        An urgent picture that comes meanwhile would have to wait for that batch as well. Of several
        copies none waits: the others would wait with it.
        """
        if self._is_only and self.lane.is_taken and not self.inference.prepares:
            await self.lane.run(lambda: None)

    async def run(self, items: Sequence[Item]) -> Sequence[Outcome[Result] | Elsewhere]:
        """Return an outcome for each item, in order; with a turn on the lane only."""
        self.mark_use()
        self.batches += 1
        self.inputs += len(items)
        if self._goes_beside(len(items)):
            found = await self.lane.run_beside(self._infer_beside, items)
            if found is not None:
                return found
        prepared = None
        if self.lane.in_hand > 1 and self.inference.prepares:
            # Another batch has the lane: what of this one needs no device is done meanwhile.
            prepared = await self._prepared([buffer for buffer, _ in items])
        self._has_lane += 1
        try:
            return await self.lane.run(self._infer_on_lane, items, prepared)
        finally:
            self._has_lane -= 1

    @property
    def _is_well(self) -> bool:
        return self.is_fit and self.degradation is None and self.inference.is_loaded

    def _goes_beside(self, count: int) -> bool:
        """Whether so many go beside others that run, or are enough to keep all passes busy."""
        is_enough = count >= self.inference.beside or self.lane.in_hand > 1
        return is_enough and self._may_go_beside

    @property
    def _may_go_beside(self) -> bool:
        # Who has the lane's own thread has the device for itself: the next one waits for it there.
        return self.inference.beside > 1 and self._is_well and not self.lane.is_taken

    async def _prepared(self, buffers: Buffers) -> Buffers | None:
        try:
            return await asyncio.to_thread(self.inference.prepare, buffers)
        except Exception:
            # The pass itself will tell, if it is more than this.
            log.exception("a batch of %s could not be prepared", self.name)
            return None

    async def test(self) -> None:
        """Test it where it is loaded; `error` tells what was found."""
        await self.lane.run(self._test_if_loaded)

    async def unload_when_idle(self) -> None:
        """Unload it whenever it was idle for long; it loads again by itself."""
        while True:
            left = self._idle_left()
            # Whatever is loaded meanwhile is used no earlier than now.
            is_loaded = self.inference.is_loaded
            await asyncio.sleep(left if is_loaded and left > 0 else self._idle_seconds)
            try:
                await self.lane.run(self._unload_if_idle)
            except Exception:
                log.exception("%s could not be unloaded", self.name)

    async def settle_on_cpu(self) -> None:
        """Run on the CPU from now on, for good.

        Raises:
            ConfigError: it cannot be loaded there either.
            OutOfMemoryError: there is no room for it.
        """
        await self.lane.run(self._settle_on_cpu)

    # -- on the lane's thread ------------------------------------------------------------------

    def _begin(self, work: Work, items: Sequence[Item]) -> None:
        self.lane.begin(self.name, work, [context for _, context in items])

    def _load(self) -> None:
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
            self._go_out(self.load_error)
            raise
        self.load_error = None
        # Every load is tested: what was read again must be what was read before.
        self._begin("self_test", ())
        self._self_test.run()
        if self._self_test.error is not None:
            self._go_out(self._self_test.error)
        else:
            self._come_back()

    def _require_same(self) -> None:
        expected = self._expected()
        if expected is not None and self.inference.fingerprint != expected:
            self.inference.unload()
            raise ConfigError(
                f"the file of {self.name} changed since it was found: results of two models must"
                " not mix; start again"
            )

    def _settle_on_cpu(self) -> None:
        self.inference.move_to(HOST)
        self._load()

    def _test_if_loaded(self) -> None:
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
        self._load()

    def _refuse_if_broken(self) -> None:
        """Let no result out of a model that gives wrong ones: vectors are stored for good."""
        if self._self_test.error is not None:
            self._reload()
        if self._self_test.error is not None:
            reason = f"{self.name} failed its self-test: {self._self_test.error}"
            raise DependencyDownError(reason, code="model_error")

    def _infer_on_lane(
        self, items: Sequence[Item], prepared: Buffers | None
    ) -> Sequence[Outcome[Result] | Elsewhere]:
        try:
            self._load()
            self._refuse_if_broken()
            found = self._ladder.run(items, prepared)
        except OutOfMemoryError as error:
            self._go_out(error.message)
            return [Elsewhere(error)] * len(items)
        except DependencyDownError as error:
            return [Elsewhere(error)] * len(items)
        except ConfigError as error:
            failure = RetryableError(error.message, code="model_error")
            failure.__cause__ = error
            return [Elsewhere(failure)] * len(items)
        finally:
            self._used_at = self._clock()
        return found if self._is_only else self._told_apart(found)

    def _infer_beside(self, items: Sequence[Item]) -> Sequence[Outcome[Result]] | None:
        """Return what the ladder gives beside others; on a thread beside the lane's."""
        try:
            return self._ladder.run_beside(items)
        finally:
            self._used_at = self._clock()

    def _told_apart(
        self, found: Sequence[Outcome[Result]]
    ) -> Sequence[Outcome[Result] | Elsewhere]:
        """Return the same, where what failed may go well elsewhere marked so."""
        is_broken = all(_is_models_fault(each) for each in found) and self._is_broken()
        if all(isinstance(each, OutOfMemoryError) for each in found):
            self._go_out("not one picture fits")
        elif not is_broken:
            self._come_back()
        return [
            Elsewhere(each)
            if isinstance(each, OutOfMemoryError) or (is_broken and isinstance(each, HandlerError))
            else each
            for each in found
        ]

    def _is_broken(self) -> bool:
        """Whether the device fails, and not the pictures: the built-in one does not go either."""
        self._begin("self_test", ())
        self._self_test.run()
        if self._self_test.error is None:
            return False
        self._go_out(self._self_test.error)
        return True

    def _go_out(self, why: str) -> None:
        """Leave the batches to the other copies for a while."""
        now = self._clock()
        if self._is_out:
            self._quiet.note_failed_climb()
        else:
            self._quiet.note_failure(now)
            if not self._is_only:
                log.error(
                    "%s fails on %s, the others go on without it: %s",
                    self.name,
                    self.lane.name,
                    why,
                )
        self._is_out = True
        self._quiet.begin(now)

    def _come_back(self) -> None:
        if self._is_out:
            self._is_out = False
            self._quiet.note_recovery(self._clock())
            if not self._is_only:
                log.info("%s runs on %s again", self.name, self.lane.name)

    def _idle_left(self) -> float:
        return self._used_at + self._idle_seconds - self._clock()

    def _unload_if_idle(self) -> None:
        if self.inference.is_loaded and self._idle_left() <= 0:
            self._begin("unload", ())
            self.inference.unload()
            self.idle_unloads += 1
            log.info("unloaded %s: nobody used it for %g s", self.name, self._idle_seconds)


def _is_models_fault(outcome: Outcome[Any]) -> bool:
    return isinstance(outcome, RetryableError) and outcome.code == "model_error"
