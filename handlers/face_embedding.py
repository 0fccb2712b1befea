"""The face_embedding task: find the faces of a picture, and store one ArcFace vector for each."""

import asyncio
import os
import sys
from collections.abc import Callable, Coroutine, Sequence
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from daemon.errors import (
    ConfigError,
    InferdError,
    RetryableError,
)
from daemon.jobs import Job, JsonObject, TaskType
from daemon.settings import Settings
from handlers.arcface import ArcFaceRecogniser
from handlers.claims import StoreClaim
from handlers.decoders import Decoders
from handlers.device import ModelRunner
from handlers.face_alignment import FACE_SIZE
from handlers.face_batches import chunks
from handlers.face_detection import FaceDetectionInference, upright_pixels
from handlers.face_pixels import align
from handlers.face_store import QdrantFaceStore
from handlers.faces import EMBEDDING_DIM, Face
from handlers.images import Limits
from handlers.inference import (
    Batch,
    ModelInference,
    Numbers,
    Pixels,
    Provenance,
    Vector,
    check_pixels,
    combined,
)
from handlers.origin import frame_of
from handlers.pictures import Pictures
from handlers.self_test import synthetic_picture
from handlers.timings import Timings
from handlers.vector_engine import Point
from handlers.vector_points import face_point_id, job_payload

T = TypeVar("T")

FACES_AT_ONCE = 32
"""Of one picture, so that one with hundreds does not keep all others waiting."""


class FaceEmbeddingInference(ModelInference[Vector]):
    """ArcFace behind the documented interface: one aligned face in, one vector of length 1 out.

    A buffer is RGB [112, 112, 3] as `handlers.face_pixels.align` makes it: uint8, or float32 that
    is normalised already as (x - 127.5) / 127.5.
    """

    def __init__(
        self,
        embedding_dim: int = EMBEDDING_DIM,
        input_size: tuple[int, int] = (FACE_SIZE, FACE_SIZE),
        *,
        settings: Settings | None = None,
    ) -> None:
        """Take the recogniser from `settings`, or from the environment where none are given.

        Args:
            embedding_dim: length of the vectors that is expected; recognisers give 512.
            input_size: height and width of the faces that is expected; 112, 112.
            settings: which recogniser, where its file is and on what device it runs.

        Raises:
            ConfigError: the configuration is wrong, or another length or size was asked for.
        """
        settings = settings or Settings.from_env(os.environ)
        if (embedding_dim, tuple(input_size)) != (EMBEDDING_DIM, (FACE_SIZE, FACE_SIZE)):
            raise ConfigError(
                f"ArcFace makes {EMBEDDING_DIM} numbers of {FACE_SIZE}x{FACE_SIZE} pixels; "
                f"asked for {embedding_dim} of {tuple(input_size)}"
            )
        self.embedding_dim = embedding_dim
        self.input_size = input_size
        self._recogniser = ArcFaceRecogniser(
            settings.faces,
            models_dir=settings.models_path,
            device=settings.device,
            require_gpu=settings.require_gpu,
            offline=settings.offline,
        )
        super().__init__(self._recogniser)

    @property
    def batch(self) -> Batch | None:
        """How many faces the recogniser runs at a time; see MLInference."""
        return self._recogniser.batch

    def infer(self, buffer: NDArray[Any], label: str = "") -> Vector:
        """Return float32 [512] of length 1.

        Args:
            buffer: uint8 RGB or normalised float32, [112, 112, 3].
            label: names the face in errors.

        Raises:
            PermanentError: code bad_buffer; the buffer is neither.
            ConfigError: the recogniser had to be loaded and could not be.
        """
        self._check(buffer, label)
        return super().infer(buffer, label)

    def infer_batch(self, buffers: Sequence[NDArray[Any]]) -> list[Vector]:
        """Return one float32 [512] of length 1 for each face, in order.

        Raises:
            PermanentError: code bad_buffer; a buffer is neither kind.
        """
        for number, buffer in enumerate(buffers):
            self._check(buffer, f"number {number} of {len(buffers)}" if len(buffers) > 1 else "")
        self.load()
        return self._recogniser.embed_batch(buffers)

    def self_test(self) -> Numbers:
        """Return the vector of a built-in picture; see MLInference."""
        return self.infer_batch([synthetic_picture(*self.input_size)])[0]

    def _check(self, buffer: NDArray[Any], label: str) -> None:
        shape = (*self.input_size, 3)
        check_pixels(buffer, shape, normalised="(x - 127.5) / 127.5", label=label)


class FaceEmbeddingHandler:
    """Turns a job into the points of its faces in `face_embeddings`.

    A picture's points are replaced as a whole, so a rerun that finds fewer faces leaves none
    behind. The collaborators are opened and closed by whoever made them.
    """

    task_type = TaskType.FACE_EMBEDDING
    delivers = False

    def __init__(
        self,
        *,
        pictures: Pictures,
        decoders: Decoders,
        detector: ModelRunner[list[Face]],
        recogniser: ModelRunner[Vector],
        store: QdrantFaceStore,
    ) -> None:
        """Take the parts that it works with.

        Args:
            pictures: where those of jobs come from.
            decoders: what decodes those of searches, and aligns faces.
            detector: finds the faces.
            recogniser: makes their vectors.
            store: takes the vectors.
        """
        self._pictures = pictures
        self._decoders = decoders
        self._detector = detector
        self._recogniser = recogniser
        self._store = store
        self.claim = StoreClaim(store, recogniser)

    async def handle(self, job: Job, report: Callable[[str], None]) -> JsonObject:
        """Return the job's result; its vectors are stored when this returns.

        Raises:
            PermanentError: this picture can never work.
            RetryableError: it may work later.
        """
        timings = Timings(report)
        media_id = job.media_store_id
        async with AsyncExitStack() as stack:
            with timings.stage("fetch"):
                picture = await stack.enter_async_context(self._pictures.upright(media_id))
            with timings.stage("decode"):
                height, width = (await picture.pixels()).shape[:2]
            with timings.stage("detect"):
                faces, detector = await picture.faces(self._detector)
                crops = await self._align(await picture.pixels(), faces)
            frame = frame_of(picture.origin, width, height)
        with timings.stage("infer"):
            vectors, ran = await self._embed(crops)
        with timings.stage("store"):
            await self.claim.require()
            points = [
                _point(job, index, frame.place(face), vector, ran.model)
                for index, (face, vector) in enumerate(zip(faces, vectors, strict=True))
            ]
            await self._store.replace(media_id, points)
        return {
            "faces": [
                {**frame.place(face).to_wire(index), "point_id": face_point_id(media_id, index)}
                for index, face in enumerate(faces)
            ],
            "face_count": len(faces),
            "embedding_dimension": EMBEDDING_DIM,
            "stored_in_vector_db": True,
            "collection": self._store.collection,
            "image": frame.image_to_wire(),
            "inference": {
                **frame.noted(ran.to_wire()),
                "detector": detector.to_wire(),
                "timings_ms": timings.to_wire(),
            },
        }

    async def read(self, data: bytes, content_type: str | None) -> Pixels:
        """Return every pixel of a picture file, of a job or of a search.

        Raises:
            PermanentError: it is no picture, or a larger one than is allowed.
            RetryableError: it may work later.
        """
        return await self._decoders.read_upright(data, content_type=content_type)

    async def find_faces(self, pixels: Pixels) -> tuple[list[Face], list[Pixels], Provenance]:
        """Return the faces of a picture as face_detection orders them, aligned, and what ran.

        Raises:
            PermanentError: the landmarks of a face are none.
            RetryableError: the detector could not be loaded or failed.
        """
        faces, ran = await self._detector.infer_and_tell(pixels)
        return faces, await self._align(pixels, faces), ran

    async def _align(self, pixels: Pixels, faces: Sequence[Face]) -> list[Pixels]:
        return await self._decoders.run(_align_all, pixels, faces)

    async def deliver(self, job: Job, result: JsonObject) -> None:
        """Do nothing: face vectors do not go to the media store."""

    async def _embed(self, crops: Sequence[Pixels]) -> tuple[list[Vector], Provenance]:
        if not crops:
            # Nothing to embed, but the result names the model and the collection is its own.
            try:
                await self._recogniser.load()
            except ConfigError as error:
                raise RetryableError(error.message, code="model_error") from error
            return [], self._recogniser.provenance
        found = []
        for chunk in chunks(crops, FACES_AT_ONCE):
            # Together, so that the model may take them in one pass, with those of other pictures.
            found += await _all([self._recogniser.infer_and_tell(crop) for crop in chunk])
        return [vector for vector, _ in found], combined([ran for _, ran in found])


async def _all(works: Sequence[Coroutine[Any, Any, T]]) -> list[T]:
    """Return what each returns; where one fails, the others are given up."""
    tasks = [asyncio.create_task(work) for work in works]
    try:
        return await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()


def _align_all(pixels: Pixels, faces: Sequence[Face]) -> list[Pixels]:
    return [align(pixels, face.landmarks) for face in faces]


def _point(job: Job, face_index: int, face: Face, vector: Vector, model: str) -> Point:
    wire = face.to_wire(face_index)
    payload = {
        **job_payload(job, model),
        "face_index": face_index,
        "bbox": wire["bbox"],
        "confidence": wire["confidence"],
    }
    return Point(face_point_id(job.media_store_id, face_index), vector, payload)


def demo(arguments: Sequence[str]) -> int:
    """Embed the faces of the picture named on the command line, or a grey square; say what ran."""
    try:
        settings = Settings.from_env(os.environ)
        inference = FaceEmbeddingInference(settings=settings)
        crops = [np.full((*inference.input_size, 3), 128, np.uint8)]
        label = "an even grey"
        if arguments:
            label = arguments[0]
            limits = Limits.from_settings(settings.images)
            pixels = upright_pixels(Path(label).read_bytes(), limits, None)
            faces = FaceDetectionInference(settings=settings).infer(pixels, label=label)
            crops = _align_all(pixels, faces)
        vectors = [
            inference.infer(crop, label=f"face {index} of {label}")
            for index, crop in enumerate(crops)
        ]
    except (InferdError, OSError) as error:
        sys.stderr.write(f"{error}\n")
        return 1
    if not vectors:
        sys.stdout.write(f"{label}: no face\n")
        return 0
    ran = inference.provenance
    sys.stdout.write(f"{ran.model}, weights {ran.weights}, on {ran.device} in {ran.precision}\n")
    for index, vector in enumerate(vectors):
        first = np.array2string(vector[:4], precision=4)
        likeness = ", ".join(f"{vector @ other:.3f}" for other in vectors)
        sys.stdout.write(
            f"{label}, face {index}: {vector.size} numbers, norm {np.linalg.norm(vector):.6f}, "
            f"{first} ...; cosine to each: {likeness}\n"
        )
    return 0


if __name__ == "__main__":
    sys.exit(demo(sys.argv[1:]))
