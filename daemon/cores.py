"""How many CPU cores this process may use, which sizes its threads, decoders and jobs in flight."""

import math
import os
from pathlib import Path

CGROUP = Path("/sys/fs/cgroup")


def usable_cores(cgroup: Path = CGROUP) -> int:
    """Return the cores that the scheduler lets us run on, or fewer where a container has a quota.

    Without this a container with two of 64 cores would start 64 threads, which the kernel then
    stops together for most of each period.

    Args:
        cgroup: where the control groups of version 2, or 1, are mounted.
    """
    if hasattr(os, "sched_getaffinity"):
        allowed = len(os.sched_getaffinity(0))
    else:
        allowed = os.cpu_count() or 1
    quota = _quota(cgroup)
    return allowed if quota >= allowed else max(1, math.ceil(quota))


def _quota(cgroup: Path) -> float:
    """Return the quota in cores; infinite where there is none."""
    try:
        quota, period = (cgroup / "cpu.max").read_text(encoding="ascii").split()
    except (OSError, ValueError):
        try:
            quota = (cgroup / "cpu/cpu.cfs_quota_us").read_text(encoding="ascii")
            period = (cgroup / "cpu/cpu.cfs_period_us").read_text(encoding="ascii")
        except (OSError, ValueError):
            return math.inf
    try:
        cores = int(quota) / int(period)
    except (ValueError, ZeroDivisionError):
        # Version 2 says `max` for none.
        return math.inf
    return cores if cores > 0 else math.inf
