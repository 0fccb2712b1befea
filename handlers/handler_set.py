"""HandlerSet: the open handlers, and what the rest of the daemon may ask of them."""

import asyncio
import logging
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any, TypeAlias

from daemon.errors import InferdError, OutOfMemoryError
from daemon.jobs import Job, JsonObject, TaskType
from handlers.direct import DirectVectors
from handlers.face_detection import FaceDetectionHandler
from handlers.face_embedding_handler import FaceEmbeddingHandler
from handlers.face_store import QdrantFaceStore
from handlers.image_embedding_handler import ImageEmbeddingHandler
from handlers.image_store import QdrantImageStore
from handlers.inference import Provenance
from handlers.lanes.device import ModelRunner
from handlers.lanes.lane import DeviceLane
from handlers.media.previews import Previews
from handlers.model_change.change import ModelChange
from handlers.qdrant.edge_schedule import IndexBoard
from handlers.qdrant.server_life import ServerLife
from handlers.search.search import Search
from handlers.search.stored_vectors import StoredVectors
from handlers.vectors.qdrant_store import QdrantStore
from handlers.vectors.vector_snapshots import VectorSnapshots

log = logging.getLogger(__name__)

Handler: TypeAlias = ImageEmbeddingHandler | FaceDetectionHandler | FaceEmbeddingHandler
Check: TypeAlias = Callable[[], Awaitable[JsonObject]]

CHANGES = {
    QdrantImageStore.collection: "model_change",
    QdrantFaceStore.collection: "face_model_change",
}
"""What a change of a collection's model is called in stats and health."""


@dataclass
class HandlerSet:
    """The open handlers, and what the rest of the daemon may ask of them."""

    handlers: list[Handler] = field(default_factory=list)
    runners: list[ModelRunner[Any]] = field(default_factory=list)
    lanes: list[DeviceLane] = field(default_factory=list)
    """Where the models run: one for each GPU, or one."""
    on_demand: set[str] = field(default_factory=set)
    """Names of models that no job needs: each is loaded at the first search that needs it."""
    search: Search = field(default_factory=Search)
    direct: DirectVectors = field(default_factory=DirectVectors)
    """Embeds and detects for the APIs of other products."""
    previews: Previews | None = None
    """Small pictures for people to look at; always set once the handlers are open."""
    stores: dict[TaskType, QdrantStore] = field(default_factory=dict)
    model_changes: dict[str, ModelChange] = field(default_factory=dict)
    """By a collection's fixed name: what changes its model."""
    snapshots: VectorSnapshots | None = None
    """Copies the vectors for a backup; always set once the handlers are open."""
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
        """Return the progress of each model change, by its name in stats and health."""
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
        """Return what `tell_models` does, each model's batch size, and which are short of memory.

        Raises:
            InferdError: one could not be loaded at the latest attempt.
        """
        short = [runner.name for runner in self.runners if runner.degradation is not None]
        told = await self.tell_models()
        for runner in self.runners:
            if runner.is_loaded and runner.batch is not None:
                told[runner.name]["batch"] = runner.batch.told
        return {"degraded": short, **told} if short else told

    async def check_vectors(self) -> JsonObject:
        """Return how many vectors each collection has, and how the embedded indexes stand.

        Raises:
            InferdError: the vector database is away or differs, or its disk is nearly full.
        """
        counts: JsonObject = {}
        for store in self.stores.values():
            await store.open()
            await store.check_room()
            counts[store.collection] = await store.count()
        indexes = {name: state.told() for name, state in self.indexes.states().items()}
        return {**counts, "indexes": indexes} if indexes else counts

    async def check_model_change(self, name: str) -> JsonObject:
        """Return the progress of a model change, by its name; empty where there is none."""
        return self.tell_model_changes().get(name, {})

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
