"""The machine and the versions that figures were taken with."""

import os
import platform
import shutil
import sqlite3
import subprocess
from importlib import metadata
from pathlib import Path

INSTRUCTIONS = (
    *("avx2", "fma", "f16c", "avx512f", "avx512_vnni", "avx512_bf16", "avx512_fp16"),
    *("avx_vnni", "amx_tile", "amx_int8", "amx_bf16", "asimd", "asimddp", "sve", "bf16", "i8mm"),
)
"""What makes models fast, by Linux's names."""
PACKAGES = (
    *("torch", "open_clip_torch", "onnxruntime", "onnxruntime-gpu", "insightface", "openvino"),
    *("pillow", "numpy", "qdrant-client", "qdrant-edge-py", "aiohttp", "gmqtt"),
)
NO_GPU = "none: not measured"


def describe() -> dict[str, str | int | list[str] | dict[str, str]]:
    """Return the machine in words and numbers; what cannot be found out is left out or empty."""
    return {
        "cpu": _cpuinfo("model name") or platform.processor() or platform.machine(),
        "cores": cores(),
        "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        "instructions": instructions(),
        "system": platform.platform(),
        "gpu": gpu(),
        "python": platform.python_version(),
        "sqlite": sqlite3.sqlite_version,
        "packages": _versions(),
    }


def lines() -> list[str]:
    """Return the same for a person."""
    told = describe()
    versions = ", ".join(f"{name} {version}" for name, version in _versions().items())
    memory = f"{int(str(told['memory_bytes'])) / 2**30:.0f} GiB"
    return [
        f"{told['cpu']}, {told['cores']} cores, {memory}, {told['system']}",
        f"instructions: {', '.join(instructions()) or 'unknown'}",
        f"GPU: {told['gpu']}",
        f"python {told['python']}, sqlite {told['sqlite']}, {versions}",
    ]


def cores() -> int:
    """Return how many cores this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def instructions() -> list[str]:
    """Return those of `INSTRUCTIONS` that the processor has; empty where Linux does not tell."""
    flags = set((_cpuinfo("flags") or _cpuinfo("Features")).split())
    return [name for name in INSTRUCTIONS if name in flags]


def gpu() -> str:
    """Return the GPUs by the driver's own word, or that there is none."""
    program = shutil.which("nvidia-smi")
    if program is None:
        return NO_GPU
    asked = [program, "--query-gpu=name,memory.total,driver_version", "--format=csv,noheader"]
    try:
        told = subprocess.run(asked, capture_output=True, text=True, timeout=20, check=True)
    except (OSError, subprocess.SubprocessError):
        return NO_GPU
    return "; ".join(told.stdout.split("\n")).strip("; ") or NO_GPU


def _versions() -> dict[str, str]:
    found = {}
    for name in PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def _cpuinfo(name: str) -> str:
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        return ""
    for line in text.splitlines():
        key, _, value = line.partition(":")
        if key.strip() == name:
            return value.strip()
    return ""
