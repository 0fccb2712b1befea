"""Renews the leases that this daemon holds, and takes back what others let run out."""

import asyncio
import logging
from collections.abc import Callable, Mapping

from daemon.clock_steps import ClockSteps
from daemon.errors import StorageError
from daemon.identity import is_alive, is_dead
from daemon.jobs import Lease
from daemon.queue.job_queue import JobQueue

log = logging.getLogger(__name__)

RECLAIMS_PER_LEASE = 3
"""How often, within one lease time, leases that ran out are looked for and ours are renewed."""


class LeaseKeeper:
    """Renews and reclaims a few times within one lease time."""

    def __init__(
        self,
        queue: JobQueue,
        *,
        lease_seconds: float,
        clock_steps: ClockSteps,
        held: Callable[[], Mapping[str, Lease]],
        lost: Callable[[Lease], None],
    ) -> None:
        """Wire it up.

        Args:
            queue: whose leases.
            lease_seconds: how long a lease is.
            clock_steps: when somebody last set the wall clock.
            held: tells what runs here, by job_id.
            lost: told each lease that was held, and is no longer ours.
        """
        self._queue = queue
        self._seconds = lease_seconds
        self._clock_steps = clock_steps
        self._held = held
        self._lost = lost

    async def run(self) -> None:
        """Run until cancelled, beyond the stop: jobs that still run keep their leases."""
        while True:
            await asyncio.sleep(self._seconds / RECLAIMS_PER_LEASE)
            try:
                await self._renew()
                await self._take_back()
            except StorageError as error:
                log.warning("cannot renew leases: %s", error)

    async def _renew(self) -> None:
        held = self._held()
        if not held:
            return
        still = await self._queue.renew(held.values(), seconds=self._seconds)
        for job_id in held.keys() - still:
            self._lost(held[job_id])

    async def _take_back(self) -> None:
        # What a dead process had still to say goes first, before what becomes of its jobs.
        for job in await self._queue.reclaim_dead(is_dead):
            log.warning("taken back from a process that died", extra={"job_id": job.job_id})
        await self._queue.mend_moments()
        # A clock that was set ahead makes the leases of all others look run out: they
        # have the time of a lease to renew them.
        is_settled = self._clock_steps.seconds_since_last() > self._seconds
        for job in await self._queue.reclaim() if is_settled else ():
            log.warning("its lease ran out", extra={"job_id": job.job_id})
        await self._queue.adopt_orphans(is_alive)
