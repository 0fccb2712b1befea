"""Reclaiming: takes back jobs and events of dead daemons; mends times that a wrong clock set."""

from collections.abc import Callable
from typing import Any

from daemon.jobs import Job, Lease, dump_json
from daemon.queue import statements as sql
from daemon.queue.backend import Connection
from daemon.queue.job_rows import job_from_row
from daemon.queue.settlement import lost_lease, settle
from daemon.queue.verbs.shared import Verbs

LONGEST_DELAY_SECONDS = 300.0
"""Longest delay that a dependency may ask for, and longest wait of a refused event."""
FAR = 1.25
"""A moment this many longest delays ahead was set by another clock."""
ORPHANED_MS = 300_000
"""Age at which another daemon's event is no longer taken to be on its way."""

ADOPT_BATCH = 5000
"""Events of another daemon taken over in one transaction: others write between two."""
ADOPT_STEPS = 20
"""Such transactions of one look; the next one goes on. Our own leases are renewed between looks,
and two daemons that take each other's events would else go on for as long as there are many."""


class Reclaiming(Verbs):
    """The verbs that take back what its owner no longer holds."""

    async def reclaim(self) -> list[Job]:
        """Take back jobs whose lease ran out; out of attempts they end in error worker_lost.

        Raises:
            StorageError: nothing changed.
        """
        return await self._reclaim(sql.FIND_EXPIRED, self._clock)

    async def reclaim_dead(self, is_dead: Callable[[str], bool]) -> list[Job]:
        """Take back the jobs of processes that `is_dead` knows to be gone, and their events.

        Raises:
            StorageError: nothing changed.
        """
        workers = [row[0] for row in await self._database.read(sql.FIND_WORKERS)]
        owners = [row[0] for row in await self._database.read(sql.FIND_OWNERS)]
        dead = sorted({name for name in {*workers, *owners} if is_dead(name)})
        if not dead:
            return []
        left = await self._adopt(dead)
        # What a dead process had still to say goes first, before what becomes of its jobs.
        told = [name for name in dead if name not in left]
        return await self._reclaim(sql.FIND_HELD_BY, lambda: dump_json(told))

    async def mend_moments(self) -> None:
        """Bring back times in the far future, written while the clock was wrong.

        Raises:
            StorageError: nothing changed.
        """
        policy = self._settings
        delay_ms = 1000 * max(
            policy.backoff_max_seconds, policy.sync_backoff_max_seconds, LONGEST_DELAY_SECONDS
        )
        lease_ms = 1000 * policy.lease_seconds

        async def work(connection: Connection) -> int:
            now = self._clock()
            mended = 0
            for statement in (sql.HASTEN_JOBS, sql.HASTEN_SYNCS, sql.HASTEN_EVENTS):
                cursor = await connection.execute(statement, (now, now + int(FAR * delay_ms)))
                mended += cursor.rowcount
            # Whoever lives renews in time.
            cursor = await connection.execute(
                sql.SHORTEN_LEASES, (now + int(lease_ms), now + int(10 * lease_ms))
            )
            return mended + cursor.rowcount

        if await self._database.write(work):
            self._wake()
            self.message_ready.ring()

    async def adopt_orphans(self, is_alive: Callable[[str], bool]) -> None:
        """Take over events that nobody published for long, unless their owner is known to live.

        A container that was made anew has another name: its former events have no owner whose
        death could be seen. If the owner lives elsewhere after all, an event is sent twice.

        Raises:
            StorageError: nothing changed.
        """
        before = self._clock() - ORPHANED_MS
        rows = await self._database.read(sql.FIND_OLD_OWNERS, (self._worker, before))
        orphaned = [row[0] for row in rows if not is_alive(row[0])]
        if orphaned:
            await self._adopt(orphaned)

    async def _adopt(self, owners: list[str]) -> list[str]:
        """Take over events; return whose are left for the next look."""
        left = list(owners)
        for _ in range(ADOPT_STEPS):
            while left and await self._adopt_some(left[0]) < ADOPT_BATCH:
                del left[0]
        self.message_ready.ring()
        return left

    async def _adopt_some(self, owner: str) -> int:
        async def work(connection: Connection) -> int:
            await connection.execute(sql.ADOPT_DELAYED, (self._worker, owner))
            adopting = await connection.execute(sql.ADOPT, (self._worker, owner, ADOPT_BATCH))
            return adopting.rowcount

        return await self._database.write(work)

    async def _reclaim(self, statement: str, parameter: Callable[[], Any]) -> list[Job]:
        async def work(connection: Connection) -> list[Job]:
            rows = await connection.execute_fetchall(statement, (parameter(),))
            most = self._settings.max_attempts
            settlements = [lost_lease(Lease(job_from_row(row), row["fence"]), most) for row in rows]
            settled = await settle(connection, settlements, self._announcer, self._clock())
            return list(settled.values())

        jobs = await self._database.write(work)
        for job in jobs:
            self._metrics.lease_reclaimed(job)
        self._have_moved(jobs)
        return jobs
