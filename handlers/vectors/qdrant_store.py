"""QdrantStore: one fixed name, with a collection of its own for each model's vectors.

Vectors of two models never mix: collection_claim has the rules. A store that has claimed asks again
at every upsert, so that a daemon which runs while its collection is emptied and taken over can't
add vectors of the former model.
"""

import copy
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import ClassVar, Literal, Self

from daemon.errors import ConfigError, DependencyDownError
from handlers.inference import Vector
from handlers.qdrant.disk_room import require_room
from handlers.qdrant.vector_engine import (
    Equals,
    Filter,
    HasId,
    Match,
    Page,
    Point,
    PointId,
    SharedEngine,
)
from handlers.qdrant.vector_points import (
    callers_match,
    callers_point,
    legal_id,
    unit_vector,
)
from handlers.vectors.collection_claim import CollectionClaim
from handlers.vectors.collection_parts import CollectionParts
from handlers.vectors.engine_choice import embedded_engine, server_engine
from handlers.vectors.model_record import Part, Record
from handlers.vectors.vector_store import VectorStore

DEFAULT_URL = "http://localhost:6333"


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
    change_by = "python -m daemon models use"
    """The command that changes whose vectors they are."""

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
        self._opened: CollectionParts | None = None
        self._claimed: CollectionClaim | None = None
        self._part: Part | None = None

    async def claim(self, fingerprint: str, model: str, *, adopt: bool = False) -> None:
        """Claim the collection for a model; collection_claim has the rules."""
        await self._claim.make(fingerprint, model, adopt=adopt)

    async def confirm_claim(self) -> None:
        """Check that no other model claimed the collection since; without a claim do nothing."""
        is_claimed = self._claimed is not None and self._claimed.is_made
        if is_claimed or self._part is not None:
            await self._confirmed()

    async def upsert(self, points: Sequence[Point]) -> None:
        """Store points over those of the same ids; of equal ids here the last one counts.

        They go where vectors are searched. While a change of the model is under way, what is stored
        by this and not by `write` has no vector of the next model until the change reaches it.
        """
        part = await self._confirmed()
        await self._parts.upsert(part, points)
        if points and (now := await self._confirmed()).physical != part.physical:
            raise DependencyDownError(
                f"the collection {self.collection} changed its model, to {now.model}, while vectors"
                " were stored: store those of that model",
                code="model_mismatch",
            )

    # ---- parts

    async def record(self) -> Record | None:
        """Read what is behind the collection's name; None where nobody claimed it."""
        return await self._parts.record()

    @property
    def seen(self) -> Record | None:
        """The record as it was last read."""
        return self._opened.seen if self._opened is not None else None

    @property
    def parts(self) -> CollectionParts:
        """The collections behind the fixed name, for a change of the model."""
        return self._parts

    async def now(self) -> tuple[Self, Part]:
        """Return a view of the store by one reading of the record, and the part that it reads.

        Later changes of the record do not change what the view reads: all is of one model.
        """
        part = await self._active()
        if self._parts.seen is None:
            part = await self._confirmed()
        await self._parts.ensure(part)
        return self.at(part), part

    async def searched(self) -> Part:
        """Return the part that is searched, by one reading of the record; see `now`."""
        _, part = await self.now()
        part = part if self._parts.seen is None else self._parts.seen.searched
        await self._parts.ensure(part)
        return part

    def beside(self, part: Part) -> Sequence[Part]:  # noqa: ARG002 - some have what this has not
        """Return what else is kept of a part, in collections that may be there: it goes with it."""
        return ()

    def at(self, part: Part) -> Self:
        """Return a view of one part alone; it is open as long as this store is."""
        view = copy.copy(self)
        view._part = part  # noqa: SLF001 - it is one of us
        view.dimension = self._parts.dimension_of(part)
        return view

    async def page(
        self,
        from_id: PointId | None = None,
        *,
        limit: int = 256,
        where: Filter | None = None,
        with_vectors: bool = False,
    ) -> Page:
        """Return the next points by id, as they are stored; without their vectors if not asked."""
        physical = await self._physical()
        return await self._parts.engine.scroll(
            physical, where=where, limit=limit, from_id=from_id, with_vectors=with_vectors
        )

    async def payloads(self, point_ids: Sequence[PointId]) -> list[Point]:
        """Return those of the points that exist, as they are stored, without their vectors."""
        where = await self._physical()
        return await self._parts.engine.retrieve(where, point_ids, with_vectors=False)

    # ---- points

    async def fetch(self, point_id: PointId) -> Point | None:
        """Return a point, or nothing where there is none."""
        ids = [legal_id(point_id)]
        found = await self._parts.engine.retrieve(await self._physical(), ids)
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
        engine = self._parts.engine
        if limit < 1:
            raise ValueError("limit must be 1 or more")
        part = self._part or await self._active()
        query = unit_vector(vector, self._parts.dimension_of(part), "the query")
        found = await engine.search(
            part.physical, query, limit=limit, offset=offset, min_score=min_score, where=where
        )
        return [callers_match(match) for match in found]

    async def find_by_media_store_id(self, media_store_id: int | str) -> list[Point]:
        """Return all that is stored of one picture, faces in their order."""
        engine, physical = self._parts.engine, await self._physical()
        where = Filter.where(Equals("media_store_id", media_store_id))
        points: list[Point] = []
        page = await engine.scroll(physical, where=where)
        points.extend(page.points)
        while page.next_id is not None:
            page = await engine.scroll(physical, where=where, from_id=page.next_id)
            points.extend(page.points)
        return sorted((callers_point(point) for point in points), key=_face_index)

    async def remove(self, point_ids: Sequence[PointId]) -> None:
        """Delete points; those that do not exist are no error."""
        engine = self._parts.engine
        ids = [legal_id(point_id) for point_id in point_ids]
        if ids:
            await self._everywhere(lambda part: engine.delete(part.physical, ids))

    async def remove_by_media_store_id(self, media_store_id: int | str) -> None:
        """Delete all that is stored of one picture."""
        await self._remove_where(Filter.where(Equals("media_store_id", media_store_id)))

    async def remove_by_job_id(self, job_id: str) -> None:
        """Delete all that one job stored."""
        await self._remove_where(Filter.where(Equals("job_id", job_id)))

    async def remove_of_job(self, point_ids: Sequence[PointId], job_id: str) -> None:
        """Delete those of the points that this job stored; what another stored since stays."""
        ids = tuple(legal_id(point_id) for point_id in point_ids)
        await self._remove_where(Filter.where(HasId(ids), Equals("job_id", job_id)))

    async def count_of_media(self, media_store_id: int | str) -> int:
        """Return how many points are stored of one picture."""
        where = Filter.where(Equals("media_store_id", media_store_id))
        return await self._parts.engine.count(await self._physical(), where)

    async def count(self) -> int:
        """Return how many points there are."""
        return await self._parts.engine.count(await self._physical())

    async def check_room(self) -> None:
        """Check the disk of an embedded engine for room; a server checks its own."""
        if self._shared.folder is not None:
            require_room(self._shared.folder)

    @property
    def _parts(self) -> CollectionParts:
        self._check_open()
        if self._opened is None:
            raise RuntimeError(f"the store of {self.collection} is still opening")
        return self._opened

    @property
    def _claim(self) -> CollectionClaim:
        self._check_open()
        if self._claimed is None:
            raise RuntimeError(f"the store of {self.collection} is still opening")
        return self._claimed

    async def _open(self) -> None:
        engine = await self._shared.open()
        parts = CollectionParts(engine, self.collection, self.dimension, self.indexes, self.beside)
        try:
            await parts.open()
        except ConfigError as error:
            await self._shared.close()
            if error.code != "collection_mismatch":
                raise
            raise ConfigError(
                f"{error.message}; if it is another model's, configure that one again"
                f" (`{self.change_by}` then changes it), or keep the new vectors"
                " elsewhere (INFERD_DATA_DIR or INFERD_QDRANT__URL)",
                code=error.code,
            ) from error
        except BaseException as error:
            await self._shared.close()
            if isinstance(error, DependencyDownError) and error.code == "vector_store_unauthorized":
                raise ConfigError(error.message, code=error.code) from error
            raise
        self._claimed = CollectionClaim(parts, self.collection, change_by=self.change_by)
        self._opened = parts

    async def _close(self) -> None:
        self._opened = self._claimed = None
        await self._shared.close()

    async def _active(self) -> Part:
        return await self._parts.active()

    async def _physical(self) -> str:
        """Return where to read: of a view what it is of, else what is active now."""
        return (self._part or await self._active()).physical

    async def _everywhere(self, delete: Callable[[Part], Awaitable[None]]) -> None:
        if self._part is not None:
            await delete(self._part)
        else:
            await self._parts.everywhere(delete)

    async def _remove_where(self, where: Filter) -> None:
        engine = self._parts.engine
        await self._everywhere(lambda part: engine.delete_where(part.physical, where))

    async def _confirmed(self) -> Part:
        """Return what is read and written, having made sure that it is still ours."""
        if self._part is not None:
            return await self._claim.confirm_part(self._part)
        return await self._claim.confirm()


def _face_index(point: Point) -> tuple[float, str]:
    index = point.payload.get("face_index")
    return (index if isinstance(index, int | float) else float("inf"), str(point.point_id))
