"""ModelCopy: one copy of a model: how many go together to its lane, and what waits for it there."""

import asyncio
import logging
import math
from collections.abc import Sequence
from typing import Generic

from handlers.inference import Buffers, Result
from handlers.lanes.memory_ladder import Item, Outcome
from handlers.lanes.model_life import Elsewhere, ModelLife

log = logging.getLogger(__name__)

MORE_THAN_A_SHARE = 4 / 3
"""What a pass takes of its share of what waits. With the default of jobs in flight, 16 a core, some
10 wait for two passes of 8: at 1 these would be 5 to 8, and cost 1 % more a picture."""


class ModelCopy(Generic[Result]):
    """Brings batches to its lane; all of it is for the event loop.

    Attributes:
        life: what is done on the lane's own thread, and what is told of it.
        inference: the copy.
        lane: where it runs.
        batches: how many it was given.
        inputs: how many pictures, faces or texts were in them.
    """

    def __init__(
        self, life: ModelLife[Result], *, max_batch: int, idle_seconds: float, is_only: bool
    ) -> None:
        """Take a copy that was put on its lane.

        Args:
            life: the copy.
            max_batch: most buffers in one pass.
            idle_seconds: after so long without use it is unloaded; 0 = never.
            is_only: there is no other copy.
        """
        self.life = life
        self.inference = life.inference
        self.lane = life.lane
        self._max_batch = max_batch
        self._idle_seconds = idle_seconds
        self._is_only = is_only
        self._has_lane = 0
        """How many batches have the lane's own thread, or wait for it."""
        self.batches = 0
        self.inputs = 0

    @property
    def room(self) -> int:
        """How many batches may be in hand on its lane, one of its own included."""
        if self.inference.prepares:
            return 2
        return 1 if self._has_lane or not self.life.is_well else self.inference.beside

    def most(self, waiting: int) -> int:
        """Return how many of those that wait it takes together, with a turn.

        Beside others a pass takes its share of what waits and a little more. So at the end of a
        backlog all cores end at about the same time, where the last full pass would leave the
        others nothing to do; and amid it passes are full, which take less time a picture.
        """
        batch = self.inference.batch
        if batch is None:
            return self._max_batch
        if not (self._may_go_beside and self.lane.in_hand > 1):
            return min(self._max_batch, batch.size)
        share = math.ceil(waiting * MORE_THAN_A_SHARE / batch.passes)
        return min(self._max_batch, batch.per_pass, max(1, share))

    async def load(self) -> None:
        """Load it now instead of at first use.

        Raises:
            ConfigError: it cannot be loaded.
            OutOfMemoryError: there is no room for it for now.
        """
        await self.lane.run(self.life.load)

    async def wait_for_lane(self) -> None:
        """Return once a batch would not wait for whatever has the lane's own thread; with a turn.

        An urgent picture that comes meanwhile would have to wait for that batch as well. Of several
        copies none waits: the others would wait with it.
        """
        if self._is_only and self.lane.is_taken and not self.inference.prepares:
            await self.lane.run(lambda: None)

    async def run(self, items: Sequence[Item]) -> Sequence[Outcome[Result] | Elsewhere]:
        """Return an outcome for each item, in order; with a turn on the lane only."""
        self.life.mark_use()
        self.batches += 1
        self.inputs += len(items)
        if self._goes_beside(len(items)):
            found = await self.lane.run_beside(self.life.infer_beside, items)
            if found is not None:
                return found
        prepared = None
        if self.lane.in_hand > 1 and self.inference.prepares:
            # Another batch has the lane: what of this one needs no device is done meanwhile.
            prepared = await self._prepared([buffer for buffer, _ in items])
        self._has_lane += 1
        try:
            return await self.lane.run(self.life.infer, items, prepared)
        finally:
            self._has_lane -= 1

    def _goes_beside(self, count: int) -> bool:
        """Whether so many go beside others that run, or are enough to keep all passes busy."""
        is_enough = count >= self.inference.beside or self.lane.in_hand > 1
        return is_enough and self._may_go_beside

    @property
    def _may_go_beside(self) -> bool:
        # Who has the lane's own thread has the device for itself: the next one waits for it there.
        return self.inference.beside > 1 and self.life.is_well and not self.lane.is_taken

    async def _prepared(self, buffers: Buffers) -> Buffers | None:
        try:
            return await asyncio.to_thread(self.inference.prepare, buffers)
        except Exception:
            # The pass itself will tell, if it is more than this.
            log.exception("a batch of %s could not be prepared", self.life.name)
            return None

    async def test(self) -> None:
        """Test it where it is loaded; `error` tells what was found."""
        await self.lane.run(self.life.test)

    async def unload_when_idle(self) -> None:
        """Unload it whenever it was idle for long; it loads again by itself."""
        while True:
            left = self.life.idle_left()
            # Whatever is loaded meanwhile is used no earlier than now.
            is_loaded = self.inference.is_loaded
            await asyncio.sleep(left if is_loaded and left > 0 else self._idle_seconds)
            try:
                await self.lane.run(self.life.unload_if_idle)
            except Exception:
                log.exception("%s could not be unloaded", self.life.name)

    async def settle_on_cpu(self) -> None:
        """Run on the CPU from now on, for good.

        Raises:
            ConfigError: it cannot be loaded there either.
            OutOfMemoryError: there is no room for it.
        """
        await self.lane.run(self.life.settle_on_cpu)
