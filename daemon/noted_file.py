"""Small state files, replaced atomically and synced; an unreadable one does not stop a start."""

import json
import logging
import os
from pathlib import Path

from daemon.jobs import JsonObject

log = logging.getLogger(__name__)


def read_noted(path: Path) -> JsonObject:
    """Return what was written last; nothing where that is not there, or cannot be read."""
    try:
        told = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        log.warning("%s cannot be read: %s", path, error)
        return {}
    return told if isinstance(told, dict) else {}


def write_noted(path: Path, told: JsonObject) -> None:
    """Write it, and return once it is on the disk; a disk that fails is told in the log alone."""
    part = path.with_suffix(".part")
    try:
        with part.open("w", encoding="utf-8") as file:
            json.dump(told, file)
            file.flush()
            # Else the file may be what the machine takes with it.
            os.fsync(file.fileno())
        part.replace(path)
    except OSError as error:
        log.warning("%s cannot be written: %s", path, error)
