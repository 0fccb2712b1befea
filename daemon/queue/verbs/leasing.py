"""Leasing: which daemon runs a job, and until when no other one may."""

from collections.abc import Iterable, Sequence
from typing import Any

from daemon.events import Event, Message
from daemon.jobs import Lease, TaskType, dump_json
from daemon.queue import statements as sql
from daemon.queue.backend import Connection, Turn
from daemon.queue.job_rows import job_from_row
from daemon.queue.verbs.shared import Verbs


class Leasing(Verbs):
    """The verbs that take jobs and hold them."""

    async def lease(self, task_type: TaskType, limit: int, *, seconds: float) -> list[Lease]:
        """Take up to `limit` jobs in the queue's order; their attempt counts from now.

        Jobs that ever lost a lease are left to `lease_suspect`; a paused task type gives none.

        Raises:
            StorageError: nothing was taken.
        """
        return await self._lease(sql.LEASE, (task_type.value, limit), seconds)

    async def lease_suspect(
        self, task_types: Sequence[TaskType], *, seconds: float
    ) -> Lease | None:
        """Take one job whose process died while it held it; the caller runs it alone.

        Raises:
            StorageError: nothing was taken.
        """
        types = dump_json([task_type.value for task_type in task_types])
        leases = await self._lease(sql.LEASE_SUSPECT, (types,), seconds)
        return leases[0] if leases else None

    async def _lease(
        self, statement: str, parameters: tuple[Any, ...], seconds: float
    ) -> list[Lease]:
        async def work(connection: Connection) -> list[Lease]:
            await connection.take_turn(Turn.PAUSES, shared=True)
            now = self._clock()
            promoted = (await connection.execute(sql.PROMOTE, (now,))).rowcount
            if promoted:
                # Of any task type, perhaps suspects.
                connection.after_commit(self._wake)
            until = now + int(seconds * 1000)
            rows = list(
                await connection.execute_fetchall(
                    statement, (self._worker, now, until, *parameters)
                )
            )
            # RETURNING has no order of its own.
            rows.sort(key=lambda row: (row["rank"], row["id"]))
            leases = [Lease(job_from_row(row), row["fence"], row["rank"]) for row in rows]
            messages: list[Message] = []
            for lease in leases:
                messages += self._announcer.happened(Event.STARTED, lease.job, now)
            await self._announcer.write(connection, messages)
            return leases

        leases = await self._database.write(work, is_repeatable=True)
        for lease in leases:
            self._metrics.attempt_began(lease.job)
        if leases:
            self.message_ready.ring()
        return leases

    async def next_rank(self, task_type: TaskType) -> int | None:
        """Return the rank of the job that `lease` would take next; None where none waits.

        Raises:
            StorageError: it cannot be read.
        """
        rows = await self._database.read(sql.NEXT_RANK, (task_type.value,))
        return rows[0][0] if rows else None

    async def next_moment(self) -> int | None:
        """Return when (epoch ms) the next job's `run_at` comes or the next pause ends, if any.

        Raises:
            StorageError: it cannot be read.
        """
        moment: int | None = (await self._database.read(sql.NEXT_MOMENT, (self._clock(),)))[0][0]
        return moment

    async def renew(self, leases: Iterable[Lease], *, seconds: float) -> set[str]:
        """Extend all leases in one statement; return the job_ids that are still held.

        Raises:
            StorageError: nothing was extended.
        """
        held = dump_json([[lease.job.job_id, lease.fence] for lease in leases])

        async def work(connection: Connection) -> set[str]:
            until = self._clock() + int(seconds * 1000)
            rows = await connection.execute_fetchall(sql.RENEW, (until, held))
            return {row["job_id"] for row in rows}

        return await self._database.write(work, is_repeatable=True)
