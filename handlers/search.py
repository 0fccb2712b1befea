"""Search: stored pictures by a text, pictures and faces by another one, stored or given as bytes.

Whatever is searched with becomes a vector on the same way as a job's picture, so that equal
pictures have equal vectors, and is compared only with vectors of the same weights.
"""

import asyncio
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Any

from daemon.errors import (
    ConfigError,
    DependencyDownError,
    InvalidRequestError,
    NotFoundError,
    PermanentError,
    RetryableError,
)
from daemon.jobs import JsonObject
from handlers.clip_text import Tokens
from handlers.device import ModelRunner
from handlers.face_embedding import FaceEmbeddingHandler
from handlers.face_store import QdrantFaceStore
from handlers.faces import Face
from handlers.image_embedding_handler import ImageEmbeddingHandler
from handlers.image_store import QdrantImageStore
from handlers.inference import Pixels, Provenance, Vector
from handlers.qdrant_store import QdrantStore
from handlers.vector_engine import Match, Point
from handlers.vector_points import face_point_id

DECIMALS = 6
"""Of a score: what float32 can tell apart near 1."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageParts:
    """What a search for pictures is done with; opened and closed by whoever made it."""

    handler: ImageEmbeddingHandler
    runner: ModelRunner[Vector]
    store: QdrantImageStore
    text: ModelRunner[Vector]
    """The text tower of the same weights; loaded at the first text."""
    tokenise: Callable[[str], Tokens]
    """Blocks a little; only after `text` was loaded once."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FaceParts:
    """What a search for faces is done with; opened and closed by whoever made it."""

    handler: FaceEmbeddingHandler
    runner: ModelRunner[Vector]
    store: QdrantFaceStore
    pictures: asyncio.Semaphore
    """Bounds how many decoded pictures are in memory."""


class Search:
    """Answers searches over the collections whose task types run here.

    Every search takes `limit`, the most results (1 or more), and `min_score`, the least cosine
    (-1 to 1) of a result, and returns what REST answers: `collection`, `model`, `query`,
    `results`, best first.

    Every search raises:
        NotFoundError: the collection is none of ours, or nobody embeds into it here.
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

    async def by_text(self, text: str, *, limit: int, min_score: float | None) -> JsonObject:
        """Return the pictures that a text describes.

        Raises:
            PermanentError: code bad_text; the text cannot be read.
        """
        images = self._pictures()
        if not images.text.is_loaded:
            await _load(images.text)
        if images.text.fingerprint != images.runner.fingerprint:
            raise DependencyDownError(
                "the weights' file changed since the start: texts would be compared with pictures"
                " of other weights; start again",
                code="model_mismatch",
            )
        tokens = await asyncio.to_thread(images.tokenise, text)
        vector, ran = await images.text.infer_and_tell(tokens.ids)
        query: JsonObject = {"kind": "text", "text": text}
        if tokens.is_truncated:
            query["truncated"] = True
        found = await self._near(images, vector, limit, min_score)
        return _answer(images.store, ran, query, found)

    async def by_likeness(
        self,
        collection: str,
        media_store_id: int,
        *,
        face_index: int = 0,
        limit: int,
        min_score: float | None,
    ) -> JsonObject:
        """Return what is like a stored picture, or like a face of one; never that picture itself.

        Args:
            collection: which one.
            media_store_id: the picture.
            face_index: which of its faces; of pictures only 0 means anything.
            limit: see the class.
            min_score: see the class.

        Raises:
            NotFoundError: code vector_not_found; nothing is stored of it.
        """
        parts = self._parts(collection)
        await parts.handler.claim.require()
        query: JsonObject = {"kind": "like", "media_store_id": media_store_id}
        own: Sequence[Point]
        if isinstance(parts, FaceParts):
            query["face_index"] = face_index
            own = await parts.store.find_by_media_store_id(media_store_id)
            wanted: str | int = face_point_id(media_store_id, face_index)
            named = f"face {face_index} of picture {media_store_id}"
        else:
            point = await parts.store.fetch(media_store_id)
            own = [] if point is None else [point]
            wanted, named = media_store_id, f"picture {media_store_id}"
        vectors = {point.point_id: point.vector for point in own}
        if wanted not in vectors:
            raise NotFoundError(f"no vector is stored of {named}", code="vector_not_found")
        if not parts.runner.is_loaded:
            await _load(parts.runner)
        found = await self._near(parts, vectors[wanted], limit + len(own), min_score)
        others = [match for match in found if match.point_id not in vectors]
        return _answer(parts.store, parts.runner.provenance, query, others[:limit])

    async def by_picture(
        self,
        collection: str,
        data: bytes,
        content_type: str | None,
        *,
        face_index: int | None = None,
        limit: int,
        min_score: float | None,
    ) -> JsonObject:
        """Return what is like a picture file, or like a face in it.

        Args:
            collection: which one.
            data: the file.
            content_type: what the sender called it.
            face_index: which of its faces, as face_detection orders them; None is the largest.
            limit: see the class.
            min_score: see the class.

        Raises:
            PermanentError: it is no picture (the codes are those of a job), or has no such face,
                code no_face.
            InvalidRequestError: pictures are searched for by a face.
        """
        parts = self._parts(collection)
        query: JsonObject
        if isinstance(parts, FaceParts):
            faces, crops = await _find_faces(parts, data, content_type)
            index = _choose(faces, face_index)
            vector, ran = await parts.runner.infer_and_tell(crops[index])
            wire = faces[index].to_wire(index)
            query = {
                "kind": "face",
                "face_index": index,
                "face": {"bbox": wire["bbox"], "confidence": wire["confidence"]},
                "face_count": len(faces),
            }
        elif face_index is not None:
            raise InvalidRequestError("only faces are searched by face_index", field="face_index")
        else:
            picture = await parts.handler.read(data, content_type)
            vector, ran = await parts.runner.infer_and_tell(picture.pixels)
            query = {"kind": "picture"}
        found = await self._near(parts, vector, limit, min_score)
        return _answer(parts.store, ran, query, found)

    async def _near(
        self, parts: ImageParts | FaceParts, vector: Vector, limit: int, min_score: float | None
    ) -> list[Match]:
        await parts.handler.claim.require()
        found = await parts.store.find(vector, limit=limit, min_score=min_score)
        # Asked afterwards: a claim that still holds held all the time.
        await parts.store.confirm_claim()
        return found

    def _parts(self, collection: str) -> ImageParts | FaceParts:
        match collection:
            case QdrantImageStore.collection:
                return self._pictures()
            case QdrantFaceStore.collection if self._faces is not None:
                return self._faces
            case QdrantFaceStore.collection:
                raise _not_configured("face_embedding")
        raise NotFoundError(f"there is no collection {collection!r}")

    def _pictures(self) -> ImageParts:
        if self._images is None:
            raise _not_configured("image_embedding")
        return self._images


async def _find_faces(
    parts: FaceParts, data: bytes, content_type: str | None
) -> tuple[list[Face], list[Pixels]]:
    async with parts.pictures:
        faces, crops, _ = await parts.handler.find_faces(
            await parts.handler.read(data, content_type)
        )
    return faces, crops


def _choose(faces: Sequence[Face], face_index: int | None) -> int:
    """Return which face is meant; the largest where none is named."""
    if not faces:
        raise PermanentError("no face was found in the picture", code="no_face")
    if face_index is None:
        return max(range(len(faces)), key=lambda index: _area(faces[index]))
    if face_index >= len(faces):
        raise PermanentError(
            f"the picture has {len(faces)} face(s), counted from 0: none is number {face_index}",
            code="no_face",
        )
    return face_index


def _area(face: Face) -> float:
    _, _, width, height = face.bbox
    return width * height


async def _load(runner: ModelRunner[Any]) -> None:
    try:
        await runner.load()
    except ConfigError as error:
        raise RetryableError(error.message, code="model_error") from error


def _answer(
    store: QdrantStore, ran: Provenance, query: JsonObject, found: Sequence[Match]
) -> JsonObject:
    return {
        "collection": store.collection,
        "model": ran.to_wire(),
        "query": query,
        "results": [
            {
                "point_id": match.point_id,
                # Stores keep it within -1 and 1, where rounding cannot lead out of.
                "score": round(match.score, DECIMALS),
                "media_store_id": match.payload.get("media_store_id"),
                "job_id": match.payload.get("job_id"),
                "payload": match.payload,
            }
            for match in found
        ],
    }


def _not_configured(task_type: str) -> NotFoundError:
    return NotFoundError(
        f"{task_type} does not run here (INFERD_WORKER__TASK_TYPES)", code="not_configured"
    )
