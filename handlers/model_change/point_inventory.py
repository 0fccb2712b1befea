"""PointInventory: the inventory of a collection in which each point is a unit by itself."""

from collections.abc import Sequence

from handlers.model_change.inventory import PAGE, Cursor, Unit, job_of
from handlers.qdrant.vector_engine import Point, PointId
from handlers.vectors.model_record import Part
from handlers.vectors.qdrant_store import QdrantStore


class PointInventory:
    """See Inventory; a unit's key is its point's id."""

    def __init__(self, store: QdrantStore, part: Part) -> None:
        self._view = store.at(part)
        self._part = part

    async def count(self) -> int:
        """Return how many points there are."""
        return await self._view.count()

    async def page(self, cursor: Cursor) -> tuple[list[Unit], Cursor | None]:
        """Return the next points by id."""
        page = await self._view.page(cursor[1], limit=PAGE)
        units = [_unit(point) for point in page.points]
        return units, None if page.next_id is None else (0, page.next_id)

    async def of(self, keys: Sequence[PointId]) -> dict[PointId, Unit]:
        """Return those of the points that are there."""
        return {point.point_id: _unit(point) for point in await self._view.payloads(keys)}

    async def put(self, changes: Sequence[tuple[Unit, Unit | None]]) -> None:
        """Store points over those of the same ids."""
        points = [point for unit, _ in changes for point in unit.points]
        await self._view.parts.put_stored(self._part, points)

    async def remove(self, units: Sequence[Unit]) -> None:
        """Delete points."""
        await self._view.remove([unit.key for unit in units])


def _unit(point: Point) -> Unit:
    return Unit(point.point_id, job_of(point), (point,))
