"""The pictures that a shadow goes without, since they can never be embedded as they are.

Kept in `inferd_models`, so that a daemon that was killed need not try them all again.
"""

from dataclasses import dataclass
from uuid import uuid5

import numpy as np

from daemon.jobs import JsonObject
from handlers.qdrant.vector_engine import Equals, Filter, Point, PointId, VectorEngine
from handlers.qdrant.vector_points import NAMESPACE, legal_id
from handlers.vectors.model_record import MODELS

_FIELD = "failed_of"
_NO_VECTOR = np.ones(1, np.float32)


@dataclass(frozen=True, slots=True)
class Failure:
    """A point that has no counterpart in the shadow."""

    point_id: PointId
    """As the engine has it."""
    job_id: str | None
    """What stored the point: what another job stored is tried again."""
    code: str
    message: str

    def to_wire(self) -> JsonObject:
        """Return it as it is told."""
        return {"point_id": self.point_id, "code": self.code, "message": self.message}


class Failures:
    """Those of one part, read once, then kept with every change."""

    def __init__(self, engine: VectorEngine, physical: str) -> None:
        self._engine = engine
        self._physical = physical
        self.by_id: dict[PointId, Failure] = {}

    async def read(self) -> None:
        """Read what was kept."""
        from_id: PointId | None = None
        found = {}
        while True:
            page = await self._engine.scroll(
                MODELS.name, where=self._all, from_id=from_id, with_vectors=False
            )
            for point in page.points:
                failure = _failure(point.payload)
                found[failure.point_id] = failure
            if (from_id := page.next_id) is None:
                self.by_id = found
                return

    async def add(self, failure: Failure) -> None:
        """Keep a failure, in the place of an earlier one of the same point."""
        payload = {
            _FIELD: self._physical,
            "point_id": str(failure.point_id),
            "job_id": failure.job_id,
            "code": failure.code,
            "message": failure.message,
        }
        await self._engine.upsert(
            MODELS.name, [Point(self._id(failure.point_id), _NO_VECTOR, payload)]
        )
        self.by_id[failure.point_id] = failure

    async def remove(self, point_id: PointId) -> None:
        """Forget the failure of a point."""
        if point_id in self.by_id:
            await self._engine.delete(MODELS.name, [self._id(point_id)])
            del self.by_id[point_id]

    async def clear(self) -> None:
        """Forget them all."""
        await self._engine.delete_where(MODELS.name, self._all)
        self.by_id = {}

    @property
    def _all(self) -> Filter:
        return Filter.where(Equals(_FIELD, self._physical))

    def _id(self, point_id: PointId) -> str:
        return str(uuid5(NAMESPACE, f"failed:{self._physical}:{point_id}"))


def _failure(payload: JsonObject) -> Failure:
    return Failure(
        # Written as text: what an id may be is more than all engines' integers.
        legal_id(str(payload["point_id"])),
        payload.get("job_id"),
        str(payload["code"]),
        str(payload["message"]),
    )
