"""Waits for facts that ring no bell: `until` beside a loop, `wait_until` in plain code."""

import asyncio
import time
from collections.abc import Callable

SECONDS = 60.0
"""Far beyond what any fact takes on a slow machine; a test that gets here has failed."""


async def until(fact: Callable[[], object], seconds: float = SECONDS) -> None:
    """Return once it is true; TimeoutError after so many seconds."""
    async with asyncio.timeout(seconds):
        while not fact():  # noqa: ASYNC110 - facts of many kinds, and most ring no bell
            await asyncio.sleep(0.005)


def wait_until(fact: Callable[[], object], seconds: float = SECONDS) -> None:
    """Return once it is true; AssertionError after so many seconds."""
    ends_at = time.monotonic() + seconds
    while not fact():
        assert time.monotonic() < ends_at, "it never came true"
        time.sleep(0.02)
