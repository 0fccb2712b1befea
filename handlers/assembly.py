"""Builds the handlers that are asked for over the parts they share, and opens them in order."""

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any, TypeAlias

from daemon.errors import InferdError, OutOfMemoryError, RetryableError
from daemon.jobs import Job, JsonObject, TaskType
from daemon.settings import ClipSettings, FacesSettings, Settings
from handlers.claims import StoreClaim
from handlers.decoders import Decoders
from handlers.device import ModelRunner
from handlers.direct import DirectVectors
from handlers.edge_schedule import IndexBoard
from handlers.engine_choice import make_engine
from handlers.face_batches import GPU_BATCH
from handlers.face_detection import FaceDetectionHandler, FaceDetectionInference
from handlers.face_embedding import FaceEmbeddingInference
from handlers.face_embedding_handler import FaceEmbeddingHandler
from handlers.face_inventory import FaceInventory
from handlers.face_models import FaceModel, FaceModels
from handlers.face_shadow import FaceShadow
from handlers.face_specs import asked_spec as asked_faces
from handlers.face_specs import configured_spec, detector_settings, recogniser_settings
from handlers.face_store import QdrantFaceStore
from handlers.faces import Face
from handlers.gpus import lane_devices
from handlers.image_embedding import ImageEmbeddingInference
from handlers.image_embedding_handler import ImageEmbeddingHandler
from handlers.image_models import ImageModel, ImageModels, TextTower, plain_spec
from handlers.image_models import asked_spec as asked_clip
from handlers.image_shadow import ImageShadow
from handlers.image_store import QdrantImageStore
from handlers.inference import MLInference, Provenance, Vector
from handlers.lane import DeviceLane
from handlers.media_store import MediaStoreClient
from handlers.model_change import ModelChange
from handlers.model_record import physical_name
from handlers.pictures import Pictures
from handlers.point_inventory import PointInventory
from handlers.previews import Previews
from handlers.qdrant_store import QdrantStore
from handlers.query_vectors import FaceParts, ImageParts
from handlers.search import Search
from handlers.server_life import ServerLife, life_of
from handlers.stored_vectors import StoredVectors
from handlers.task_types import configured_task_types
from handlers.text_embedding import TextEmbeddingInference
from handlers.vector_snapshots import VectorSnapshots

log = logging.getLogger(__name__)

SPARE_PICTURES = 2
"""Pictures with every pixel beside those that are being decoded: in the model, and next."""

Handler: TypeAlias = ImageEmbeddingHandler | FaceDetectionHandler | FaceEmbeddingHandler
Check: TypeAlias = Callable[[], Awaitable[JsonObject]]

CHANGES = {
    QdrantImageStore.collection: "model_change",
    QdrantFaceStore.collection: "face_model_change",
}
"""What a change of a collection's model is called in stats and health."""

URGENT_PICTURES = 2
"""Decoded at a time to find faces for somebody who waits, beside those of jobs."""


@dataclass
class HandlerSet:
    """The open handlers, and what the rest of the daemon may ask of them."""

    handlers: list[Handler] = field(default_factory=list)
    runners: list[ModelRunner[Any]] = field(default_factory=list)
    lanes: list[DeviceLane] = field(default_factory=list)
    """Where the models run: one for each GPU, or one."""
    on_demand: set[str] = field(default_factory=set)
    """Names of models that no job needs: loaded at the first search that does."""
    search: Search = field(default_factory=Search)
    direct: DirectVectors = field(default_factory=DirectVectors)
    """What the compatible doors ask."""
    previews: Previews | None = None
    """What people look at; always there once the set is open."""
    stores: dict[TaskType, QdrantStore] = field(default_factory=dict)
    model_changes: dict[str, ModelChange] = field(default_factory=dict)
    """What changes a collection's model, by its fixed name."""
    snapshots: VectorSnapshots | None = None
    """Copies the vectors for a backup; always there once the set is open."""
    indexes: IndexBoard = field(default_factory=IndexBoard)
    """How the embedded engine's indexes stand."""
    server_life: Callable[[], Awaitable[ServerLife]] | None = None
    """Asks which process of the vectors' server answers; None where they lie on this machine."""
    checks: dict[str, tuple[Check, bool]] = field(default_factory=dict)
    """Health checks by name, and whether the daemon is unready where they fail."""

    async def preload(self) -> None:
        """Load every model now, so that the first job need not wait.

        Raises:
            ConfigError: one cannot be loaded; every job of its kind would fail.
        """
        for runner in self._needed():
            try:
                await runner.load()
            except OutOfMemoryError as error:
                # There may be room when the first job needs it, and no other model is at fault.
                log.warning("%s is not loaded yet: %s", runner.name, error.message)

    @property
    def model_change(self) -> ModelChange | None:
        """What changes the model of the pictures; None where nobody embeds them here."""
        return self.model_changes.get(QdrantImageStore.collection)

    @property
    def stored(self) -> StoredVectors:
        """What lists the stored vectors."""
        return StoredVectors(self.stores)

    async def forget_vectors(self, job: Job) -> None:
        """Remove what a completed job stored.

        Raises:
            HandlerError: the vector database did not do it.
        """
        store = self.stores.get(job.task_type)
        if store is not None:
            await store.remove_by_media_store_id(job.media_store_id)

    async def forget_media(self, media_store_id: int) -> dict[str, int]:
        """Remove all vectors of a picture; return how many there were, by collection.

        Raises:
            HandlerError: the vector database did not do it.
        """
        found = {}
        for store in self.stores.values():
            # Done at the start, unless the database was away then.
            await store.open()
            found[store.collection] = await store.count_of_media(media_store_id)
            await store.remove_by_media_store_id(media_store_id)
        return found

    async def change_models(self, is_busy: Callable[[], bool]) -> None:
        """Work on changes of models until cancelled, whenever there are some.

        Args:
            is_busy: whether jobs run, which go first.
        """
        async with asyncio.TaskGroup() as tasks:
            for change in self.model_changes.values():
                tasks.create_task(change.run(is_busy))

    def tell_model_changes(self) -> dict[str, JsonObject]:
        """Return how far each change of a model is, by what it is called in stats and health."""
        told = {
            CHANGES[collection]: change.stats() for collection, change in self.model_changes.items()
        }
        return {name: each for name, each in told.items() if each is not None}

    def running(self) -> list[dict[str, str]]:
        """Return name, model, weights, device and precision of each copy that is loaded.

        All but the name is empty for a model that is loaded nowhere.
        """
        found: list[dict[str, str]] = []
        for runner in self.runners:
            ran = [copy.inference.provenance for copy in runner.copies if copy.inference.is_loaded]
            for each in ran or [Provenance(model="", weights="", device="", precision="")]:
                told = {
                    "name": runner.name,
                    "model": each.model,
                    "weights": each.weights,
                    "device": each.device,
                    "precision": each.precision,
                }
                # Two copies may have moved to the same CPU.
                if told not in found:
                    found.append(told)
        return found

    async def check_models(self) -> JsonObject:
        """Return what `tell_models` does, who runs how many at a time, and who is short of memory.

        Raises:
            InferdError: one could not be loaded at the latest attempt.
        """
        short = [runner.name for runner in self.runners if runner.degradation is not None]
        told = await self.tell_models()
        for runner in self.runners:
            if runner.is_loaded and runner.batch is not None:
                told[runner.name]["batch"] = runner.batch.told
        return {"degraded": short, **told} if short else told

    async def tell_models(self) -> JsonObject:
        """Return each model with what really runs while it is loaded, and what it is short of.

        Raises:
            InferdError: one could not be loaded at the latest attempt, or failed its self-test.
        """
        failed = [f"{each.name}: {each.error}" for each in self._needed() if each.error]
        if failed:
            raise InferdError("; ".join(failed), code="model_error")
        return {
            runner.name: _told(runner, is_on_demand=runner.name in self.on_demand)
            for runner in self.runners
        }

    def _needed(self) -> list[ModelRunner[Any]]:
        return [runner for runner in self.runners if runner.name not in self.on_demand]


def _told(runner: ModelRunner[Any], *, is_on_demand: bool) -> JsonObject:
    ran = runner.provenance.to_wire() if runner.is_loaded else {}
    told: JsonObject = {"loaded": runner.is_loaded, **ran}
    if is_on_demand:
        told["on_demand"] = True
    if (short := runner.degradation) is not None:
        told["degraded"] = short.to_wire()
    if copies := runner.tell_copies():
        told["copies"] = copies
    return told


class _Builder:
    """Makes each shared part once, when the first handler needs it."""

    def __init__(self, settings: Settings, stack: AsyncExitStack) -> None:
        self._settings = settings
        self._stack = stack
        indexes = IndexBoard()
        self._engine = make_engine(settings.qdrant, settings.data_dir, indexes)
        self._detectors: list[ModelRunner[list[Face]]] = []
        self._recognisers: list[tuple[ModelRunner[Vector], int]] = []
        self._images: ImageParts | None = None
        self._faces: FaceParts | None = None
        # Of searches and of the doors: somebody waits, and must not stand behind jobs' pictures.
        self._asked = asyncio.Semaphore(URGENT_PICTURES)
        # Where a batch gains nothing the models themselves take less.
        self._face_batch = settings.faces.batch_size or GPU_BATCH
        self.set = HandlerSet(indexes=indexes)

    async def open(self, task_types: list[TaskType]) -> HandlerSet:
        for device in await asyncio.to_thread(lane_devices, self._settings.device):
            lane = DeviceLane(device)
            self.set.lanes.append(await self._stack.enter_async_context(lane))
        self._decoders = await self._stack.enter_async_context(Decoders(self._settings.images))
        self._media_store = await self._stack.enter_async_context(
            MediaStoreClient(self._settings.media_store)
        )
        self.set.previews = Previews(self._media_store, self._decoders)
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
        self.set.checks["media_store"] = self._check_media_store, False
        self.set.checks["models"] = self.set.check_models, True
        if self.set.stores:
            self.set.checks["vectors"] = self._check_vectors, True
        if self._settings.qdrant.url:
            self.set.server_life = partial(life_of, self._engine)
        self.set.snapshots = VectorSnapshots(self._engine)
        await self.set.snapshots.sweep()
        for collection in self.set.model_changes:
            check = partial(self._check_model_change, CHANGES[collection])
            self.set.checks[CHANGES[collection]] = check, False
        self.set.search = Search(images=self._images, faces=self._faces)
        self.set.direct = DirectVectors(
            self._settings.faces, images=self._images, faces=self._faces
        )
        return self.set

    async def _open_image_embedding(self) -> None:
        configured = await self._open_clip(self._settings.clip, "clip", "clip_text")
        models = ImageModels(
            configured, self._open_clip_of, plain=asked_clip, tell_needed=self._need_clip
        )
        store = QdrantImageStore(engine=self._engine, dimension=configured.dimension)
        self._store(TaskType.IMAGE_EMBEDDING, store)
        handler = ImageEmbeddingHandler(
            pictures=self._pictures,
            decoders=self._decoders,
            models=models,
            store=store,
            decoding=self._settings.images.decoding,
        )
        await self._bind(handler.claim)
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

    async def _open_clip_of(self, spec: Mapping[str, str]) -> ImageModel:
        """Open another CLIP than that of the settings, which no job needs yet."""
        clip = self._settings.clip.model_copy(update=dict(spec))
        settings = self._settings.model_copy(update={"clip": clip})
        inference = await asyncio.to_thread(ImageEmbeddingInference, None, None, settings=settings)
        # Before anything is told of it: it may be absent.
        await asyncio.to_thread(inference.resolve)
        names = (physical_name(name, inference.fingerprint) for name in ("clip", "clip_text"))
        model = await self._open_clip(clip, *names)
        self.set.on_demand.add(model.runner.name)
        return model

    async def _open_clip(self, clip: ClipSettings, name: str, text_name: str) -> ImageModel:
        by_lane = [each.model_copy(update={"clip": clip}) for each in self._by_lane()]
        inference, *others = [
            ImageEmbeddingInference(None, None, settings=settings) for settings in by_lane
        ]
        runner = await self._runner(
            name, inference, *others, max_batch=self._settings.worker.in_flight
        )
        # Searches are few: one copy is enough.
        texts = TextEmbeddingInference(inference.embedding_dim, settings=by_lane[0])
        text = await self._open_runner(text_name, texts)
        self.set.on_demand.add(text.name)
        return ImageModel(
            runner=runner,
            side=inference.input_size[0],
            dimension=inference.embedding_dim,
            spec=plain_spec(clip.model, clip.weights),
            text=TextTower(text, texts.tokenise),
        )

    def _need_clip(self, needed: ImageModel) -> None:
        """Let all other CLIPs be what nobody needs: they may be absent, or not loaded."""
        for runner in self.set.runners:
            if runner.name.partition(".")[0] == "clip":
                self.set.on_demand.add(runner.name)
        self.set.on_demand.discard(needed.runner.name)

    async def _open_face_detection(self) -> None:
        self.set.handlers.append(
            FaceDetectionHandler(
                media_store=self._media_store,
                pictures=self._pictures,
                runner=await self._detector_of(self._settings.faces),
            )
        )

    async def _open_face_embedding(self) -> None:
        faces = self._settings.faces
        recogniser, dimension = await self._recogniser(faces, "face_recogniser")
        configured = FaceModel(
            recogniser=recogniser,
            detector=await self._detector_of(faces),
            dimension=dimension,
            spec=configured_spec(faces),
        )
        models = FaceModels(
            configured,
            self._open_faces_of,
            plain=asked_faces,
            tell_needed=self._need_faces,
            shared=(configured.detector,),
        )
        store = QdrantFaceStore(engine=self._engine, dimension=configured.dimension)
        self._store(TaskType.FACE_EMBEDDING, store)
        handler = FaceEmbeddingHandler(
            pictures=self._pictures, decoders=self._decoders, models=models, store=store
        )
        await self._bind(handler.claim)
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

    async def _open_faces_of(self, spec: Mapping[str, str]) -> FaceModel:
        """Open another detector or recogniser than those of the settings, or both."""
        faces = self._settings.faces
        recogniser, dimension = await self._recogniser(recogniser_settings(faces, spec))
        detector = await self._detector_of(detector_settings(faces, spec))
        return FaceModel(recogniser=recogniser, detector=detector, dimension=dimension, spec=spec)

    def _need_faces(self, needed: FaceModel) -> None:
        """Let what face models of before had be what nobody needs, but face_detection's."""
        self.set.on_demand.update(runner.name for runner, _ in self._recognisers)
        self.set.on_demand.update(runner.name for runner in self._detectors[1:])
        self.set.on_demand.difference_update(runner.name for runner in needed.needed)

    async def _recogniser(
        self, faces: FacesSettings, name: str | None = None
    ) -> tuple[ModelRunner[Vector], int]:
        """Return what makes vectors by these settings, and how long they are."""
        inference, *others = [
            FaceEmbeddingInference(None, settings=settings) for settings in self._by_lane(faces)
        ]
        await asyncio.to_thread(inference.resolve)
        for runner, dimension in self._recognisers:
            if runner.fingerprint == inference.fingerprint:
                return runner, dimension
        name = name or physical_name("face_recogniser", inference.fingerprint)
        made = await self._runner(name, inference, *others, max_batch=self._face_batch)
        self._recognisers.append((made, inference.embedding_dim))
        return self._recognisers[-1]

    async def _detector_of(self, faces: FacesSettings) -> ModelRunner[list[Face]]:
        """Return what finds faces by these settings; the first one is that of all settings."""
        inference, *others = [
            FaceDetectionInference(settings=settings) for settings in self._by_lane(faces)
        ]
        await asyncio.to_thread(inference.resolve)
        for runner in self._detectors:
            if runner.fingerprint == inference.fingerprint:
                return runner
        name = "face_detector"
        if self._detectors:
            name = physical_name(name, inference.fingerprint)
        made = await self._runner(name, inference, *others, max_batch=self._face_batch)
        self._detectors.append(made)
        return self._detectors[-1]

    def _by_lane(self, faces: FacesSettings | None = None) -> list[Settings]:
        """Return the settings of each lane's models."""
        given = {} if faces is None else {"faces": faces}
        return [
            self._settings.model_copy(update={"device": lane.name, **given})
            for lane in self.set.lanes
        ]

    async def _runner(
        self, name: str, *copies: MLInference[Any], max_batch: int = 1
    ) -> ModelRunner[Any]:
        runner = await self._open_runner(name, *copies, max_batch=max_batch)
        await runner.resolve()
        return runner

    async def _open_runner(
        self, name: str, *copies: MLInference[Any], max_batch: int = 1
    ) -> ModelRunner[Any]:
        (inference, lane), *others = zip(copies, self.set.lanes, strict=False)
        # Of several lanes each is told its GPU by name, which would not go to the CPU by itself.
        may_fall_back = lane.name != self._settings.device == "auto"
        runner: ModelRunner[Any] = ModelRunner(
            name,
            inference,
            lane,
            others=others,
            max_batch=max_batch,
            require_gpu=self._settings.require_gpu,
            may_fall_back=may_fall_back and not self._settings.require_gpu,
            retry_seconds=self._settings.device_retry_seconds,
            idle_seconds=self._settings.models_idle_seconds,
            self_test_seconds=self._settings.models_self_test_seconds,
        )
        await self._stack.enter_async_context(runner)
        self.set.runners.append(runner)
        return runner

    def _store(self, task_type: TaskType, store: QdrantStore) -> QdrantStore:
        self._stack.push_async_callback(store.close)
        self.set.stores[task_type] = store
        return store

    async def _bind(self, claim: StoreClaim) -> None:
        try:
            await claim.bind()
        except RetryableError as error:
            # The jobs wait for it; a start must not.
            log.warning("the vector database is away: %s", error.message)

    async def _check_media_store(self) -> JsonObject:
        await self._media_store.check()
        return {"url": self._media_store.address}

    async def _check_model_change(self, name: str) -> JsonObject:
        return self.set.tell_model_changes().get(name, {})

    async def _check_vectors(self) -> JsonObject:
        counts: JsonObject = {}
        for store in self.set.stores.values():
            await store.open()
            await store.check_room()
            counts[store.collection] = await store.count()
        indexes = {name: state.told() for name, state in self.set.indexes.states().items()}
        return {**counts, "indexes": indexes} if indexes else counts


@asynccontextmanager
async def open_handlers(settings: Settings) -> AsyncIterator[HandlerSet]:
    """Give the handlers of the configured task types; what they share closes after them.

    Raises:
        ConfigError: weights are absent, a collection is another model's, or a setting is wrong.
    """
    async with AsyncExitStack() as stack:
        yield await _Builder(settings, stack).open(configured_task_types(settings))
