"""Files that appear under their name only when they are whole."""

import contextlib
import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import IO

ABANDONED_SECONDS = 24 * 3600
"""What is untouched for so long belongs to a download that died."""


def sweep(target: Path) -> None:
    """Remove what downloads of this file left behind when their process was killed."""
    for part in target.parent.glob(f".{target.name}.*.part"):
        if _is_abandoned(part):
            with contextlib.suppress(OSError):
                part.unlink()


def sweep_unpacked(folder: Path) -> None:
    """Remove what unpackings into this folder left behind when their process was killed."""
    for scratch in folder.parent.glob(f".{folder.name}.*/"):
        if _is_abandoned(scratch):
            shutil.rmtree(scratch, ignore_errors=True)


def _is_abandoned(left: Path) -> bool:
    with contextlib.suppress(OSError):
        return time.time() - left.stat().st_mtime > ABANDONED_SECONDS
    return False


@contextlib.contextmanager
def part_file(target: Path) -> Iterator[IO[bytes]]:
    """Give a file beside the target, gone afterwards unless it was published."""
    descriptor, name = tempfile.mkstemp(
        prefix=f".{target.name}.", suffix=".part", dir=target.parent
    )
    os.close(descriptor)
    try:
        with Path(name).open("wb") as part:
            yield part
    finally:
        with contextlib.suppress(FileNotFoundError):
            Path(name).unlink()


def publish(part: IO[bytes], target: Path) -> None:
    """Give a whole part file its name, for good once this returns."""
    part.flush()
    os.fsync(part.fileno())
    # mkstemp makes it readable by its owner only; a models directory is there to be shared.
    os.fchmod(part.fileno(), 0o644)
    Path(part.name).replace(target)
    sync_folder(target.parent)


def sync_folder(folder: Path) -> None:
    """Make the names in a folder survive a power cut."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
