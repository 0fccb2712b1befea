"""Each vector engine on data that outlives it, for tests that open it again."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeAlias

from qdrant_client import AsyncQdrantClient

from handlers.qdrant.qdrant_edge import EdgeEngine
from handlers.qdrant.qdrant_local import LocalEngine
from handlers.qdrant.qdrant_server import ServerEngine
from handlers.qdrant.vector_engine import SharedEngine, VectorEngine

ENGINES = ("edge", "local", "server")
Place: TypeAlias = Callable[[], SharedEngine]
"""Gives an engine; each time another one on the same data, as after a restart."""


class MemoryClient(AsyncQdrantClient):
    """Survives `close`, as a server does, so that a second engine finds the data."""

    async def close(self, *args: Any, **kwargs: Any) -> None:
        """Keep the data."""

    async def query_points(self, *args: Any, search_params: Any = None, **kwargs: Any) -> Any:
        """Search every point, without the warning that this makes `search_params` void."""
        return await super().query_points(*args, **kwargs)


def place_of(engine: str, folder: Path) -> Place:
    """Return what opens one of ENGINES; only those that are embedded use the folder."""
    make: Callable[[], VectorEngine]
    match engine:
        case "edge":

            def make() -> VectorEngine:
                return EdgeEngine(folder)
        case "local":

            def make() -> VectorEngine:
                return LocalEngine(folder)
        case _:
            client = MemoryClient(":memory:")

            def make() -> VectorEngine:
                return ServerEngine("http://memory:6333", client=client)

    return lambda: SharedEngine(make)
