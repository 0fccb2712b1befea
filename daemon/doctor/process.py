"""The daemon's process on this machine: which it is, what it was started with, what differs.

Where it is another user's, in a container, or on another machine or system, none of that is known.
"""

from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from pydantic import BaseModel, SecretStr

from daemon.doctor.facts import without_user
from daemon.errors import ConfigError
from daemon.settings import PREFIX, Settings

PROC = Path("/proc")
_LISTENS = "0A"
_TABLES = ("net/tcp", "net/tcp6")
_LONGEST = 120
HIDDEN = "a secret one"


def listener(port: int) -> int | None:
    """Return the process that listens on a port, if it is one that we may look into."""
    sockets = {f"socket:[{inode}]" for inode in _inodes(port)}
    for folder in PROC.glob("[0-9]*") if sockets else ():
        if not sockets.isdisjoint(_open_files(folder / "fd")):
            return int(folder.name)
    return None


def environ_of(pid: int) -> dict[str, str]:
    """Return the environment that a process was started with.

    Raises:
        OSError: it is not ours to read, or gone.
    """
    text = (PROC / str(pid) / "environ").read_bytes().decode("utf-8", "surrogateescape")
    pairs = (each.partition("=") for each in text.split("\0") if each)
    return {name: value for name, _, value in pairs}


def folder_of(pid: int) -> Path:
    """Return the folder that a process works in, which its relative paths begin at.

    Raises:
        OSError: as above.
    """
    return (PROC / str(pid) / "cwd").readlink()


def settings_of(pid: int) -> Settings | None:
    """Return the settings that a process goes by; None where that cannot be told."""
    try:
        environ, folder = environ_of(pid), folder_of(pid)
        if file := environ.get(f"{PREFIX}CONFIG"):
            environ[f"{PREFIX}CONFIG"] = str(folder / file)
        theirs = Settings.from_env(environ)
    except (OSError, ConfigError):
        return None
    return theirs.model_copy(update={"data_dir": folder / theirs.data_dir})


def differences(theirs: Settings, ours: Settings) -> list[str]:
    """Return which settings differ, each with both values; of secrets only that they do."""
    ours = ours.model_copy(update={"data_dir": ours.data_dir.absolute()})
    return list(_differences(theirs, ours, PREFIX))


def _differences(theirs: BaseModel, ours: BaseModel, prefix: str) -> Iterator[str]:
    for field in type(ours).model_fields:
        one, other, name = getattr(theirs, field), getattr(ours, field), f"{prefix}{field.upper()}"
        if isinstance(one, BaseModel) and isinstance(other, BaseModel):
            yield from _differences(one, other, f"{name}__")
        elif one != other:
            there, here = _told(one), _told(other)
            if there == here and there != HIDDEN:
                yield f"{name} is {here} there and here, and differs in what is not shown of it"
            else:
                yield f"{name} is {there} there, {here} here"


def _told(value: object) -> str:
    if isinstance(value, SecretStr):
        return HIDDEN
    text = "" if value is None else str(value)
    text = text.lower() if isinstance(value, bool) else text
    text = without_user(text) if "://" in text else text
    return text[:_LONGEST] or "unset"


def _open_files(folder: Path) -> Iterator[str]:
    with suppress(OSError):  # another user's, or gone
        for each in folder.iterdir():
            with suppress(FileNotFoundError):  # closed meanwhile
                yield str(each.readlink())


def _inodes(port: int) -> Iterator[str]:
    for table in _TABLES:
        try:
            lines = (PROC / table).read_text(encoding="ascii").splitlines()[1:]
        except OSError:
            continue
        for line in lines:
            _, local, _, state, *_, inode = line.split()[:10]
            if state == _LISTENS and int(local.rpartition(":")[2], 16) == port:
                yield inode
