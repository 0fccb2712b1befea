"""The stores of vectors: QdrantImageStore and QdrantFaceStore, and which engine is behind them.

Run `python -m handlers.vectors` to see both at work in a temporary folder.

Vectors of two models never mix. The tiny collection `inferd_models`, kept with the vectors, says
which model each collection belongs to. `claim` writes it before the first vector, and refuses:

    claimed by another model          model_mismatch, unless the collection is empty
    points, but nobody claimed them   model_unknown, unless `adopt` (an older tool, or scripts)

A store that has claimed asks again at every upsert, so that a daemon which runs while its
collection is emptied and taken over can't add vectors of the former model.
"""

import importlib.util
import logging
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar, Literal, TypeAlias
from weakref import WeakValueDictionary

import numpy as np

from daemon.errors import ConfigError, DependencyDownError
from daemon.settings import QdrantSettings
from handlers.inference import Vector
from handlers.vector_engine import (
    AtLeast,
    CollectionSpec,
    Equals,
    Filter,
    Match,
    Point,
    PointId,
    SharedEngine,
    VectorEngine,
)
from handlers.vector_points import (
    callers_match,
    callers_point,
    face_point_id,
    legal_id,
    model_point_id,
    stored_point,
    unit_vector,
)
from handlers.vector_store import VectorStore

__all__ = [
    "AtLeast",
    "Equals",
    "Filter",
    "Match",
    "Point",
    "QdrantFaceStore",
    "QdrantImageStore",
    "SharedEngine",
    "VectorEngine",
    "VectorStore",
    "face_point_id",
    "make_engine",
]

log = logging.getLogger(__name__)

EngineName: TypeAlias = Literal["auto", "edge", "local"]

DEFAULT_URL = "http://localhost:6333"
BATCH = 128
"""Points sent in one call."""

MODELS = CollectionSpec("inferd_models", 1)

_embedded: WeakValueDictionary[Path, SharedEngine] = WeakValueDictionary()
"""Open folders: only one engine may have one, so stores of this process share it."""


def make_engine(settings: QdrantSettings, data_dir: Path) -> SharedEngine:
    """Return the engine that the settings ask for; nothing is opened or imported yet."""
    if not settings.url:
        return embedded_engine(data_dir / "vectors", settings.engine)
    key = settings.api_key.get_secret_value() if settings.api_key else None
    return server_engine(settings.url, key, settings.grpc_port, settings.timeout_seconds)


def server_engine(
    url: str, api_key: str | None = None, grpc_port: int = 0, timeout_seconds: float = 10.0
) -> SharedEngine:
    """Return the engine for a Qdrant server; it speaks gRPC where `grpc_port` is given."""

    def make() -> VectorEngine:
        from handlers.qdrant_server import ServerEngine  # noqa: PLC0415 - 0.8 s, when opened

        return ServerEngine(
            url, api_key=api_key, grpc_port=grpc_port, timeout_seconds=timeout_seconds
        )

    return SharedEngine(make)


def embedded_engine(folder: Path, engine: EngineName = "auto") -> SharedEngine:
    """Return the engine that keeps vectors under `folder`, for this process alone.

    `auto` is the engine whose vectors lie there; in an empty folder edge, or local mode where
    edge has no wheel.
    """

    def make() -> VectorEngine:
        if _choose(folder, engine) == "edge":
            from handlers.qdrant_edge import EdgeEngine  # noqa: PLC0415 - may have no wheel

            return EdgeEngine(folder / "edge")
        from handlers.qdrant_local import LocalEngine  # noqa: PLC0415 - 0.8 s, when opened

        return LocalEngine(folder / "local")

    return _embedded.setdefault(folder.resolve(), SharedEngine(make))


def _choose(folder: Path, wanted: EngineName) -> EngineName:
    edge, local = folder / "edge", folder / "local"
    kept: list[EngineName] = []
    if edge.is_dir() and any(child.is_dir() for child in edge.iterdir()):
        kept.append("edge")
    if (local / "collection").is_dir():
        kept.append("local")
    if wanted != "auto" and kept and wanted not in kept:
        raise ConfigError(
            f"the vectors in {folder} were made by the engine {kept[0]}, not {wanted}:"
            f" set INFERD_QDRANT__ENGINE={kept[0]}, or move them away",
            code="vector_store_unusable",
        )
    chosen = kept[0] if wanted == "auto" and kept else wanted
    has_edge = importlib.util.find_spec("qdrant_edge") is not None
    if chosen == "auto":
        if not has_edge:
            log.warning("qdrant-edge-py is not installed: the slower local mode keeps the vectors")
        return "edge" if has_edge else "local"
    if chosen == "edge" and not has_edge:
        raise ConfigError(
            f"the vectors in {folder} need the package qdrant-edge-py, which is not installed",
            code="vector_store_unusable",
        )
    return chosen


class QdrantStore(VectorStore):
    """One collection of one engine.

    Args:
        url: a Qdrant server, spoken to over HTTP; http://localhost:6333 if nothing is given.
        api_key: of that server.
        path: a folder to keep the vectors in instead, without a server.
        engine: an engine that several stores share instead.
    """

    indexes: ClassVar[dict[str, Literal["integer", "keyword"]]] = {
        "media_store_id": "integer",
        "job_id": "keyword",
    }

    def __init__(
        self,
        url: str | None = None,
        api_key: str | None = None,
        *,
        path: str | Path | None = None,
        engine: SharedEngine | None = None,
    ) -> None:
        super().__init__()
        if sum(given is not None for given in (url, path, engine)) > 1:
            raise ValueError("give one of url, path and engine")
        if engine is not None:
            self._shared = engine
        elif path is not None:
            self._shared = embedded_engine(Path(path))
        else:
            self._shared = server_engine(url or DEFAULT_URL, api_key)
        self._opened: VectorEngine | None = None
        self._claimed: tuple[str, str] | None = None

    async def claim(self, fingerprint: str, model: str, *, adopt: bool = False) -> None:
        """Say which model the vectors are of; the rules stand at the top of this file."""
        engine = self._engine
        await engine.ensure_collection(MODELS)
        holder = await self._read_claim()
        if holder is None or holder[0] != fingerprint:
            points = await engine.count(self.collection)
            if points and holder is not None:
                raise self._mismatch(holder, model)
            if points and not adopt:
                raise ConfigError(
                    f"the collection {self.collection} has {points} vectors and nobody said of"
                    f" which model: if they are of {model}, call claim(..., adopt=True) once;"
                    " else delete the collection",
                    code="model_unknown",
                )
            await self._write_claim(fingerprint, model)
            if holder is not None and await engine.count(self.collection):
                # The former holder wrote between the count and the claim: it stays his.
                await self._write_claim(*holder)
                raise self._mismatch(holder, model)
        self._claimed = (fingerprint, model)

    async def upsert(self, points: Sequence[Point]) -> None:
        """Store points over those of the same ids; of equal ids here the last one counts."""
        engine = self._engine
        by_id: dict[PointId, Point] = {}
        for point in points:
            stored = stored_point(point, self.dimension)
            by_id[stored.point_id] = stored
        if not by_id:
            return
        await self._check_claim()
        ready = list(by_id.values())
        for start in range(0, len(ready), BATCH):
            await engine.upsert(self.collection, ready[start : start + BATCH])

    async def fetch(self, point_id: PointId) -> Point | None:
        """Return a point, or nothing where there is none."""
        found = await self._engine.retrieve(self.collection, [legal_id(point_id)])
        return callers_point(found[0]) if found else None

    async def find(
        self,
        vector: Vector,
        limit: int = 10,
        min_score: float | None = None,
        where: Filter | None = None,
    ) -> list[Match]:
        """Return the points most similar to `vector`, best first."""
        engine = self._engine
        if limit < 1:
            raise ValueError("limit must be 1 or more")
        query = unit_vector(vector, self.dimension, "the query")
        found = await engine.search(
            self.collection, query, limit=limit, min_score=min_score, where=where
        )
        return [callers_match(match) for match in found]

    async def find_by_media_store_id(self, media_store_id: int | str) -> list[Point]:
        """Return all that is stored of one picture, faces in their order."""
        engine = self._engine
        where = Filter.where(Equals("media_store_id", media_store_id))
        points: list[Point] = []
        page = await engine.scroll(self.collection, where=where)
        points.extend(page.points)
        while page.next_id is not None:
            page = await engine.scroll(self.collection, where=where, from_id=page.next_id)
            points.extend(page.points)
        return sorted((callers_point(point) for point in points), key=_face_index)

    async def remove(self, point_ids: Sequence[PointId]) -> None:
        """Delete points; those that do not exist are no error."""
        engine = self._engine
        ids = [legal_id(point_id) for point_id in point_ids]
        if ids:
            await engine.delete(self.collection, ids)

    async def remove_by_media_store_id(self, media_store_id: int | str) -> None:
        """Delete all that is stored of one picture."""
        where = Filter.where(Equals("media_store_id", media_store_id))
        await self._engine.delete_where(self.collection, where)

    async def remove_by_job_id(self, job_id: str) -> None:
        """Delete all that one job stored."""
        await self._engine.delete_where(self.collection, Filter.where(Equals("job_id", job_id)))

    async def count(self) -> int:
        """Return how many points there are."""
        return await self._engine.count(self.collection)

    @property
    def _engine(self) -> VectorEngine:
        self._check_open()
        if self._opened is None:
            raise RuntimeError(f"the store of {self.collection} is still opening")
        return self._opened

    async def _open(self) -> None:
        engine = await self._shared.open()
        try:
            await engine.ensure_collection(
                CollectionSpec(self.collection, self.dimension, self.indexes)
            )
        except BaseException:
            await self._shared.close()
            raise
        self._opened = engine

    async def _close(self) -> None:
        self._opened = self._claimed = None
        await self._shared.close()

    async def _read_claim(self) -> tuple[str, str] | None:
        found = await self._engine.retrieve(MODELS.name, [model_point_id(self.collection)])
        if not found:
            return None
        payload = found[0].payload
        return str(payload.get("fingerprint")), str(payload.get("model"))

    async def _write_claim(self, fingerprint: str, model: str) -> None:
        payload = {"collection": self.collection, "fingerprint": fingerprint, "model": model}
        point = Point(model_point_id(self.collection), np.ones(1, np.float32), payload)
        await self._engine.upsert(MODELS.name, [point])

    async def _check_claim(self) -> None:
        if self._claimed is None:
            return
        holder = await self._read_claim()
        if holder is None or holder[0] != self._claimed[0]:
            now = holder[1] if holder else "no model"
            raise DependencyDownError(
                f"the collection {self.collection} was {self._claimed[1]}'s and is {now}'s by now:"
                " restart with that model, or with another collection",
                code="model_mismatch",
            )

    def _mismatch(self, holder: tuple[str, str], model: str) -> ConfigError:
        return ConfigError(
            f"the collection {self.collection} holds vectors of {holder[1]}, not of {model}, and"
            f" vectors of two models can't be compared: configure {holder[1]} again, delete the"
            " collection, or keep the new ones elsewhere (INFERD_DATA_DIR or INFERD_QDRANT__URL)",
            code="model_mismatch",
        )


def _face_index(point: Point) -> tuple[float, str]:
    index = point.payload.get("face_index")
    return (index if isinstance(index, int | float) else float("inf"), str(point.point_id))


class QdrantImageStore(QdrantStore):
    """Pictures; the daemon's point ids are media_store_ids."""

    collection = "image_embeddings"


class QdrantFaceStore(QdrantStore):
    """Faces; the daemon's point ids are `face_point_id(media_store_id, face_index)`."""

    collection = "face_embeddings"

    async def replace(self, media_store_id: int, points: Sequence[Point]) -> None:
        """Make `points` the only faces of a picture.

        Stores them, then removes those of a run that found more: done twice, or again after a
        crash in between, it ends the same.

        Args:
            media_store_id: the picture.
            points: its faces in order; each payload has media_store_id and face_index (0, 1, ...).

        Raises:
            ValueError: a payload says something else.
            PermanentError: a point can't be stored.
        """
        for index, point in enumerate(points):
            said = point.payload.get("media_store_id"), point.payload.get("face_index")
            if said != (media_store_id, index):
                raise ValueError(f"face {index} of picture {media_store_id} says it is {said}")
        await self.upsert(points)
        surplus = Filter.where(
            Equals("media_store_id", media_store_id), AtLeast("face_index", len(points))
        )
        await self._engine.delete_where(self.collection, surplus)

    def search_by_media_store_id(self, media_store_id: int | str) -> list[Point]:
        """Return the faces of one picture in their order; blocks."""
        return self._blocking(lambda: self.find_by_media_store_id(media_store_id))

    def delete_by_job_id(self, job_id: str) -> None:
        """Delete all faces that one job stored; blocks."""
        self._blocking(lambda: self.remove_by_job_id(job_id))


def _demo() -> None:
    """Show both stores at work in a temporary folder."""

    def say(line: str) -> None:
        sys.stdout.write(f"{line}\n")

    random = np.random.default_rng(7)
    one, other, face = random.standard_normal((3, 512)).astype(np.float32)
    with tempfile.TemporaryDirectory() as folder:
        with QdrantImageStore(path=folder) as images, QdrantFaceStore(path=folder) as faces:
            images.add_vector(123, one, {"media_store_id": 123, "job_id": "a"})
            images.add_vector("job-124", other, {"media_store_id": 124, "job_id": "b"})
            say("stored two pictures, as 123 and job-124")
            stored = images.get_vector("job-124")
            say(f"job-124: payload {stored.payload if stored else None}")
            for match in images.search(one + 0.3 * other, limit=2):
                say(f"similar to a mixture of both: {match.point_id} with {match.score:.3f}")
            for index in range(2):
                payload = {"media_store_id": 123, "job_id": "c", "face_index": index}
                faces.add_vector(face_point_id(123, index), face + index, payload)
            found = faces.search_by_media_store_id(123)
            say(f"faces of 123: {[point.payload['face_index'] for point in found]}")
            faces.delete_by_job_id("c")
            say(f"after deleting job c: {len(faces.search_by_media_store_id(123))} faces")
            images.delete(123)
            say(f"after deleting 123: {images.get_vector(123)}")
        with QdrantImageStore(path=folder) as images:
            say(f"opened again: job-124 is {'there' if images.get_vector('job-124') else 'lost'}")


if __name__ == "__main__":
    _demo()
