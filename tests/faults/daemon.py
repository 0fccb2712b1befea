"""The real daemon over quick models, with a clock that a test may turn: `-m tests.faults.daemon`.

Nothing of production knows of it: names are replaced before the daemon starts. TEST_CLOCK names a
file whose text is the number of seconds that the wall clock is off by; TEST_BUSY_TIMEOUT_MS is how
long the queue waits for another process's lock; TEST_STOP_IN_COMMIT names a file that, once it
exists, lets the daemon stand still while it holds the lock.
"""

import os
import signal
import sqlite3
import sys
import time
from pathlib import Path

import daemon.queue.database
from daemon.__main__ import main
from handlers import clip_opener, face_opener
from tests.crash.faults import watch_connections
from tests.faults import stand_ins

_true_time_ns, _true_time = time.time_ns, time.time


def install_models() -> None:
    """Put the stand-ins where the daemon looks for models."""
    replaced = {
        (clip_opener, "ImageEmbeddingInference"): stand_ins.QuickImages,
        (clip_opener, "TextEmbeddingInference"): stand_ins.QuickTexts,
        (face_opener, "FaceDetectionInference"): stand_ins.QuickDetector,
        (face_opener, "FaceEmbeddingInference"): stand_ins.QuickFaces,
    }
    for (module, name), stand_in in replaced.items():
        assert hasattr(module, name), name
        setattr(module, name, stand_in)


def install_clock(file: Path) -> None:
    """Let the wall clock be off by what `file` says, as of each call."""

    def off() -> float:
        text = file.read_text(encoding="ascii") if file.exists() else ""
        return float(text or 0)

    time.time_ns = lambda: _true_time_ns() + int(off() * 1e9)
    time.time = lambda: _true_time() + off()


def install_busy_timeout(milliseconds: int) -> None:
    """Let the queue give up on a lock so soon."""
    wait = daemon.queue.database.Database.__init__.__kwdefaults__
    assert wait is not None
    assert "busy_timeout_ms" in wait
    wait["busy_timeout_ms"] = milliseconds


def install_stop(file: Path) -> None:
    """Stand still (SIGSTOP) within a transaction once `file` exists, whose lock is then held."""

    class Stopping(sqlite3.Connection):
        def commit(self) -> None:
            if file.exists():
                os.kill(os.getpid(), signal.SIGSTOP)
            super().commit()

    watch_connections(Stopping)


if __name__ == "__main__":
    install_models()
    if os.environ.get("TEST_CLOCK"):
        install_clock(Path(os.environ["TEST_CLOCK"]))
    if os.environ.get("TEST_BUSY_TIMEOUT_MS"):
        install_busy_timeout(int(os.environ["TEST_BUSY_TIMEOUT_MS"]))
    if os.environ.get("TEST_STOP_IN_COMMIT"):
        install_stop(Path(os.environ["TEST_STOP_IN_COMMIT"]))
    sys.exit(main())
