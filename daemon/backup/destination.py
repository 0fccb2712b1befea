"""The output file of a backup: appears under its name only once complete, overwrites nothing."""

import errno
import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

from daemon.errors import ConfigError

PART = ".part"
SPARE_BYTES = 16 << 20
"""Of the disk, beside what the backup takes."""
_NO_LINKS = frozenset({errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS})


@contextmanager
def part_file(dest: Path) -> Iterator[IO[bytes]]:
    """Give the file to write, beside `dest`; unless it was published, it is gone afterwards.

    What a killed process left there is written over.

    Raises:
        ConfigError: another process writes it now, code backup_failed.
        OSError: it cannot be written.
    """
    path = dest.with_name(f"{dest.name}{PART}")
    with path.open("ab") as part:
        try:
            fcntl.flock(part, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise ConfigError(
                f"another process writes {path} at this moment", code="backup_failed"
            ) from error
        part.truncate(0)
        try:
            yield part
        finally:
            path.unlink(missing_ok=True)


@contextmanager
def scratch(dest: Path, what: str) -> Iterator[Path]:
    """Give the path of a file beside `dest` that is not there yet, and is gone afterwards."""
    path = dest.with_name(f"{dest.name}.{what}{PART}")
    path.unlink(missing_ok=True)
    try:
        yield path
    finally:
        for end in ("", "-journal", "-wal", "-shm"):
            path.with_name(f"{path.name}{end}").unlink(missing_ok=True)


def require_room(folder: Path, size: int) -> None:
    """Return if a folder's disk has room for so many bytes.

    Raises:
        ConfigError: it has not, code backup_no_room.
    """
    disk = os.statvfs(folder)
    free, wanted = disk.f_bavail * disk.f_frsize, size + SPARE_BYTES
    if free < wanted:
        raise ConfigError(
            f"no room under {folder}: {free >> 20} MiB are free of {wanted >> 20} that it takes",
            code="backup_no_room",
        )


def publish(part: IO[bytes], dest: Path) -> None:
    """Give a whole part file its name, for good once this returns.

    Raises:
        ConfigError: there is a file of that name by now, code backup_exists.
        OSError: the disk failed.
    """
    part.flush()
    os.fsync(part.fileno())
    taken = ConfigError(f"{dest} was made by somebody else meanwhile", code="backup_exists")
    try:
        # Unlike a rename, a link takes no other's place.
        os.link(part.name, dest)
    except FileExistsError:
        raise taken from None
    except OSError as error:
        if error.errno not in _NO_LINKS:
            raise
        if dest.exists():
            raise taken from None
        Path(part.name).rename(dest)
    sync_folder(dest.parent)


def sync_folder(folder: Path) -> None:
    """Make the names in a folder survive a power cut."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        with suppress(OSError):  # some file systems cannot
            os.fsync(descriptor)
    finally:
        os.close(descriptor)
