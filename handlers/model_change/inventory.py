"""Inventory: what one part of a collection has, in the units that a change of the model goes by.

A unit is what is embedded together: a picture's one vector, or all faces of a picture.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, TypeAlias

from daemon.jobs import JsonObject
from handlers.qdrant.vector_engine import Point, PointId

PAGE = 256
Cursor: TypeAlias = tuple[int, PointId | None]
"""Where the next page of an inventory begins; what the number says is the inventory's business."""
BEGIN: Cursor = (0, None)


@dataclass(frozen=True, slots=True)
class Unit:
    """What is embedded together."""

    key: PointId
    """The same in every part."""
    job_id: str | None
    """What stored it: equal in two parts that are up to date with each other."""
    points: Sequence[Point] = ()
    """As they lie in the part; without vectors where they were read."""
    is_whole: bool = True
    """Nothing of another job is among them, and none is known to be missing."""
    faceless: JsonObject | None = None
    """Of a picture: what is kept of it where it has no points (faceless)."""


class Inventory(Protocol):
    """Reads and writes the units of one part, whose collection is there."""

    async def count(self) -> int:
        """Return how many units there are, as far as can be told quickly."""

    async def page(self, cursor: Cursor) -> tuple[list[Unit], Cursor | None]:
        """Return some units, and where the next ones begin; None after the last ones.

        A unit may come more than once. One that is written meanwhile may be missed.
        """

    async def of(self, keys: Sequence[PointId]) -> dict[PointId, Unit]:
        """Return those of the units that are there."""

    async def put(self, changes: Sequence[tuple[Unit, Unit | None]]) -> None:
        """Store units, with vectors, in the place of what was read of them before.

        What a job writes meanwhile is never mistaken for what is put here, nor left half removed.

        Raises:
            PermanentError: a vector is not sound.
        """

    async def remove(self, units: Sequence[Unit]) -> None:
        """Remove units as they were read."""


def job_of(point: Point) -> str | None:
    """Return which job stored a point; None where it does not say."""
    job_id = point.payload.get("job_id")
    return None if job_id is None else str(job_id)
