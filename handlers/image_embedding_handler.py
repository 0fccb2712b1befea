"""The image_embedding task: fetch a picture, decode it, embed it, store its vector."""

from collections.abc import Callable, Sequence
from contextlib import AsyncExitStack
from typing import Self

from daemon.errors import DependencyDownError, HandlerError
from daemon.jobs import Job, JsonObject, TaskType
from daemon.settings import Decoding
from daemon.stage import Stage
from handlers.image_store import PointByModel, QdrantImageStore
from handlers.inference import Provenance
from handlers.media.clip_input import ClipInput
from handlers.media.decoders import Decoders
from handlers.media.media_store import Media
from handlers.media.origin import frame_of
from handlers.media.pictures import Pictures
from handlers.models.claims import StoreClaim
from handlers.models.image_models import ImageModel, ImageModels
from handlers.qdrant.vector_engine import Point
from handlers.qdrant.vector_points import job_payload
from handlers.timings import Timings
from handlers.vectors.model_record import Part

MAX_UPSERT = 64
"""Points in one write; whatever waits when the last write ends goes together."""


class ImageEmbeddingHandler:
    """Turns a job into a point of the store, under the picture's own id.

    While the collection changes its model, a picture is embedded by the next one as well. The
    collaborators are opened and closed by whoever made them.
    """

    task_type = TaskType.IMAGE_EMBEDDING
    delivers = False

    def __init__(
        self,
        *,
        pictures: Pictures,
        decoders: Decoders,
        models: ImageModels,
        store: QdrantImageStore,
        decoding: Decoding,
    ) -> None:
        """Take the parts that it works with.

        Args:
            pictures: where those of jobs come from.
            decoders: what decodes them, and those of searches.
            models: that of the settings, and others where the collection is of another one.
            store: takes the vectors.
            decoding: how large JPEGs are decoded.
        """
        self._pictures = pictures
        self._decoders = decoders
        self._models = models
        self._store = store
        self._decoding = decoding
        self.claim = StoreClaim(store, models)
        self._upserts: Stage[PointByModel, tuple[Part, ...]] = Stage(
            "upsert-images", self._upsert, max_batch=MAX_UPSERT
        )

    async def __aenter__(self) -> Self:
        await self._upserts.__aenter__()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._upserts.close()

    async def handle(self, job: Job, report: Callable[[str], None]) -> JsonObject:
        """Return the job's result; its vector is stored when this returns.

        Raises:
            PermanentError: this picture can never work.
            RetryableError: it may work later.
        """
        timings = Timings(report)
        media_id = job.media_store_id
        models = await self._models.wanted(self._store.seen)
        async with AsyncExitStack() as stack:
            with timings.stage("fetch"):
                media = await stack.enter_async_context(self._pictures.file(media_id))
            with timings.stage("decode"):
                pictures = await self._read_for(models, media)
            picture = pictures[models[0].side]
            frame = frame_of(media.origin, picture.width, picture.height)
            del media
        with timings.stage("infer"):
            points, ran = await self._embed(job, models, pictures)
        with timings.stage("store"):
            # To its end: who cancels this job to remove its picture must not do so too early.
            while missing := await self._upserts.submit_to_end(points):
                # A change of the model began or ended meanwhile.
                models = [await self._models.of(part) for part in missing]
                more, ran_more = await self._embed_anew(job, models)
                points, ran = {**points, **more}, {**ran, **ran_more}
        searched = self._searched(points)
        return {
            "embedding_dimension": int(points[searched].vector.size),
            "stored_in_vector_db": True,
            "collection": self._store.collection,
            "point_id": media_id,
            "image": frame.image_to_wire(),
            "inference": {**frame.noted(ran[searched].to_wire()), "timings_ms": timings.to_wire()},
        }

    async def embed(self, media_store_id: int, model: ImageModel) -> tuple[Point, Provenance]:
        """Return a stored picture's point by a model, without a payload, and what ran.

        Raises:
            PermanentError: this picture can never work.
            RetryableError: it may work later.
        """
        async with self._pictures.file(media_store_id) as media:
            picture = await self.read(media.data, media.content_type, side=model.side)
        vector, ran = await model.runner.infer_and_tell(picture.pixels)
        return Point(media_store_id, vector), ran

    async def read(
        self, data: bytes, content_type: str | None, *, side: int | None = None
    ) -> ClipInput:
        """Return what a model takes of a picture file, of a job or of a search.

        Args:
            data: the file.
            content_type: what its sender called it.
            side: pixels of the square that the model takes; None is the configured one's.

        Raises:
            PermanentError: it is no picture, or a larger one than is allowed.
            RetryableError: it may work later.
        """
        return await self._decoders.read_square(
            data,
            side=side or self._models.configured.side,
            decoding=self._decoding,
            content_type=content_type,
        )

    async def deliver(self, job: Job, result: JsonObject) -> None:
        """Do nothing: image embeddings do not go to the media store."""

    def _searched(self, points: PointByModel) -> str:
        """Return whose vector is searched: the fingerprint that a result tells of."""
        record = self._store.seen
        if record is not None and record.searched.fingerprint in points:
            return record.searched.fingerprint
        return next(iter(points))

    async def _read_for(self, models: Sequence[ImageModel], media: Media) -> dict[int, ClipInput]:
        """Return what the models take of a file, by the side of their squares."""
        return {
            side: await self.read(media.data, media.content_type, side=side)
            for side in dict.fromkeys(model.side for model in models)
        }

    async def _embed(
        self, job: Job, models: Sequence[ImageModel], pictures: dict[int, ClipInput]
    ) -> tuple[dict[str, Point], dict[str, Provenance]]:
        """Return the point of a picture and what ran, by the models' fingerprints."""
        points, told = {}, {}
        for model in models:
            vector, ran = await model.runner.infer_and_tell(pictures[model.side].pixels)
            point = Point(job.media_store_id, vector, job_payload(job, ran.model))
            points[model.fingerprint], told[model.fingerprint] = point, ran
        return points, told

    async def _embed_anew(
        self, job: Job, models: Sequence[ImageModel]
    ) -> tuple[dict[str, Point], dict[str, Provenance]]:
        async with self._pictures.file(job.media_store_id) as media:
            pictures = await self._read_for(models, media)
        return await self._embed(job, models, pictures)

    async def _upsert(
        self, points: Sequence[PointByModel]
    ) -> Sequence[tuple[Part, ...] | Exception]:
        await self.claim.require()
        try:
            return await self._store.write(points)
        except DependencyDownError:
            raise
        except HandlerError as error:
            if len(points) == 1:
                return [error]
            # One point cannot be stored: the others must not fail with it.
            return [(await self._upsert([point]))[0] for point in points]
