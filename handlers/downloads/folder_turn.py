"""One download into a folder at a time, whoever else of this machine asks for the same file."""

import contextlib
import fcntl
import logging
import os
import time
from collections.abc import Iterator
from pathlib import Path

from daemon.errors import ConfigError

log = logging.getLogger(__name__)

PATIENCE_SECONDS = 3600.0
"""Longest wait for another's download; each ends by itself where its server falls silent."""
LOOK_SECONDS = 0.2


@contextlib.contextmanager
def folder_turn(folder: Path, patience_seconds: float = PATIENCE_SECONDS) -> Iterator[None]:
    """Wait until no other process or thread has its turn in the folder, then have ours.

    The kernel ends a turn with its process. Where a file system knows no locks there are no turns,
    and the last download wins.

    Raises:
        ConfigError: the folder cannot be opened, or another's turn does not end; code
            model_not_written.
    """
    try:
        # The folder itself, so that no lock file is left behind.
        descriptor = os.open(folder, os.O_RDONLY)
    except OSError as error:
        raise ConfigError(
            f"cannot open {folder}: {error.strerror}", code="model_not_written"
        ) from error
    try:
        _acquire(descriptor, folder, time.monotonic() + patience_seconds)
        yield
    finally:
        os.close(descriptor)


def _acquire(descriptor: int, folder: Path, give_up_at: float) -> None:
    is_told = False
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() >= give_up_at:
                raise ConfigError(
                    f"another process has been downloading into {folder} for too long: end it,"
                    " and try again",
                    code="model_not_written",
                ) from None
        except OSError as error:
            log.debug("no locks in %s: %s", folder, error)
            return
        else:
            return
        if not is_told:
            is_told = True
            log.info("waiting for another download into %s", folder)
        time.sleep(LOOK_SECONDS)
