"""A step of the pipeline: callers wait in order of urgency, a few workers take them in batches.

Used wherever things are done together because that is cheaper (commits, forward passes, upserts)
or at most a few at a time (fetches, decoders). A batch is whatever waits when a worker becomes
free: an idle system runs a single item at once, a busy one fills its batches by itself.
"""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Generic, Self, TypeAlias, TypeVar

from daemon.urgency import Waiting

In = TypeVar("In")
Out = TypeVar("Out")

RunBatch: TypeAlias = Callable[[Sequence[In]], Awaitable[Sequence[Out | Exception]]]
Turn: TypeAlias = Callable[[], AbstractAsyncContextManager[RunBatch[In, Out], bool | None]]


class StageClosedError(RuntimeError):
    """Something was submitted to, or still waited in, a stage that is closed."""


@dataclass(slots=True, eq=False)
class _Asked(Generic[In, Out]):
    """What one caller submitted."""

    item: In
    outcome: asyncio.Future[Out]
    has_begun: bool = False
    """Its batch is under way, or over."""


class Stage(Generic[In, Out]):
    """Runs items in batches of at most `max_batch`, by at most `workers` batches at once.

    `run_batch` gets the items of a batch and returns one outcome for each, in their order; an
    outcome that is an exception is raised to the one caller it belongs to. If `run_batch` itself
    raises, every caller of the batch gets that exception.

    Waiting items are taken by urgency (daemon/urgency.py), hardly by arrival. So their number is
    not bounded: an urgent caller would have to wait for room behind the others. `submit` returns
    with the outcome, so there are never more items than callers, which the worker bounds.
    A caller that is cancelled leaves the queue; its batch, if it began, runs on without it.
    """

    def __init__(
        self,
        name: str,
        run_batch: RunBatch[In, Out] | None,
        *,
        max_batch: int = 1,
        workers: int = 1,
        turn: Turn[In, Out] | None = None,
    ) -> None:
        """Take nothing yet.

        Args:
            name: for tasks and errors.
            run_batch: see above; None where `turn` gives it.
            max_batch: most items of a batch.
            workers: most batches at once.
            turn: entered while something waits, before a batch is taken; what it gives runs the
                batch, which may be empty by then. So nothing is taken before it can be run.
        """
        self.name = name
        self._turn: Turn[In, Out] = turn or partial(_always, _given(run_batch))
        self.max_batch = max_batch
        """Most items of the next batch; may be changed at any time."""
        self._workers = workers
        self._waiting: Waiting[_Asked[In, Out]] = Waiting()
        self._came = asyncio.Event()
        self._taking = asyncio.Lock()
        """One worker at a time waits for its turn: the others would take turns to do nothing."""
        self._tasks: list[asyncio.Task[None]] = []
        self._closed = False

    async def __aenter__(self) -> Self:
        for number in range(self._workers):
            self._tasks.append(asyncio.create_task(self._work(), name=f"{self.name}-{number}"))
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def close(self) -> None:
        """Stop the workers; whoever still waits gets StageClosedError. Safe twice."""
        self._closed = True
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._tasks.clear()
        while self._waiting:
            asked = self._waiting.pop()
            if not asked.outcome.done():
                asked.outcome.set_exception(StageClosedError(self.name))

    @property
    def depth(self) -> int:
        """How many items wait."""
        return len(self._waiting)

    async def submit(self, item: In) -> Out:
        """Return the outcome of one item.

        Raises:
            StageClosedError: the stage is closed.
            Exception: whatever `run_batch` gave for this item.
        """
        return await self._put(item).outcome

    async def submit_to_end(self, item: In) -> Out:
        """As `submit`, but a caller cancelled after its batch began returns when that is over.

        For batches that change something: none can still undo what the caller does next.
        """
        asked = self._put(item)
        try:
            return await asyncio.shield(asked.outcome)
        except asyncio.CancelledError:
            if asked.has_begun:
                # Nobody else asks what came of it.
                asked.outcome.add_done_callback(asyncio.Future.exception)
                await asyncio.wait([asked.outcome])
            else:
                asked.outcome.cancel()
            raise

    def _put(self, item: In) -> _Asked[In, Out]:
        if self._closed:
            raise StageClosedError(self.name)
        asked = _Asked[In, Out](item, asyncio.get_running_loop().create_future())
        self._waiting.put(asked)
        self._came.set()
        return asked

    async def _work(self) -> None:
        while True:
            async with AsyncExitStack() as stack:
                # No name for the batch here: it would keep its items alive while nothing comes.
                await self._settle(*await self._next_batch(stack))

    async def _next_batch(
        self, stack: AsyncExitStack
    ) -> tuple[RunBatch[In, Out], list[_Asked[In, Out]]]:
        async with self._taking:
            await self._something_waits()
            run_batch = await stack.enter_async_context(self._turn())
            batch: list[_Asked[In, Out]] = []
            while len(batch) < self.max_batch and self._waiting:
                asked = self._waiting.pop()
                if not asked.outcome.done():
                    asked.has_begun = True
                    batch.append(asked)
            return run_batch, batch

    async def _something_waits(self) -> None:
        while not self._waiting:
            self._came.clear()
            await self._came.wait()

    async def _settle(self, run_batch: RunBatch[In, Out], batch: list[_Asked[In, Out]]) -> None:
        if not batch:
            return
        outcomes: Sequence[Out | Exception]
        try:
            outcomes = await run_batch([asked.item for asked in batch])
            if len(outcomes) != len(batch):
                raise RuntimeError(
                    f"stage {self.name}: {len(outcomes)} outcomes for {len(batch)} items"
                )
        except asyncio.CancelledError:
            for asked in batch:
                if not asked.outcome.done():
                    asked.outcome.set_exception(StageClosedError(self.name))
            raise
        except Exception as error:  # noqa: BLE001 - carried to every caller of the batch
            outcomes = [error] * len(batch)
        for asked, outcome in zip(batch, outcomes, strict=True):
            if asked.outcome.done():
                continue
            if isinstance(outcome, Exception):
                asked.outcome.set_exception(outcome)
            else:
                asked.outcome.set_result(outcome)


def _given(run_batch: RunBatch[In, Out] | None) -> RunBatch[In, Out]:
    if run_batch is None:
        raise ValueError("a stage needs run_batch, or a turn that gives it")
    return run_batch


def _always(run_batch: RunBatch[In, Out]) -> nullcontext[RunBatch[In, Out]]:
    return nullcontext(run_batch)
