"""Whether a disk has room for what an embedded engine may write."""

import os
from pathlib import Path

from daemon.errors import DependencyDownError

ROOM_BYTES = 64 * 2**20
"""Engines write through memory maps: where a page of one finds no room, the kernel kills the
process (SIGBUS) instead of failing a call. So much is never needed at once."""


def require_room(folder: Path, wanted: int = 0) -> None:
    """Return if there is room.

    Args:
        folder: where something is to be written.
        wanted: how many bytes will be written there, beside what is always left free.

    Raises:
        DependencyDownError: code vector_store_error; somebody has to make some.
    """
    disk = os.statvfs(folder)
    free = disk.f_bavail * disk.f_frsize
    if wanted and free < wanted + ROOM_BYTES:
        raise DependencyDownError(
            f"the disk under {folder} has no room: {free >> 20} MiB are free, and some"
            f" {(wanted + ROOM_BYTES) >> 20} are needed",
            code="vector_store_error",
        )
    if free < ROOM_BYTES:
        raise DependencyDownError(
            f"the disk under {folder} is full: {free >> 20} MiB are free, and vectors are stored"
            f" again once it is {ROOM_BYTES >> 20}",
            code="vector_store_error",
        )
