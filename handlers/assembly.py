"""Builds the handlers that are asked for over the parts they share, and opens them in order."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial

from daemon.jobs import JsonObject, TaskType
from daemon.settings import Settings
from handlers.clip_opener import ClipOpener
from handlers.direct import DirectVectors
from handlers.face_detection import FaceDetectionHandler
from handlers.face_embedding_handler import FaceEmbeddingHandler
from handlers.face_opener import FaceOpener
from handlers.face_store import QdrantFaceStore
from handlers.handler_set import CHANGES, HandlerSet
from handlers.image_embedding_handler import ImageEmbeddingHandler
from handlers.image_store import QdrantImageStore
from handlers.lanes.model_lanes import ModelLanes
from handlers.media.decoders import Decoders
from handlers.media.media_store import MediaStoreClient
from handlers.media.pictures import Pictures
from handlers.media.previews import Previews
from handlers.model_change.change import ModelChange
from handlers.model_change.face_inventory import FaceInventory
from handlers.model_change.face_shadow import FaceShadow
from handlers.model_change.image_shadow import ImageShadow
from handlers.model_change.point_inventory import PointInventory
from handlers.models.claims import StoreClaim, bind_all
from handlers.qdrant.edge_schedule import IndexBoard
from handlers.qdrant.server_life import life_of
from handlers.search.query_vectors import FaceParts, ImageParts
from handlers.search.search import Search
from handlers.task_types import configured_task_types
from handlers.vectors.engine_choice import make_engine
from handlers.vectors.qdrant_store import QdrantStore
from handlers.vectors.vector_snapshots import VectorSnapshots

SPARE_PICTURES = 2
"""Pictures with every pixel beside those that are being decoded: in the model, and next."""
URGENT_PICTURES = 2
"""Decoded at a time to find faces for somebody who waits, beside those of jobs."""


@asynccontextmanager
async def open_handlers(settings: Settings) -> AsyncIterator[HandlerSet]:
    """Give the handlers of the configured task types; what they share closes after them.

    Raises:
        ConfigError: weights are absent, a collection is another model's, or a setting is wrong.
    """
    async with AsyncExitStack() as stack:
        yield await _Builder(settings, stack).open(configured_task_types(settings))


class _Builder:
    """Makes the shared parts, and over them what each task type needs."""

    def __init__(self, settings: Settings, stack: AsyncExitStack) -> None:
        self._settings = settings
        self._stack = stack
        indexes = IndexBoard()
        self._engine = make_engine(settings.qdrant, settings.data_dir, indexes)
        self._lanes = ModelLanes(settings, stack)
        self._clips = ClipOpener(settings, self._lanes)
        self._face_models = FaceOpener(settings, self._lanes)
        self._claims: list[StoreClaim] = []
        self._images: ImageParts | None = None
        self._faces: FaceParts | None = None
        # Of searches and of the doors: somebody waits, and must not stand behind jobs' pictures.
        self._asked = asyncio.Semaphore(URGENT_PICTURES)
        self.set = HandlerSet(
            runners=self._lanes.runners,
            lanes=self._lanes.lanes,
            on_demand=self._lanes.on_demand,
            indexes=indexes,
        )

    async def open(self, task_types: list[TaskType]) -> HandlerSet:
        await self._lanes.open()
        self._decoders = await self._stack.enter_async_context(Decoders(self._settings.images))
        self._media_store = await self._stack.enter_async_context(
            MediaStoreClient(self._settings.media_store)
        )
        decoding = self._settings.images.decoder_count
        self._pictures = Pictures(
            self._media_store,
            self._decoders,
            files=self._settings.media_store.concurrency + decoding,
            decoded=decoding + SPARE_PICTURES,
        )
        for task_type in task_types:
            match task_type:
                case TaskType.IMAGE_EMBEDDING:
                    await self._open_image_embedding()
                case TaskType.FACE_DETECTION:
                    await self._open_face_detection()
                case TaskType.FACE_EMBEDDING:
                    await self._open_face_embedding()
        await bind_all(self._claims)
        self.set.previews = Previews(self._media_store, self._decoders)
        self.set.search = Search(images=self._images, faces=self._faces)
        self.set.direct = DirectVectors(
            self._settings.faces, images=self._images, faces=self._faces
        )
        self.set.snapshots = VectorSnapshots(self._engine)
        await self.set.snapshots.sweep()
        if self._settings.qdrant.url:
            self.set.server_life = partial(life_of, self._engine)
        self._add_checks()
        return self.set

    async def _open_image_embedding(self) -> None:
        models = await self._clips.open()
        configured = models.configured
        store = QdrantImageStore(engine=self._engine, dimension=configured.dimension)
        self._add_store(TaskType.IMAGE_EMBEDDING, store)
        handler = ImageEmbeddingHandler(
            pictures=self._pictures,
            decoders=self._decoders,
            models=models,
            store=store,
            decoding=self._settings.images.decoding,
        )
        self._claims.append(handler.claim)
        self.set.handlers.append(await self._stack.enter_async_context(handler))
        text = configured.text
        if text is None:
            raise RuntimeError("the configured model was opened without its text tower")
        self._images = ImageParts(
            handler=handler,
            runner=configured.runner,
            store=store,
            text=text.runner,
            tokenise=text.tokenise,
            models=models,
            side=configured.side,
        )
        self.set.model_changes[store.collection] = ModelChange(
            store,
            ImageShadow(models, handler),
            models,
            partial(PointInventory, store),
            folder=self._engine.folder,
        )

    async def _open_face_detection(self) -> None:
        self.set.handlers.append(
            FaceDetectionHandler(
                media_store=self._media_store,
                pictures=self._pictures,
                runner=await self._face_models.detector(),
            )
        )

    async def _open_face_embedding(self) -> None:
        models = await self._face_models.open()
        configured = models.configured
        store = QdrantFaceStore(engine=self._engine, dimension=configured.dimension)
        self._add_store(TaskType.FACE_EMBEDDING, store)
        handler = FaceEmbeddingHandler(
            pictures=self._pictures, decoders=self._decoders, models=models, store=store
        )
        self._claims.append(handler.claim)
        self.set.handlers.append(handler)
        self._faces = FaceParts(
            handler=handler,
            detector=configured.detector,
            runner=configured.recogniser,
            store=store,
            models=models,
            pictures=self._asked,
        )
        self.set.model_changes[store.collection] = ModelChange(
            store,
            FaceShadow(models, handler),
            models,
            partial(FaceInventory, store),
            folder=self._engine.folder,
        )

    def _add_store(self, task_type: TaskType, store: QdrantStore) -> None:
        self._stack.push_async_callback(store.close)
        self.set.stores[task_type] = store

    def _add_checks(self) -> None:
        checks = self.set.checks
        checks["media_store"] = self._check_media_store, False
        checks["models"] = self.set.check_models, True
        if self.set.stores:
            checks["vectors"] = self.set.check_vectors, True
        for collection in self.set.model_changes:
            name = CHANGES[collection]
            checks[name] = partial(self.set.check_model_change, name), False

    async def _check_media_store(self) -> JsonObject:
        await self._media_store.check()
        return {"url": self._media_store.address}
