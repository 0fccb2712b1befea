"""DirectVectors: embeds texts and pictures and finds faces at once, without a job; stores nothing.

A request takes the way of a search: the models, decoders and limits of the jobs, but ahead of their
backlog, since what waits in a stage without a job is first there (daemon/urgency.py). The model is
the collection's, as in a search, so that an answer compares with what is stored.
"""

import asyncio
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np

from daemon.errors import HandlerError, InvalidRequestError
from daemon.settings import FacesSettings
from handlers.face_embedding_handler import FACES_AT_ONCE
from handlers.faces.batches import chunks
from handlers.faces.face import Face
from handlers.inference import Pixels, Provenance, Vector
from handlers.models.face_specs import detector_settings, recogniser_settings
from handlers.search import query_vectors
from handlers.search.query_vectors import FaceParts, ImageParts
from handlers.task_types import not_configured

P = TypeVar("P", ImageParts, FaceParts)
LOOK_SECONDS = 2.0
"""Timeout for reading which model the collection has, where an earlier answer is known."""


@dataclass(frozen=True, slots=True, eq=False)
class TextVector:
    """A text as CLIP sees it."""

    vector: Vector
    """float32 [dim] of length 1."""
    tokens: int
    """How many the model read, start and end included."""


@dataclass(frozen=True, slots=True, eq=False)
class PictureVector:
    """A picture as CLIP sees it."""

    vector: Vector
    """float32 [dim] of length 1."""
    width: int
    """Pixels of the upright picture."""
    height: int
    """Pixels of the upright picture."""


@dataclass(frozen=True, slots=True, eq=False)
class FacesFound:
    """The faces of a picture."""

    faces: Sequence[Face]
    """In pixels of the upright picture, as face_detection orders them."""
    vectors: Sequence[Vector]
    """One float32 [512] of length 1 for each face; none where none was asked for."""
    width: int
    """Pixels of the upright picture."""
    height: int
    """Pixels of the upright picture."""


class DirectClip:
    """One CLIP, whatever the collection changes to meanwhile: an answer is of one model.

    Every method raises:
        PermanentError: the text or the picture is at fault; the codes are those of a job.
        RetryableError: the model cannot be loaded or fails.
    """

    def __init__(self, images: ImageParts) -> None:
        """Take the parts of one search, their model loaded."""
        self._images = images

    @property
    def name(self) -> str:
        """What it is called: its architecture, two underscores, its weights.

        The weights are `openai`, the stem of a file's name, or UNTRAINED.
        """
        return name_of(self._images.runner.provenance)

    async def embed_text(self, text: str) -> TextVector:
        """Return the vector of a text, cut where the model's context ends."""
        images = self._images
        query = await query_vectors.of_text(images, text)
        tokens = await asyncio.to_thread(images.tokenise, text)
        return TextVector(query.vector, int(np.count_nonzero(tokens.ids)))

    async def embed_picture(self, data: bytes) -> PictureVector:
        """Return the vector of a picture file."""
        images = self._images
        picture = await query_vectors.read(images.handler.read(data, None, side=images.side))
        vector = await images.runner.infer(picture.pixels)
        return PictureVector(vector, picture.width, picture.height)


class DirectFaces:
    """One detector and one recogniser, whatever the collection changes to meanwhile."""

    def __init__(self, parts: FaceParts, settings: FacesSettings) -> None:
        """Take the parts of one search, and where those settings stand that no record names."""
        self._parts = parts
        self._settings = settings

    @property
    def detector_name(self) -> str:
        """What the detector is called: its pack, or the stem of its file's name."""
        faces = detector_settings(self._settings, self._parts.spec)
        return faces.pack if faces.detector is None else faces.detector.stem

    @property
    def recogniser_name(self) -> str:
        """What the recogniser is called: its pack, the stem of its file's name, or untrained."""
        faces = recogniser_settings(self._settings, self._parts.spec)
        return Path(faces.recogniser).stem if faces.recogniser else faces.pack

    async def find_faces(
        self, data: bytes, *, min_score: float, with_vectors: bool = True
    ) -> FacesFound:
        """Return the faces of a picture file.

        Args:
            data: the file.
            min_score: the least confidence of a face.
            with_vectors: whether the faces are embedded as well.

        Raises:
            InvalidRequestError: `min_score` is below what the detector was told to leave out.
            PermanentError: the picture is at fault; the codes are those of a job.
            RetryableError: a model cannot be loaded or fails.
        """
        if min_score < self._settings.threshold:
            raise InvalidRequestError(
                f"a least score of {min_score:g} is below INFERD_FACES__THRESHOLD"
                f" ({self._settings.threshold:g}): set that lower",
                field="minScore",
            )
        parts = self._parts
        async with parts.pictures:
            pixels = await query_vectors.read(parts.handler.read(data, None))
            faces, crops, _ = await parts.handler.find_faces(pixels, parts.detector)
            height, width = pixels.shape[:2]
            del pixels
        sure = [index for index, face in enumerate(faces) if face.confidence >= min_score]
        vectors = await _embed(parts, [crops[index] for index in sure]) if with_vectors else []
        return FacesFound([faces[index] for index in sure], vectors, width, height)


class DirectVectors:
    """Opens the models that answer the compatible APIs at once.

    Every method raises:
        NotFoundError: code not_configured; the task type whose model it needs does not run here.
        RetryableError: a model cannot be loaded.
    """

    def __init__(
        self,
        faces_settings: FacesSettings | None = None,
        *,
        images: ImageParts | None = None,
        faces: FaceParts | None = None,
    ) -> None:
        """Take the parts of searches; None where the task type does not run here."""
        self._images = images
        self._faces = faces
        self._settings = faces_settings or FacesSettings()

    async def clip(self) -> DirectClip:
        """Return the collection's CLIP, loaded: its name is certain only then.

        Raises:
            DependencyDownError: what the collection is of was never read, or its model is not to
                be had.
        """
        if self._images is None:
            raise not_configured("image_embedding")
        images = await _searched(self._images)
        await query_vectors.loaded(images.runner)
        return DirectClip(images)

    async def faces(self) -> DirectFaces:
        """Return the detector and the recogniser of the collection of faces.

        Raises:
            DependencyDownError: what the collection is of was never read, or its model is not to
                be had.
        """
        if self._faces is None:
            raise not_configured("face_embedding")
        return DirectFaces(await _searched(self._faces), self._settings)


async def _searched(parts: P) -> P:
    """Return the parts of what a collection is of; of what it was, while nobody can tell."""
    if (record := parts.store.seen) is not None:
        # Whoever keeps vectors elsewhere needs none of ours, and the answer tells its model.
        with suppress(HandlerError, TimeoutError):
            async with asyncio.timeout(LOOK_SECONDS):
                record = await parts.store.record()
    return await (parts.now() if record is None else parts.at(record.searched))


def name_of(ran: Provenance) -> str:
    """Return the name of a CLIP by which clients ask for it, such as ViT-B-32-quickgelu__openai."""
    weights = ran.weights if ran.weights == "openai" else Path(ran.weights).stem
    return f"{ran.model}__{weights}"


async def _embed(parts: FaceParts, crops: Sequence[Pixels]) -> list[Vector]:
    found: list[Vector] = []
    for chunk in chunks(crops, FACES_AT_ONCE):
        found += await asyncio.gather(*(parts.runner.infer(crop) for crop in chunk))
    return found
