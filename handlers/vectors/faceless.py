"""Faceless: keeps the pictures in which a model found no face, since they have no vector.

Else a change of the model would do them again and again, and a new detector would never see them.
They are kept beside each part of `face_embeddings`, in a collection of points without a direction,
made when the first one comes. Where a picture has faces too, what is kept here is of before.
"""

from collections.abc import Sequence

import numpy as np

from daemon.jobs import JsonObject
from handlers.inference import Provenance
from handlers.qdrant.vector_engine import Filter, Page, Point, PointId
from handlers.vectors.collection_parts import CollectionParts
from handlers.vectors.model_record import Part, physical_name

DETECTOR = "detector"
"""Payload field: the fingerprint of what found none."""
FOUND_BY = "found_by"
"""Payload field of every face, too: what looked for it, in the words of a job's result. Results of
another detector tell nothing of how many faces are stored."""
_NO_VECTOR = np.ones(1, np.float32)
"""Engines want one with every point."""


def found_by(detector: Provenance) -> str:
    """Return what is kept of what looked for faces."""
    return f"{detector.model} {detector.weights}"


def faceless_part(collection: str, part: Part) -> Part:
    """Return the collection beside a part; copies and backups know it by its name."""
    name = physical_name(collection, f"{part.fingerprint}:faceless")
    return Part(name, name, part.model, dimension=1)


class Faceless:
    """The pictures without a face of one part, under their media_store_ids."""

    def __init__(self, parts: CollectionParts, collection: str, part: Part) -> None:
        self._parts = parts
        self._beside = faceless_part(collection, part)

    async def add(self, media_store_id: int, payload: JsonObject) -> None:
        """Keep a picture, in the place of what was kept of it before.

        Args:
            media_store_id: the picture.
            payload: as its job's, and with `DETECTOR`.
        """
        await self._parts.has(self._beside.physical)
        await self._parts.upsert(self._beside, [Point(media_store_id, _NO_VECTOR, payload)])

    async def count(self) -> int:
        """Return how many there are."""
        if not await self._is_there():
            return 0
        return await self._parts.engine.count(self._beside.physical)

    async def page(self, from_id: PointId | None, limit: int) -> Page:
        """Return the next ones by id."""
        if not await self._is_there():
            return Page([], None)
        return await self._parts.engine.scroll(
            self._beside.physical, from_id=from_id, limit=limit, with_vectors=False
        )

    async def of(self, media_store_ids: Sequence[int]) -> list[Point]:
        """Return those of the pictures that are kept here."""
        if not media_store_ids or not await self._is_there():
            return []
        return await self._parts.engine.retrieve(
            self._beside.physical, media_store_ids, with_vectors=False
        )

    async def remove(self, media_store_ids: Sequence[int]) -> None:
        """Forget pictures."""
        if media_store_ids and await self._is_there():
            await self._parts.engine.delete(self._beside.physical, media_store_ids)

    async def remove_where(self, where: Filter) -> None:
        """Forget the pictures that match a filter."""
        if await self._is_there():
            await self._parts.engine.delete_where(self._beside.physical, where)

    async def _is_there(self) -> bool:
        if not await self._parts.has(self._beside.physical):
            return False
        await self._parts.ensure(self._beside)
        return True
