"""Turns what is searched for into a vector, by the same steps as a job's picture.

So equal pictures have equal vectors, and a text is compared with pictures of its own weights only.
"""

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

from daemon.errors import ConfigError, DependencyDownError, PermanentError, RetryableError
from daemon.jobs import JsonObject
from handlers.clip.text_tower import Tokens
from handlers.face_embedding_handler import FaceEmbeddingHandler
from handlers.face_store import QdrantFaceStore
from handlers.faces.face import Face
from handlers.image_embedding_handler import ImageEmbeddingHandler
from handlers.image_store import QdrantImageStore
from handlers.inference import Pixels, Provenance, Vector
from handlers.lanes.device import ModelRunner
from handlers.models.face_models import FaceModels
from handlers.models.image_models import ImageModels
from handlers.vectors.model_record import Part

PICTURES_FAULT = frozenset({"decoder_crashed", "decode_timeout"})
"""Codes of a reading that would most likely fail the next time as well."""

T = TypeVar("T")


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
    models: ImageModels
    side: int
    """Pixels of the square that `runner` takes."""

    async def now(self) -> "ImageParts":
        """Return the parts for one search, of the model that the collection has now.

        A change of the model during the search does not change its answer.

        Raises:
            DependencyDownError: the collection or its model is not to be had.
        """
        await self.handler.claim.require()
        return await self.at(await self.store.searched())

    async def at(self, part: Part) -> "ImageParts":
        """Return the parts of one part of the collection alone.

        Raises:
            DependencyDownError: its model is not to be had.
        """
        model = await self.models.of(part)
        if model.text is None:
            raise RuntimeError(f"{part.model} was opened without its text tower")
        return replace(
            self,
            runner=model.runner,
            store=self.store.at(part),
            text=model.text.runner,
            tokenise=model.text.tokenise,
            side=model.side,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class FaceParts:
    """What a search for faces is done with; opened and closed by whoever made it."""

    handler: FaceEmbeddingHandler
    detector: ModelRunner[list[Face]]
    runner: ModelRunner[Vector]
    """The recogniser."""
    store: QdrantFaceStore
    models: FaceModels
    pictures: asyncio.Semaphore
    """Bounds how many decoded pictures are in memory."""
    spec: Mapping[str, str] = field(default_factory=dict)
    """How its model is configured, of the parts of one search."""

    async def now(self) -> "FaceParts":
        """Return the parts for one search, of the model that the collection has now.

        Raises:
            DependencyDownError: the collection or its model is unavailable.
        """
        await self.handler.claim.require()
        return await self.at(await self.store.searched())

    async def at(self, part: Part) -> "FaceParts":
        """Return the parts for searching one part of the collection alone.

        Raises:
            DependencyDownError: its model is unavailable.
        """
        model = await self.models.of(part)
        return replace(
            self,
            detector=model.detector,
            runner=model.recogniser,
            store=self.store.at(part),
            spec=model.spec,
        )


@dataclass(frozen=True, slots=True, eq=False)
class QueryVector:
    """What a search compares with."""

    vector: Vector
    ran: Provenance
    """What made the vector."""
    told: JsonObject
    """The `query` of the answer."""


async def of_text(images: ImageParts, text: str) -> QueryVector:
    """Return the vector of a text.

    Raises:
        PermanentError: code bad_text; it cannot be read.
        RetryableError: the text tower cannot be loaded, fails, or is of other weights.
    """
    await loaded(images.text)
    if images.text.fingerprint != images.runner.fingerprint:
        raise DependencyDownError(
            "the weights' file changed since the start: texts would be compared with pictures of"
            " other weights; start again",
            code="model_mismatch",
        )
    tokens = await asyncio.to_thread(images.tokenise, text)
    told: JsonObject = {"kind": "text", "text": text}
    if tokens.is_truncated:
        told["truncated"] = True
    return QueryVector(*await images.text.infer_and_tell(tokens.ids), told)


async def of_picture(images: ImageParts, data: bytes, content_type: str | None) -> QueryVector:
    """Return the vector of a picture file.

    Raises:
        PermanentError: it is no picture, or a larger one than is allowed.
        RetryableError: a model fails.
    """
    picture = await read(images.handler.read(data, content_type, side=images.side))
    return QueryVector(*await images.runner.infer_and_tell(picture.pixels), {"kind": "picture"})


async def of_face(
    parts: FaceParts, data: bytes, content_type: str | None, face_index: int | None
) -> QueryVector:
    """Return the vector of one face of a picture file; None is the largest.

    Raises:
        PermanentError: as `of_picture`; code no_face, it has no such face.
        RetryableError: a model fails.
    """
    faces, crops = await _find_faces(parts, data, content_type)
    index = _choose(faces, face_index)
    wire = faces[index].to_wire(index)
    told: JsonObject = {
        "kind": "face",
        "face_index": index,
        "face": {"bbox": wire["bbox"], "confidence": wire["confidence"]},
        "face_count": len(faces),
    }
    return QueryVector(*await parts.runner.infer_and_tell(crops[index]), told)


async def loaded(runner: ModelRunner[Any]) -> Provenance:
    """Load the model where it is not loaded; return what runs.

    Raises:
        RetryableError: it cannot be loaded.
    """
    if not runner.is_loaded:
        try:
            await runner.load()
        except ConfigError as error:
            raise RetryableError(error.message, code="model_error") from error
    return runner.provenance


async def _find_faces(
    parts: FaceParts, data: bytes, content_type: str | None
) -> tuple[list[Face], list[Pixels]]:
    async with parts.pictures:
        pixels = await read(parts.handler.read(data, content_type))
        faces, crops, _ = await parts.handler.find_faces(pixels, parts.detector)
    return faces, crops


async def read(reading: Awaitable[T]) -> T:
    """Read a picture; what a job would try again is the picture's fault where it is asked once."""
    try:
        return await reading
    except RetryableError as error:
        # Where no decoder can be started it is no picture's.
        if error.code not in PICTURES_FAULT or isinstance(error, DependencyDownError):
            raise
        raise PermanentError(error.message, code=error.code) from error


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
