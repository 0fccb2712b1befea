"""A model change of faces without models: each finds faces of its own in a picture, or none.

Vectors tell which model made them, of which face of which picture, and which job saw it. All else
is real: the engine, the store, the record, the passes, what is kept of pictures without a face.
"""

from collections import defaultdict
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import cast

from daemon.jobs import JsonObject
from handlers.face_store import PictureFaces, QdrantFaceStore
from handlers.model_change.change import ModelChange
from handlers.model_change.face_inventory import FaceInventory
from handlers.model_change.inventory import Unit
from handlers.models.face_models import FaceModels
from handlers.qdrant.vector_engine import Point, PointId, SharedEngine
from handlers.qdrant.vector_points import face_point_id
from handlers.vectors.faceless import DETECTOR, Faceless
from handlers.vectors.model_record import Part
from tests.model_changes import (
    DIMENSIONS,
    FakeEmbedder,
    FakeModels,
    Rig,
    claim_where_free,
    same,
    vector_of,
)

CROWD = 77
"""A picture with more faces than go in one write."""
STEPS = {"A": 1, "B": 3, "C": 1}


def count_of(fingerprint: str, media_store_id: int) -> int:
    """Return how many faces a model finds in a picture: 0 to 3, A and C as many as each other."""
    if media_store_id == CROWD:
        return 140 + STEPS[fingerprint]
    return media_store_id * STEPS[fingerprint] // 2 % 4


def points_of(fingerprint: str, media_store_id: int, payload: JsonObject) -> list[Point]:
    """Return the points of the faces that a model finds."""
    job_id = str(payload["job_id"])
    return [
        Point(
            face_point_id(media_store_id, index),
            vector_of(fingerprint, media_store_id, f"{job_id}/{index}"),
            {**payload, "face_index": index, "model": fingerprint},
        )
        for index in range(count_of(fingerprint, media_store_id))
    ]


class FakeFaceEmbedder(FakeEmbedder):
    """Finds the faces of a stored picture as its job saw it."""

    async def embed(self, part: Part, unit: Unit) -> Unit:
        """Return what a part's model finds."""
        assert isinstance(unit.key, int)
        await self.seen(unit.key)
        payload = {"media_store_id": unit.key, "job_id": unit.job_id}
        points = points_of(part.fingerprint, unit.key, payload)
        return Unit(unit.key, unit.job_id, points, faceless={**payload, DETECTOR: "fake"})


class FaceRig(Rig):
    """A store of faces whose model can change."""

    @property
    def faces(self) -> QdrantFaceStore:
        """The store."""
        return cast("QdrantFaceStore", self.store)

    async def job(self, media_store_id: int, job_id: str) -> None:
        """Do as a job does: find faces for what is known, then for what the store asks."""
        self.embedder.pictures[media_store_id] = job_id
        known = self.known()
        faces = {name: self.found(name, media_store_id, job_id) for name in known}
        while missing := await self.faces.write(faces):
            faces |= {
                part.fingerprint: self.found(part.fingerprint, media_store_id, job_id)
                for part in missing
            }

    def found(self, fingerprint: str, media_store_id: int, job_id: str) -> PictureFaces:
        """Return what a job would store by a model."""
        payload = {"media_store_id": media_store_id, "job_id": job_id}
        points = points_of(fingerprint, media_store_id, payload)
        return PictureFaces(media_store_id, {**payload, DETECTOR: "fake"}, points)

    async def contents(self, part: Part) -> dict[int, str]:
        """Return job by picture in one part; its faces are exactly those that are expected."""
        engine, from_id = self.store.parts.engine, cast("PointId | None", None)
        faces: dict[int, dict[int, Point]] = defaultdict(dict)
        while True:
            page = await engine.scroll(part.physical, from_id=from_id, limit=1000)
            for point in page.points:
                faces[point.payload["media_store_id"]][point.payload["face_index"]] = point
            if (from_id := page.next_id) is None:
                break
        found = {}
        for media_id, by_index in faces.items():
            payload = by_index[0].payload
            expected = points_of(part.fingerprint, media_id, payload)
            assert sorted(by_index) == list(range(len(expected)))
            for index, point in enumerate(expected):
                same(by_index[index], point)
            found[media_id] = str(payload["job_id"])
        kept = await Faceless(self.store.parts, self.store.collection, part).page(None, 1000)
        for point in kept.points:
            if (media_id := int(point.point_id)) not in found:
                assert count_of(part.fingerprint, media_id) == 0
                found[media_id] = str(point.payload["job_id"])
        return found


@asynccontextmanager
async def face_rig(
    engine: SharedEngine, folder: Path | None, pictures: dict[int, str] | None = None
) -> AsyncIterator[FaceRig]:
    """Give a store over an engine, claimed by model A where nobody else has it."""
    models = FakeModels()
    embedder = FakeFaceEmbedder(pictures if pictures is not None else {})
    async with QdrantFaceStore(engine=engine, dimension=DIMENSIONS["A"]) as store:
        await claim_where_free(store)
        change = ModelChange(
            store,
            embedder,
            cast("FaceModels", models),
            partial(FaceInventory, store),
            folder=folder,
        )
        yield FaceRig(store, change, embedder, models)
