"""Which engine keeps the vectors: a Qdrant server, or one embedded in this process."""

import importlib.util
import logging
from pathlib import Path
from typing import Literal, TypeAlias
from weakref import WeakValueDictionary

from daemon.errors import ConfigError
from daemon.settings import QdrantSettings
from handlers.qdrant.edge_schedule import NEVER, IndexBoard, Schedule
from handlers.qdrant.server_layout import ServerLayout
from handlers.qdrant.vector_engine import SharedEngine, VectorEngine

log = logging.getLogger(__name__)

EngineName: TypeAlias = Literal["auto", "edge", "local"]

_embedded: WeakValueDictionary[Path, SharedEngine] = WeakValueDictionary()
"""Open folders: only one engine may have one, so stores of this process share it."""


def make_engine(
    settings: QdrantSettings, data_dir: Path, board: IndexBoard | None = None
) -> SharedEngine:
    """Return the engine that the settings ask for; nothing is opened or imported yet.

    What an embedded engine has to say of its indexes goes on the board.
    """
    if not settings.url:
        schedule = Schedule.parse(settings.optimize)
        return embedded_engine(data_dir / "vectors", settings.engine, schedule, board)
    key = settings.api_key.get_secret_value() if settings.api_key else None
    return server_engine(
        settings.url,
        key,
        settings.grpc_port,
        settings.timeout_seconds,
        layout=layout_of(settings),
    )


def layout_of(settings: QdrantSettings) -> ServerLayout:
    """Return how new collections of a server are to be laid out."""
    return ServerLayout(
        shards=settings.shard_number,
        replicas=settings.replication_factor,
        consistency=settings.write_consistency_factor,
        quantization=settings.quantization,
        on_disk=settings.on_disk,
    )


def server_engine(
    url: str,
    api_key: str | None = None,
    grpc_port: int = 0,
    timeout_seconds: float = 10.0,
    *,
    layout: ServerLayout | None = None,
) -> SharedEngine:
    """Return the engine for a Qdrant server; it speaks gRPC where `grpc_port` is given."""

    def make() -> VectorEngine:
        from handlers.qdrant.qdrant_server import ServerEngine  # noqa: PLC0415 - 0.8 s, when opened

        return ServerEngine(
            url,
            api_key=api_key,
            grpc_port=grpc_port,
            timeout_seconds=timeout_seconds,
            layout=layout,
        )

    return SharedEngine(make)


def embedded_engine(
    folder: Path,
    engine: EngineName = "auto",
    schedule: Schedule = NEVER,
    board: IndexBoard | None = None,
) -> SharedEngine:
    """Return the engine that keeps vectors under `folder`, for this process alone.

    `auto` is the engine whose vectors lie there; in an empty folder edge, or local mode where
    edge has no wheel.
    """

    def make() -> VectorEngine:
        if _choose(folder, engine) == "edge":
            from handlers.qdrant.qdrant_edge import EdgeEngine  # noqa: PLC0415 - may have no wheel

            return EdgeEngine(folder / "edge", schedule=schedule, board=board)
        from handlers.qdrant.qdrant_local import LocalEngine  # noqa: PLC0415 - 0.8 s, when opened

        return LocalEngine(folder / "local")

    return _embedded.setdefault(folder.resolve(), SharedEngine(make, folder))


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
