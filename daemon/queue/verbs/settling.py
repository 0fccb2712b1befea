"""Settling: a lease ends in a result, a retry or an error; concurrent ones share a commit."""

from collections.abc import Sequence

from daemon.errors import LeaseLostError
from daemon.jobs import Job, JobState, JsonObject, Lease, dump_result
from daemon.queue.settlement import Settlement, settle
from daemon.queue.verbs.shared import Needs, Verbs, submit
from daemon.stage import Stage

SETTLE_BATCH = 64


class Settling(Verbs):
    """The verbs that end a lease, guarded by its fence."""

    def __init__(self, needs: Needs) -> None:
        super().__init__(needs)
        self._settling: Stage[Settlement, Job] = Stage(
            "settle", self._settle_batch, max_batch=SETTLE_BATCH
        )
        self._stages.append(self._settling)

    async def complete(self, lease: Lease, result: JsonObject, text: str | None = None) -> Job:
        """Complete a job, with its event, in one commit.

        Args:
            lease: of the job.
            result: what the handler made.
            text: what `dump_result` made of it, where that was done before.

        Raises:
            LeaseLostError: the lease is no longer held; nothing changed.
            StorageError: nothing changed.
            ValueError, TypeError: the result cannot be stored; nothing changed.
        """
        return await self._settle_lease(
            Settlement(
                lease=lease,
                status=JobState.COMPLETED,
                result=result,
                result_text=text or dump_result(result),
            )
        )

    async def retry(
        self, lease: Lease, *, run_at: int, code: str, message: str, gives_back: bool = False
    ) -> Job:
        """Put a job back until `run_at`; `gives_back` does not count the attempt.

        Raises:
            LeaseLostError, StorageError: as `complete`.
        """
        return await self._settle_lease(
            Settlement(
                lease=lease,
                status=JobState.PENDING,
                run_at=run_at,
                given_back=int(gives_back),
                error_code=code,
                error_message=message,
                is_waiting=gives_back,
            )
        )

    async def keep(
        self, lease: Lease, result: JsonObject, *, run_at: int, code: str, message: str
    ) -> Job:
        """Keep a result the media store did not take, to deliver it later without inferring.

        Raises:
            LeaseLostError, StorageError: as `complete`.
        """
        return await self._settle_lease(
            Settlement(
                lease=lease,
                status=JobState.PENDING,
                run_at=run_at,
                given_back=1,
                error_code=code,
                error_message=message,
                result=result,
                result_text=dump_result(result),
                sync_attempt=1,
            )
        )

    async def give_up_sync(
        self, lease: Lease, result: JsonObject, *, run_at: int | None, code: str, message: str
    ) -> Job:
        """End a job whose result was not delivered; with `run_at` delivery is tried on.

        Raises:
            LeaseLostError, StorageError: as `complete`.
        """
        return await self._settle_lease(
            Settlement(
                lease=lease,
                status=JobState.SYNC_FAILED,
                run_at=run_at,
                error_code=code,
                error_message=message,
                result=result,
                result_text=dump_result(result),
                sync_attempt=1,
            )
        )

    async def bury(self, lease: Lease, *, code: str, message: str) -> Job:
        """End a job in error, with its events, in one commit.

        Raises:
            LeaseLostError, StorageError: as `complete`.
        """
        return await self._settle_lease(
            Settlement(lease=lease, status=JobState.ERROR, error_code=code, error_message=message)
        )

    async def release(self, lease: Lease) -> Job:
        """Give a job back as if it had not been leased, as at a shutdown.

        Raises:
            LeaseLostError, StorageError: as `complete`.
        """
        return await self._settle_lease(
            Settlement(
                lease=lease,
                status=JobState.PENDING,
                given_back=1,
                # A restart does not begin the wait for a dependency anew.
                is_waiting=lease.job.waiting_since is not None,
            )
        )

    async def _settle_lease(self, settlement: Settlement) -> Job:
        return await submit(self._settling, settlement)

    async def _settle_batch(self, batch: Sequence[Settlement]) -> Sequence[Job | Exception]:
        # A lease is settled once: a release that follows its completion into the same batch, as
        # when the job is cancelled meanwhile, must not undo it.
        first: dict[tuple[str, int], Settlement] = {}
        for settlement in batch:
            first.setdefault(settlement.key, settlement)
        settled = await self._database.write(
            lambda connection: settle(
                connection, list(first.values()), self._announcer, self._clock()
            )
        )
        for key, job in settled.items():
            settlement = first[key]
            if settlement.status is JobState.PENDING and settlement.error_code is not None:
                self._metrics.put_back(
                    job, settlement.error_code, costs_attempt=not settlement.given_back
                )
        self._have_moved(settled.values())
        return [
            settled[each.key]
            if each.key in settled and first[each.key] is each
            else LeaseLostError(f"job {each.lease.job.job_id} is no longer ours")
            for each in batch
        ]
