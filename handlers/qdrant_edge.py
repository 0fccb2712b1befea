"""The embedded engine: Qdrant's own, in this process. The only file that imports qdrant_edge.

One shard folder a collection. What was measured of 0.9.0 (512 numbers a vector, 2 cores):

* an update returns once its write-ahead log has it, and a killed process loses nothing; the log
  is not synced to the disk and grows for ever unless `flush` is called, so it is called here;
* reads keep the GIL (0.7 ms for 10,000 points, 18 for 100,000), updates release it, and threads
  make neither faster: one thread serves all;
* every failure is a bare Exception, a ValueError or a TypeError, or a panic, which is not even an
  Exception; all are told apart by their text alone.

`optimize()` builds the HNSW index and drops deleted points (a minute at 100,000), during which the
shard answers nobody. It is not called yet; `_flush` is the place to start it from.
"""

import logging
import shutil
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import qdrant_edge as edge

from daemon.errors import ConfigError, DependencyDownError, InferdError, RetryableError
from handlers.disk_room import require_room
from handlers.engine_folder import EngineThread, FolderLock
from handlers.inference import Vector
from handlers.vector_engine import (
    AtLeast,
    CollectionSpec,
    Condition,
    Equals,
    Filter,
    Match,
    Page,
    Point,
    PointId,
)

log = logging.getLogger(__name__)

T = TypeVar("T")

_INDEXES = {
    "integer": edge.PayloadSchemaType.Integer,
    "keyword": edge.PayloadSchemaType.Keyword,
}


class EdgeEngine:
    """Collections as Qdrant shards under one folder, for one process."""

    def __init__(self, folder: Path, *, flush_seconds: float = 5.0) -> None:
        self._folder = folder
        self._flush_seconds = flush_seconds
        self._lock = FolderLock(folder)
        self._thread = EngineThread(
            "qdrant-edge", on_stop=self._close, on_idle=self._flush, idle_seconds=flush_seconds
        )
        self._shards: dict[str, Any] = {}
        self._dimensions: dict[str, int] = {}
        self._unflushed: set[str] = set()
        self._flushed_at = time.monotonic()

    async def open(self) -> None:
        """Lock the folder and start the thread.

        Raises:
            ConfigError: the folder is in use or can't be written.
        """
        self._lock.acquire()
        self._thread.start()

    async def close(self) -> None:
        """Flush and close every shard, then let others in."""
        await self._thread.stop()

    async def ensure_collection(self, spec: CollectionSpec) -> None:
        """Load a shard, or create it."""
        await self._run(lambda: self._ensure(spec))

    async def upsert(self, collection: str, points: Sequence[Point]) -> None:
        """Store points; the write-ahead log has them when this returns."""
        await self._update(
            collection,
            lambda: edge.UpdateOperation.upsert_points(
                [edge.Point(p.point_id, p.vector.tolist(), p.payload) for p in points]
            ),
        )

    async def retrieve(self, collection: str, point_ids: Sequence[PointId]) -> list[Point]:
        """Return those of the points that exist."""
        ids = list(point_ids)
        return await self._run(
            lambda: [_to_point(r) for r in self._shard(collection).retrieve(ids, True, True)]
        )

    async def search(
        self,
        collection: str,
        vector: Vector,
        *,
        limit: int,
        min_score: float | None = None,
        where: Filter | None = None,
    ) -> list[Match]:
        """Return the most similar points, best first."""

        def query() -> list[Match]:
            request = edge.QueryRequest(
                limit,
                query=edge.Query.Nearest(vector.tolist()),
                filter=_to_filter(where),
                score_threshold=min_score,
                with_payload=True,
            )
            found = self._shard(collection).query(request)
            return [Match(_to_id(f.id), f.score, f.payload or {}) for f in found]

        return await self._run(query)

    async def delete(self, collection: str, point_ids: Sequence[PointId]) -> None:
        """Delete those of the points that exist."""
        ids: list[Any] = list(point_ids)
        await self._update(collection, lambda: edge.UpdateOperation.delete_points(ids))

    async def delete_where(self, collection: str, where: Filter) -> None:
        """Delete every point the filter holds for."""
        await self._update(
            collection, lambda: edge.UpdateOperation.delete_points_by_filter(_to_filter(where))
        )

    async def scroll(
        self,
        collection: str,
        *,
        where: Filter | None = None,
        limit: int = 256,
        from_id: PointId | None = None,
    ) -> Page:
        """Return the next points by id."""

        def scroll() -> Page:
            request = edge.ScrollRequest(
                offset=from_id,
                limit=limit,
                filter=_to_filter(where),
                with_payload=True,
                with_vector=True,
            )
            records, next_id = self._shard(collection).scroll(request)
            return Page(
                [_to_point(r) for r in records], None if next_id is None else _to_id(next_id)
            )

        return await self._run(scroll)

    async def count(self, collection: str, where: Filter | None = None) -> int:
        """Return how many points there are."""
        return await self._run(
            lambda: int(
                self._shard(collection).count(
                    edge.CountRequest(exact=True, filter=_to_filter(where))
                )
            )
        )

    async def _run(self, call: Callable[[], T]) -> T:
        return await self._thread.run(lambda: _translated(call))

    async def _update(self, collection: str, operation: Callable[[], Any]) -> None:
        def update() -> None:
            require_room(self._folder)
            self._shard(collection).update(operation())
            self._unflushed.add(collection)
            if time.monotonic() - self._flushed_at > self._flush_seconds:
                self._flush()

        await self._run(update)

    def _shard(self, collection: str) -> Any:
        try:
            return self._shards[collection]
        except KeyError:
            raise RetryableError(
                f"the collection {collection} is not open", code="vector_store_error"
            ) from None

    def _ensure(self, spec: CollectionSpec) -> None:
        if spec.name not in self._shards:
            self._shards[spec.name] = self._load(spec)
            self._dimensions[spec.name] = spec.dimension
        if self._dimensions[spec.name] != spec.dimension:
            raise self._mismatch(spec, f"it holds vectors of {self._dimensions[spec.name]}")
        shard = self._shards[spec.name]
        indexed = shard.info().payload_schema
        for name, kind in spec.indexes.items():
            if name not in indexed:
                shard.update(edge.UpdateOperation.create_field_index(name, _INDEXES[kind]))

    def _load(self, spec: CollectionSpec) -> Any:
        folder = self._folder / spec.name
        config = edge.EdgeConfig(
            vectors=edge.EdgeVectorParams(size=spec.dimension, distance=edge.Distance.Cosine)
        )
        if not folder.exists():
            # A folder that was only begun would load as an empty shard: make it aside, move it.
            require_room(self._folder)
            begun = self._folder / f"{spec.name}.begun"
            shutil.rmtree(begun, ignore_errors=True)
            edge.EdgeShard.create(str(begun), config).close()
            begun.rename(folder)
        try:
            return edge.EdgeShard.load(str(folder), config)
        except Exception as error:
            if "ncompatible" in str(error):
                raise self._mismatch(spec, str(error)) from error
            raise ConfigError(
                f"the collection {spec.name} in {self._folder} can't be opened: {error}",
                code="vector_store_unusable",
            ) from error

    def _mismatch(self, spec: CollectionSpec, what: str) -> ConfigError:
        return ConfigError(
            f"the collection {spec.name} in {self._folder} does not hold vectors of"
            f" {spec.dimension} numbers compared by cosine: {what}; move it away",
            code="collection_mismatch",
        )

    def _flush(self) -> None:
        """Sync what was written to the disk, which also lets the log be cut."""
        self._flushed_at = time.monotonic()
        for collection in list(self._unflushed):
            try:
                _translated(self._shards[collection].flush)
            except RetryableError as error:
                # The points are in the log all the same; the next write tries again.
                log.warning("could not flush %s: %s", collection, error.message)
            self._unflushed.discard(collection)

    def _close(self) -> None:
        self._flush()
        while self._shards:
            _, shard = self._shards.popitem()
            with suppress(RetryableError):
                _translated(shard.close)
        self._lock.release()


def _translated(call: Callable[[], T]) -> T:
    try:
        return call()
    except InferdError:
        raise
    except BaseException as error:
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        # A point that it cannot take is a ValueError or a TypeError; of all else, such as a full
        # disk, no point is at fault.
        is_refusal = isinstance(error, (ValueError, TypeError))
        raise (RetryableError if is_refusal else DependencyDownError)(
            f"the embedded vector engine failed: {error}", code="vector_store_error"
        ) from error


def _to_filter(where: Filter | None) -> Any:
    if where is None:
        return None
    return edge.Filter(must=[_to_condition(condition) for condition in where.conditions])


def _to_condition(condition: Condition) -> Any:
    match condition:
        case Equals(field, value):
            return edge.FieldCondition(field, match=edge.MatchValue(value))
        case AtLeast(field, value):
            return edge.FieldCondition(field, range=edge.RangeFloat(gte=value))


def _to_id(point_id: Any) -> PointId:
    return point_id if isinstance(point_id, int) else str(point_id)


def _to_point(record: Any) -> Point:
    return Point(
        _to_id(record.id), np.asarray(record.vector, dtype=np.float32), record.payload or {}
    )
