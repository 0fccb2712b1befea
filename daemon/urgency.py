"""Whose turn is first, wherever callers wait for one another: what a job brings as it runs."""

import asyncio
import heapq
import itertools
from contextvars import ContextVar
from types import TracebackType

SOONEST = -(2**63)
"""Before any job, whatever its rank: somebody waits for the answer."""

URGENCY: ContextVar[int] = ContextVar("urgency", default=SOONEST)
"""The running job's rank, as the queue orders by it: less is sooner."""


class Turns:
    """A semaphore that lets the most urgent caller in first, then by arrival; a context manager."""

    def __init__(self, count: int) -> None:
        self._free = count
        self._waiting: list[tuple[int, int, asyncio.Future[None]]] = []
        self._arrivals = itertools.count()

    async def __aenter__(self) -> None:
        if self._free:
            self._free -= 1
            return
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        heapq.heappush(self._waiting, (URGENCY.get(), next(self._arrivals), turn))
        try:
            await turn
        except asyncio.CancelledError:
            if not turn.cancelled():
                # Our turn came at the same moment: somebody else's, then.
                self._pass_on()
            raise

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._pass_on()

    def _pass_on(self) -> None:
        while self._waiting:
            *_, turn = heapq.heappop(self._waiting)
            if not turn.done():
                turn.set_result(None)
                return
        self._free += 1
