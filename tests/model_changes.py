"""A model change without models: vectors that tell which model made them of which picture and job.

All else is real: the engine, the store, the record, the passes.
"""

import asyncio
import hashlib
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest

from daemon.errors import ConfigError, HandlerError
from handlers.image_store import QdrantImageStore
from handlers.inference import Vector
from handlers.model_change import lease as model_lease
from handlers.model_change import work as model_change_work
from handlers.model_change.change import ModelChange
from handlers.model_change.inventory import Unit
from handlers.model_change.point_inventory import PointInventory
from handlers.models.image_models import ImageModels
from handlers.qdrant.vector_engine import Point, SharedEngine
from handlers.vectors.model_record import Part
from handlers.vectors.qdrant_store import QdrantStore

A = {"model": "A", "weights": "a"}
B = {"model": "B", "weights": "b"}
C = {"model": "C", "weights": "c"}
DIMENSIONS = {"A": 32, "B": 16, "C": 32}


def vector_of(fingerprint: str, media_store_id: int, job_id: str) -> Vector:
    """Return what a model makes of a picture as it was when a job saw it."""
    seed = hashlib.sha256(f"{fingerprint}/{media_store_id}/{job_id}".encode()).digest()
    rng = np.random.default_rng(int.from_bytes(seed[:8], "little"))
    vector = rng.standard_normal(DIMENSIONS[fingerprint]).astype(np.float32)
    return vector / np.linalg.norm(vector)


@dataclass(eq=False)
class FakeRunner:
    """Loads at once."""

    fingerprint: str

    async def load(self) -> None:
        """Be loaded."""


@dataclass(eq=False)
class FakeModel:
    """What the change asks of a model."""

    spec: Mapping[str, str]

    @property
    def fingerprint(self) -> str:
        return self.spec["model"]

    @property
    def dimension(self) -> int:
        return DIMENSIONS[self.fingerprint]

    @property
    def needed(self) -> list[FakeRunner]:
        return [FakeRunner(self.fingerprint)]


class FakeModels:
    """Has the three models."""

    def __init__(self) -> None:
        self.needed: list[str] = []

    async def open(self, spec: Mapping[str, str]) -> FakeModel:
        if spec["model"] not in DIMENSIONS:
            raise ConfigError(f"no model {spec['model']}")
        return FakeModel(spec)

    async def of(self, part: Part) -> FakeModel:
        return FakeModel(part.spec or {"model": part.fingerprint, "weights": "a"})

    def need(self, needed: FakeModel) -> None:
        self.needed.append(needed.fingerprint)

    async def unload_others(self, *needed: FakeModel) -> bool:
        return False


@dataclass
class FakeEmbedder:
    """Embeds a stored picture as its job saw it; `pictures` has the latest job of each."""

    pictures: dict[int, str]
    errors: dict[int, HandlerError] = field(default_factory=dict)
    embedded: list[int] = field(default_factory=list)
    on_embed: Callable[[int], Any] = lambda _id: None

    async def embed(self, part: Part, unit: Unit) -> Unit:
        (stored,) = unit.points
        media_id = int(stored.payload["media_store_id"])
        await self.seen(media_id)
        vector = vector_of(part.fingerprint, media_id, str(stored.payload["job_id"]))
        payload = {**stored.payload, "model": part.fingerprint}
        return replace(unit, points=[Point(stored.point_id, vector, payload)])

    async def seen(self, media_id: int) -> None:
        """Take note of a picture; wait, or fail."""
        gate = self.on_embed(media_id)
        if gate is not None:
            await gate
        if media_id in self.errors:
            raise self.errors[media_id]
        self.embedded.append(media_id)


def same(stored: Point, expected: Point) -> None:
    """A stored point is the expected one, of the model that is expected."""
    assert stored.point_id == expected.point_id
    assert stored.payload["model"] == expected.payload["model"]
    np.testing.assert_allclose(stored.vector, expected.vector, atol=1e-5)


@dataclass
class Rig:
    """A store whose model can change."""

    store: QdrantStore
    change: ModelChange
    embedder: FakeEmbedder
    models: FakeModels
    is_busy: bool = False

    async def job(self, media_store_id: int, job_id: str) -> None:
        """Do as a job does: embed for what is known, then for what the store asks."""
        self.embedder.pictures[media_store_id] = job_id
        store = cast("QdrantImageStore", self.store)
        points = {name: self.point(name, media_store_id, job_id) for name in self.known()}
        while missing := (await store.write([points]))[0]:
            points |= {
                part.fingerprint: self.point(part.fingerprint, media_store_id, job_id)
                for part in missing
            }

    def known(self) -> set[str]:
        """Return the models that a job embeds by at first."""
        record = self.store.seen
        return {"A"} if record is None else {part.fingerprint for part in record.written}

    def point(self, fingerprint: str, media_store_id: int, job_id: str) -> Point:
        """Return what a job would store by a model."""
        payload = {"media_store_id": media_store_id, "job_id": job_id, "model": fingerprint}
        return Point(media_store_id, vector_of(fingerprint, media_store_id, job_id), payload)

    async def contents(self, part: Part) -> dict[int, str]:
        """Return job by picture in one part; every vector there is exactly the expected one."""
        view = self.store.at(part)
        found = {}
        page = await view.page(limit=1000)
        for point in page.points:
            whole = await view.fetch(point.point_id)
            assert whole is not None
            media_id, job_id = whole.payload["media_store_id"], whole.payload["job_id"]
            same(whole, self.point(part.fingerprint, media_id, job_id))
            found[media_id] = job_id
        assert page.next_id is None
        return found

    async def active(self) -> tuple[str, dict[int, str]]:
        """Return the model that is searched, and what it has."""
        record = await self.store.record()
        assert record is not None
        return record.active.fingerprint, await self.contents(record.active)

    @asynccontextmanager
    async def working(self) -> AsyncIterator[asyncio.Task[None]]:
        """Work on changes, as the daemon does."""
        task = asyncio.create_task(self.change.run(lambda: self.is_busy))
        try:
            yield task
        finally:
            task.cancel()
            with suppress(asyncio.CancelledError):
                await task

    async def is_of(self, fingerprint: str) -> bool:
        """Whether a model is the one that is searched."""
        record = await self.store.record()
        return record is not None and record.active.fingerprint == fingerprint

    async def until_of(self, fingerprint: str, seconds: float = 60) -> None:
        """Return once a model is searched."""
        async with asyncio.timeout(seconds):
            while not await self.is_of(fingerprint):  # noqa: ASYNC110 - it rings no bell
                await asyncio.sleep(0.005)


def wait_briefly(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a change try again, look again and settle its lease at once."""
    monkeypatch.setattr(model_change_work, "RETRY_SECONDS", 0.01)
    monkeypatch.setattr(model_change_work, "MOST_RETRY_SECONDS", 0.1)
    monkeypatch.setattr(model_change_work, "POLL_SECONDS", 0.05)
    monkeypatch.setattr(model_lease, "SETTLE_SECONDS", 0.0)


async def claim_where_free(store: QdrantStore) -> None:
    """Let a store be of model A, where nobody else has it."""
    record = await store.record()
    if record is None or record.active.spec is None:
        await store.claim("A", "A")
    await store.record()


@asynccontextmanager
async def rig(
    engine: SharedEngine, folder: Path | None, pictures: dict[int, str] | None = None
) -> AsyncIterator[Rig]:
    """Give a store over an engine, claimed by model A where nobody else has it."""
    models = FakeModels()
    embedder = FakeEmbedder(pictures if pictures is not None else {})
    async with QdrantImageStore(engine=engine, dimension=DIMENSIONS["A"]) as store:
        await claim_where_free(store)
        change = ModelChange(
            store,
            embedder,
            cast("ImageModels", models),
            partial(PointInventory, store),
            folder=folder,
        )
        yield Rig(store, change, embedder, models)
