"""A step of the pipeline: callers wait in order of urgency, a few workers take them in batches.

Used wherever things are done together because that is cheaper (commits, forward passes, upserts)
or at most a few at a time (fetches, decoders). A batch is whatever waits when a worker becomes
free: an idle system runs a single item at once, a busy one fills its batches by itself.
"""

import asyncio
import itertools
from collections.abc import Awaitable, Callable, Sequence
from types import TracebackType
from typing import Generic, Self, TypeAlias, TypeVar

from daemon.urgency import URGENCY

In = TypeVar("In")
Out = TypeVar("Out")


class StageClosedError(RuntimeError):
    """Something was submitted to, or still waited in, a stage that is closed."""


_Waiting: TypeAlias = tuple[int, int, In, asyncio.Future[Out]]
"""Urgency, arrival, which is no other's, the item and its outcome."""


class Stage(Generic[In, Out]):
    """Runs items in batches of at most `max_batch`, by at most `workers` batches at once.

    `run_batch` gets the items of a batch and returns one outcome for each, in their order; an
    outcome that is an exception is raised to the one caller it belongs to. If `run_batch` itself
    raises, every caller of the batch gets that exception.

    Who waits is taken by urgency (daemon/urgency.py), then in order of arrival. That is why nothing
    bounds how many wait: an urgent caller would stand behind those who wait for room. `submit`
    returns with the outcome, so there are never more than callers, and the worker bounds those.
    A caller that is cancelled leaves the queue; its batch, if it began, runs on without it.
    """

    def __init__(
        self,
        name: str,
        run_batch: Callable[[Sequence[In]], Awaitable[Sequence[Out | Exception]]],
        *,
        max_batch: int = 1,
        workers: int = 1,
    ) -> None:
        self.name = name
        self._run_batch = run_batch
        self.max_batch = max_batch
        """Most items of the next batch; may be changed at any time."""
        self._workers = workers
        self._waiting: asyncio.PriorityQueue[_Waiting[In, Out]] = asyncio.PriorityQueue()
        self._arrivals = itertools.count()
        self._tasks: list[asyncio.Task[None]] = []
        self._closed = False

    async def __aenter__(self) -> Self:
        for number in range(self._workers):
            self._tasks.append(asyncio.create_task(self._work(), name=f"{self.name}-{number}"))
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Stop the workers; whoever still waits gets StageClosedError. Safe twice."""
        self._closed = True
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._tasks.clear()
        while not self._waiting.empty():
            *_, outcome = self._waiting.get_nowait()
            if not outcome.done():
                outcome.set_exception(StageClosedError(self.name))

    @property
    def depth(self) -> int:
        """How many items wait."""
        return self._waiting.qsize()

    async def submit(self, item: In) -> Out:
        """Return the outcome of one item.

        Raises:
            StageClosedError: the stage is closed.
            Exception: whatever `run_batch` gave for this item.
        """
        if self._closed:
            raise StageClosedError(self.name)
        outcome: asyncio.Future[Out] = asyncio.get_running_loop().create_future()
        self._waiting.put_nowait((URGENCY.get(), next(self._arrivals), item, outcome))
        return await outcome

    async def _work(self) -> None:
        while True:
            # No name for the batch here: it would keep its last items alive while nothing comes.
            await self._settle(await self._next_batch())

    async def _next_batch(self) -> list[tuple[In, asyncio.Future[Out]]]:
        batch = [await self._waiting.get()]
        while len(batch) < self.max_batch and not self._waiting.empty():
            batch.append(self._waiting.get_nowait())
        return [(item, outcome) for _, _, item, outcome in batch if not outcome.done()]

    async def _settle(self, batch: list[tuple[In, asyncio.Future[Out]]]) -> None:
        if not batch:
            return
        outcomes: Sequence[Out | Exception]
        try:
            outcomes = await self._run_batch([item for item, _ in batch])
            if len(outcomes) != len(batch):
                raise RuntimeError(
                    f"stage {self.name}: {len(outcomes)} outcomes for {len(batch)} items"
                )
        except asyncio.CancelledError:
            for _, future in batch:
                if not future.done():
                    future.set_exception(StageClosedError(self.name))
            raise
        except Exception as error:  # noqa: BLE001 - carried to every caller of the batch
            outcomes = [error] * len(batch)
        for (_, future), outcome in zip(batch, outcomes, strict=True):
            if future.done():
                continue
            if isinstance(outcome, Exception):
                future.set_exception(outcome)
            else:
                future.set_result(outcome)
