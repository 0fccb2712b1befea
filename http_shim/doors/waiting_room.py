"""WaitingRoom: bounds how many requests are answered at a time, and how many may wait."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from http_shim.search_door import BusyError


class WaitingRoom:
    """Admits so many at a time; so many more wait, for so long; all others are refused at once.

    Of a waiting request only the head was read, so that waiting costs no more than a socket.
    """

    def __init__(self, *, places: int, waiting: int, seconds: float) -> None:
        """Take how many are let in, how many may wait, and for how long."""
        self._places = asyncio.Semaphore(places)
        self._most_waiting = waiting
        self._seconds = seconds
        self._waiting = 0

    @asynccontextmanager
    async def enter(self) -> AsyncIterator[None]:
        """Hold a place while the block runs.

        Raises:
            BusyError: too many wait already, or no place became free in time.
        """
        if self._places.locked() and self._waiting >= self._most_waiting:
            raise BusyError(f"{self._waiting} requests wait already")
        self._waiting += 1
        try:
            async with asyncio.timeout(self._seconds):
                await self._places.acquire()
        except TimeoutError:
            raise BusyError(f"no place became free within {self._seconds:g} s") from None
        finally:
            self._waiting -= 1
        try:
            yield
        finally:
            self._places.release()
