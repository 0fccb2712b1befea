"""Resident memory of processes, as the kernel counts it (Linux)."""

import contextlib
import re
from pathlib import Path


def resident(pid: int) -> int:
    """Return the bytes that a process has in memory now; 0 once it is gone."""
    return _status(pid, "VmRSS")


def own(pid: int) -> int:
    """Return those of `resident` that are no file's: code and mapped weights are not among them."""
    return _status(pid, "RssAnon")


def peak(pid: int) -> int:
    """Return the most bytes it had in memory since it began, or since `forget_peak`."""
    return _status(pid, "VmHWM")


def forget_peak(pid: int) -> None:
    """Let the next `peak` count from now."""
    with contextlib.suppress(OSError):
        Path(f"/proc/{pid}/clear_refs").write_text("5", encoding="ascii")


def children(pid: int) -> list[int]:
    """Return the processes that a process started and that live."""
    found: list[int] = []
    with contextlib.suppress(OSError):
        for task in Path(f"/proc/{pid}/task").iterdir():
            found += map(int, (task / "children").read_text(encoding="ascii").split())
    return found


def _status(pid: int, name: str) -> int:
    try:
        text = Path(f"/proc/{pid}/status").read_text(encoding="ascii")
    except OSError:
        return 0
    found = re.search(rf"^{name}:\s+(\d+) kB", text, re.MULTILINE)
    return int(found[1]) * 1024 if found else 0
