"""The image_embedding task: fetch a picture, decode it, embed it, store its vector."""

from collections.abc import Callable, Sequence
from contextlib import AsyncExitStack
from types import TracebackType
from typing import Self

from daemon.errors import DependencyDownError, HandlerError
from daemon.jobs import Job, JsonObject, TaskType
from daemon.settings import Decoding
from daemon.stage import Stage
from handlers.claims import StoreClaim
from handlers.clip_input import ClipInput
from handlers.decoders import Decoders
from handlers.device import ModelRunner
from handlers.inference import Vector
from handlers.origin import frame_of
from handlers.pictures import Pictures
from handlers.timings import Timings
from handlers.vector_engine import Point
from handlers.vector_points import job_payload
from handlers.vector_store import VectorStore

MAX_UPSERT = 64
"""Points in one write; whatever waits when the last write ends goes together."""


class ImageEmbeddingHandler:
    """Turns a job into a point of the store, under the picture's own id.

    The collaborators are opened and closed by whoever made them.
    """

    task_type = TaskType.IMAGE_EMBEDDING
    delivers = False

    def __init__(
        self,
        *,
        pictures: Pictures,
        decoders: Decoders,
        runner: ModelRunner[Vector],
        store: VectorStore,
        side: int,
        decoding: Decoding,
    ) -> None:
        """Take the parts that it works with.

        Args:
            pictures: where those of jobs come from.
            decoders: what decodes them, and those of searches.
            runner: the model.
            store: takes the vectors.
            side: pixels of the square that the model takes.
            decoding: how large JPEGs are decoded.
        """
        self._pictures = pictures
        self._decoders = decoders
        self._runner = runner
        self._store = store
        self._side = side
        self._decoding = decoding
        self.claim = StoreClaim(store, runner)
        self._upserts: Stage[Point, None] = Stage(
            "upsert-images", self._upsert, max_batch=MAX_UPSERT
        )

    async def __aenter__(self) -> Self:
        await self._upserts.__aenter__()
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self._upserts.close()

    async def handle(self, job: Job, report: Callable[[str], None]) -> JsonObject:
        """Return the job's result; its vector is stored when this returns.

        Raises:
            PermanentError: this picture can never work.
            RetryableError: it may work later.
        """
        timings = Timings(report)
        media_id = job.media_store_id
        async with AsyncExitStack() as stack:
            with timings.stage("fetch"):
                media = await stack.enter_async_context(self._pictures.file(media_id))
            with timings.stage("decode"):
                picture = await self.read(media.data, media.content_type)
            frame = frame_of(media.origin, picture.width, picture.height)
            del media
        with timings.stage("infer"):
            vector, ran = await self._runner.infer_and_tell(picture.pixels)
        with timings.stage("store"):
            await self._upserts.submit(Point(media_id, vector, job_payload(job, ran.model)))
        return {
            "embedding_dimension": int(vector.size),
            "stored_in_vector_db": True,
            "collection": self._store.collection,
            "point_id": media_id,
            "image": frame.image_to_wire(),
            "inference": {**frame.noted(ran.to_wire()), "timings_ms": timings.to_wire()},
        }

    async def read(self, data: bytes, content_type: str | None) -> ClipInput:
        """Return what the model takes of a picture file, of a job or of a search.

        Raises:
            PermanentError: it is no picture, or a larger one than is allowed.
            RetryableError: it may work later.
        """
        return await self._decoders.read_square(
            data, side=self._side, decoding=self._decoding, content_type=content_type
        )

    async def deliver(self, job: Job, result: JsonObject) -> None:
        """Do nothing: image embeddings do not go to the media store."""

    async def _upsert(self, points: Sequence[Point]) -> Sequence[Exception | None]:
        await self.claim.require()
        try:
            await self._store.upsert(points)
        except DependencyDownError:
            raise
        except HandlerError as error:
            if len(points) == 1:
                return [error]
            # One point cannot be stored: the others must not fail with it.
            return [(await self._upsert([point]))[0] for point in points]
        return [None] * len(points)
