"""A pack's zip archive becomes a folder of ONNX files, whole or not at all."""

import os
import shutil
import stat
import tempfile
import zipfile
import zlib
from pathlib import Path, PurePosixPath

from daemon.errors import ConfigError
from handlers.downloads.part_file import sweep_unpacked, sync_folder

CHUNK_BYTES = 1 << 20
MAX_PACK_BYTES = 2 << 30
"""Unpacked; the largest published pack has 0.4 GB."""


def unpack(archive: Path, folder: Path) -> None:
    """Make `folder` of the archive's ONNX files.

    Raises:
        ConfigError: it is no archive, holds no models, or the folder cannot be made.
    """
    sweep_unpacked(folder)
    try:
        with (
            zipfile.ZipFile(archive) as source,
            tempfile.TemporaryDirectory(
                prefix=f".{folder.name}.", dir=folder.parent, ignore_cleanup_errors=True
            ) as scratch,
        ):
            # A folder of its own: the scratch folder is private to its owner, a pack is not.
            made = Path(scratch) / folder.name
            made.mkdir()
            for name, member in _onnx_members(source).items():
                with source.open(member) as packed, (made / name).open("wb") as file:
                    shutil.copyfileobj(packed, file, CHUNK_BYTES)
                    file.flush()
                    os.fsync(file.fileno())
            # Takes the place of an empty folder; fails on one that holds something else.
            made.replace(folder)
            sync_folder(folder.parent)
    # zipfile's own words for a compression or a password that it does not know, and zlib's.
    except (
        zipfile.BadZipFile,
        NotImplementedError,
        RuntimeError,
        EOFError,
        zlib.error,
    ) as error:
        raise ConfigError(f"{archive} is no usable zip archive: {error}") from error
    except OSError as error:
        raise ConfigError(
            f"cannot unpack {archive} into {folder}: {error.strerror or error}"
        ) from error


def _onnx_members(source: zipfile.ZipFile) -> dict[str, zipfile.ZipInfo]:
    members: dict[str, zipfile.ZipInfo] = {}
    for member in source.infolist():
        name = PurePosixPath(member.filename.replace("\\", "/")).name
        mode = member.external_attr >> 16
        is_plain = not member.is_dir() and (stat.S_IFMT(mode) in (0, stat.S_IFREG))
        if not is_plain or not name.endswith(".onnx") or name == ".onnx":
            continue
        if name in members:
            raise ConfigError(f"{source.filename} holds {name} twice")
        members[name] = member
    if not members:
        raise ConfigError(f"{source.filename} holds no .onnx file")
    # zipfile never gives more than the size that the archive states.
    if sum(member.file_size for member in members.values()) > MAX_PACK_BYTES:
        raise ConfigError(f"{source.filename} unpacks to more than {MAX_PACK_BYTES >> 30} GiB")
    return members
