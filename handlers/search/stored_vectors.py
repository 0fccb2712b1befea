"""StoredVectors: what the collections hold, page by page and by picture, without a model.

For listings, and for the audit of what is stored against the queue.
"""

from collections.abc import Collection, Mapping, Sequence

import numpy as np

from daemon.errors import InvalidRequestError, NotFoundError, PermanentError
from daemon.jobs import MAX_MEDIA_STORE_ID, JsonObject, TaskType
from daemon.stored_filter import StoredFilter, StoredVector
from handlers.face_store import QdrantFaceStore
from handlers.qdrant.vector_engine import Filter, OneOf, Page, Point, PointId
from handlers.qdrant.vector_points import (
    MIN_NORM,
    callers_point,
    face_point_id,
    legal_id,
    successor,
)
from handlers.search.filters import STORED_AT, to_filter
from handlers.vectors.faceless import FOUND_BY
from handlers.vectors.qdrant_store import QdrantStore

MANY = 1000
"""Points asked for in one call."""


class StoredVectors:
    """Reads the collections whose task types are given; opened and closed by whoever made them.

    Every method raises RetryableError where the vector database fails or is away, and ConfigError
    where a collection cannot be opened as it is.
    """

    def __init__(self, stores: Mapping[TaskType, QdrantStore]) -> None:
        """Take the stores by the task type that fills them."""
        self._stores = stores

    @property
    def task_types(self) -> Collection[TaskType]:
        """The task types whose vectors can be read."""
        return self._stores.keys()

    @property
    def collections(self) -> Collection[str]:
        """The names of what can be listed."""
        return [store.collection for store in self._stores.values()]

    async def listing(
        self, collection: str, *, after: str | None, limit: int, where: StoredFilter | None
    ) -> JsonObject:
        """Return one page of what is stored, by the points' ids, as REST answers it.

        Args:
            collection: which one.
            after: the last point_id of the page before; it need not exist any more.
            limit: points at most.
            where: what is meant.

        Raises:
            NotFoundError: no such collection is here.
            InvalidRequestError: `after` is no id.
        """
        store = next((s for s in self._stores.values() if s.collection == collection), None)
        if store is None:
            raise NotFoundError(f"there is no collection {collection!r} here")
        await store.open()
        page = await _page(store, after, limit=limit, where=to_filter(where))
        points = [callers_point(point) for point in page.points]
        return {
            "collection": collection,
            "points": [
                {
                    "point_id": point.point_id,
                    "media_store_id": point.payload.get("media_store_id"),
                    "job_id": point.payload.get("job_id"),
                    "payload": point.payload,
                }
                for point in points
            ],
            "next": None if page.next_id is None else str(page.points[-1].point_id),
        }

    async def count(self, task_type: TaskType) -> int:
        """Return how many vectors of a task type are stored."""
        store, _ = await self._now(task_type)
        return await store.count()

    async def page(
        self, task_type: TaskType, *, after: str | None, limit: int, deep: bool
    ) -> tuple[list[StoredVector], str | None]:
        """Return the next vectors by the points' ids, and the last of these where more follow.

        Args:
            task_type: which collection.
            after: the last id of the page before.
            limit: vectors at most.
            deep: look at the vectors themselves too.
        """
        store, model = await self._now(task_type)
        page = await _page(store, after, limit=limit, with_vectors=deep)
        found = [_stored(task_type, store, point, model, deep=deep) for point in page.points]
        return found, None if page.next_id is None else str(page.points[-1].point_id)

    async def has(self, task_type: TaskType, wanted: Sequence[tuple[int, int]]) -> list[bool]:
        """Return of each picture and face_index whether its vector is stored."""
        store, _ = await self._now(task_type)
        ids = [_point_id(task_type, *each) for each in wanted]
        found: set[PointId] = set()
        for start in range(0, len(ids), MANY):
            points = await store.payloads(ids[start : start + MANY])
            found.update(point.point_id for point in points)
        return [point_id in found for point_id in ids]

    async def of_pictures(
        self, task_type: TaskType, media_store_ids: Sequence[int], *, deep: bool = False
    ) -> list[StoredVector]:
        """Return all that is stored of some pictures."""
        store, model = await self._now(task_type)
        where = Filter.where(OneOf("media_store_id", tuple(media_store_ids)))
        found: list[StoredVector] = []
        after: str | None = None
        while True:
            page = await _page(store, after, limit=MANY, where=where, with_vectors=deep)
            found += [_stored(task_type, store, point, model, deep=deep) for point in page.points]
            if page.next_id is None:
                break
            after = str(page.points[-1].point_id)
        if isinstance(store, QdrantFaceStore):
            there = {each.media_store_id for each in found}
            lacking = [each for each in media_store_ids if each not in there]
            without = await store.without_faces(lacking)
            found += [_without_face(point) for point in without]
        return found

    async def remove(
        self, task_type: TaskType, point_ids: Sequence[int | str], job_id: str
    ) -> None:
        """Delete those of the points that this job stored; what another stored since stays."""
        store = self._stores[task_type]
        await store.open()
        await store.remove_of_job(point_ids, job_id)

    async def _now(self, task_type: TaskType) -> tuple[QdrantStore, str | None]:
        """Return the collection as it is by one reading of its record, and its model's name."""
        store = self._stores[task_type]
        # Done at the start, unless the database was away then.
        await store.open()
        view, part = await store.now()
        return view, model_named(part.fingerprint)


async def _page(
    store: QdrantStore,
    after: str | None,
    *,
    limit: int,
    where: Filter | None = None,
    with_vectors: bool = False,
) -> Page:
    from_id: PointId | None = None
    if after is not None:
        from_id = successor(_read_id(after))
        if from_id is None:
            return Page([], None)
    return await store.page(from_id, limit=limit, where=where, with_vectors=with_vectors)


def _read_id(text: str) -> PointId:
    try:
        return legal_id(text)
    except PermanentError:
        raise InvalidRequestError("after must be a point_id", field="after") from None


def _stored(
    task_type: TaskType, store: QdrantStore, point: Point, model: str | None, *, deep: bool
) -> StoredVector:
    payload = point.payload
    picture, index = payload.get("media_store_id"), payload.get("face_index", 0)
    # Another program's may be any number, or none.
    is_id = type(picture) is int and 0 <= picture <= MAX_MEDIA_STORE_ID
    media_store_id = picture if is_id else None
    face_index = index if isinstance(index, int) else 0
    job_id, said, when, by = (
        payload.get(name) for name in ("job_id", "model", STORED_AT, FOUND_BY)
    )
    return StoredVector(
        point_id=point.point_id,
        media_store_id=media_store_id,
        job_id=job_id if isinstance(job_id, str) else None,
        face_index=face_index,
        stored_at=when if isinstance(when, int) else None,
        is_ours=media_store_id is not None
        and point.point_id == _point_id(task_type, media_store_id, face_index),
        found_by=by if isinstance(by, str) else None,
        has_other_model=isinstance(said, str) and model is not None and said != model,
        fault=_fault(point, store.dimension) if deep else None,
    )


def _without_face(point: Point) -> StoredVector:
    """Return what stands for a picture in which no face was found."""
    payload, media_store_id = point.payload, int(point.point_id)
    job_id, by = payload.get("job_id"), payload.get(FOUND_BY)
    return StoredVector(
        point_id=point.point_id,
        media_store_id=media_store_id,
        job_id=job_id if isinstance(job_id, str) else None,
        is_ours=True,
        found_by=by if isinstance(by, str) else None,
        has_face=False,
    )


def _point_id(task_type: TaskType, media_store_id: int, face_index: int) -> PointId:
    if task_type is TaskType.FACE_EMBEDDING:
        return face_point_id(media_store_id, face_index)
    return media_store_id


def _fault(point: Point, dimension: int) -> str | None:
    if point.vector.size != dimension:
        return f"it has {point.vector.size} numbers, not {dimension}"
    if not np.isfinite(point.vector).all():
        return "some of its numbers are none"
    if float(np.linalg.norm(point.vector)) <= MIN_NORM:
        return "it is all but zero"
    return None


def model_named(fingerprint: str) -> str | None:
    """Return the name that vectors of a fingerprint have in their payload; None where unknown."""
    name, _, rest = fingerprint.partition(":")
    if not rest:
        return None
    if name.startswith("untrained"):
        return "ArcFace-shaped"
    if name.endswith(".onnx"):
        return f"ArcFace {name.removesuffix('.onnx')}"
    return name
