"""VectorStore: what every store can do, for asyncio and, through the same code, for scripts."""

import asyncio
import atexit
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Coroutine, Sequence
from types import TracebackType
from typing import Any, ClassVar, Self, TypeVar

from daemon.jobs import JsonObject
from handlers.inference import Vector
from handlers.qdrant.background_loop import BackgroundLoop
from handlers.qdrant.vector_engine import Filter, Match, Point, PointId

T = TypeVar("T")

_background = BackgroundLoop()
_left_open: set["VectorStore"] = set()
"""Stores that scripts opened by using them; kept, so that forgetting one closes it at exit."""


class VectorStore(ABC):
    """Vectors of one kind, found again by id or by similarity.

    A store is used from asyncio (`async with store`, then the async methods) or from plain code
    (`with store`, or nothing at all, then add_vector, get_vector, search, delete), not from both.

    Every method raises RetryableError (code vector_store_error) when the vector database fails and
    DependencyDownError (code vector_store_unreachable) when it is away; opening raises ConfigError
    when it can't be used as it is.
    """

    collection: ClassVar[str]
    """Where the vectors are."""
    dimension: int = 512
    """Numbers in a vector."""

    def __init__(self) -> None:
        self._loop: asyncio.AbstractEventLoop | None = None
        self._opening: tuple[asyncio.AbstractEventLoop, asyncio.Lock] | None = None
        self._sync_turn = threading.RLock()
        self._is_sync = False

    # ---- from asyncio

    async def open(self) -> None:
        """Open the collection, creating it where it is absent; does nothing the second time.

        Whoever comes while another one opens it waits for that, and tries himself where it failed.

        Raises:
            ConfigError: it is locked, unreadable, of another dimension or distance, or the server
                refuses us.
            DependencyDownError: the server is away.
        """
        loop = asyncio.get_running_loop()
        if self._loop not in (None, loop):
            raise RuntimeError(self._in_use())
        if self._opening is None or self._opening[0] is not loop:
            self._opening = loop, asyncio.Lock()
        async with self._opening[1]:
            if self._loop is loop:
                return
            if self._loop is not None:
                raise RuntimeError(self._in_use())
            self._loop = loop
            try:
                await self._open()
            except BaseException:
                self._loop = None
                raise

    async def close(self) -> None:
        """Give everything back; the store may be opened again. Safe twice."""
        if self._loop is None:
            return
        self._check_open()
        try:
            await self._close()
        finally:
            self._loop = None

    async def __aenter__(self) -> Self:
        await self.open()
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.close()

    @abstractmethod
    async def claim(self, fingerprint: str, model: str, *, adopt: bool = False) -> None:
        """Say which model the vectors are of, before the first one is stored.

        Args:
            fingerprint: equal for models whose vectors may be compared, and for no others.
            model: the model's name, for people.
            adopt: take over points that nobody claimed; they are this model's on your word.

        Raises:
            ConfigError: the vectors there are another model's, code model_mismatch, or nobody
                knows whose they are, code model_unknown.
        """

    @abstractmethod
    async def confirm_claim(self) -> None:
        """Make sure that the vectors are still of the model that was claimed.

        Raises:
            DependencyDownError: another model took the collection since, code model_mismatch.
        """

    @abstractmethod
    async def upsert(self, points: Sequence[Point]) -> None:
        """Store points over those of the same ids; nothing is sent unless all are sound.

        Raises:
            PermanentError: a point can't be stored, code bad_vector, bad_point_id or bad_payload.
            DependencyDownError: another model took the collection since, code model_mismatch.
        """

    @abstractmethod
    async def fetch(self, point_id: PointId) -> Point | None:
        """Return a point, or nothing where there is none.

        Raises:
            PermanentError: it is no id, code bad_point_id.
        """

    @abstractmethod
    async def find(
        self,
        vector: Vector,
        limit: int = 10,
        min_score: float | None = None,
        where: Filter | None = None,
        *,
        offset: int = 0,
    ) -> list[Match]:
        """Return the points most similar to `vector`, best first.

        Args:
            vector: float32 [dimension]; only its direction counts.
            limit: most points to return, 1 or more.
            min_score: lowest cosine similarity, -1 to 1.
            where: conditions on the payload.
            offset: how many of the best are left out.

        Raises:
            PermanentError: the vector is not sound, code bad_vector.
            ValueError: `limit` is below 1.
        """

    @abstractmethod
    async def remove(self, point_ids: Sequence[PointId]) -> None:
        """Delete points; those that do not exist are no error.

        Raises:
            PermanentError: one is no id, code bad_point_id.
        """

    @abstractmethod
    async def remove_by_media_store_id(self, media_store_id: int | str) -> None:
        """Delete all that is stored of one picture."""

    @abstractmethod
    async def count_of_media(self, media_store_id: int | str) -> int:
        """Return how many points are stored of one picture."""

    @abstractmethod
    async def count(self) -> int:
        """Return how many points there are."""

    async def check_room(self) -> None:  # noqa: B027 - most stores have no disk of ours
        """Return if there is room for more, as far as can be known here; for health.

        Raises:
            DependencyDownError: the disk is full.
        """

    @abstractmethod
    async def _open(self) -> None: ...

    @abstractmethod
    async def _close(self) -> None: ...

    # ---- from plain code

    def add_vector(
        self, point_id: PointId, vec_f32: Vector, payload: JsonObject | None = None
    ) -> None:
        """Store one vector over that of the same id; blocks until it is stored.

        Args:
            point_id: an int from 0 to 2**64-1, a UUID, or any other string.
            vec_f32: float32 [dimension]; only its direction is kept.
            payload: JSON object to be found with it.

        Raises:
            PermanentError: code bad_vector (another shape, NaN, infinite or of length 0),
                bad_point_id or bad_payload; nothing was stored.
            RuntimeError: called from a coroutine, which would block its event loop; so do all
                of these methods.
        """
        self._blocking(lambda: self.upsert([Point(point_id, vec_f32, payload or {})]))

    def get_vector(self, point_id: PointId) -> Point | None:
        """Return what is stored under an id, None where nothing is; blocks.

        Its `.vector` is float32 [dimension] of length 1, its `.payload` and `.point_id` are as
        they were given.

        Raises:
            PermanentError: it is no id, code bad_point_id.
        """
        return self._blocking(lambda: self.fetch(point_id))

    def search(
        self, vector: Vector, limit: int = 10, min_score: float | None = None
    ) -> list[Match]:
        """Return the most similar points, best first; blocks.

        Args:
            vector: float32 [dimension]; only its direction counts.
            limit: most points to return, 1 or more.
            min_score: lowest cosine similarity, -1 to 1.

        Raises:
            PermanentError: the vector is not sound, code bad_vector.
            ValueError: `limit` is below 1.
        """
        return self._blocking(lambda: self.find(vector, limit, min_score))

    def delete(self, point_id: PointId) -> None:
        """Delete one point; if there is none, nothing happens; blocks.

        Raises:
            PermanentError: it is no id, code bad_point_id.
        """
        self._blocking(lambda: self.remove([point_id]))

    def __enter__(self) -> Self:
        self._open_blocking()
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._close_blocking()

    def _blocking(self, call: Callable[[], Coroutine[Any, Any, T]]) -> T:
        self._open_blocking()
        return _background.run(call)

    def _open_blocking(self) -> None:
        try:
            asyncio.get_running_loop()
        except RuntimeError:
            pass
        else:
            raise RuntimeError(
                "this call would block the event loop: await upsert, fetch, find or remove instead"
            )
        with self._sync_turn:
            if self._is_sync:
                return
            if self._loop is not None:
                raise RuntimeError(self._in_use())
            _background.acquire()
            try:
                _background.run(self.open)
            except BaseException:
                _background.release()
                raise
            self._is_sync = True
            _left_open.add(self)

    def _close_blocking(self) -> None:
        with self._sync_turn:
            if not self._is_sync:
                return
            self._is_sync = False
            _left_open.discard(self)
            try:
                _background.run(self.close)
            finally:
                _background.release()

    # ---- for both

    def _check_open(self) -> None:
        if self._loop is None:
            raise RuntimeError(f"open the store of {self.collection} first: async with store")
        if self._loop is not asyncio.get_running_loop():
            raise RuntimeError(self._in_use())

    def _in_use(self) -> str:
        how = "plain code" if self._is_sync else "asyncio (in another event loop or thread)"
        return f"this store of {self.collection} is used from {how}; close it there first"


@atexit.register
def _close_what_scripts_left_open() -> None:
    # The loop itself is left running: at this point no thread may be started to end it tidily.
    for store in list(_left_open):
        _background.run(store.close)
