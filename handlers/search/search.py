"""Search: pictures by a text; pictures and faces by another one, stored or given as bytes."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass

from daemon.errors import InvalidRequestError, NotFoundError
from daemon.jobs import JsonObject
from daemon.stored_filter import StoredFilter
from handlers.face_store import QdrantFaceStore
from handlers.image_store import QdrantImageStore
from handlers.inference import Provenance, Vector
from handlers.qdrant.vector_engine import Filter, HasId, Match, Not, Point, PointId
from handlers.qdrant.vector_points import face_point_id, legal_id
from handlers.search import query_vectors
from handlers.search.duplicates import cluster_of
from handlers.search.filters import to_filter
from handlers.search.query_vectors import FaceParts, ImageParts, QueryVector
from handlers.task_types import not_configured
from handlers.vectors.qdrant_store import QdrantStore

DECIMALS = 6
"""Of a score: what float32 can tell apart near 1."""


class Search:
    """Answers searches over the collections whose task types run here.

    Every search takes `limit`, the most results (1 or more), `offset`, how many of the best are
    left out, `min_score`, the least cosine (-1 to 1) of a result, and `where`, what the results are
    narrowed to. It returns what REST answers: `collection`, `model`, `query`, `results`, best
    first, and `next`, the offset of what follows, None where nothing does.

    Every search raises:
        NotFoundError: there is no such collection, or no task type here embeds into it.
        RetryableError: a model or the vector database fails or is away, or the collection is
            another model's by now.
    """

    def __init__(self, *, images: ImageParts | None = None, faces: FaceParts | None = None) -> None:
        self._images = images
        self._faces = faces

    @property
    def collections(self) -> Collection[str]:
        """The collections that can be searched here."""
        found = [parts.store.collection for parts in (self._images, self._faces) if parts]
        return frozenset(found)

    async def by_text(
        self,
        text: str,
        *,
        limit: int,
        offset: int = 0,
        min_score: float | None = None,
        where: StoredFilter | None = None,
    ) -> JsonObject:
        """Return the pictures that a text describes.

        Raises:
            PermanentError: code bad_text; the text cannot be read.
        """
        images = await self._pictures().now()
        query = await query_vectors.of_text(images, text)
        window = _Window(limit, offset, min_score, to_filter(where))
        found = await _near(images, query.vector, window)
        return _answer(images.store, query.ran, query.told, found, window)

    async def by_likeness(
        self,
        collection: str,
        media_store_id: int,
        *,
        face_index: int = 0,
        limit: int,
        offset: int = 0,
        min_score: float | None = None,
        where: StoredFilter | None = None,
    ) -> JsonObject:
        """Return what is like a stored picture, or like a face of one; never that picture itself.

        Args:
            collection: which one.
            media_store_id: the picture.
            face_index: which of its faces; of pictures only 0 means anything.
            limit: see the class.
            offset: see the class.
            min_score: see the class.
            where: see the class; the picture asked with need not match it.

        Raises:
            NotFoundError: code vector_not_found; nothing is stored of it.
        """
        parts = await self._parts(collection).now()
        told: JsonObject = {"kind": "like", "media_store_id": media_store_id}
        own: Sequence[Point]
        wanted: PointId
        if isinstance(parts, FaceParts):
            told["face_index"] = face_index
            own = await parts.store.find_by_media_store_id(media_store_id)
            wanted = face_point_id(media_store_id, face_index)
            named = f"face {face_index} of picture {media_store_id}"
        else:
            point = await parts.store.fetch(media_store_id)
            own = [] if point is None else [point]
            wanted, named = media_store_id, f"picture {media_store_id}"
        vectors = {point.point_id: point.vector for point in own}
        if wanted not in vectors:
            raise NotFoundError(f"no vector is stored of {named}", code="vector_not_found")
        ran = await query_vectors.loaded(parts.runner)
        others = Not(HasId(tuple(legal_id(point_id) for point_id in vectors)))
        within = to_filter(where)
        within = Filter.where(others) if within is None else within.and_also(others)
        window = _Window(limit, offset, min_score, within)
        found = await _near(parts, vectors[wanted], window)
        return _answer(parts.store, ran, told, found, window)

    async def by_picture(
        self,
        collection: str,
        data: bytes,
        content_type: str | None,
        *,
        face_index: int | None = None,
        limit: int,
        offset: int = 0,
        min_score: float | None = None,
        where: StoredFilter | None = None,
    ) -> JsonObject:
        """Return what is like a picture file, or like a face in it.

        Args:
            collection: which one.
            data: the file.
            content_type: what the sender called it.
            face_index: which of its faces, as face_detection orders them; None is the largest.
            limit: see the class.
            offset: see the class.
            min_score: see the class.
            where: see the class.

        Raises:
            PermanentError: it is no picture (the codes are those of a job), or has no such face,
                code no_face.
            InvalidRequestError: pictures are searched for by a face.
        """
        parts = await self._parts(collection).now()
        query: QueryVector
        if isinstance(parts, FaceParts):
            query = await query_vectors.of_face(parts, data, content_type, face_index)
        elif face_index is not None:
            raise InvalidRequestError("only faces have a face_index", field="face_index")
        else:
            query = await query_vectors.of_picture(parts, data, content_type)
        window = _Window(limit, offset, min_score, to_filter(where))
        found = await _near(parts, query.vector, window)
        return _answer(parts.store, query.ran, query.told, found, window)

    async def duplicates(
        self,
        media_store_id: int,
        *,
        min_score: float,
        limit: int,
        where: StoredFilter | None = None,
    ) -> JsonObject:
        """Return the cluster of a stored picture: its near-duplicates, theirs, and so on.

        Args:
            media_store_id: the picture; it is not among the results.
            min_score: least cosine of a link.
            limit: most results.
            where: what the cluster is narrowed to: chains lead through nothing else.

        Raises:
            NotFoundError: code vector_not_found; nothing is stored of it.
        """
        images = await self._pictures().now()
        ran = await query_vectors.loaded(images.runner)
        found = await cluster_of(
            images.store,
            media_store_id,
            min_score=min_score,
            limit=limit,
            where=to_filter(where),
        )
        await images.store.confirm_claim()
        return {
            "collection": images.store.collection,
            "model": ran.to_wire(),
            "query": {
                "kind": "duplicates",
                "media_store_id": media_store_id,
                "min_score": min_score,
            },
            "complete": found.is_complete,
            "results": [
                {
                    "point_id": member.point.point_id,
                    "media_store_id": member.point.payload.get("media_store_id"),
                    "score": round(member.score, DECIMALS),
                    "near": member.near,
                    "near_score": round(member.near_score, DECIMALS),
                    "job_id": member.point.payload.get("job_id"),
                }
                for member in found.members
            ],
        }

    async def faces_of(self, media_store_id: int) -> list[JsonObject] | None:
        """Return which faces of a picture have a stored vector, in their order, and their boxes.

        None where nobody embeds faces here.
        """
        if self._faces is None:
            return None
        await self._faces.handler.claim.require()
        store = self._faces.store
        # Of what searches compare with, where a face is named by its number.
        store = store.at(await store.searched())
        return [
            {
                "point_id": point.point_id,
                "face_index": point.payload.get("face_index"),
                "job_id": point.payload.get("job_id"),
                "bbox": point.payload.get("bbox"),
            }
            for point in await store.find_by_media_store_id(media_store_id)
        ]

    def _parts(self, collection: str) -> ImageParts | FaceParts:
        match collection:
            case QdrantImageStore.collection:
                return self._pictures()
            case QdrantFaceStore.collection if self._faces is not None:
                return self._faces
            case QdrantFaceStore.collection:
                raise not_configured("face_embedding")
        raise NotFoundError(f"there is no collection {collection!r}")

    def _pictures(self) -> ImageParts:
        if self._images is None:
            raise not_configured("image_embedding")
        return self._images


@dataclass(frozen=True, slots=True)
class _Window:
    """Which part of all that is stored, ordered by likeness, is wanted."""

    limit: int
    offset: int
    min_score: float | None
    within: Filter | None


async def _near(parts: ImageParts | FaceParts, vector: Vector, window: _Window) -> list[Match]:
    """Return what is wanted, and one more where more follows."""
    found = await parts.store.find(
        vector,
        limit=window.limit + 1,
        min_score=window.min_score,
        where=window.within,
        offset=window.offset,
    )
    # Asked afterwards: a claim that still holds held all the time.
    await parts.store.confirm_claim()
    return found


def _answer(
    store: QdrantStore,
    ran: Provenance,
    told: JsonObject,
    found: Sequence[Match],
    window: _Window,
) -> JsonObject:
    return {
        "collection": store.collection,
        "model": ran.to_wire(),
        "query": told,
        "results": [
            {
                "point_id": match.point_id,
                # Stores keep it within -1 and 1, where rounding cannot lead out of.
                "score": round(match.score, DECIMALS),
                "media_store_id": match.payload.get("media_store_id"),
                "job_id": match.payload.get("job_id"),
                "payload": match.payload,
            }
            for match in found[: window.limit]
        ],
        "next": window.offset + window.limit if len(found) > window.limit else None,
    }
