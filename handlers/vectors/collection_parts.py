"""The collections behind a store's fixed name: which one is read, which ones are written.

A collection that no record names is not made: whoever comes late, with what the record said before
another daemon dropped one, would leave it there for ever.

A write is done once every part that the record names has it. The record is read before and after,
since a change of the model may begin or end in between: without the second reading, a job that
began before a change and wrote after its end would lose its picture.
"""

from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import suppress
from typing import Literal, TypeVar

from handlers.qdrant.vector_engine import CollectionSpec, DroppedError, Point, VectorEngine
from handlers.qdrant.vector_points import stored_point, unit_vector
from handlers.vectors.model_record import MODELS, Part, Record, Records

BATCH = 128
"""Points sent in one call."""

T = TypeVar("T")


class CollectionParts:
    """The parts of one collection, in an open engine.

    Attributes:
        seen: the record as it was last read; it may have changed since.
    """

    def __init__(
        self,
        engine: VectorEngine,
        collection: str,
        dimension: int,
        indexes: Mapping[str, Literal["integer", "keyword"]],
        beside: Callable[[Part], Sequence[Part]] = lambda _: (),
    ) -> None:
        """Take the engine.

        Args:
            engine: opened, and closed by whoever opened it.
            collection: the fixed name.
            dimension: numbers in a vector where the record does not say.
            indexes: payload fields that filters use.
            beside: what else is kept of a part, in collections of its own.
        """
        self.engine = engine
        self.records = Records(engine, collection)
        self.seen: Record | None = None
        self._bare = Part(collection, "", "")
        self._dimension = dimension
        self._indexes = indexes
        self._beside = beside
        self._begun: set[str] = set()
        self._ensured: set[str] = set()
        self._has_records = False

    async def open(self) -> None:
        """Open the active part, creating it where it is absent.

        Raises:
            ConfigError: it holds other vectors, or the engine refuses us.
        """
        if MODELS.name in await self.engine.collections():
            await self.open_records()
        await self.ensure(await self.active())

    async def open_records(self) -> None:
        """Open the collection of records, creating it where it is absent."""
        await self.engine.ensure_collection(MODELS)
        self._has_records = True

    async def record(self) -> Record | None:
        """Read the record; None where nobody claimed the collection."""
        self.seen = await self.records.read() if self._has_records else None
        return self.seen

    async def active(self) -> Part:
        """Read the record; return the active part."""
        record = await self.record()
        return self._bare if record is None else record.active

    def dimension_of(self, part: Part) -> int:
        """Return how many numbers a vector has there."""
        return part.dimension or self._dimension

    async def ensure(self, part: Part) -> None:
        """Open a part's collection, creating it where it is absent.

        Raises:
            ConfigError: it holds other vectors, or the engine refuses us.
            DroppedError: it is absent, and the record names it no more.
        """
        physical = part.physical
        if physical in self._ensured:
            return

        async def is_wanted() -> bool:
            return await self._names(physical)

        is_new = await self.engine.ensure_collection(
            CollectionSpec(physical, self.dimension_of(part), self._indexes, is_wanted)
        )
        # After it was made: whoever drops it wrote the record first.
        if is_new and not await is_wanted():
            await self.drop(physical)
            raise DroppedError(physical)
        self._ensured.add(physical)

    async def begin(self, part: Part, write: Callable[[], Awaitable[None]]) -> None:
        """Open what no record names yet, creating it where it is absent, and write the record.

        Raises:
            ConfigError: as `ensure`; nothing was written.
        """
        self._begun.add(part.physical)
        try:
            await self.ensure(part)
            await write()
        finally:
            self._begun.discard(part.physical)

    async def drop(self, physical: str) -> None:
        """Delete a collection that the record does not name any more."""
        self._ensured.discard(physical)
        await self.engine.drop_collection(physical)

    async def has(self, physical: str) -> bool:
        """Whether there is such a collection now, whoever made or dropped it."""
        if physical in await self.engine.collections():
            return True
        self._ensured.discard(physical)
        return False

    async def everywhere(self, delete: Callable[[Part], Awaitable[None]]) -> None:
        """Delete something from every part, including the one kept for a rollback."""
        done: set[str] = set()
        while left := [part for part in await self._all() if part.physical not in done]:
            for part in left:
                # One that was dropped is in the record no more.
                with suppress(DroppedError):
                    await self.ensure(part)
                    await delete(part)
                    done.add(part.physical)

    async def write(
        self,
        items: Sequence[Mapping[str, T]],
        put: Callable[[Part, Sequence[T]], Awaitable[None]],
        *,
        claim_again: Callable[[], Awaitable[object]],
    ) -> list[tuple[Part, ...]]:
        """Store each item in every part that the record names, as that part's model sees it.

        Args:
            items: what is to be stored, as several models see it, by their fingerprints.
            put: stores items in one part, whose collection is there.
            claim_again: called where the record is gone: somebody deleted it.

        Returns:
            For each item the parts that it must still be embedded for. If there are any, it may
            have been stored in others already; write it again with what was missing.

        Raises:
            PermanentError: an item can't be stored.
        """
        record = await self.record()
        if record is None:
            await claim_again()
            record = await self.record()
        stored: list[set[str]] = [set() for _ in items]
        while True:
            wanted = (self._bare,) if record is None else record.written
            missing = [tuple(p for p in wanted if p.fingerprint not in each) for each in items]
            is_done = True
            for part in wanted:
                # Whole or not at all: what lacks a vector is given again, with all of them.
                left = [
                    number
                    for number, lacks in enumerate(missing)
                    if not lacks and part.physical not in stored[number]
                ]
                if left:
                    is_done = False
                    try:
                        await put(part, [items[number][part.fingerprint] for number in left])
                    except DroppedError:
                        break
                for number in left:
                    stored[number].add(part.physical)
            if is_done:
                return missing
            record = await self.record()

    async def upsert(self, part: Part, points: Sequence[Point]) -> None:
        """Store points in one part; of equal ids the last one counts.

        Raises:
            PermanentError: a point can't be stored; nothing was.
        """
        dimension = self.dimension_of(part)
        by_id = {}
        for point in points:
            stored = stored_point(point, dimension)
            by_id[stored.point_id] = stored
        await self._put(part, list(by_id.values()))

    async def put_stored(self, part: Part, points: Sequence[Point]) -> None:
        """Store points in one part in this order, with ids and payloads as they lie in another.

        Raises:
            PermanentError: a vector is not sound; nothing was stored.
        """
        dimension = self.dimension_of(part)
        ready = [
            Point(each.point_id, unit_vector(each.vector, dimension, "a point"), each.payload)
            for each in points
        ]
        await self._put(part, ready)

    async def _put(self, part: Part, ready: Sequence[Point]) -> None:
        if ready:
            await self.ensure(part)
        for start in range(0, len(ready), BATCH):
            await self.engine.upsert(part.physical, ready[start : start + BATCH])

    async def _names(self, physical: str) -> bool:
        """Return whether anybody needs a collection, by a reading of the record as it is now."""
        record = await self.records.read() if self._has_records else None
        if record is None or physical in self._begun:
            return True
        return any(
            physical == each.physical
            for part in record.parts
            for each in (part, *self._beside(part))
        )

    async def _all(self) -> tuple[Part, ...]:
        record = await self.record()
        return (self._bare,) if record is None else record.parts
