"""How long an answer may take, and what is answered instead."""

import asyncio
from collections.abc import Awaitable
from typing import TypeVar

from daemon.errors import RetryableError
from daemon.stage import StageClosedError
from http_shim.errors import DrainingError

T = TypeVar("T")


async def within(answering: Awaitable[T], seconds: float) -> T:
    """Return the answer.

    Raises:
        RetryableError: code timeout; it took longer.
        DrainingError: the daemon stopped meanwhile.
        Exception: whatever the answering raised.
    """
    try:
        async with asyncio.timeout(seconds):
            return await answering
    except StageClosedError:
        raise DrainingError("the daemon is stopping") from None
    except TimeoutError:
        raise RetryableError(f"the answer took longer than {seconds:g} s", code="timeout") from None
