"""FaceInventory: the inventory of a collection in which all faces of a picture are one unit.

How many there are is each detector's own business, and none is no less a result than some. So two
parts are compared by the job alone that stored a picture's faces. That needs each unit to be whole:
face 0 is always written last, so that a picture without it was cut short.
"""

from collections import defaultdict
from collections.abc import Sequence
from uuid import UUID

from handlers.face_store import QdrantFaceStore
from handlers.model_change.inventory import PAGE, Cursor, Unit, job_of
from handlers.qdrant.vector_engine import Equals, Filter, HasId, OneOf, Point, PointId
from handlers.qdrant.vector_points import MAX_INT_ID, face_point_id
from handlers.vectors.faceless import Faceless
from handlers.vectors.model_record import Part

_FACES, _FACELESS = range(2)
"""What the number of a cursor says."""
_MANY = 1000
"""Points asked for in one call."""


class FaceInventory:
    """See Inventory.

    A unit's key is the picture's media_store_id; of a point that names no picture its own id,
    written as a UUID.
    """

    def __init__(self, store: QdrantFaceStore, part: Part) -> None:
        self._view = store.at(part)
        self._part = part
        self._parts = store.parts
        self._faceless = Faceless(store.parts, store.collection, part)

    async def count(self) -> int:
        """Return how many pictures there are, with and without faces."""
        firsts = Filter.where(Equals("face_index", 0))
        count = await self._parts.engine.count(self._part.physical, firsts)
        return count + await self._faceless.count()

    async def page(self, cursor: Cursor) -> tuple[list[Unit], Cursor | None]:
        """Return the pictures of the next points; behind all points those without a face."""
        stage, from_id = cursor
        if stage == _FACELESS:
            page = await self._faceless.page(from_id, PAGE)
            keys = [int(point.point_id) for point in page.points]
            units = list((await self._of_pictures(keys)).values())
            return [unit for unit in units if not unit.points], (
                None if page.next_id is None else (_FACELESS, page.next_id)
            )
        page = await self._view.page(from_id, limit=PAGE)
        units = [_stranger(point) for point in page.points if _picture(point) is None]
        units += (await self._of_pictures(await self._begun_in(page.points))).values()
        return units, (_FACELESS, None) if page.next_id is None else (_FACES, page.next_id)

    async def of(self, keys: Sequence[PointId]) -> dict[PointId, Unit]:
        """Return those of the units that are there."""
        found = await self._of_pictures([key for key in keys if isinstance(key, int)])
        strangers = [key for key in keys if isinstance(key, str)]
        ids = [each for key in strangers for each in _ids_of(key)]
        points = await self._view.payloads(ids) if ids else []
        units = [_stranger(point) for point in points if _picture(point) is None]
        return {**found, **{unit.key: unit for unit in units}}

    async def put(self, changes: Sequence[tuple[Unit, Unit | None]]) -> None:
        """Store pictures' faces, once those that were read are gone."""
        for _, old in changes:
            if old is not None:
                await self._delete(old)
        # Face 0 last; see the top of this file.
        points = [point for unit, _ in changes for point in reversed(unit.points)]
        await self._parts.put_stored(self._part, points)
        for unit, _ in changes:
            if not unit.points and isinstance(unit.key, int):
                await self._faceless.add(unit.key, unit.faceless or {})

    async def remove(self, units: Sequence[Unit]) -> None:
        """Remove units as they were read."""
        for unit in units:
            await self._delete(unit)
        await self._faceless.remove([unit.key for unit in units if isinstance(unit.key, int)])

    async def _delete(self, unit: Unit) -> None:
        """Delete a unit's points, but none that another job wrote over them meanwhile."""
        by_job: dict[str | None, list[PointId]] = defaultdict(list)
        for point in unit.points:
            said = point.payload.get("job_id")
            by_job[said if isinstance(said, str) else None].append(point.point_id)
        for job_id, ids in by_job.items():
            if job_id is None:
                await self._parts.engine.delete(self._part.physical, ids)
            else:
                where = Filter.where(HasId(tuple(ids)), Equals("job_id", job_id))
                await self._parts.engine.delete_where(self._part.physical, where)

    async def _begun_in(self, points: Sequence[Point]) -> list[int]:
        """Return the pictures whose face 0 is among these points, or of which it is nowhere."""
        found: set[int] = set()
        firsts: dict[PointId, int] = {}
        for point in points:
            media_store_id = _picture(point)
            if media_store_id is None:
                continue
            first = face_point_id(media_store_id, 0)
            if point.point_id == first:
                found.add(media_store_id)
            else:
                firsts[first] = media_store_id
        there = {point.point_id for point in await self._view.payloads(list(firsts))}
        found |= {picture for first, picture in firsts.items() if first not in there}
        return sorted(found)

    async def _of_pictures(self, media_store_ids: Sequence[int]) -> dict[PointId, Unit]:
        if not media_store_ids:
            return {}
        faces: dict[int, list[Point]] = defaultdict(list)
        where = Filter.where(OneOf("media_store_id", tuple(media_store_ids)))
        from_id: PointId | None = None
        while True:
            page = await self._view.page(from_id, limit=_MANY, where=where)
            for point in page.points:
                if (media_store_id := _picture(point)) is not None:
                    faces[media_store_id].append(point)
            if (from_id := page.next_id) is None:
                break
        units: dict[PointId, Unit] = {key: _unit(key, points) for key, points in faces.items()}
        without = [each for each in media_store_ids if each not in faces]
        for point in await self._faceless.of(without):
            units[point.point_id] = Unit(point.point_id, job_of(point), faceless=point.payload)
        return units


def _unit(media_store_id: int, points: Sequence[Point]) -> Unit:
    latest = max(points, key=_age)
    jobs = {job_of(point) for point in points}
    first = face_point_id(media_store_id, 0)
    is_whole = len(jobs) == 1 and any(point.point_id == first for point in points)
    return Unit(
        media_store_id, job_of(latest), [latest, *(p for p in points if p is not latest)], is_whole
    )


def _age(point: Point) -> tuple[int, str]:
    """Return what the latest of a picture's points has the most of."""
    stored_at = point.payload.get("stored_at")
    return stored_at if isinstance(stored_at, int) else 0, job_of(point) or ""


def _picture(point: Point) -> int | None:
    """Return which picture a point is of; None where it names none that could be fetched."""
    named = point.payload.get("media_store_id")
    is_one = isinstance(named, int) and not isinstance(named, bool) and 0 <= named <= MAX_INT_ID
    return named if is_one else None


def _stranger(point: Point) -> Unit:
    key = point.point_id
    return Unit(str(UUID(int=key)) if isinstance(key, int) else key, job_of(point), (point,))


def _ids_of(key: str) -> list[PointId]:
    """Return the ids that a stranger's key may stand for."""
    number = UUID(key).int
    return [key, number] if number <= MAX_INT_ID else [key]
