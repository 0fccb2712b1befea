"""The lease of a model change: of several daemons on one Qdrant server, one embeds again.

Only one may: a pass that finds no difference proves nothing while another daemon writes what it
read before. No engine of ours compares before it writes, so who takes the lease looks again after a
while whether it was alone; and nobody writes beyond its time. How far the holder is stands there
too, for the others to tell. Lost, it costs a wait.
"""

import asyncio
import time
from collections.abc import Callable
from uuid import uuid4

import numpy as np

from daemon.jobs import JsonObject
from handlers.qdrant.vector_engine import Point, VectorEngine
from handlers.qdrant.vector_points import model_point_id
from handlers.vectors.model_record import MODELS

LEASE_SECONDS = 120.0
RENEW_SECONDS = 20.0
SETTLE_SECONDS = 1.0
"""So long after taking it one looks again: two may have taken it at once."""
MARGIN_SECONDS = 30.0
"""Nothing is written so near to its end: the server's timeout and two clocks fit in."""


class Lease:
    """The right to fill the shadow of one collection."""

    def __init__(
        self, engine: VectorEngine, collection: str, *, clock: Callable[[], int], is_alone: bool
    ) -> None:
        """Hold nothing yet.

        Args:
            engine: where it is kept.
            collection: whose.
            clock: epoch milliseconds.
            is_alone: nobody else can open these vectors, so that it is always ours.
        """
        self._engine = engine
        self._id = model_point_id(f"{collection}:lease")
        self._clock = clock
        self._is_alone = is_alone
        self._owner = str(uuid4())
        self._taken_at: float | None = None
        self.told: JsonObject | None = None
        """How far another holder is, as it was read last."""

    @property
    def is_safe(self) -> bool:
        """Whether something may be written by it."""
        if self._is_alone:
            return True
        if self._taken_at is None:
            return False
        return time.monotonic() < self._taken_at + LEASE_SECONDS - MARGIN_SECONDS

    async def take(self, told: JsonObject) -> bool:
        """Take or keep it; return whether it is ours.

        Args:
            told: how far we are.
        """
        if self._is_alone:
            return True
        if self.is_safe and self._taken_at is not None:
            if time.monotonic() - self._taken_at < RENEW_SECONDS:
                return True
            if await self._is_ours():
                await self._write(told)
                return True
            self._taken_at = None
            return False
        held = await self._read()
        if held and held.get("owner") != self._owner and held.get("until", 0) > self._clock():
            self.told = held.get("told")
            return False
        await self._write(told)
        await asyncio.sleep(SETTLE_SECONDS)
        if not await self._is_ours():
            self._taken_at = None
            return False
        self.told = None
        return True

    async def give_back(self) -> None:
        """Let another one have it at once."""
        if self._taken_at is not None:
            self._taken_at = None
            if await self._is_ours():
                await self._engine.delete(MODELS.name, [self._id])

    async def _is_ours(self) -> bool:
        return (await self._read()).get("owner") == self._owner

    async def _read(self) -> JsonObject:
        found = await self._engine.retrieve(MODELS.name, [self._id], with_vectors=False)
        return found[0].payload if found else {}

    async def _write(self, told: JsonObject) -> None:
        taken_at = time.monotonic()
        until = self._clock() + int(1000 * LEASE_SECONDS)
        payload = {"owner": self._owner, "until": until, "told": told}
        await self._engine.upsert(MODELS.name, [Point(self._id, np.ones(1, np.float32), payload)])
        self._taken_at = taken_at
