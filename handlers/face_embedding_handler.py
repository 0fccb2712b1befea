"""The face_embedding task: find the faces of a picture, and store one ArcFace vector for each."""

import asyncio
from collections.abc import Callable, Coroutine, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass
from typing import Any, TypeVar

from daemon.errors import ConfigError, DependencyDownError
from daemon.jobs import Job, JsonObject, TaskType
from handlers.face_embedding import aligned
from handlers.face_store import PictureFaces, QdrantFaceStore
from handlers.faces.batches import chunks
from handlers.faces.face import Face
from handlers.inference import Pixels, Provenance, Vector, combined
from handlers.lanes.device import ModelRunner
from handlers.media.decoders import Decoders
from handlers.media.origin import Frame, frame_of
from handlers.media.pictures import Pictures, UprightPicture
from handlers.models.claims import StoreClaim
from handlers.models.face_models import FaceModel, FaceModels
from handlers.qdrant.vector_engine import Point
from handlers.qdrant.vector_points import face_point_id, job_payload
from handlers.timings import Timings
from handlers.vectors.faceless import DETECTOR, FOUND_BY, found_by

T = TypeVar("T")

FACES_AT_ONCE = 32
"""Of one picture, so that one with hundreds does not keep all others waiting."""


@dataclass(frozen=True, slots=True)
class _Found:
    """What a detector found."""

    faces: Sequence[Face]
    """In pixels of the picture that it saw."""
    crops: Sequence[Pixels]
    ran: Provenance


@dataclass(frozen=True, slots=True)
class FacesSeen:
    """The faces and vectors that a model finds in a picture."""

    faces: Sequence[Face]
    """In pixels of the original."""
    vectors: Sequence[Vector]
    detector: Provenance
    recogniser: Provenance

    def points(self, media_store_id: int, payload: JsonObject) -> list[Point]:
        """Return the points of the faces in order; each has this payload and its own."""
        made = []
        for index, (face, vector) in enumerate(zip(self.faces, self.vectors, strict=True)):
            wire = face.to_wire(index)
            whole = {
                **payload,
                "model": self.recogniser.model,
                FOUND_BY: found_by(self.detector),
                "face_index": index,
                "bbox": wire["bbox"],
                "confidence": wire["confidence"],
            }
            made.append(Point(face_point_id(media_store_id, index), vector, whole))
        return made


class FaceEmbeddingHandler:
    """Turns a job into the points of its faces in `face_embeddings`.

    A picture's points are replaced as a whole, so a rerun that finds fewer faces leaves none
    behind. While the collection changes its model, a picture is embedded by the next one as well.
    The collaborators are opened and closed by whoever made them.
    """

    task_type = TaskType.FACE_EMBEDDING
    delivers = False

    def __init__(
        self,
        *,
        pictures: Pictures,
        decoders: Decoders,
        models: FaceModels,
        store: QdrantFaceStore,
    ) -> None:
        """Take the parts that it works with.

        Args:
            pictures: where those of jobs come from.
            decoders: what decodes those of searches, and aligns faces.
            models: that of the settings, and others where the collection is of another one.
            store: takes the vectors.
        """
        self._pictures = pictures
        self._decoders = decoders
        self._models = models
        self._store = store
        self.claim = StoreClaim(store, models)

    async def handle(self, job: Job, report: Callable[[str], None]) -> JsonObject:
        """Return the job's result; its vectors are stored when this returns.

        Raises:
            PermanentError: this picture can never work.
            RetryableError: it may work later.
        """
        timings = Timings(report)
        media_id = job.media_store_id
        models = await self._models.wanted(self._store.seen)
        async with AsyncExitStack() as stack:
            with timings.stage("fetch"):
                picture = await stack.enter_async_context(self._pictures.upright(media_id))
            with timings.stage("decode"):
                frame = await _frame(picture)
            with timings.stage("detect"):
                found = await self._find(models, picture)
        with timings.stage("infer"):
            seen = await self._embed(models, found, frame)
        with timings.stage("store"):
            await self.claim.require()
            # To its end: who cancels this job to remove its picture must not do so too early.
            while missing := await _to_end(self._store.write(_stored(job, seen))):
                # A change of the model began or ended meanwhile.
                models = [await self._models.of(part) for part in missing]
                seen |= await self._look(media_id, models)
        searched, answer = self._searched(seen)
        return {
            "faces": [
                {**face.to_wire(index), "point_id": face_point_id(media_id, index)}
                for index, face in enumerate(answer.faces)
            ],
            "face_count": len(answer.faces),
            "embedding_dimension": searched.dimension,
            "stored_in_vector_db": True,
            "collection": self._store.collection,
            "image": frame.image_to_wire(),
            "inference": {
                **frame.noted(answer.recogniser.to_wire()),
                "detector": answer.detector.to_wire(),
                "timings_ms": timings.to_wire(),
            },
        }

    async def look(self, media_store_id: int, model: FaceModel) -> FacesSeen:
        """Return the faces and vectors that a model finds in a stored picture.

        Raises:
            PermanentError: this picture can never work.
            RetryableError: it may work later.
        """
        return (await self._look(media_store_id, [model]))[model]

    async def read(self, data: bytes, content_type: str | None) -> Pixels:
        """Return every pixel of a picture file, of a job or of a search.

        Raises:
            PermanentError: it is no picture, or a larger one than is allowed.
            RetryableError: it may work later.
        """
        return await self._decoders.read_upright(data, content_type=content_type)

    async def find_faces(
        self, pixels: Pixels, detector: ModelRunner[list[Face]] | None = None
    ) -> tuple[list[Face], list[Pixels], Provenance]:
        """Return the faces of a picture as face_detection orders them, aligned, and what ran.

        Args:
            pixels: uint8 RGB [height, width, 3].
            detector: finds them; None is the configured one.

        Raises:
            PermanentError: a face cannot be aligned by its landmarks.
            RetryableError: the detector could not be loaded or failed.
        """
        detector = detector or self._models.configured.detector
        faces, ran = await detector.infer_and_tell(pixels)
        return faces, await self._align(pixels, faces), ran

    async def deliver(self, job: Job, result: JsonObject) -> None:
        """Do nothing: face vectors do not go to the media store."""

    def _searched(self, seen: dict[FaceModel, FacesSeen]) -> tuple[FaceModel, FacesSeen]:
        """Return whose vectors are searched, and what it saw: what a result tells of."""
        record = self._store.seen
        for model, faces in seen.items():
            if record is not None and record.searched.fingerprint == model.fingerprint:
                return model, faces
        return next(iter(seen.items()))

    async def _look(
        self, media_store_id: int, models: Sequence[FaceModel]
    ) -> dict[FaceModel, FacesSeen]:
        async with self._pictures.upright(media_store_id) as picture:
            frame = await _frame(picture)
            found = await self._find(models, picture)
        return await self._embed(models, found, frame)

    async def _find(
        self, models: Sequence[FaceModel], picture: UprightPicture
    ) -> dict[ModelRunner[list[Face]], _Found]:
        """Return what each model's detector finds; two models may have one detector."""
        found = {}
        for detector in dict.fromkeys(model.detector for model in models):
            faces, ran = await picture.faces(detector)
            crops = await self._align(await picture.pixels(), faces)
            found[detector] = _Found(faces, crops, ran)
        return found

    async def _align(self, pixels: Pixels, faces: Sequence[Face]) -> list[Pixels]:
        return await self._decoders.run(aligned, pixels, faces)

    async def _embed(
        self,
        models: Sequence[FaceModel],
        found: dict[ModelRunner[list[Face]], _Found],
        frame: Frame,
    ) -> dict[FaceModel, FacesSeen]:
        seen = {}
        for model in models:
            each = found[model.detector]
            vectors, ran = await _vectors(model.recogniser, each.crops)
            placed = [frame.place(face) for face in each.faces]
            seen[model] = FacesSeen(placed, vectors, each.ran, ran)
        return seen


async def _frame(picture: UprightPicture) -> Frame:
    height, width = (await picture.pixels()).shape[:2]
    return frame_of(picture.origin, width, height)


def _stored(job: Job, seen: dict[FaceModel, FacesSeen]) -> dict[str, PictureFaces]:
    """Return what is stored of a picture, by the models' fingerprints."""
    media_id = job.media_store_id
    stored = {}
    for model, each in seen.items():
        payload = job_payload(job, each.recogniser.model)
        kept = {
            **payload,
            DETECTOR: model.detector.fingerprint,
            FOUND_BY: found_by(each.detector),
        }
        points = each.points(media_id, payload)
        stored[model.fingerprint] = PictureFaces(media_id, kept, points)
    return stored


async def _vectors(
    recogniser: ModelRunner[Vector], crops: Sequence[Pixels]
) -> tuple[list[Vector], Provenance]:
    if not crops:
        # Nothing to embed, but the result names the model and the collection is its own.
        try:
            await recogniser.load()
        except ConfigError as error:
            raise DependencyDownError(error.message, code="model_error") from error
        return [], recogniser.provenance
    found = []
    for chunk in chunks(crops, FACES_AT_ONCE):
        # Together, so that the model may take them in one pass, with those of other pictures.
        found += await _all([recogniser.infer_and_tell(crop) for crop in chunk])
    return [vector for vector, _ in found], combined([ran for _, ran in found])


async def _all(works: Sequence[Coroutine[Any, Any, T]]) -> list[T]:
    """Return what each returns; where one fails, the others are given up."""
    tasks = [asyncio.create_task(work) for work in works]
    try:
        return await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()


async def _to_end(write: Coroutine[Any, Any, T]) -> T:
    """Return what a write returns; a caller cancelled meanwhile leaves when it is over."""
    task = asyncio.create_task(write)
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        # Nobody else asks what came of it.
        task.add_done_callback(lambda task: task.cancelled() or task.exception())
        await asyncio.wait([task])
        raise
