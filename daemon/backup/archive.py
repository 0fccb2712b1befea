"""The backup file: a tar archive that ends with a manifest of its members and its checksum.

Files with holes are kept as GNU tar keeps them (PAX sparse 1.0), so that `tar xf` reads it too.
Without a whole manifest at its end an archive is not whole, whatever else it holds.
"""

import hashlib
import json
import os
import re
import tarfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from daemon.errors import ConfigError
from daemon.jobs import JsonObject

FORMAT = "inferd-backup"
VERSION = 1
"""Of the archive's layout; a higher one is refused."""
MANIFEST = "manifest.json"
MANIFEST_SUM = "manifest.json.sha256"
MANIFEST_BYTES = 256 << 20
CHUNK = 1 << 20
HOLE = 64 << 10
"""So many zeros are written as a hole."""

_PART = r"[^/\\\x00-\x1f\x7f]{1,255}"
_NAME = re.compile(rf"{_PART}(/{_PART}){{0,20}}")
_UNREADABLE = (tarfile.TarError, EOFError, ValueError, KeyError, IndexError, OverflowError)
"""What damaged headers raise in tarfile."""
Tell = Callable[[int], None]
"""Is told how many bytes more are done."""


@dataclass(frozen=True, slots=True)
class Entry:
    """One file of a backup."""

    name: str
    """Its path in the archive."""
    size: int
    """Bytes, holes included."""
    sha256: str
    """Of all of them."""


class Archive:
    """An archive that is read; a context manager.

    Raises:
        ConfigError: there is none, or what there is is no backup, or is damaged.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            self._tar = tarfile.open(path, "r:")  # noqa: SIM115 - closed by __exit__
        except OSError as error:
            raise ConfigError(
                f"cannot read {path}: {error.strerror or error}", code="backup_unreadable"
            ) from error
        except _UNREADABLE as error:
            raise self._damaged("it is no tar file") from error
        try:
            self._members = self._read_members()
            self.manifest = self._read_manifest()
            self.entries = self._read_entries()
        except BaseException:
            # Ctrl-C too: nobody else has the file to close it.
            self._tar.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._tar.close()

    @property
    def size(self) -> int:
        """Bytes of all files, holes included."""
        return sum(each.size for each in self.entries)

    def check(self, tell: Tell) -> None:
        """Compare every file with its sum.

        Raises:
            ConfigError: one differs, code backup_damaged.
        """
        for entry in self.entries:
            for piece in self._read(entry):
                tell(len(piece))

    def names_below(self, folder: str) -> list[str]:
        """Return the names of the files below a folder of the archive."""
        return [each.name for each in self.entries if each.name.startswith(f"{folder}/")]

    def extract(self, name: str, target: Path, tell: Tell) -> None:
        """Write a file out, holes as holes; its sum is compared once more.

        Raises:
            ConfigError: it is damaged, code backup_damaged.
            OSError: it cannot be written.
        """
        entry = next(each for each in self.entries if each.name == name)
        target.parent.mkdir(parents=True, exist_ok=True)
        with target.open("xb") as writing:
            for piece in self._read(entry):
                for start in range(0, len(piece), HOLE):
                    data = piece[start : start + HOLE]
                    if data.count(0) == len(data):
                        writing.seek(len(data), os.SEEK_CUR)
                    else:
                        writing.write(data)
                tell(len(piece))
            writing.truncate(entry.size)
            writing.flush()
            os.fsync(writing.fileno())

    def read(self, name: str) -> bytes:
        """Return a small file.

        Raises:
            ConfigError: it is damaged, code backup_damaged.
        """
        entry = next((each for each in self.entries if each.name == name), None)
        if entry is None:
            raise self._damaged(f"{name} is missing")
        return b"".join(self._read(entry))

    def _read(self, entry: Entry) -> Iterator[bytes]:
        """Yield a file in pieces.

        Raises:
            ConfigError: in place of its end, where its sum is not the manifest's.
        """
        digest = hashlib.sha256()
        try:
            opened = self._tar.extractfile(self._members[entry.name])
            if opened is None:
                raise self._damaged(f"{entry.name} is no file")
            left = entry.size
            while left:
                piece = opened.read(min(CHUNK, left))
                if not piece:
                    break
                left -= len(piece)
                digest.update(piece)
                yield piece
        except (*_UNREADABLE, OSError) as error:
            raise self._damaged(f"{entry.name} cannot be read: {error}") from error
        if digest.hexdigest() != entry.sha256:
            raise self._damaged(f"{entry.name} is not what the manifest says")

    def _read_members(self) -> dict[str, tarfile.TarInfo]:
        try:
            found = self._tar.getmembers()
        except (*_UNREADABLE, OSError) as error:
            raise self._damaged(str(error)) from error
        members: dict[str, tarfile.TarInfo] = {}
        for member in found:
            if not member.isreg() or not is_name(member.name) or member.name in members:
                raise self._damaged(f"it holds {member.name!r}, which no backup does")
            members[member.name] = member
        return members

    def _read_manifest(self) -> JsonObject:
        parts = []
        for name in (MANIFEST, MANIFEST_SUM):
            member = self._members.get(name)
            if member is None or member.size > MANIFEST_BYTES:
                raise self._damaged(
                    f"it has no {name}: it is no backup of inferd, or its end lacks"
                )
            try:
                opened = self._tar.extractfile(member)
                parts.append(b"" if opened is None else opened.read())
            except (*_UNREADABLE, OSError) as error:
                raise self._damaged(f"{name} cannot be read: {error}") from error
        text, told = parts
        if hashlib.sha256(text).hexdigest().encode() != told.strip():
            raise self._damaged(f"{MANIFEST} is not what was written")
        manifest = json.loads(text)
        if manifest.get("format") != FORMAT or not isinstance(manifest.get("version"), int):
            raise self._damaged("its manifest is not of inferd")
        if manifest["version"] > VERSION:
            raise ConfigError(
                f"{self.path} has layout {manifest['version']}, this version reads {VERSION}: use"
                " a newer inferd",
                code="backup_newer",
            )
        return dict(manifest)

    def _read_entries(self) -> list[Entry]:
        entries = [Entry(**each) for each in self.manifest["files"]]
        wanted = {each.name: each.size for each in entries}
        found = {
            name: member.size
            for name, member in self._members.items()
            if name not in (MANIFEST, MANIFEST_SUM)
        }
        for name in wanted.keys() ^ found.keys():
            raise self._damaged(f"{name} is {'missing' if name in wanted else 'too much'}")
        for name, size in wanted.items():
            # Before a byte of it is read: a damaged header may promise any size.
            if found[name] != size:
                raise self._damaged(f"{name} has {found[name]} bytes, not {size}")
        return entries

    def _damaged(self, what: str) -> ConfigError:
        return ConfigError(f"{self.path} is damaged: {what}", code="backup_damaged")


def is_name(text: str) -> bool:
    """Whether a path may stand in an archive: relative, plain, and within it."""
    return _NAME.fullmatch(text) is not None and {".", ".."}.isdisjoint(text.split("/"))
