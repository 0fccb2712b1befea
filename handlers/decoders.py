"""The decoder threads: CPU work on pictures, a few at a time, off the event loop."""

import asyncio
import functools
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextvars import copy_context
from types import TracebackType
from typing import Any, ParamSpec, Self, TypeVar, cast

from daemon.stage import Stage

P = ParamSpec("P")
T = TypeVar("T")


class Decoders:
    """Runs at most `threads` functions at once; as many again wait, and further callers block.

    A thread cannot be cancelled: a caller that goes away abandons its result, not the work that
    runs, and closing waits for that work.
    """

    def __init__(self, threads: int) -> None:
        self._executor = ThreadPoolExecutor(max_workers=threads, thread_name_prefix="decoder")
        self._stage: Stage[Callable[[], Any], Any] = Stage(
            "decode", self._run_one, workers=threads, queue_size=threads
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
        await asyncio.to_thread(self._executor.shutdown, wait=True, cancel_futures=True)

    async def run(self, work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Return `work(*args)` as run on a decoder thread.

        Raises:
            StageClosedError: the decoders are closed.
            Exception: whatever `work` raised.
        """
        # In the caller's context: lines logged on the thread carry its job.
        task = functools.partial(copy_context().run, work, *args, **kwargs)
        return cast("T", await self._stage.submit(task))

    async def _run_one(self, batch: Sequence[Callable[[], Any]]) -> Sequence[Any]:
        (work,) = batch
        return [await asyncio.get_running_loop().run_in_executor(self._executor, work)]
