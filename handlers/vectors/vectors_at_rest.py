"""Locks the folder of an embedded engine that no process uses, while it is read or moved."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from handlers.qdrant.edge_copy import collections_in, recover
from handlers.qdrant.engine_folder import FolderLock
from handlers.vectors.vector_snapshots import ENGINES, collections_of


@contextmanager
def at_rest(folder: Path) -> Iterator[Path | None]:
    """Keep every process out of the engines' folders; give the one that holds vectors, if any.

    Args:
        folder: `vectors` of a data folder; may be absent.

    Raises:
        ConfigError: a process has it open, code vector_store_locked, or it cannot be written, code
            vector_store_unusable.
    """
    found: Path | None = None
    locks = []
    try:
        for name in ENGINES:
            place = folder / name
            if not place.is_dir():
                continue
            lock = FolderLock(place)
            lock.acquire()
            locks.append(lock)
            if name == "edge":
                for collection in collections_in(place):
                    recover(place / collection)
            if found is None and collections_of(place):
                found = place
        yield found
    finally:
        for lock in locks:
            lock.release()
