"""ModelRunner: a model on the device lane: batched, tested, and unloaded when nobody needs it."""

import asyncio
import logging
import time
from collections.abc import Sequence
from contextvars import copy_context
from types import TracebackType
from typing import Any, Generic, Self

from numpy.typing import NDArray

from daemon.errors import (
    ConfigError,
    DependencyDownError,
    InferdError,
    OutOfMemoryError,
    RetryableError,
)
from daemon.stage import Stage
from handlers.degradation import Degradation
from handlers.inference import Batch, MLInference, Provenance, Result
from handlers.lane import DeviceLane, Work
from handlers.memory_ladder import Item, MemoryLadder, Outcome
from handlers.self_test import SelfTest

log = logging.getLogger(__name__)


class ModelRunner(Generic[Result]):
    """A model on the lane: loaded at first use, fed with batches, unloaded when nobody needs it.

    A batch is whatever waits. What happens when memory runs out is MemoryLadder's business.
    """

    def __init__(
        self,
        name: str,
        inference: MLInference[Result],
        lane: DeviceLane,
        *,
        max_batch: int = 1,
        require_gpu: bool = False,
        retry_seconds: float = 60,
        idle_seconds: float = 0,
        self_test_seconds: float = 0,
    ) -> None:
        """Put a model on the lane.

        Args:
            name: of the model, for logs, health and metrics.
            inference: the model.
            lane: where it runs.
            max_batch: most buffers in one pass.
            require_gpu: it never moves to the CPU.
            retry_seconds: how long after memory ran out the full batch and the device are tried
                again.
            idle_seconds: after so long without use it is unloaded; 0 = never.
            self_test_seconds: how often it is tested while it is loaded; 0 = only when it is
                loaded.
        """
        self.name = name
        self._inference = inference
        self._lane = lane
        self._max_batch = max_batch
        self._idle_seconds = idle_seconds
        self._self_test_seconds = self_test_seconds
        self._used_at = time.monotonic()
        self._tasks: list[asyncio.Task[None]] = []
        self._ladder = MemoryLadder(
            name,
            inference,
            max_batch=max_batch,
            require_gpu=require_gpu,
            retry_seconds=retry_seconds,
            unload_others=lambda device: lane.unload_others(inference, device),
            begin=self._begin,
        )
        self._self_test = SelfTest(name, inference)
        self.load_error: str | None = None
        """Why the latest attempt to load it failed; None once one went well."""
        self.idle_unloads = 0
        """How often it was unloaded because nobody used it."""
        self._stage: Stage[Item, tuple[Result, Provenance]] = Stage(
            f"infer-{name}", self._run_batch, max_batch=max_batch
        )
        lane.add(inference)

    async def __aenter__(self) -> Self:
        await self._stage.__aenter__()
        for seconds, watch in (
            (self._idle_seconds, self._unload_when_idle),
            (self._self_test_seconds, self._test_again_and_again),
        ):
            if seconds:
                name = f"{watch.__name__.strip('_')}-{self.name}"
                self._tasks.append(asyncio.create_task(watch(), name=name))
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._stage.close()

    @property
    def is_loaded(self) -> bool:
        """Whether the model is in memory."""
        return self._inference.is_loaded

    @property
    def provenance(self) -> Provenance:
        """What runs now, or ran last; only after the first result."""
        return self._inference.provenance

    @property
    def fingerprint(self) -> str:
        """What vectors of this model may be compared with."""
        return self._inference.fingerprint

    @property
    def batch(self) -> Batch | None:
        """How many buffers it runs at a time, and why; None where that is the daemon's choice."""
        return self._inference.batch

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

    async def resolve(self) -> None:
        """Find the weights, without loading them.

        Raises:
            ConfigError: they are absent.
        """
        await self._lane.run(self._inference.resolve)

    async def load(self) -> None:
        """Load the model now instead of at first use.

        Raises:
            ConfigError: it cannot be loaded.
            OutOfMemoryError: there is no room for it for now.
        """
        await self._lane.run(self._load)

    async def infer(self, buffer: NDArray[Any]) -> Result:
        """Return the model's result for one buffer, batched with others that wait.

        Raises:
            PermanentError: the buffer is not what the model takes.
            OutOfMemoryError: it does not fit, not even by itself.
            RetryableError: the model could not be loaded or failed, code model_error.
            DependencyDownError: it failed its self-test, code model_error; no picture is at fault.
        """
        return (await self.infer_and_tell(buffer))[0]

    async def infer_and_tell(self, buffer: NDArray[Any]) -> tuple[Result, Provenance]:
        """Return as `infer` does, with what really ran: a model may move between two batches.

        Raises:
            HandlerError: as `infer`.
        """
        self._used_at = time.monotonic()
        return await self._stage.submit((buffer, copy_context()))

    async def test(self) -> None:
        """Test the model where it is loaded; `error` tells what was found.

        It counts as no use: a model that nobody needs is unloaded all the same.
        """
        await self._lane.run(self._test_if_loaded)

    async def _run_batch(self, items: Sequence[Item]) -> Sequence[Outcome[Result]]:
        return await self._lane.run(self._infer_on_lane, items)

    # -- on the lane's thread ------------------------------------------------------------------

    def _begin(self, work: Work, items: Sequence[Item]) -> None:
        self._lane.begin(self.name, work, [context for _, context in items])

    def _load(self) -> None:
        self._used_at = time.monotonic()
        if self._inference.is_loaded:
            return
        self._begin("load", ())
        try:
            self._ladder.load()
        except OutOfMemoryError:
            # Its state tells; the model itself is fine.
            raise
        except Exception as error:
            self.load_error = str(error) or type(error).__name__
            raise
        self.load_error = None
        self._fit_batches()
        # Every load is tested: what was read again must be what was read before.
        self._begin("self_test", ())
        self._self_test.run()

    def _test_if_loaded(self) -> None:
        if self._inference.is_loaded:
            self._begin("self_test", ())
            self._self_test.run()
            if self._self_test.error is not None:
                self._reload()

    def _reload(self) -> None:
        """Read the weights again: a bit that flipped in memory is mended by that."""
        log.warning("%s is loaded again", self.name)
        self._begin("unload", ())
        self._inference.unload()
        self._load()

    def _refuse_if_broken(self) -> None:
        """Let no result out of a model that gives wrong ones: vectors are stored for good."""
        if self._self_test.error is not None:
            self._reload()
        if self._self_test.error is not None:
            reason = f"{self.name} failed its self-test: {self._self_test.error}"
            raise DependencyDownError(reason, code="model_error")

    def _infer_on_lane(self, items: Sequence[Item]) -> Sequence[Outcome[Result]]:
        try:
            self._load()
            self._refuse_if_broken()
            return self._ladder.run(items)
        except (OutOfMemoryError, DependencyDownError) as error:
            return [error] * len(items)
        except ConfigError as error:
            failure = RetryableError(error.message, code="model_error")
            failure.__cause__ = error
            return [failure] * len(items)
        finally:
            self._fit_batches()
            self._used_at = time.monotonic()

    def _fit_batches(self) -> None:
        """Take no more together than the model runs together: what is done goes back at once."""
        batch = self._inference.batch
        self._stage.max_batch = min(self._max_batch, batch.size) if batch else self._max_batch

    def _unload_if_idle(self) -> None:
        if self._inference.is_loaded and self._idle_left() <= 0:
            self._begin("unload", ())
            self._inference.unload()
            self.idle_unloads += 1
            log.info("unloaded %s: nobody used it for %g s", self.name, self._idle_seconds)

    # ------------------------------------------------------------------------------------------

    def _idle_left(self) -> float:
        return self._used_at + self._idle_seconds - time.monotonic()

    async def _unload_when_idle(self) -> None:
        """Unload the model whenever it was idle for long; it loads again by itself."""
        while True:
            left = self._idle_left()
            # Whatever is loaded meanwhile is used no earlier than now.
            await asyncio.sleep(left if self.is_loaded and left > 0 else self._idle_seconds)
            try:
                await self._lane.run(self._unload_if_idle)
            except Exception:
                log.exception("%s could not be unloaded", self.name)

    async def _test_again_and_again(self) -> None:
        while True:
            await asyncio.sleep(self._self_test_seconds)
            try:
                await self.test()
            except InferdError as error:
                log.error("%s cannot be loaded again: %s", self.name, error.message)  # noqa: TRY400 - the sentence has it all
            except Exception:
                log.exception("%s could not be tested", self.name)
