"""Sparse files: finds where a file has data, so that copies keep the holes of Qdrant's files."""

import errno
import os
from collections.abc import Iterator


def extents(reader: int, size: int) -> Iterator[tuple[int, int]]:
    """Yield where an open file has data, as begin and end, in order.

    Args:
        reader: its descriptor, opened for reading.
        size: how far to look.
    """
    if not hasattr(os, "SEEK_DATA"):
        yield 0, size
        return
    at = 0
    while at < size:
        try:
            begin = os.lseek(reader, at, os.SEEK_DATA)
        except OSError as error:
            if error.errno == errno.ENXIO:
                return  # a hole up to the end
            raise
        at = min(size, os.lseek(reader, begin, os.SEEK_HOLE))
        yield begin, at
