"""What a command line asks for: pictures by their ids, or files that go to the media store first.

Everything is read as it is needed, so that neither a list of a million ids nor a folder of as many
pictures is ever held in memory.
"""

import codecs
import itertools
import os
import stat
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Protocol

from daemon.jobs import MAX_MEDIA_STORE_ID
from demos.client.arguments import whole
from demos.client.errors import ClientError
from demos.picture_types import HEAD_BYTES, is_picture_name, sniff

Upload = Callable[[bytes, str], int]
"""Puts a picture's bytes under a name into the media store; returns the id, or raises."""
CHUNK = 1 << 20
NUL = "\0"
_NO_TEXT = "it is not text in UTF-8"


class UploadMemory(Protocol):
    """Knows which files were uploaded before, and as what."""

    def uploaded(self, path: str) -> int | None:
        """Return the id of a file that is as it was when it was uploaded."""

    def upload(self, path: str, size: int, mtime_ns: int, media_store_id: int) -> None:
        """Note the id of a file."""


class SourceError(ClientError):
    """A line that is no id, or a file or folder that cannot be read."""


class Subject(Protocol):
    """One picture that is asked for."""

    @property
    def name(self) -> str | None:
        """The file, where there is one."""

    def media_store_id(self) -> int:
        """Return its id, at whatever that takes.

        Raises:
            ClientError: there is none: see SourceError, and what the upload raises.
        """


class Known:
    """A picture whose id was told."""

    name = None

    def __init__(self, media_store_id: int) -> None:
        self._id = media_store_id

    def media_store_id(self) -> int:
        """Return the id."""
        return self._id


class Unusable:
    """Something that was told and is no picture; asking for it says why."""

    def __init__(self, reason: str, name: str | None = None) -> None:
        self.name = name
        self._reason = reason

    def media_store_id(self) -> int:
        """Raise the reason."""
        raise SourceError(self._reason)


class PictureFile:
    """A picture on disk, uploaded once by whoever asks first; others wait for the same answer."""

    def __init__(
        self, path: str, upload: Upload, max_bytes: int, memory: UploadMemory | None = None
    ) -> None:
        self.name = path
        self._upload, self._max_bytes, self._memory = upload, max_bytes, memory
        self._lock = threading.Lock()
        self._found: int | ClientError | None = None

    def media_store_id(self) -> int:
        """Return the id that the media store gave it."""
        with self._lock:
            if self._found is None:
                try:
                    known = self._recall()
                    self._found = self._send() if known is None else known
                except ClientError as error:
                    self._found = error
            if isinstance(self._found, ClientError):
                raise self._found
            return self._found

    def _recall(self) -> int | None:
        return None if self._memory is None else self._memory.uploaded(self.name)

    def _send(self) -> int:
        picture, state = self._read()
        media_store_id = self._upload(picture, Path(self.name).name)
        if self._memory is not None:
            self._memory.upload(self.name, state.st_size, state.st_mtime_ns, media_store_id)
        return media_store_id

    def _read(self) -> tuple[bytes, os.stat_result]:
        try:
            with Path(self.name).open("rb") as file:
                # Before the bytes: a file that changes meanwhile is another one the next time.
                state = os.fstat(file.fileno())
                picture = file.read(self._max_bytes + 1)
        except OSError as error:
            raise SourceError(f"cannot read {shown(self.name)}: {error.strerror}") from None
        if len(picture) > self._max_bytes:
            raise SourceError(
                f"{shown(self.name)} has more than {self._max_bytes} bytes, which no job would"
                " fetch (INFERD_MEDIA_STORE__MAX_BYTES)"
            )
        return picture, state


def open_ids(path: str) -> IO[str]:
    """Open a list of ids; `-` is standard input.

    Raises:
        SourceError: it cannot be read, or is a file and no text.
    """
    try:
        lines = _opened(path)
        try:
            if stat.S_ISREG(os.fstat(lines.fileno()).st_mode):
                _require_text(lines.fileno(), path)
        except BaseException:
            lines.close()
            raise
    except OSError as error:
        raise SourceError(_cannot_read(path, error)) from None
    return lines


def ids(lines: IO[str], name: str) -> Iterator[Subject]:
    """Yield one subject for each line that is neither empty nor a # comment; close at the end.

    What is no text ends the list: of a stream that shows only as it is read.
    """
    with lines:
        for number in itertools.count(1):
            try:
                line = lines.readline()
            except UnicodeDecodeError:
                line = NUL
            if not line:
                return
            if NUL in line:
                yield Unusable(f"{name}:{number}: {_NO_TEXT}; the rest was not read")
                return
            word = line.partition("#")[0].strip()
            if word:
                media_store_id = whole(word)
                if media_store_id is None or media_store_id > MAX_MEDIA_STORE_ID:
                    yield Unusable(f"{name}:{number}: {shown(word[:80])} is no media_store_id")
                else:
                    yield Known(media_store_id)


def count_ids(path: str) -> int:
    """Return how many subjects `ids` would find in a file."""
    return sum(1 for _ in ids(_opened(path), path))


def _opened(path: str) -> IO[str]:
    # A reader of its own for standard input too: UTF-8 whatever the locale says.
    source: str | int = os.dup(0) if path == "-" else path
    return open(source, encoding="utf-8-sig")  # noqa: PTH123 - 0 has no path


def _require_text(reader: int, path: str) -> None:
    """Return if all that is left to read is text; leave the reader where it is.

    Some lines of any file are numbers, and would be asked for.
    """
    decoder = codecs.getincrementaldecoder("utf-8")()
    at, data = os.lseek(reader, 0, os.SEEK_CUR), b"begin"
    try:
        while data:
            data = os.pread(reader, CHUNK, at)
            at += len(data)
            if NUL in decoder.decode(data, final=not data):
                raise SourceError(f"{shown(path)} is no list of ids: {_NO_TEXT}")
    except UnicodeDecodeError:
        raise SourceError(f"{shown(path)} is no list of ids: {_NO_TEXT}") from None


def pictures(
    folder: str, upload: Upload, max_bytes: int, memory: UploadMemory | None = None
) -> Iterator[Subject]:
    """Yield the pictures in a folder and below, by name or else by content.

    Links are followed, each folder is entered once; hidden files and folders are left out.

    Args:
        folder: where to look.
        upload: puts one into the media store.
        max_bytes: larger files are not sent.
        memory: knows what was uploaded before, and is not uploaded again.
    """
    for path, problem in _wanted(folder):
        if problem is not None:
            yield Unusable(problem, path)
        else:
            yield PictureFile(path, upload, max_bytes, memory)


def count_pictures(folder: str) -> int:
    """Return how many subjects `pictures` would find."""
    return sum(1 for _ in _wanted(folder))


def shown(name: str) -> str:
    """Return a name as it may be printed: what is no text or could steer a terminal is escaped."""
    return "".join(char if char.isprintable() else ascii(char)[1:-1] for char in name)


def _wanted(folder: str) -> Iterator[tuple[str, str | None]]:
    """Yield the pictures below a folder, and with a reason what cannot be looked into."""
    for path, problem in _files(folder):
        if problem is not None or is_picture_name(path) or _has_picture_bytes(path):
            yield path, problem


def _files(folder: str) -> Iterator[tuple[str, str | None]]:
    """Yield the regular files below a folder, and with a reason what cannot be looked into."""
    waiting, entered = [folder], set[tuple[int, int]]()
    while waiting:
        place = waiting.pop()
        try:
            found = Path(place).stat()
            if (found.st_dev, found.st_ino) in entered:
                continue
            entered.add((found.st_dev, found.st_ino))
            yield from _files_in(place, waiting)
        except OSError as error:
            yield place, _cannot_read(place, error)


def _files_in(folder: str, folders: list[str]) -> Iterator[tuple[str, str | None]]:
    """Yield what `_files` does of one folder; append the folders in it to `folders`."""
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.name.startswith("."):
                continue
            try:
                mode = entry.stat().st_mode
            except OSError as error:
                if is_picture_name(entry.name):
                    yield entry.path, _cannot_read(entry.path, error)
                continue
            if stat.S_ISDIR(mode):
                folders.append(entry.path)
            elif stat.S_ISREG(mode):
                yield entry.path, None


def _cannot_read(path: str, error: OSError) -> str:
    return f"cannot read {shown(path)}: {error.strerror}"


def _has_picture_bytes(path: str) -> bool:
    try:
        with Path(path).open("rb") as file:
            return sniff(file.read(HEAD_BYTES)) is not None
    except OSError:
        return False  # nothing says that it is a picture
