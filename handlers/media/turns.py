"""Turns: a semaphore whose most urgent waiter is admitted next."""

import asyncio

from daemon.urgency import Waiting


class Turns:
    """Lets at most `count` in at a time, by `async with`; the others wait (daemon/urgency.py).

    As asyncio.Semaphore, which would let them in by arrival alone.
    """

    def __init__(self, count: int) -> None:
        self._free = count
        self._waiting: Waiting[asyncio.Future[None]] = Waiting()

    async def __aenter__(self) -> None:
        if self._free:
            self._free -= 1
            return
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.put(turn)
        try:
            await turn
        except asyncio.CancelledError:
            if turn.done() and not turn.cancelled():
                # It was given while we were being cancelled: the next has it.
                self._pass_on()
            raise

    async def __aexit__(self, *_: object) -> None:
        self._pass_on()

    def _pass_on(self) -> None:
        while self._waiting:
            turn = self._waiting.pop()
            if not turn.done():
                turn.set_result(None)
                return
        self._free += 1
