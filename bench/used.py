"""What processes used of the cores, by Linux's own count."""

import os
import resource
from collections.abc import Iterator
from pathlib import Path


def core_seconds(pid: int) -> float:
    """Return what a process and all below it used so far, those that have ended too."""
    ticks = 0
    for each in _family(pid):
        fields = _stat(each)
        # Of itself, and of children that were waited for; living ones are counted by themselves.
        ticks += sum(map(int, fields[11:15])) if fields else 0
    return ticks / os.sysconf("SC_CLK_TCK")


def own_core_seconds() -> float:
    """Return what this process used so far, without its children."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


def _family(pid: int) -> Iterator[int]:
    yield pid
    for path in Path(f"/proc/{pid}/task").glob("*/children"):
        try:
            words = path.read_text(encoding="ascii").split()
        except OSError:  # the thread has ended
            continue
        for word in words:
            yield from _family(int(word))


def _stat(pid: int) -> list[str]:
    try:
        text = Path(f"/proc/{pid}/stat").read_text(encoding="ascii", errors="replace")
    except OSError:
        return []
    return text.rpartition(")")[2].split()
