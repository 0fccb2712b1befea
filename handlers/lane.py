"""The device lane: one thread that owns the device, and tells what it is busy with.

All task types share the lane, so two models never fight for the device. A thread cannot be
cancelled: a caller that goes away abandons its result, not the forward pass. A pass that never
ends is left behind when the lane is closed: the thread is a daemon thread, which nobody joins.
"""

import asyncio
import functools
import logging
import queue
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from contextvars import Context
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Literal, ParamSpec, Self, TypeAlias, TypeVar

from handlers.inference import MLInference

log = logging.getLogger(__name__)

CLOSE_SECONDS = 5.0
"""How long closing waits for the call that runs."""

P = ParamSpec("P")
T = TypeVar("T")

Work: TypeAlias = Literal["load", "infer", "self_test", "unload"]


@dataclass(frozen=True, slots=True)
class LaneCall:
    """What the lane is busy with: one piece of work of one model."""

    model: str
    work: Work
    number: int
    """Another one for each, so that two looks can tell whether it is still the same."""
    contexts: tuple[Context, ...] = ()
    """Of the callers that wait for it."""


class DeviceLane:
    """One thread; whatever touches a model runs on it, one call after the other.

    Attributes:
        close_seconds: how long closing waits for the call that runs.
        call: what runs now, as far as `begin` told; may be read from any thread.
        is_abandoned: it was closed while a call ran on, which may never end: leave the process
            by os._exit, since the interpreter's own end could wait for it or crash under it.
    """

    def __init__(self, *, close_seconds: float = CLOSE_SECONDS) -> None:
        self.close_seconds = close_seconds
        self._waiting: queue.SimpleQueue[tuple[Future[Any], Callable[[], Any]] | None]
        self._waiting = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._serve, name="device-lane", daemon=True)
        self._ended: Future[None] = Future()
        self._ended.set_running_or_notify_cancel()
        self._is_closed = False
        self._models: list[MLInference[Any]] = []
        self._number = 0
        self.call: LaneCall | None = None
        self.is_abandoned = False

    async def run(self, work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Return `work(*args)` as run on the lane's thread."""
        if self._is_closed:
            raise RuntimeError("the device lane is closed")
        future: Future[T] = Future()
        self._waiting.put((future, functools.partial(work, *args, **kwargs)))
        return await asyncio.wrap_future(future)

    def begin(self, model: str, work: Work, contexts: Sequence[Context] = ()) -> None:
        """Tell what the lane is busy with from now on; on the lane's thread only."""
        self._number += 1
        self.call = LaneCall(model, work, self._number, tuple(contexts))

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
        self._thread.start()
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Drop what waits, and wait a bounded time for what runs."""
        self._is_closed = True
        while not self._waiting.empty():
            waiting = self._waiting.get_nowait()
            if waiting is not None:
                waiting[0].cancel()
        self._waiting.put(None)
        ended = asyncio.wrap_future(self._ended)
        await asyncio.wait([ended], timeout=self.close_seconds)
        if not ended.done():
            ended.cancel()
            self.is_abandoned = True
            call = self.call
            what = f"{call.work} of {call.model}" if call else "a call"
            log.error("%s does not end: it is left behind", what)

    def _serve(self) -> None:
        while (waiting := self._waiting.get()) is not None:
            future, work = waiting
            if future.set_running_or_notify_cancel():
                try:
                    result = work()
                except BaseException as error:  # noqa: BLE001 - carried to the caller
                    self.call = None
                    future.set_exception(error)
                else:
                    self.call = None
                    future.set_result(result)
                    del result
            # What a call was given is not kept alive until the next one comes.
            del waiting, future, work
        self._ended.set_result(None)
