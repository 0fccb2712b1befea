"""The stand-in for a Qdrant server with a loop and thread of its own, for daemons as processes."""

import asyncio
import contextlib
import threading
from types import TracebackType
from typing import Self

import numpy as np
from qdrant_client import AsyncQdrantClient
from qdrant_client.models import PointIdsList

from tests.faults.invariants import Points
from tests.qdrant_http import qdrant_server

SECONDS = 20.0


class Qdrant:
    """A context manager; `url` is where it listens, `kept` what it holds."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="qdrant")
        self._stack = contextlib.AsyncExitStack()
        self._life = {"id": "process"}

    def __enter__(self) -> Self:
        self._thread.start()
        found = asyncio.run_coroutine_threadsafe(
            self._stack.enter_async_context(qdrant_server(self._life)), self._loop
        ).result(SECONDS)
        self.url: str = found[0]
        self._kept: AsyncQdrantClient = found[1]
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        asyncio.run_coroutine_threadsafe(self._stack.aclose(), self._loop).result(SECONDS)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(SECONDS)
        self._loop.close()

    def forget(self, *names: str) -> None:
        """Delete collections behind everybody's back."""
        for name in names:
            asyncio.run_coroutine_threadsafe(self._kept.delete_collection(name), self._loop).result(
                SECONDS
            )

    def lose_power(self, name: str, *point_ids: int) -> None:
        """Lose points that were confirmed, and be another process."""
        ids = PointIdsList(points=[*point_ids])
        asyncio.run_coroutine_threadsafe(self._kept.delete(name, ids), self._loop).result(SECONDS)
        self._life["id"] += "+"

    def points(self) -> Points:
        """Return everything it holds."""
        return {
            name: {
                point.id if isinstance(point.id, int) else str(point.id): np.asarray(
                    point.vector, np.float32
                )
                for point in asyncio.run_coroutine_threadsafe(
                    self._kept.scroll(name, limit=10_000, with_vectors=True), self._loop
                ).result(SECONDS)[0]
            }
            for name in ("image_embeddings", "face_embeddings")
        }
