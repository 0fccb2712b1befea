"""A wake-up that cannot be missed: rings are counted, so a ring before the wait is heard too."""

import asyncio
import contextlib


class Bell:
    """Rung by whoever changes something; waited for by loops that would else poll."""

    def __init__(self) -> None:
        self.rings = 0
        self._waiters: set[asyncio.Future[None]] = set()

    def ring(self) -> None:
        """Wake everyone who waits."""
        self.rings += 1
        for waiter in self._waiters:
            if not waiter.done():
                waiter.set_result(None)

    async def wait(self, heard: int, *, timeout_seconds: float) -> None:
        """Return once the bell has rung more than `heard` times, or after the timeout."""
        if self.rings > heard:
            return
        waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiters.add(waiter)
        try:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(timeout_seconds):
                    await waiter
        finally:
            self._waiters.discard(waiter)
