"""Late results, not taken by the media store at first: delivered later, or refused again."""

from daemon.jobs import Job, dump_json
from daemon.queue import statements as sql
from daemon.queue.backend import Connection, TakenError
from daemon.queue.job_rows import jobs_from_rows, pair
from daemon.queue.settlement import told
from daemon.queue.verbs.shared import Verbs


class LateResults(Verbs):
    """The verbs over jobs in sync_failed."""

    async def claim_sync(self, job: Job, *, seconds: float) -> bool:
        """Claim the delivery of a job's result; return False where it must not be delivered now.

        It must not where another daemon has claimed it, a newer job has taken over, or the job is
        gone. The claim ends by itself after so many seconds.

        Raises:
            StorageError: nothing changed.
        """

        async def work(connection: Connection) -> int:
            now = self._clock()
            until = now + int(seconds * 1000)
            return (await connection.execute(sql.CLAIM_SYNC, (until, job.job_id, now))).rowcount

        return bool(await self._database.write(work))

    async def heal(self, job: Job) -> None:
        """Complete a job in sync_failed whose result was delivered at last, with its event.

        Does nothing where a newer job of the pair has taken over meanwhile.

        Raises:
            StorageError: nothing changed.
        """

        async def work(connection: Connection) -> list[Job]:
            now = self._clock()
            rows = await connection.execute_fetchall(sql.HEAL, (now, job.job_id))
            jobs = jobs_from_rows(rows)
            for healed in jobs:
                await self._announcer.write(connection, self._announcer.ended(healed, now))
            return jobs

        async def take_over(connection: Connection) -> None:
            await connection.execute(sql.SUPERSEDE_SYNC, (dump_json([pair(job)]),))

        try:
            ended = await self._database.write(work)
        except TakenError:
            # A former version let a job of the pair start again and left this one due, for ever.
            await self._database.write(take_over)
            return
        for healed in ended:
            self._metrics.job_ended(healed)
        self.message_ready.ring()

    async def delay_sync(self, job: Job, *, run_at: int | None, code: str, message: str) -> None:
        """Note that the result was refused again; without `run_at` it is not delivered again.

        Raises:
            StorageError: nothing changed.
        """

        async def work(connection: Connection) -> None:
            await connection.execute(
                sql.DELAY_SYNC, (run_at, code, told(code, message), job.job_id)
            )

        await self._database.write(work)
