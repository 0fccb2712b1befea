"""A Qdrant server by URL: gRPC where there is a port for it, else HTTP."""

import asyncio
import logging
import math
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from typing import Any, TypeVar
from urllib.parse import urlsplit

from qdrant_client import AsyncQdrantClient, models

from daemon.errors import ConfigError, DependencyDownError, InferdError, RetryableError
from handlers.inference import Vector
from handlers.qdrant import qdrant_models
from handlers.qdrant.search_width import search_width
from handlers.qdrant.server_errors import MissingError, ServerErrors
from handlers.qdrant.server_layout import ServerLayout
from handlers.qdrant.server_life import ServerLife
from handlers.qdrant.vector_engine import (
    CollectionSpec,
    DroppedError,
    Filter,
    Match,
    Page,
    Point,
    PointId,
)

log = logging.getLogger(__name__)

T = TypeVar("T")

EXACT = models.QuantizationSearchParams(rescore=True, oversampling=2.0)
"""Of a quantized collection the exact vectors decide, among twice what is asked for. By itself a
server does so for binary codes only: by int8 a picture has 0.996 with itself."""


class ServerEngine:
    """Collections of a Qdrant server, which other daemons may use at the same time.

    What its failures mean is server_errors' business. A collection that was deleted under us is
    made anew, if it is still wanted.
    """

    def __init__(
        self,
        url: str,
        *,
        api_key: str | None = None,
        grpc_port: int = 0,
        timeout_seconds: float = 10.0,
        layout: ServerLayout | None = None,
        client: AsyncQdrantClient | None = None,
    ) -> None:
        self._url = url
        self._layout = layout or ServerLayout()
        self._api_key = api_key
        self._grpc_port = grpc_port
        # The library counts whole seconds; it tells a dead host from a slow answer, so our own
        # limit, which bounds the call as a whole, comes a moment later.
        self._timeout = max(1, math.ceil(timeout_seconds))
        self._opened = client
        self._specs: dict[str, CollectionSpec] = {}
        self._flush_seconds = 0.0
        grpc = f" (gRPC port {grpc_port})" if grpc_port else ""
        self._where = f"the Qdrant server at {url}{grpc}"
        self._errors = ServerErrors(self._where, timeout_seconds=self._timeout, api_key=api_key)

    async def open(self) -> None:
        """Make the client; speaks to nobody yet."""
        if self._opened is not None:
            return
        # As a header, because the library warns on stderr of a key given by its own name.
        headers = {"api-key": self._api_key} if self._api_key else None
        if headers and urlsplit(self._url).scheme == "http":
            log.warning("the API key goes unencrypted to %s", urlsplit(self._url).hostname)
        self._opened = AsyncQdrantClient(
            url=self._url,
            grpc_port=self._grpc_port,
            prefer_grpc=self._grpc_port > 0,
            headers=headers,
            timeout=self._timeout,
            check_compatibility=False,
        )

    async def close(self) -> None:
        """Close the connections."""
        if self._opened is not None:
            client, self._opened = self._opened, None
            await client.close()

    async def ensure_collection(self, spec: CollectionSpec) -> bool:
        """Check a collection and its indexes, or create them.

        Raises:
            ConfigError: it exists and differs, or the API key is refused.
        """
        self._specs[spec.name] = spec
        try:
            return await self._ensure(spec)
        except DependencyDownError as error:
            if error.code == "vector_store_unauthorized":
                raise ConfigError(error.message, code=error.code) from error
            raise

    async def collections(self) -> list[str]:
        """Return the names of all collections; aliases are none."""
        found = await self._call(self._client.get_collections())
        return sorted(each.name for each in found.collections)

    async def dimension_of(self, collection: str) -> int | None:
        """Return how many numbers a collection's vectors have."""
        if not await self._call(self._client.collection_exists(collection)):
            return None
        info = await self._call(self._client.get_collection(collection))
        return qdrant_models.dimension_of(info, collection)

    async def drop_collection(self, collection: str) -> None:
        """Delete a collection; it is not made anew from now on."""
        self._specs.pop(collection, None)
        with suppress(MissingError):
            await self._call(self._client.delete_collection(collection))

    async def life(self) -> ServerLife:
        """Return which process of the server answers, as its telemetry tells.

        Raises:
            DependencyDownError: none does.
        """
        try:
            # As it comes: the library's own classes refuse what other versions leave out.
            told = await self._call(
                self._client.http.client.request(
                    type_=dict[str, Any],
                    method="GET",
                    url="/telemetry",
                    params={"details_level": "0"},
                )
            )
        except RetryableError:
            # A key with few rights, a proxy, or gRPC's port alone; or it is away indeed.
            await self.collections()
            told = {}
        result = told.get("result")
        name = result.get("id") if isinstance(result, dict) else None
        return ServerLife(name if isinstance(name, str) and name else None, self._flush_seconds)

    async def point_alias(self, alias: str, collection: str) -> None:
        """Let an alias lead to a collection, wherever it led before."""
        operations = qdrant_models.to_alias(alias, collection)
        await self._call(self._client.update_collection_aliases(operations))

    async def flush(self, collection: str) -> None:
        """Do nothing: the server syncs its log by itself."""

    async def upsert(self, collection: str, points: Sequence[Point]) -> None:
        """Store points; the server has applied them when this returns.

        Raises:
            DependencyDownError: code collection_mismatch where the collection takes no such
                vectors any more; else as every call.
        """
        structs = [qdrant_models.to_struct(point) for point in points]
        try:
            await self._on(collection, lambda: self._client.upsert(collection, structs, wait=True))
        except DependencyDownError:
            raise
        except RetryableError:
            await self._verify(collection)
            raise

    async def retrieve(
        self, collection: str, point_ids: Sequence[PointId], *, with_vectors: bool = True
    ) -> list[Point]:
        """Return those of the points that exist."""
        records = await self._on(
            collection,
            lambda: self._client.retrieve(
                collection, list(point_ids), with_payload=True, with_vectors=with_vectors
            ),
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
        # How many points there are only the server knows, and asking it would cost a call.
        params = models.SearchParams(hnsw_ef=search_width(offset + limit), quantization=EXACT)
        found = await self._call(
            self._client.query_points(collection, **asked, search_params=params)
        )
        return qdrant_models.to_matches(found)

    async def delete(self, collection: str, point_ids: Sequence[PointId]) -> None:
        """Delete those of the points that exist."""
        ids = models.PointIdsList(points=list(point_ids))
        await self._on(collection, lambda: self._client.delete(collection, ids, wait=True))

    async def delete_where(self, collection: str, where: Filter) -> None:
        """Delete every point the filter holds for."""
        selector = qdrant_models.to_selector(where)
        await self._on(collection, lambda: self._client.delete(collection, selector, wait=True))

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
        return qdrant_models.to_page(await self._call(self._client.scroll(collection, **asked)))

    async def count(self, collection: str, where: Filter | None = None) -> int:
        """Return how many points there are."""
        result = await self._on(
            collection,
            lambda: self._client.count(collection, **qdrant_models.to_count(where)),
        )
        return result.count

    @property
    def _client(self) -> AsyncQdrantClient:
        if self._opened is None:
            raise RuntimeError("the engine is not open")
        return self._opened

    async def _ensure(self, spec: CollectionSpec) -> bool:
        """Make a collection if need be, and look at it; return whether it is one of our making."""
        is_new = False
        if not await self._call(self._client.collection_exists(spec.name)):
            try:
                await self._call(
                    self._client.create_collection(
                        spec.name, **qdrant_models.to_creation(spec, self._layout)
                    )
                )
                is_new = True
            except RetryableError:
                # Another daemon may have been quicker; if not, this was a failure.
                if not await self._call(self._client.collection_exists(spec.name)):
                    raise
        info = await self._call(self._client.get_collection(spec.name))
        flushes = info.config.optimizer_config.flush_interval_sec
        self._flush_seconds = max(self._flush_seconds, flushes)
        difference = qdrant_models.difference(info, spec)
        if difference:
            raise ConfigError(
                f"the collection {spec.name} of {self._where} {difference}; rename or delete it",
                code="collection_mismatch",
            )
        for name, kind in spec.indexes.items():
            if name not in info.payload_schema:
                await self._call(
                    self._client.create_payload_index(
                        spec.name, name, field_schema=qdrant_models.INDEXES[kind], wait=True
                    )
                )
        return is_new

    async def _on(self, collection: str, call: Callable[[], Awaitable[T]]) -> T:
        """Call, and once more where the collection was deleted and could be made anew."""
        try:
            return await self._call(call())
        except MissingError:
            if collection not in self._specs:
                raise
            log.warning("the collection %s of %s is gone: making it anew", collection, self._where)
            await self._verify(collection)
            return await self._call(call())

    async def _verify(self, collection: str) -> None:
        """Make sure that a collection is as it was asked for.

        Raises:
            DependencyDownError: somebody made another one of it; no point is at fault.
            DroppedError: nobody wants it, and it is not made.
        """
        if (spec := self._specs.get(collection)) is None:
            return
        try:
            is_new = await self._ensure(spec)
        except ConfigError as error:
            raise DependencyDownError(error.message, code=error.code) from error
        # After it was made: whoever drops it says so first, and would drop it after this look.
        if is_new and spec.is_wanted is not None and not await spec.is_wanted():
            await self.drop_collection(collection)
            raise DroppedError(collection)

    async def _call(self, call: Awaitable[T]) -> T:
        try:
            async with asyncio.timeout(self._timeout + 1):
                return await call
        except InferdError:
            raise
        except Exception as error:
            raise self._errors.meaning(error) from error
