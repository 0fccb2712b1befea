"""Removes jobs that ended long ago, where the settings want that."""

import logging

from daemon.bell import Bell
from daemon.errors import StorageError
from daemon.jobs import Clock
from daemon.queue.job_queue import JobQueue

log = logging.getLogger(__name__)

PRUNE_SECONDS = 60.0


async def prune(queue: JobQueue, *, after_days: float, clock: Clock, stop: Bell) -> None:
    """Remove what ended so many days ago, now and each minute until `stop` rings."""
    age_ms = int(after_days * 86_400_000)
    while not stop.rings:
        try:
            more = True
            while more and not stop.rings:
                more = await queue.prune(before=clock() - age_ms) > 0
        except StorageError as error:
            log.warning("cannot prune: %s", error)
        await stop.wait(0, timeout_seconds=PRUNE_SECONDS)
