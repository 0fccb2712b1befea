"""Identifies a process and its version, so that another one can tell whether it still runs."""

import os
import socket
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

FIELDS = 5
UNKNOWN = "0"


def own_identity() -> str:
    """Return host, boot, pid namespace, pid and start time of this process, joined by '/'.

    A pid alone is used again; with the boot and the start time it never is.
    """
    start = _start_time(os.getpid()) or UNKNOWN
    return "/".join([*_here(), str(os.getpid()), start])


def own_boot() -> str:
    """Return the id of this boot of the machine; empty where it has none."""
    return _here()[1]


def own_version() -> str:
    """Return the version of inferd that runs here."""
    try:
        return version("inferd")
    except PackageNotFoundError:
        # Run from a checkout, which is never installed.
        return "0.1.0"


def is_dead(identity: str) -> bool:
    """Whether a process is known to have ended; False where that is unknown, as on other hosts."""
    return _lives(identity) is False


def is_alive(identity: str) -> bool:
    """Whether a process is known to run; False where that is unknown, as on other hosts."""
    return _lives(identity) is True


def _lives(identity: str) -> bool | None:
    parts = identity.split("/")
    if len(parts) != FIELDS:
        return None
    host, boot, namespace, pid, start = parts
    own_host, own_boot, own_namespace = _here()
    if host != own_host:
        return None
    if boot != own_boot:
        return False
    if namespace != own_namespace or start == UNKNOWN:
        # Without /proc the pid alone may be somebody else's by now.
        return None
    return pid.isdecimal() and _start_time(int(pid)) == start


def _here() -> tuple[str, str, str]:
    boot = _read("/proc/sys/kernel/random/boot_id")
    try:
        namespace = str(Path("/proc/self/ns/pid").stat().st_ino)
    except OSError:
        namespace = ""
    host = socket.gethostname().replace("/", "_")
    # On one database there may be machines that are named alike, of other boots and alive.
    machine = _read("/etc/machine-id").replace("/", "_")[:12]
    return f"{host}.{machine}" if machine else host, boot, namespace


def _start_time(pid: int) -> str | None:
    # Field 22 of stat, counted after the command, which may itself hold spaces and brackets.
    fields = _read(f"/proc/{pid}/stat").rpartition(")")[2].split()
    if len(fields) <= 19 or fields[0] in "ZX":  # noqa: PLR2004 - the field's place
        # A zombie is gone but for its exit status, which nobody fetched yet.
        return None
    return fields[19]


def _read(path: str) -> str:
    try:
        return Path(path).read_text(encoding="utf-8", errors="replace").strip()
    except OSError:
        return ""
