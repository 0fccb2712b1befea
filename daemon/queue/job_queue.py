"""JobQueue, the queue's interface: only its verbs move a job from one state to another.

The verbs are in `verbs`, a file for each group. A JobQueue also reads (`job_reader`), and holds the
verbs over many jobs (`job_batches`) and over task types (`pauses`).
"""

from types import TracebackType
from typing import Self

from daemon.jobs import Clock, JsonObject
from daemon.metrics import Metrics
from daemon.queue import statements as sql
from daemon.queue.announcer import Announcer, Listener
from daemon.queue.backend import Connection, QueueBackend
from daemon.queue.job_batches import JobBatches
from daemon.queue.pauses import Pauses
from daemon.queue.verbs.by_hand import ByHand
from daemon.queue.verbs.enqueueing import Enqueueing
from daemon.queue.verbs.late_results import LateResults
from daemon.queue.verbs.leasing import Leasing
from daemon.queue.verbs.reclaiming import Reclaiming
from daemon.queue.verbs.settling import Settling
from daemon.queue.verbs.shared import Needs
from daemon.settings import QueueSettings


# From the last to the first: what comes in is closed before what settles.
class JobQueue(Settling, Leasing, LateResults, Reclaiming, ByHand, Enqueueing):
    """The verbs; a context manager, since commits are gathered by background tasks.

    Attributes:
        pauses: which task types are not leased for now.
        batches: the verbs over many jobs.
    """

    def __init__(
        self,
        database: QueueBackend,
        settings: QueueSettings,
        *,
        clock: Clock,
        worker: str,
        worker_id: str,
        metrics: Metrics | None = None,
        listener: Listener | None = None,
    ) -> None:
        announcer = Announcer(owner=worker, worker_id=worker_id, clock=clock, listener=listener)
        super().__init__(
            Needs(
                database=database,
                settings=settings,
                clock=clock,
                worker=worker,
                announcer=announcer,
                metrics=metrics or Metrics(),
            )
        )
        self.pauses = Pauses(database, clock, resumed=self._wake)
        self.batches = JobBatches(
            database,
            announcer,
            clock=clock,
            have_waiting=self._have_moved,
            message_ready=self.message_ready,
        )

    async def __aenter__(self) -> Self:
        for stage in self._stages:
            await stage.__aenter__()
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        for stage in self._stages:
            await stage.__aexit__(exc_type, exc, traceback)

    def ended(self) -> dict[str, dict[str, int]]:
        """Return how many jobs this daemon ended since its start: by task type, by status."""
        return self._metrics.ended()

    async def check(self) -> JsonObject:
        """Return the queue's depth, if the file can be written too; for health.

        Raises:
            StorageError: it cannot be read, or not be written.
        """
        await self._database.check()
        return await self.depth()

    async def prune(self, *, before: int, limit: int = 1000) -> int:
        """Delete up to `limit` jobs that finished before a moment (epoch ms); return how many.

        Raises:
            StorageError: nothing changed.
        """

        async def work(connection: Connection) -> int:
            return (await connection.execute(sql.PRUNE, (before, limit))).rowcount

        return await self._database.write(work)
