"""The sections of `make bench` in their order: a name, and the module whose `measure` it is.

Each runs in a process of its own (bench/one.py), so that no section's threads, libraries or memory
meet another's.
"""

import importlib
from collections.abc import Mapping
from typing import cast

from bench.rows import Measure

SECTIONS: Mapping[str, str] = {
    "end_to_end": "bench.end_to_end",
    "faces": "bench.face_peers",
    "detection": "bench.faces",
    "clip": "bench.clip",
    "formats": "bench.formats",
    "task_types": "bench.task_types",
    "queue": "bench.queue",
    "engines": "bench.engines",
    "vectors": "bench.vectors",
    "startup": "bench.startup",
    "overhead": "bench.overhead",
    "previews": "bench.previews",
    "gpu": "bench.gpu",
    "gpu_passes": "bench.gpu_passes",
}
"""Add yours here: "queue": "bench.queue"."""


def measure_of(name: str) -> Measure:
    """Return what measures a section.

    Raises:
        KeyError: there is no such section.
    """
    return cast("Measure", importlib.import_module(SECTIONS[name]).measure)
