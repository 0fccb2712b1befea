"""ArchiveWriter: writes a backup's file, member by member, holes as holes."""

import hashlib
import io
import json
import os
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any

from daemon.backup.archive import (
    CHUNK,
    FORMAT,
    MANIFEST,
    MANIFEST_SUM,
    VERSION,
    Entry,
    Tell,
    is_name,
)
from daemon.holes import extents
from daemon.jobs import JsonObject

BLOCK = 512
"""Of a tar; a map of holes fills whole ones."""


class ArchiveWriter:
    """Writes an archive, member by member; without `close` it stays one that is not whole.

    Args:
        file: opened for writing, empty.
        tell: is told of progress.
    """

    def __init__(self, file: IO[bytes], tell: Tell) -> None:
        self._tar = tarfile.open(fileobj=file, mode="w", format=tarfile.PAX_FORMAT)  # noqa: SIM115 - closed by `close`
        self._tell = tell
        self.entries: list[Entry] = []

    def add_file(self, name: str, path: Path) -> Entry:
        """Add a file that nobody changes meanwhile.

        Raises:
            OSError: it cannot be read, or the archive not be written.
            ValueError: the name is none for an archive.
        """
        with path.open("rb") as opened:
            source = _Source(opened, self._tell)
            info = tarfile.TarInfo(name)
            info.mtime = int(os.fstat(opened.fileno()).st_mtime)
            if source.has_holes:
                # Short: a long one would come as a header of its own, over the true name.
                info.name = f"GNUSparseFile.0/{len(self.entries)}"
                info.pax_headers = {
                    "GNU.sparse.major": "1",
                    "GNU.sparse.minor": "0",
                    "GNU.sparse.name": name,
                    "GNU.sparse.realsize": str(source.size),
                }
            info.size = source.stored
            return self._add(name, info, source, source.size, source.digest)

    def add_bytes(self, name: str, data: bytes) -> Entry:
        """Add a small file.

        Raises:
            OSError: the archive cannot be written.
        """
        info = tarfile.TarInfo(name)
        info.size = len(data)
        return self._add(name, info, io.BytesIO(data), len(data), hashlib.sha256(data).hexdigest)

    def close(self, about: JsonObject) -> None:
        """Add the manifest, which makes the archive whole.

        Args:
            about: what it shall say beside the files.

        Raises:
            OSError: the archive cannot be written.
        """
        files = [
            {"name": each.name, "size": each.size, "sha256": each.sha256} for each in self.entries
        ]
        manifest = {"format": FORMAT, "version": VERSION, **about, "files": files}
        text = f"{json.dumps(manifest, indent=1)}\n".encode()
        self.add_bytes(MANIFEST, text)
        self.add_bytes(MANIFEST_SUM, f"{hashlib.sha256(text).hexdigest()}\n".encode())
        self._tar.close()

    def _add(
        self, name: str, info: tarfile.TarInfo, data: Any, size: int, digest: Callable[[], str]
    ) -> Entry:
        if not is_name(name):
            raise ValueError(f"{name!r} is no name for a file of a backup")
        self._tar.addfile(info, data)
        entry = Entry(name, size, digest())
        self.entries.append(entry)
        return entry


class _Source:
    """A file as it stands in the archive: where it has holes, a map of its data, then the data."""

    def __init__(self, opened: IO[bytes], tell: Tell) -> None:
        self._reader = opened.fileno()
        self._tell = tell
        self.size = os.fstat(self._reader).st_size
        parts = list(extents(self._reader, self.size))
        self.has_holes = parts != [(0, self.size)] and self.size > 0
        head = b""
        if self.has_holes:
            numbers = [len(parts) + 1]
            for begin, end in [*parts, (self.size, self.size)]:
                numbers += [begin, end - begin]
            head = "".join(f"{number}\n" for number in numbers).encode()
            head += b"\0" * (-len(head) % BLOCK)
        self.stored = len(head) + sum(end - begin for begin, end in parts)
        self._sum = hashlib.sha256()
        self._pieces = self._read(head, parts)
        self._rest = b""

    def digest(self) -> str:
        """Return the SHA-256 of the file as it is, once all was read."""
        for piece in self._pieces:  # none is left: only the hole at the end is
            raise OSError(f"{len(piece)} bytes were not written")
        return self._sum.hexdigest()

    def read(self, count: int) -> bytes:
        """Return so many bytes of what stands in the archive, fewer at its end."""
        found = [self._rest]
        have = len(self._rest)
        while have < count and (piece := next(self._pieces, b"")):
            found.append(piece)
            have += len(piece)
        whole = b"".join(found)
        self._rest = whole[count:]
        return whole[:count]

    def _read(self, head: bytes, parts: list[tuple[int, int]]) -> Iterator[bytes]:
        if head:
            yield head
        at = 0
        for begin, end in parts:
            self._skip(begin - at)
            at = begin
            while at < end:
                data = os.pread(self._reader, min(CHUNK, end - at), at)
                if not data:
                    raise OSError("a file became shorter while it was read")
                at += len(data)
                self._sum.update(data)
                self._tell(len(data))
                yield data
        self._skip(self.size - at)

    def _skip(self, count: int) -> None:
        zeros = bytes(min(CHUNK, count))
        while count > 0:
            self._sum.update(zeros[:count])
            count -= len(zeros[:count])
