"""QdrantStore: one collection of an engine, and the one model whose vectors it may hold.

Vectors of two models never mix. The tiny collection `inferd_models`, kept with the vectors, says
which model each collection belongs to. `claim` writes it before the first vector, and refuses:

    claimed by another model          model_mismatch, unless the collection is empty
    points, but nobody claimed them   model_unknown, unless `adopt` (an older tool, or scripts)

A store that has claimed asks again at every upsert, so that a daemon which runs while its
collection is emptied and taken over can't add vectors of the former model.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar, Literal

import numpy as np

from daemon.errors import ConfigError, DependencyDownError
from handlers.disk_room import require_room
from handlers.engine_choice import embedded_engine, server_engine
from handlers.inference import Vector
from handlers.vector_engine import (
    CollectionSpec,
    Equals,
    Filter,
    Match,
    Point,
    PointId,
    SharedEngine,
    VectorEngine,
)
from handlers.vector_points import (
    callers_match,
    callers_point,
    legal_id,
    model_point_id,
    stored_point,
    unit_vector,
)
from handlers.vector_store import VectorStore

DEFAULT_URL = "http://localhost:6333"
BATCH = 128
"""Points sent in one call."""

MODELS = CollectionSpec("inferd_models", 1)


class QdrantStore(VectorStore):
    """One collection of one engine.

    Args:
        url: a Qdrant server, spoken to over HTTP; http://localhost:6333 if nothing is given.
        api_key: of that server.
        path: a folder to keep the vectors in instead, without a server.
        engine: an engine that several stores share instead.
        dimension: numbers in a vector, where the model gives another number than 512.
    """

    indexes: ClassVar[dict[str, Literal["integer", "keyword"]]] = {
        "media_store_id": "integer",
        "job_id": "keyword",
        "stored_at": "integer",
        "request_id": "keyword",
    }

    def __init__(
        self,
        url: str | None = None,
        api_key: str | None = None,
        *,
        path: str | Path | None = None,
        engine: SharedEngine | None = None,
        dimension: int | None = None,
    ) -> None:
        super().__init__()
        if dimension is not None:
            self.dimension = dimension
        if sum(given is not None for given in (url, path, engine)) > 1:
            raise ValueError("give one of url, path and engine")
        if engine is not None:
            self._shared = engine
        elif path is not None:
            self._shared = embedded_engine(Path(path))
        else:
            self._shared = server_engine(url or DEFAULT_URL, api_key)
        self._opened: VectorEngine | None = None
        self._claimed: tuple[str, str] | None = None

    async def claim(self, fingerprint: str, model: str, *, adopt: bool = False) -> None:
        """Say which model the vectors are of; the rules stand at the top of this file."""
        engine = self._engine
        await engine.ensure_collection(MODELS)
        holder = await self._read_claim()
        if holder is None or holder[0] != fingerprint:
            points = await engine.count(self.collection)
            if points and holder is not None:
                raise self._mismatch(holder, model)
            if points and not adopt:
                raise ConfigError(
                    f"the collection {self.collection} has {points} vectors and nobody said of"
                    f" which model: if they are of {model}, call claim(..., adopt=True) once;"
                    " else delete the collection",
                    code="model_unknown",
                )
            await self._write_claim(fingerprint, model)
            if holder is not None and await engine.count(self.collection):
                # The former holder wrote between the count and the claim: it stays his.
                await self._write_claim(*holder)
                raise self._mismatch(holder, model)
        self._claimed = (fingerprint, model)

    async def confirm_claim(self) -> None:
        """Make sure that nobody took the collection over; without a claim nothing is asked."""
        if self._claimed is None:
            return
        holder = await self._read_claim()
        if holder is None:
            # Deleted, with the vectors or without: the rules of a first claim say whether they
            # may be ours again.
            try:
                await self.claim(*self._claimed)
            except ConfigError as error:
                raise DependencyDownError(error.message, code=error.code) from error
        elif holder[0] != self._claimed[0]:
            raise DependencyDownError(
                f"the collection {self.collection} was {self._claimed[1]}'s and is {holder[1]}'s"
                " by now: restart with that model, or with another collection",
                code="model_mismatch",
            )

    async def upsert(self, points: Sequence[Point]) -> None:
        """Store points over those of the same ids; of equal ids here the last one counts."""
        engine = self._engine
        by_id: dict[PointId, Point] = {}
        for point in points:
            stored = stored_point(point, self.dimension)
            by_id[stored.point_id] = stored
        if not by_id:
            return
        await self.confirm_claim()
        ready = list(by_id.values())
        for start in range(0, len(ready), BATCH):
            await engine.upsert(self.collection, ready[start : start + BATCH])

    async def fetch(self, point_id: PointId) -> Point | None:
        """Return a point, or nothing where there is none."""
        found = await self._engine.retrieve(self.collection, [legal_id(point_id)])
        return callers_point(found[0]) if found else None

    async def find(
        self,
        vector: Vector,
        limit: int = 10,
        min_score: float | None = None,
        where: Filter | None = None,
        *,
        offset: int = 0,
    ) -> list[Match]:
        """Return the points most similar to `vector`, best first."""
        engine = self._engine
        if limit < 1:
            raise ValueError("limit must be 1 or more")
        query = unit_vector(vector, self.dimension, "the query")
        found = await engine.search(
            self.collection, query, limit=limit, offset=offset, min_score=min_score, where=where
        )
        return [callers_match(match) for match in found]

    async def find_by_media_store_id(self, media_store_id: int | str) -> list[Point]:
        """Return all that is stored of one picture, faces in their order."""
        engine = self._engine
        where = Filter.where(Equals("media_store_id", media_store_id))
        points: list[Point] = []
        page = await engine.scroll(self.collection, where=where)
        points.extend(page.points)
        while page.next_id is not None:
            page = await engine.scroll(self.collection, where=where, from_id=page.next_id)
            points.extend(page.points)
        return sorted((callers_point(point) for point in points), key=_face_index)

    async def remove(self, point_ids: Sequence[PointId]) -> None:
        """Delete points; those that do not exist are no error."""
        engine = self._engine
        ids = [legal_id(point_id) for point_id in point_ids]
        if ids:
            await engine.delete(self.collection, ids)

    async def remove_by_media_store_id(self, media_store_id: int | str) -> None:
        """Delete all that is stored of one picture."""
        where = Filter.where(Equals("media_store_id", media_store_id))
        await self._engine.delete_where(self.collection, where)

    async def remove_by_job_id(self, job_id: str) -> None:
        """Delete all that one job stored."""
        await self._engine.delete_where(self.collection, Filter.where(Equals("job_id", job_id)))

    async def count_of_media(self, media_store_id: int | str) -> int:
        """Return how many points are stored of one picture."""
        where = Filter.where(Equals("media_store_id", media_store_id))
        return await self._engine.count(self.collection, where)

    async def count(self) -> int:
        """Return how many points there are."""
        return await self._engine.count(self.collection)

    async def check_room(self) -> None:
        """Look at the disk of an embedded engine; a server's is its own affair."""
        if self._shared.folder is not None:
            require_room(self._shared.folder)

    @property
    def _engine(self) -> VectorEngine:
        self._check_open()
        if self._opened is None:
            raise RuntimeError(f"the store of {self.collection} is still opening")
        return self._opened

    async def _open(self) -> None:
        engine = await self._shared.open()
        try:
            await engine.ensure_collection(
                CollectionSpec(self.collection, self.dimension, self.indexes)
            )
        except ConfigError as error:
            await self._shared.close()
            if error.code != "collection_mismatch":
                raise
            raise ConfigError(
                f"{error.message}; if it is another model's, configure that one again, or keep the"
                " new vectors elsewhere (INFERD_DATA_DIR or INFERD_QDRANT__URL)",
                code=error.code,
            ) from error
        except BaseException:
            await self._shared.close()
            raise
        self._opened = engine

    async def _close(self) -> None:
        self._opened = self._claimed = None
        await self._shared.close()

    async def _read_claim(self) -> tuple[str, str] | None:
        found = await self._engine.retrieve(MODELS.name, [model_point_id(self.collection)])
        if not found:
            return None
        payload = found[0].payload
        return str(payload.get("fingerprint")), str(payload.get("model"))

    async def _write_claim(self, fingerprint: str, model: str) -> None:
        payload = {"collection": self.collection, "fingerprint": fingerprint, "model": model}
        point = Point(model_point_id(self.collection), np.ones(1, np.float32), payload)
        await self._engine.upsert(MODELS.name, [point])

    def _mismatch(self, holder: tuple[str, str], model: str) -> ConfigError:
        return ConfigError(
            f"the collection {self.collection} holds vectors of {holder[1]}, not of {model}, and"
            f" vectors of two models can't be compared: configure {holder[1]} again, delete the"
            " collection, or keep the new ones elsewhere (INFERD_DATA_DIR or INFERD_QDRANT__URL)",
            code="model_mismatch",
        )


def _face_index(point: Point) -> tuple[float, str]:
    index = point.payload.get("face_index")
    return (index if isinstance(index, int | float) else float("inf"), str(point.point_id))
