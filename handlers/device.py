"""The device lane: one thread that owns the device, and models that are reached through it.

All task types share the lane, so two models never fight for the device. A thread cannot be
cancelled: a caller that goes away abandons its result, not the forward pass, and closing the
lane waits for the pass that runs.
"""

import asyncio
import logging
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextvars import Context, copy_context
from types import TracebackType
from typing import Any, Generic, ParamSpec, Self, TypeAlias, TypeVar

from numpy.typing import NDArray

from daemon.errors import ConfigError, RetryableError
from daemon.stage import Stage
from handlers.inference import MLInference, Provenance, Result

log = logging.getLogger(__name__)

P = ParamSpec("P")
T = TypeVar("T")
Item: TypeAlias = tuple[NDArray[Any], Context]
"""A buffer, and what its job's log lines carry."""


class DeviceLane:
    """One thread; whatever touches a model runs on it, one call after the other."""

    def __init__(self) -> None:
        self._executor = ThreadPoolExecutor(max_workers=1, thread_name_prefix="device-lane")

    async def run(self, work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Return `work(*args)` as run on the lane's thread."""
        future = self._executor.submit(work, *args, **kwargs)
        return await asyncio.wrap_future(future)

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
    """A model on the lane: loaded at first use, fed with batches of whatever waits.

    A batch that fails is run again picture by picture, so that a picture the model cannot bear
    fails alone.
    """

    def __init__(
        self, name: str, inference: MLInference[Result], lane: DeviceLane, *, max_batch: int = 1
    ) -> None:
        self.name = name
        self._inference = inference
        self._lane = lane
        self.load_error: str | None = None
        """Why the latest attempt to load it failed; None once one went well."""
        self._stage: Stage[Item, Result] = Stage(
            f"infer-{name}", self._run_batch, max_batch=max_batch, queue_size=2 * max_batch
        )

    async def __aenter__(self) -> Self:
        await self._stage.__aenter__()
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self._stage.close()

    @property
    def is_loaded(self) -> bool:
        """Whether the model is in memory."""
        return self._inference.is_loaded

    @property
    def provenance(self) -> Provenance:
        """What really runs; only after the first result."""
        return self._inference.provenance

    @property
    def fingerprint(self) -> str:
        """What vectors of this model may be compared with."""
        return self._inference.fingerprint

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
        """
        await self._lane.run(self._load)

    async def infer(self, buffer: NDArray[Any]) -> Result:
        """Return the model's result for one buffer, batched with others that wait.

        Raises:
            PermanentError: the buffer is not what the model takes.
            RetryableError: the model could not be loaded or failed, code model_error.
        """
        return await self._stage.submit((buffer, copy_context()))

    async def _run_batch(self, items: Sequence[Item]) -> Sequence[Result | Exception]:
        return await self._lane.run(self._infer_on_lane, items)

    def _load(self) -> None:
        try:
            self._inference.load()
        except Exception as error:
            self.load_error = str(error) or type(error).__name__
            raise
        self.load_error = None

    def _infer_on_lane(self, items: Sequence[Item]) -> Sequence[Result | Exception]:
        try:
            self._load()
        except ConfigError as error:
            failure = RetryableError(error.message, code="model_error")
            failure.__cause__ = error
            return [failure] * len(items)
        if len(items) > 1:
            try:
                return self._inference.infer_batch([buffer for buffer, _ in items])
            except Exception:  # noqa: BLE001 - told to the picture it belongs to, below
                log.warning("a batch of %d failed in %s, one by one now", len(items), self.name)
        return [self._infer_one(buffer, context) for buffer, context in items]

    def _infer_one(self, buffer: NDArray[Any], context: Context) -> Result | Exception:
        try:
            return context.run(self._inference.infer_batch, [buffer])[0]
        except Exception as error:  # noqa: BLE001 - it belongs to this one picture
            return error
