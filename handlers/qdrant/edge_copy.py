"""A shard's folders on the disk: the copy that is optimised, and the swap that a crash may cut.

Beside the folder NAME of a collection there may be NAME.optimising-PID, a copy that is being worked
on, NAME.dropped, which is being removed, and NAME.replaced, what NAME was before the swap.
NAME.replaced without NAME is a swap that was cut between its two renames. All files of the new NAME
are on the disk before the first of them.
"""

import os
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from daemon.errors import DependencyDownError
from daemon.holes import extents
from handlers.qdrant.disk_room import ROOM_BYTES

BEGUN = ".begun"
"""Ends the name of a folder that is not a collection yet."""
CHANGED = ".changed"
"""Ends the name of a file beside a collection's folder: how much changed in it."""
_REPLACED, _DROPPED, _OPTIMISING = ".replaced", ".dropped", ".optimising-"
CHUNK = 4 << 20
ROOM_COPIES = 3
"""The copy, its segments before and after, and room for what both get meanwhile."""


def collections_in(parent: Path) -> list[str]:
    """Return the names of the collections in an engine's folder, sorted."""
    names = {each.name for each in parent.iterdir() if each.is_dir()} if parent.is_dir() else set()
    cut = {name.removesuffix(_REPLACED) for name in names if name.endswith(_REPLACED)}
    return sorted(cut | {name for name in names if not _is_aside(name)})


def remove(folder: Path) -> None:
    """Remove a collection's folder and all beside it; it is gone at one blow, its files follow."""
    dropped = folder.with_name(f"{folder.name}{_DROPPED}")
    recover(folder)
    shutil.rmtree(dropped, ignore_errors=True)
    if folder.exists():
        folder.rename(dropped)
        _sync(folder.parent)
    folder.with_name(f"{folder.name}{CHANGED}").unlink(missing_ok=True)
    shutil.rmtree(dropped, ignore_errors=True)


def sweep(parent: Path) -> None:
    """End the removals that a crash cut short."""
    for dropped in parent.glob(f"*{_DROPPED}"):
        shutil.rmtree(dropped, ignore_errors=True)


def recover(folder: Path) -> None:
    """End what a crash cut short: finish or undo a swap, and remove copies. Safe to repeat."""
    replaced = _replaced(folder)
    if replaced.is_dir() and not folder.exists():
        replaced.rename(folder)
        _sync(folder.parent)
    shutil.rmtree(replaced, ignore_errors=True)
    for copy in folder.parent.glob(f"{folder.name}{_OPTIMISING}*"):
        shutil.rmtree(copy, ignore_errors=True)


def working_copy(folder: Path) -> Path:
    """Return where this process copies a shard to."""
    return folder.with_name(f"{folder.name}{_OPTIMISING}{os.getpid()}")


def require_room_for_copy(folder: Path) -> None:
    """Return if the disk has room to optimise a copy of a shard.

    Raises:
        DependencyDownError: code vector_store_error.
    """
    used = sum(file.stat().st_blocks * 512 for file in _files(folder))
    disk = os.statvfs(folder)
    free, wanted = disk.f_bavail * disk.f_frsize, ROOM_COPIES * used + ROOM_BYTES
    if free < wanted:
        raise DependencyDownError(
            f"no room to optimise {folder.name}: {free >> 20} MiB are free of {wanted >> 20}",
            code="vector_store_error",
        )


def copy_shard(folder: Path, target: Path, *, go_on: Callable[[], None]) -> None:
    """Copy a shard that nobody writes to meanwhile; holes in its files stay holes.

    Args:
        folder: the shard's.
        target: the copy's; what is there is removed.
        go_on: called before each piece; what it raises ends the copy.

    Raises:
        OSError: the disk failed.
    """
    shutil.rmtree(target, ignore_errors=True)
    for source, _, names in os.walk(folder):
        place = target / Path(source).relative_to(folder)
        place.mkdir()
        for name in names:
            copy_file(Path(source) / name, place / name, go_on)


def copy_file(source: Path, target: Path, go_on: Callable[[], None] = lambda: None) -> None:
    """Copy a file; its holes stay holes, which take no room.

    Args:
        source: nobody writes to it meanwhile.
        target: is made, or written over.
        go_on: called before each piece; what it raises ends the copy.

    Raises:
        OSError: the disk failed.
    """
    with source.open("rb") as reading, target.open("wb") as writing:
        reader, writer = reading.fileno(), writing.fileno()
        size = os.fstat(reader).st_size
        os.truncate(writer, size)
        for begin, end in extents(reader, size):
            at = begin
            while at < end:
                go_on()
                data = os.pread(reader, min(CHUNK, end - at), at)
                if not data:
                    break
                at += os.pwrite(writer, data, at)


def within(seconds: float, is_stopped: threading.Event) -> Callable[[], None]:
    """Return a `go_on` that raises TimeoutError after so long, or once it is stopped."""
    ends_at = time.monotonic() + seconds

    def go_on() -> None:
        if is_stopped.is_set() or time.monotonic() > ends_at:
            raise TimeoutError(f"it could not be copied within {seconds:g} s")

    return go_on


def sync_tree(folder: Path) -> None:
    """Return once all of a folder is on the disk."""
    for file in _files(folder):
        _sync(file)
    for place, _, _ in os.walk(folder):
        _sync(Path(place))


def put_in_place(folder: Path, copy: Path) -> None:
    """Let `copy` be `folder`; what `folder` was stays aside until `recover` removes it."""
    sync_tree(copy)
    folder.rename(_replaced(folder))
    copy.rename(folder)
    _sync(folder.parent)


def put_back(folder: Path, copy: Path) -> None:
    """Undo `put_in_place`, as far as it came."""
    replaced = _replaced(folder)
    if replaced.is_dir():
        if folder.exists():
            folder.rename(copy)
        replaced.rename(folder)


def _replaced(folder: Path) -> Path:
    return folder.with_name(f"{folder.name}{_REPLACED}")


def _is_aside(name: str) -> bool:
    return name.endswith((BEGUN, _REPLACED, _DROPPED)) or _OPTIMISING in name


def _files(folder: Path) -> Iterator[Path]:
    for place, _, names in os.walk(folder):
        yield from (Path(place) / name for name in names)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
