"""The interface between stores and vector engines: points, filters, and the engine's contract.

No vendor here. One file each implements `VectorEngine`: qdrant_edge, qdrant_local, qdrant_server.
"""

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, Protocol, TypeAlias

from daemon.errors import RetryableError
from daemon.jobs import JsonObject
from handlers.inference import Vector

PointId: TypeAlias = int | str
"""An int from 0 to 2**64-1 or a UUID's text; only stores take other strings."""


@dataclass(frozen=True, slots=True)
class Point:
    """One stored vector and what is known of it."""

    point_id: PointId
    vector: Vector
    """float32 [dimension]; comes back with length 1, since only its direction is compared."""
    payload: JsonObject = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Match:
    """A stored point that a search found."""

    point_id: PointId
    score: float
    """Cosine similarity, -1 to 1."""
    payload: JsonObject


@dataclass(frozen=True, slots=True)
class Equals:
    """The payload's field is exactly this, or a list that holds it."""

    field: str
    value: int | str


@dataclass(frozen=True, slots=True)
class OneOf:
    """The payload's field is one of these, or a list that holds one."""

    field: str
    values: tuple[int, ...] | tuple[str, ...]


@dataclass(frozen=True, slots=True)
class AtLeast:
    """The payload's field is a number not below this, compared as a float64."""

    field: str
    value: float


@dataclass(frozen=True, slots=True)
class HasId:
    """The point is one of these."""

    point_ids: tuple[PointId, ...]


@dataclass(frozen=True, slots=True)
class Not:
    """A condition that does not hold; one on a field that is absent never does."""

    condition: Equals | OneOf | AtLeast | HasId


Condition: TypeAlias = Equals | OneOf | AtLeast | HasId | Not


@dataclass(frozen=True, slots=True)
class Filter:
    """Points for which every condition holds."""

    conditions: tuple[Condition, ...]

    def __post_init__(self) -> None:
        if not self.conditions:
            # An empty filter means "all points" to every engine, which no delete may mean.
            raise ValueError("a filter needs a condition")

    @classmethod
    def where(cls, *conditions: Condition) -> "Filter":
        """Return the filter that asks for all of `conditions`."""
        return cls(conditions)

    def and_also(self, *conditions: Condition) -> "Filter":
        """Return the filter that asks for `conditions` as well."""
        return Filter(self.conditions + conditions)


@dataclass(frozen=True, slots=True)
class Page:
    """Some points of a scroll, in the order of their ids."""

    points: list[Point]
    next_id: PointId | None
    """Where the next page begins; empty after the last one."""


@dataclass(frozen=True, slots=True)
class CollectionSpec:
    """How a collection must look; vectors are compared by cosine."""

    name: str
    dimension: int
    indexes: Mapping[str, Literal["integer", "keyword"]] = field(default_factory=dict)
    """Payload fields that filters use, where the engine keeps indexes."""
    is_wanted: Callable[[], Awaitable[bool]] | None = field(default=None, compare=False, repr=False)
    """Asked after a missing collection was created again: whether anybody still wants it."""


class DroppedError(RetryableError):
    """The collection is no longer wanted: a change of the model dropped it meanwhile."""

    def __init__(self, collection: str) -> None:
        super().__init__(f"{collection} was dropped meanwhile", code="vector_store_error")


class VectorEngine(Protocol):
    """Collections of points, somewhere. Every method may be called concurrently.

    All but `open` raise RetryableError (code vector_store_error) when the engine fails and
    DependencyDownError (code vector_store_unreachable) when it can't be reached; nothing that a
    vendor raises comes through. Ids and vectors were checked by the store.
    """

    async def open(self) -> None:
        """Open the engine; called once, before anything else.

        Raises:
            ConfigError: the place can't be used (locked, unreadable, another engine's).
        """

    async def close(self) -> None:
        """Write what is not written yet and release everything."""

    async def ensure_collection(self, spec: CollectionSpec) -> bool:
        """Open a collection, or create it; safe to repeat.

        Returns:
            Whether it was this call that created it.

        Raises:
            ConfigError: it exists with another dimension or distance, code collection_mismatch,
                or the server refuses us, code vector_store_unauthorized.
        """

    async def collections(self) -> list[str]:
        """Return the names of all collections there are, opened or not, sorted."""

    async def dimension_of(self, collection: str) -> int | None:
        """Return the dimension of a collection's vectors; None where there is no such collection.

        Raises:
            ConfigError: it holds no plain vectors compared by cosine, code collection_mismatch.
        """

    async def drop_collection(self, collection: str) -> None:
        """Delete a collection with all that is in it; one that is not there is no error.

        A crash while it runs leaves the collection whole, empty or gone.
        """

    async def point_alias(self, alias: str, collection: str) -> None:
        """Let an alias lead to a collection from now on, for other readers of a server.

        One atomic call; embedded engines, which have no other readers, do nothing.
        """

    async def flush(self, collection: str) -> None:
        """Return once what was stored there outlasts a power cut, as far as we can tell."""

    async def upsert(self, collection: str, points: Sequence[Point]) -> None:
        """Store points over those of the same ids; returns when a crash no longer loses them."""

    async def retrieve(
        self, collection: str, point_ids: Sequence[PointId], *, with_vectors: bool = True
    ) -> list[Point]:
        """Return those of the points that exist, in any order.

        Without vectors they have length 0 instead.
        """

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

    async def delete(self, collection: str, point_ids: Sequence[PointId]) -> None:
        """Delete those of the points that exist."""

    async def delete_where(self, collection: str, where: Filter) -> None:
        """Delete every point the filter holds for."""

    async def scroll(
        self,
        collection: str,
        *,
        where: Filter | None = None,
        limit: int = 256,
        from_id: PointId | None = None,
        with_vectors: bool = True,
    ) -> Page:
        """Return the next points by id, beginning with `from_id`; ints come before UUIDs."""

    async def count(self, collection: str, where: Filter | None = None) -> int:
        """Return how many points there are, exactly."""


class SharedEngine:
    """One engine for several stores: made and opened by the first, closed by the last.

    Making it imports the vendor's library, so that happens on opening, in another thread.
    """

    def __init__(self, make: Callable[[], VectorEngine], folder: Path | None = None) -> None:
        """Take what makes the engine, and where it keeps its vectors if that is on this machine."""
        self._make = make
        self.folder = folder
        self._engine: VectorEngine | None = None
        self._users = 0
        self._loop: asyncio.AbstractEventLoop | None = None
        self._turn = asyncio.Lock()

    async def open(self) -> VectorEngine:
        """Return the opened engine; each call needs one `close`.

        Raises:
            ConfigError: it can't be opened.
            RuntimeError: another event loop of this process has it open.
        """
        loop = asyncio.get_running_loop()
        if self._loop is not loop:
            if self._users:
                raise RuntimeError("another event loop of this process has these vectors open")
            self._loop, self._turn = loop, asyncio.Lock()
        async with self._turn:
            if self._engine is None:
                engine = await asyncio.to_thread(self._make)
                await engine.open()
                self._engine = engine
            self._users += 1
            return self._engine

    async def close(self) -> None:
        """Close the engine if nobody else has it open."""
        async with self._turn:
            if self._users == 0:
                return
            self._users -= 1
            if self._users == 0 and self._engine is not None:
                engine, self._engine = self._engine, None
                await engine.close()
