"""ServerLife: which process of a Qdrant server answers, by which its starts are noticed.

A server confirms what is in its log's pages, and those reach the disk with its next flush: its own
death loses nothing, that of its machine what came since. Only a new process can have lost anything.
"""

from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from handlers.qdrant.vector_engine import SharedEngine


@dataclass(frozen=True, slots=True)
class ServerLife:
    """One process of the server."""

    name: str | None
    """Another one for each process; None where the server does not tell it to us."""
    flush_seconds: float
    """At most so long is what it confirmed on no disk, as the collections are configured."""


@runtime_checkable
class _Server(Protocol):
    async def life(self) -> ServerLife:
        """Return which process answers."""


async def life_of(engine: SharedEngine) -> ServerLife:
    """Return which process of the engine's server answers now.

    Raises:
        RetryableError: nobody does.
        ConfigError: the engine cannot be opened.
    """
    opened = await engine.open()
    try:
        return await opened.life() if isinstance(opened, _Server) else ServerLife(None, 0)
    finally:
        await engine.close()
