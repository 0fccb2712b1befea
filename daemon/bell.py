"""A wake-up that cannot be missed: rings are counted, so a ring before the wait is heard too."""

import asyncio


class Bell:
    """Rung by code that changes something; awaited by loops that would otherwise poll."""

    def __init__(self) -> None:
        self.rings = 0
        self._waiters: set[asyncio.Future[None]] = set()

    def ring(self) -> None:
        """Wake everyone who waits."""
        self.rings += 1
        for waiter in self._waiters:
            _wake(waiter)

    async def wait(self, heard: int, *, timeout_seconds: float) -> None:
        """Return once the bell has rung more than `heard` times, or after the timeout."""
        await wait_any({self: heard}, timeout_seconds=timeout_seconds)


async def wait_any(heard: dict[Bell, int], *, timeout_seconds: float) -> None:
    """Return once one of the bells has rung more often than its number, or after the timeout."""
    if any(bell.rings > rings for bell, rings in heard.items()):
        return
    loop = asyncio.get_running_loop()
    waiter: asyncio.Future[None] = loop.create_future()
    timer = loop.call_later(timeout_seconds, _wake, waiter)
    for bell in heard:
        bell._waiters.add(waiter)  # noqa: SLF001 - this module's own
    try:
        await waiter
    finally:
        timer.cancel()
        for bell in heard:
            bell._waiters.discard(waiter)  # noqa: SLF001 - this module's own


def _wake(waiter: asyncio.Future[None]) -> None:
    if not waiter.done():
        waiter.set_result(None)
