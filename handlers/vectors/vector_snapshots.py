"""Copies of an embedded engine's folder as of one moment, for whoever backs up a running daemon.

A snapshot is a folder below `snapshots/`, beside the engine's own. Whoever reads it holds a shared
lock on its file `reader.lock`; one that nobody holds any more is removed before the next is made,
and when the daemon starts.
"""

import asyncio
import fcntl
import logging
import os
import shutil
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Protocol, runtime_checkable

from daemon.errors import DependencyDownError, NotFoundError
from daemon.jobs import JsonObject
from handlers.qdrant.disk_room import ROOM_BYTES
from handlers.qdrant.edge_copy import CHANGED, collections_in, copy_shard, within
from handlers.qdrant.vector_engine import SharedEngine

log = logging.getLogger(__name__)

SNAPSHOTS = "snapshots"
READER_LOCK = "reader.lock"
ENGINES = ("edge", "local")
"""Names of the engines' folders."""
COPY_SECONDS = 240.0
"""Writes wait no longer than that for all collections; a job may take longer."""
TAKEN_SECONDS = 120.0
"""A snapshot's reader has so long to lock it."""


@runtime_checkable
class Holding(Protocol):
    """An engine that can hold its folder still."""

    async def while_still(self, copy: Callable[[Path], None]) -> None:
        """Call `copy` with the folder, in a thread, while nothing in it changes; writes wait."""


class VectorSnapshots:
    """Makes and removes snapshots, one at a time.

    Args:
        engine: whose vectors they are of.
    """

    def __init__(self, engine: SharedEngine) -> None:
        self._engine = engine
        self._turn = asyncio.Lock()

    async def make_snapshot(self) -> JsonObject:
        """Copy all collections as of one moment; searches go on, what is stored waits for it.

        Returns:
            `snapshot_id`; `folder`, absolute, which holds one folder, named as the engine;
            `engine`, edge or local; `collections`; `size`, bytes on the disk, holes left out.

        Raises:
            NotFoundError: the vectors are not on this machine, code vectors_not_embedded.
            DependencyDownError: it failed, as where the disk has no room; code vector_store_error.
        """
        async with self._turn:
            engine = await self._engine.open()
            try:
                parent = self._engine.folder
                if parent is None or not isinstance(engine, Holding):
                    raise NotFoundError(
                        "this daemon's vectors are a Qdrant server's: back up that one",
                        code="vectors_not_embedded",
                    )
                return await self._make(parent.absolute(), engine)
            finally:
                await self._engine.close()

    async def remove_snapshot(self, snapshot_id: str) -> bool:
        """Remove a snapshot; return whether there was one."""
        if self._engine.folder is None or snapshot_id.strip("0123456789abcdef"):
            return False
        folder = self._engine.folder / SNAPSHOTS / snapshot_id
        if not snapshot_id or not folder.is_dir():
            return False
        await asyncio.to_thread(shutil.rmtree, folder, ignore_errors=True)
        return True

    async def sweep(self) -> None:
        """Remove what nobody reads any more."""
        if self._engine.folder is not None:
            await asyncio.to_thread(_sweep, self._engine.folder / SNAPSHOTS)

    async def _make(self, parent: Path, engine: Holding) -> JsonObject:
        snapshot_id = uuid.uuid4().hex
        target = parent / SNAPSHOTS / snapshot_id
        is_stopped = threading.Event()
        began = time.monotonic()
        await self.sweep()
        try:
            await engine.while_still(lambda folder: _copy(folder, target, is_stopped))
        except (OSError, TimeoutError) as error:
            await asyncio.to_thread(shutil.rmtree, target, ignore_errors=True)
            raise DependencyDownError(
                f"the vectors could not be copied: {error}", code="vector_store_error"
            ) from error
        except BaseException:
            await asyncio.to_thread(shutil.rmtree, target, ignore_errors=True)
            raise
        finally:
            is_stopped.set()
        made = next(each for each in target.iterdir() if each.name in ENGINES)
        size = size_of(kept_files(made))
        seconds = round(time.monotonic() - began, 1)
        log.info("copied the vectors", extra={"bytes": size, "seconds": seconds})
        return {
            "snapshot_id": snapshot_id,
            "folder": str(target),
            "engine": made.name,
            "collections": collections_of(made),
            "size": size,
        }


def collections_of(folder: Path) -> list[str]:
    """Return the names of the collections in an engine's folder, sorted.

    Args:
        folder: named `edge` or `local`; may be absent.
    """
    return collections_in(folder if folder.name == "edge" else folder / "collection")


def kept_files(folder: Path) -> list[Path]:
    """Return the files of an engine's collections, sorted; locks and unfinished ones left out.

    Args:
        folder: as of `collections_of`; nobody writes there.
    """
    found: list[Path] = []
    if folder.name == "edge":
        for name in collections_in(folder):
            found += _files(folder / name)
            found += [each for each in [folder / f"{name}{CHANGED}"] if each.is_file()]
    elif folder.is_dir():
        found += _files(folder / "collection")
        found += [each for each in [folder / "meta.json"] if each.is_file()]
    return sorted(found)


def size_of(files: list[Path]) -> int:
    """Return how many bytes files take on the disk."""
    return sum(file.stat().st_blocks * 512 for file in files)


def _files(folder: Path) -> Iterator[Path]:
    for place, _, names in os.walk(folder):
        yield from (Path(place) / name for name in names)


def _copy(folder: Path, target: Path, is_stopped: threading.Event) -> None:
    used = size_of(kept_files(folder))
    target.parent.mkdir(exist_ok=True)
    disk = os.statvfs(target.parent)
    free, wanted = disk.f_bavail * disk.f_frsize, used + ROOM_BYTES
    if free < wanted:
        raise DependencyDownError(
            f"no room to copy the vectors: {free >> 20} MiB are free under {target.parent} of"
            f" {wanted >> 20}",
            code="vector_store_error",
        )
    made = target / folder.name
    made.mkdir(parents=True)
    (target / READER_LOCK).touch()
    go_on = within(COPY_SECONDS, is_stopped)
    parts = collections_in(folder) if folder.name == "edge" else ["collection"]
    for name in parts:
        if (folder / name).is_dir():
            copy_shard(folder / name, made / name, go_on=go_on)
    names = [f"{name}{CHANGED}" for name in parts] if folder.name == "edge" else ["meta.json"]
    for name in names:
        if (folder / name).is_file():
            shutil.copyfile(folder / name, made / name)
    # From now on its reader has his time.
    os.utime(target)


def _sweep(parent: Path) -> None:
    for folder in parent.iterdir() if parent.is_dir() else ():
        with suppress(OSError):
            if time.time() - folder.stat().st_mtime < TAKEN_SECONDS:
                continue
            with (folder / READER_LOCK).open("a") as file:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(folder, ignore_errors=True)
                log.info("removed a copy of the vectors that nobody reads")
