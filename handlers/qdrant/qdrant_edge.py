"""The embedded engine: Qdrant's own, in this process.

One shard folder a collection. What was measured of 0.9.0 (512 numbers a vector, 2 cores):

* an update returns once its write-ahead log has it, and a killed process loses nothing; the log
  is not synced to the disk and grows for ever unless `flush` is called, so it is called here;
* reads keep the GIL (0.7 ms for 10,000 points, 18 for 100,000), updates release it, and threads
  make neither faster: one thread serves all;
* `optimize()` builds the HNSW index and drops deleted points, and keeps the GIL for all of its
  time (10 s and more at 20,000 points): edge_upkeep has another process do it, on a copy.
"""

import asyncio
import logging
import time
from collections.abc import Callable, Sequence
from contextlib import AsyncExitStack
from pathlib import Path
from typing import TypeVar

import qdrant_edge as edge

from daemon.errors import DependencyDownError, RetryableError
from handlers.inference import Vector
from handlers.qdrant.disk_room import require_room
from handlers.qdrant.edge_copy import collections_in, remove, sweep
from handlers.qdrant.edge_schedule import NEVER, IndexBoard, Schedule
from handlers.qdrant.edge_shard import Shard
from handlers.qdrant.edge_upkeep import Upkeep
from handlers.qdrant.edge_vendor import dimension_in, to_filter, to_id, to_point, translated
from handlers.qdrant.engine_folder import EngineThread, FolderLock
from handlers.qdrant.search_width import search_width
from handlers.qdrant.vector_engine import CollectionSpec, Filter, Match, Page, Point, PointId
from handlers.qdrant.write_gate import WriteGate

log = logging.getLogger(__name__)

T = TypeVar("T")
_NEW = ""
"""What the gate knows those collections by that are not open yet: no collection is named so."""


class EdgeEngine:
    """Collections as Qdrant shards under one folder, for one process.

    Args:
        folder: theirs alone.
        flush_seconds: between two syncs to the disk.
        schedule: when the shards may be optimised.
        board: where the state of their indexes is shown.
    """

    def __init__(
        self,
        folder: Path,
        *,
        flush_seconds: float = 5.0,
        schedule: Schedule = NEVER,
        board: IndexBoard | None = None,
    ) -> None:
        self._folder = folder
        self._flush_seconds = flush_seconds
        self._lock = FolderLock(folder)
        self._thread = EngineThread(
            "qdrant-edge", on_stop=self._close, on_idle=self._flush, idle_seconds=flush_seconds
        )
        self._shards: dict[str, Shard] = {}
        self._flushed_at = time.monotonic()
        self._gate = WriteGate()
        self._upkeep = Upkeep(
            self._shards,
            self._run,
            self._gate,
            schedule=schedule,
            board=board or IndexBoard(),
        )

    async def open(self) -> None:
        """Lock the folder and start the thread.

        Raises:
            ConfigError: the folder is in use or can't be written.
        """
        self._lock.acquire()
        self._thread.start()
        await self._run(lambda: sweep(self._folder))
        self._upkeep.start()

    async def close(self) -> None:
        """Flush and close every shard, then let others in."""
        try:
            await self._upkeep.stop()
        finally:
            await self._thread.stop()

    async def optimise(self, collection: str) -> bool:
        """Build a collection's index now, while searches and writes go on.

        The schedule does this in time; benchmarks and tests do not wait for that.

        Returns:
            Whether there was anything to do, and it was done.
        """
        return await self._upkeep.optimise(collection)

    async def ensure_collection(self, spec: CollectionSpec) -> bool:
        """Load a shard, or create it."""
        await self._gate.passing(spec.name)
        if spec.name not in self._shards:
            await self._gate.passing(_NEW)
        return await self._run(lambda: self._ensure(spec))

    async def collections(self) -> list[str]:
        """Return the names of all collections, loaded or not."""
        return await self._run(lambda: collections_in(self._folder))

    async def dimension_of(self, collection: str) -> int | None:
        """Return how many numbers a collection's vectors have, loaded or not."""
        return await self._run(lambda: dimension_in(self._folder / collection))

    async def drop_collection(self, collection: str) -> None:
        """Close a shard and remove its folder."""
        await self._gate.passing(collection)
        await self._run(lambda: self._drop(collection))

    async def point_alias(self, alias: str, collection: str) -> None:
        """Do nothing: nobody else reads this folder."""

    async def flush(self, collection: str) -> None:
        """Sync a shard's log to the disk."""
        await self._run(lambda: self._shard(collection).flush())

    async def while_still(self, copy: Callable[[Path], None]) -> None:
        """Run `copy` on the folder, in a thread, while nothing in it changes.

        Searches go on; what is stored or deleted waits for it.
        """
        async with AsyncExitStack() as holding:
            # Else one that is made now would be copied while it is written to.
            await holding.enter_async_context(self._gate.hold(_NEW))
            for name in await self.collections():
                await holding.enter_async_context(self._gate.hold(name))
            await self._run(self._flush)
            await asyncio.to_thread(copy, self._folder)

    async def upsert(self, collection: str, points: Sequence[Point]) -> None:
        """Store points; the write-ahead log has them when this returns."""
        await self._update(collection, lambda shard: shard.upsert(points))

    async def retrieve(
        self, collection: str, point_ids: Sequence[PointId], *, with_vectors: bool = True
    ) -> list[Point]:
        """Return those of the points that exist."""
        return await self._run(
            lambda: self._shard(collection).retrieve(point_ids, with_vectors=with_vectors)
        )

    async def search(
        self,
        collection: str,
        vector: Vector,
        *,
        limit: int,
        offset: int = 0,
        min_score: float | None = None,
        where: Filter | None = None,
    ) -> list[Match]:
        """Return the most similar points, best first, but for the first `offset` of them."""

        def query() -> list[Match]:
            shard = self._shard(collection)
            request = edge.QueryRequest(
                limit,
                query=edge.Query.Nearest(vector.tolist()),
                offset=offset,
                filter=to_filter(where),
                score_threshold=min_score,
                params=edge.SearchParams(hnsw_ef=search_width(offset + limit, shard.points)),
                with_payload=True,
            )
            found = shard.native.query(request)
            return [Match(to_id(f.id), f.score, f.payload or {}) for f in found]

        return await self._run(query)

    async def delete(self, collection: str, point_ids: Sequence[PointId]) -> None:
        """Delete those of the points that exist."""
        await self._update(collection, lambda shard: shard.delete(point_ids))

    async def delete_where(self, collection: str, where: Filter) -> None:
        """Delete every point the filter holds for."""
        await self._update(collection, lambda shard: shard.delete_where(where))

    async def scroll(
        self,
        collection: str,
        *,
        where: Filter | None = None,
        limit: int = 256,
        from_id: PointId | None = None,
        with_vectors: bool = True,
    ) -> Page:
        """Return the next points by id."""

        def scroll() -> Page:
            request = edge.ScrollRequest(
                offset=from_id,
                limit=limit,
                filter=to_filter(where),
                with_payload=True,
                with_vector=with_vectors,
            )
            records, next_id = self._shard(collection).native.scroll(request)
            return Page([to_point(r) for r in records], None if next_id is None else to_id(next_id))

        return await self._run(scroll)

    async def count(self, collection: str, where: Filter | None = None) -> int:
        """Return how many points there are."""
        return await self._run(
            lambda: int(
                self._shard(collection).native.count(
                    edge.CountRequest(exact=True, filter=to_filter(where))
                )
            )
        )

    async def _run(self, call: Callable[[], T]) -> T:
        return await self._thread.run(lambda: translated(call))

    async def _update(self, collection: str, change: Callable[[Shard], None]) -> None:
        def update() -> None:
            require_room(self._folder)
            change(self._shard(collection))
            if time.monotonic() - self._flushed_at > self._flush_seconds:
                self._flush()

        await self._gate.passing(collection)
        self._upkeep.touch()
        await self._run(update)

    def _shard(self, collection: str) -> Shard:
        try:
            return self._shards[collection]
        except KeyError:
            raise RetryableError(
                f"the collection {collection} is not open", code="vector_store_error"
            ) from None

    def _ensure(self, spec: CollectionSpec) -> bool:
        is_new = False
        if spec.name not in self._shards:
            is_new = spec.name not in collections_in(self._folder)
            self._shards[spec.name] = Shard(self._folder / spec.name, spec)
        self._shards[spec.name].ensure(spec)
        return is_new

    def _drop(self, collection: str) -> None:
        shard = self._shards.pop(collection, None)
        try:
            if shard is not None:
                shard.drop()
            else:
                remove(self._folder / collection)
        except OSError as error:
            raise DependencyDownError(
                f"the collection {collection} could not be removed: {error}",
                code="vector_store_error",
            ) from error
        self._upkeep.forget(collection)

    def _flush(self) -> None:
        """Sync what was written to the disk, which also lets the log be cut."""
        self._flushed_at = time.monotonic()
        for collection, shard in self._shards.items():
            if shard.is_unflushed:
                try:
                    shard.flush()
                except RetryableError as error:
                    # The points are in the log all the same; the next write tries again.
                    log.warning("could not flush %s: %s", collection, error.message)

    def _close(self) -> None:
        self._flush()
        while self._shards:
            _, shard = self._shards.popitem()
            shard.close()
        self._lock.release()
