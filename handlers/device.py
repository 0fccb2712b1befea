"""The device lane: one thread that owns the device, and models that are reached through it.

All task types share the lane, so two models never fight for the device. A thread cannot be
cancelled: a caller that goes away abandons its result, not the forward pass, and closing the
lane waits for the pass that runs.
"""

import asyncio
import logging
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextvars import copy_context
from types import TracebackType
from typing import Any, Generic, ParamSpec, Self, TypeVar

from numpy.typing import NDArray

from daemon.errors import ConfigError, OutOfMemoryError, RetryableError
from daemon.stage import Stage
from handlers.degradation import Degradation
from handlers.inference import MLInference, Provenance, Result
from handlers.memory_ladder import Item, MemoryLadder, Outcome

log = logging.getLogger(__name__)

P = ParamSpec("P")
T = TypeVar("T")


class DeviceLane:
    """One thread; whatever touches a model runs on it, one call after the other."""

    def __init__(self) -> None:
        self._executor = ThreadPoolExecutor(max_workers=1, thread_name_prefix="device-lane")
        self._models: list[MLInference[Any]] = []

    async def run(self, work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Return `work(*args)` as run on the lane's thread."""
        future = self._executor.submit(work, *args, **kwargs)
        return await asyncio.wrap_future(future)

    def add(self, model: MLInference[Any]) -> None:
        """Let the model be unloaded where another one needs its memory."""
        self._models.append(model)

    def unload_others(self, keep: MLInference[Any], device: str) -> bool:
        """Unload every other model that runs on `device`; on the lane's thread only.

        Returns:
            Whether there was one.
        """
        found = [
            model
            for model in self._models
            if model is not keep and model.is_loaded and model.provenance.device == device
        ]
        for model in found:
            model.unload()
        return bool(found)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await asyncio.to_thread(self._executor.shutdown, wait=True, cancel_futures=True)


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
        """
        self.name = name
        self._inference = inference
        self._lane = lane
        self._idle_seconds = idle_seconds
        self._used_at = time.monotonic()
        self._idle_task: asyncio.Task[None] | None = None
        self._ladder = MemoryLadder(
            name,
            inference,
            max_batch=max_batch,
            require_gpu=require_gpu,
            retry_seconds=retry_seconds,
            unload_others=lambda device: lane.unload_others(inference, device),
        )
        self.load_error: str | None = None
        """Why the latest attempt to load it failed; None once one went well."""
        self.idle_unloads = 0
        """How often it was unloaded because nobody used it."""
        self._stage: Stage[Item, tuple[Result, Provenance]] = Stage(
            f"infer-{name}", self._run_batch, max_batch=max_batch, queue_size=2 * max_batch
        )
        lane.add(inference)

    async def __aenter__(self) -> Self:
        await self._stage.__aenter__()
        if self._idle_seconds:
            self._idle_task = asyncio.create_task(self._watch(), name=f"idle-{self.name}")
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._idle_task is not None:
            self._idle_task.cancel()
            await asyncio.gather(self._idle_task, return_exceptions=True)
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
    def degradation(self) -> Degradation | None:
        """What it makes do with since memory ran out; None where nothing is amiss."""
        return self._ladder.state

    @property
    def memory_steps(self) -> dict[str, int]:
        """How often each step was taken because memory ran out."""
        return dict(self._ladder.steps)

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
        """
        return (await self.infer_and_tell(buffer))[0]

    async def infer_and_tell(self, buffer: NDArray[Any]) -> tuple[Result, Provenance]:
        """Return as `infer` does, with what really ran: a model may move between two batches.

        Raises:
            HandlerError: as `infer`.
        """
        self._used_at = time.monotonic()
        return await self._stage.submit((buffer, copy_context()))

    async def _run_batch(self, items: Sequence[Item]) -> Sequence[Outcome[Result]]:
        return await self._lane.run(self._infer_on_lane, items)

    # -- on the lane's thread ------------------------------------------------------------------

    def _load(self) -> None:
        self._used_at = time.monotonic()
        try:
            self._ladder.load()
        except OutOfMemoryError:
            # Its state tells; the model itself is fine.
            raise
        except Exception as error:
            self.load_error = str(error) or type(error).__name__
            raise
        self.load_error = None

    def _infer_on_lane(self, items: Sequence[Item]) -> Sequence[Outcome[Result]]:
        try:
            self._load()
            return self._ladder.run(items)
        except OutOfMemoryError as error:
            return [error] * len(items)
        except ConfigError as error:
            failure = RetryableError(error.message, code="model_error")
            failure.__cause__ = error
            return [failure] * len(items)
        finally:
            self._used_at = time.monotonic()

    def _unload_if_idle(self) -> None:
        if self._inference.is_loaded and self._idle_left() <= 0:
            self._inference.unload()
            self.idle_unloads += 1
            log.info("unloaded %s: nobody used it for %g s", self.name, self._idle_seconds)

    # ------------------------------------------------------------------------------------------

    def _idle_left(self) -> float:
        return self._used_at + self._idle_seconds - time.monotonic()

    async def _watch(self) -> None:
        """Unload the model whenever it was idle for long; it loads again by itself."""
        while True:
            left = self._idle_left()
            # Whatever is loaded meanwhile is used no earlier than now.
            await asyncio.sleep(left if self.is_loaded and left > 0 else self._idle_seconds)
            try:
                await self._lane.run(self._unload_if_idle)
            except Exception:
                log.exception("%s could not be unloaded", self.name)
