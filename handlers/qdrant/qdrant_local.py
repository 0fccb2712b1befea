"""The embedded engine of last resort: qdrant-client's local mode, where edge has no wheel.

Pure Python: 1,300 upserts a second, and a search reads every point (26 ms for 10,000). Every call
blocks, so all run on one thread; what it stores is on the disk when a call returns.
"""

import warnings
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TypeVar

from qdrant_client import QdrantClient, models

from daemon.errors import ConfigError, DependencyDownError, InferdError, RetryableError
from handlers.inference import Vector
from handlers.qdrant import qdrant_models
from handlers.qdrant.engine_folder import EngineThread, FolderLock
from handlers.qdrant.vector_engine import CollectionSpec, Filter, Match, Page, Point, PointId

T = TypeVar("T")


class LocalEngine:
    """Collections as SQLite files under one folder, for one process."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._lock = FolderLock(folder)
        self._thread = EngineThread("qdrant-local", on_stop=self._close)
        self._opened: QdrantClient | None = None

    async def open(self) -> None:
        """Lock the folder and read everything in it into memory.

        Raises:
            ConfigError: the folder is in use, or can't be read or written.
        """
        self._lock.acquire()
        self._thread.start()
        try:
            await self._thread.run(self._open)
        except BaseException:
            await self._thread.stop()
            raise

    async def close(self) -> None:
        """Close the files, then let others in."""
        await self._thread.stop()

    async def ensure_collection(self, spec: CollectionSpec) -> bool:
        """Check a collection, or create it; local mode has no payload indexes."""
        return await self._run(lambda: self._ensure(spec))

    async def collections(self) -> list[str]:
        """Return the names of all collections."""
        found = await self._run(self._client.get_collections)
        return sorted(each.name for each in found.collections)

    async def dimension_of(self, collection: str) -> int | None:
        """Return how many numbers a collection's vectors have."""

        def look() -> int | None:
            if not self._client.collection_exists(collection):
                return None
            return qdrant_models.dimension_of(self._client.get_collection(collection), collection)

        return await self._run(look)

    async def drop_collection(self, collection: str) -> None:
        """Delete a collection."""
        await self._run(lambda: self._client.delete_collection(collection))

    async def point_alias(self, alias: str, collection: str) -> None:
        """Do nothing: nobody else reads this folder."""

    async def flush(self, collection: str) -> None:
        """Do nothing: each point was a commit."""

    async def while_still(self, copy: Callable[[Path], None]) -> None:
        """Run `copy` on the folder while nothing in it changes; all calls wait for it."""
        await self._thread.run(lambda: copy(self._folder))

    async def upsert(self, collection: str, points: Sequence[Point]) -> None:
        """Store points; each is one SQLite commit."""
        await self._run(
            lambda: self._client.upsert(collection, [qdrant_models.to_struct(p) for p in points])
        )

    async def retrieve(
        self, collection: str, point_ids: Sequence[PointId], *, with_vectors: bool = True
    ) -> list[Point]:
        """Return those of the points that exist."""
        records = await self._run(
            lambda: self._client.retrieve(
                collection, list(point_ids), with_payload=True, with_vectors=with_vectors
            )
        )
        return [qdrant_models.to_point(record) for record in records]

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
        asked = qdrant_models.to_query(
            vector, limit=limit, offset=offset, min_score=min_score, where=where
        )
        return qdrant_models.to_matches(
            await self._run(lambda: self._client.query_points(collection, **asked))
        )

    async def delete(self, collection: str, point_ids: Sequence[PointId]) -> None:
        """Delete those of the points that exist."""
        ids = models.PointIdsList(points=list(point_ids))
        await self._run(lambda: self._client.delete(collection, ids))

    async def delete_where(self, collection: str, where: Filter) -> None:
        """Delete every point the filter holds for."""
        await self._run(lambda: self._client.delete(collection, qdrant_models.to_selector(where)))

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
        asked = qdrant_models.to_scroll(
            where=where, limit=limit, from_id=from_id, with_vectors=with_vectors
        )
        return qdrant_models.to_page(
            await self._run(lambda: self._client.scroll(collection, **asked))
        )

    async def count(self, collection: str, where: Filter | None = None) -> int:
        """Return how many points there are."""
        result = await self._run(
            lambda: self._client.count(collection, **qdrant_models.to_count(where))
        )
        return result.count

    @property
    def _client(self) -> QdrantClient:
        if self._opened is None:
            raise RuntimeError("it is not open")
        return self._opened

    async def _run(self, call: Callable[[], T]) -> T:
        return await self._thread.run(lambda: _translated(call))

    def _open(self) -> None:
        # docs/performance.md says what it would: at every start, and past 20,000 points.
        warnings.filterwarnings("ignore", message="Local mode is not recommended")
        try:
            self._opened = QdrantClient(path=str(self._folder))
        except Exception as error:
            raise ConfigError(
                f"the vectors in {self._folder} can't be opened: {error}",
                code="vector_store_unusable",
            ) from error

    def _ensure(self, spec: CollectionSpec) -> bool:
        if not self._client.collection_exists(spec.name):
            self._client.create_collection(
                spec.name, vectors_config=qdrant_models.to_vectors_config(spec)
            )
            return True
        difference = qdrant_models.difference(self._client.get_collection(spec.name), spec)
        if difference:
            raise ConfigError(
                f"the collection {spec.name} in {self._folder} {difference}; move it away",
                code="collection_mismatch",
            )
        return False

    def _close(self) -> None:
        if self._opened is not None:
            client, self._opened = self._opened, None
            with suppress(RetryableError):
                _translated(client.close)
        self._lock.release()


def _translated(call: Callable[[], T]) -> T:
    try:
        return call()
    except InferdError:
        raise
    except Exception as error:
        # As in edge: no point is at fault for a full disk.
        is_refusal = isinstance(error, (ValueError, TypeError))
        raise (RetryableError if is_refusal else DependencyDownError)(
            f"the embedded vector engine failed: {error}", code="vector_store_error"
        ) from error
