"""Holds the writes of a collection of the embedded engine while its folder is copied or swapped."""

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager


class WriteGate:
    """What every write of an engine passes, and who wants its folder still holds."""

    def __init__(self) -> None:
        self._closed: dict[str, asyncio.Event] = {}
        self._waiting: dict[str, list[float]] = {}
        """Since when each who waits does, the first one first."""

    async def passing(self, collection: str) -> None:
        """Return once the collection may be written to."""
        while (closed := self._closed.get(collection)) is not None:
            waiting, since = self._waiting.setdefault(collection, []), time.monotonic()
            waiting.append(since)
            try:
                await closed.wait()
            finally:
                # Who gave up waits no longer.
                waiting.remove(since)

    def waited(self, collection: str) -> float:
        """Return for how many seconds somebody has been waiting now; 0 if nobody is. Any thread."""
        since = next(iter(self._waiting.get(collection, ())), None)
        return 0.0 if since is None else time.monotonic() - since

    @asynccontextmanager
    async def hold(self, collection: str) -> AsyncIterator[None]:
        """Let no write begin meanwhile; those that have begun are the thread's to end first.

        Whoever else holds it is waited for.
        """
        await self.passing(collection)
        opened = self._closed[collection] = asyncio.Event()
        try:
            yield
        finally:
            del self._closed[collection]
            opened.set()
