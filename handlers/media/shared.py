"""Work and resources shared by all who want the same at one time: made once, kept while used."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Hashable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any, Generic, TypeVar

K = TypeVar("K", bound=Hashable)
T = TypeVar("T")


class Once(Generic[T]):
    """A result that is worked out once, for everybody who asks.

    The work goes on while anybody waits for it, whoever asked first; once nobody does it is
    cancelled. A failure is told to those who wait, and the next who asks has it tried again.
    """

    def __init__(self, work: Callable[[], Awaitable[T]]) -> None:
        self._work = work
        self._task: asyncio.Task[T] | None = None
        self._waiting = 0

    async def get(self) -> T:
        """Return the result.

        Raises:
            Exception: whatever the work raised.
        """
        if self._task is None:
            self._task = asyncio.create_task(self._run())
        task = self._task
        self._waiting += 1
        try:
            # Who leaves must not take the work along from those who stay.
            return await asyncio.shield(task)
        finally:
            self._waiting -= 1
            if not self._waiting and not task.done():
                self._task = None
                task.cancel()

    async def _run(self) -> T:
        try:
            return await self._work()
        except Exception:
            self._task = None
            raise


class Shared(Generic[K, T]):
    """Things that exist while somebody holds them: one for each key, for all who hold it.

    What `make` gives for a key is entered when the first comes, and left when the last has gone.
    """

    def __init__(self, make: Callable[[K], AbstractAsyncContextManager[T]]) -> None:
        self._make = make
        self._things: dict[K, _Thing[T]] = {}
        # The loop itself keeps no task alive.
        self._tasks: set[asyncio.Task[None]] = set()

    def __len__(self) -> int:
        """Return how many things are held, or being made."""
        return len(self._things)

    @asynccontextmanager
    async def hold(self, key: K) -> AsyncIterator[T]:
        """Give the thing of a key, made now where nobody holds it.

        Raises:
            Exception: whatever `make` raised on entering, for all who waited for it.
        """
        thing = self._things.get(key)
        if thing is None or thing.has_failed:
            thing = self._things[key] = _Thing()
            self._start(thing.live(self._make(key)))
        thing.holders += 1
        try:
            yield await asyncio.shield(thing.ready)
        finally:
            thing.holders -= 1
            if not thing.holders:
                if self._things.get(key) is thing:
                    del self._things[key]
                thing.leave()

    def _start(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


class _Thing(Generic[T]):
    """One context, entered and left by one task, whoever comes and goes meanwhile."""

    def __init__(self) -> None:
        self.holders = 0
        self.ready: asyncio.Future[T] = asyncio.get_running_loop().create_future()
        self._left = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    @property
    def has_failed(self) -> bool:
        return self.ready.done() and (self.ready.cancelled() or self.ready.exception() is not None)

    def leave(self) -> None:
        """Let the context be left, or no longer entered."""
        self._left.set()
        if not self.ready.done():
            self.ready.cancel()
            if self._task is not None:
                self._task.cancel()

    async def live(self, context: AbstractAsyncContextManager[T]) -> None:
        self._task = asyncio.current_task()
        if self._left.is_set():
            return
        try:
            value = await context.__aenter__()
        except Exception as error:  # noqa: BLE001 - carried to those who wait
            if not self.ready.done():
                self.ready.set_exception(error)
                # It counts as told: who waited may be gone by now.
                self.ready.exception()
            return
        try:
            if not self.ready.done():
                self.ready.set_result(value)
            await self._left.wait()
        finally:
            await context.__aexit__(None, None, None)
