"""Scrub: after the machine went down, checks the last completed jobs for lost vectors.

The queue may know a job as completed whose vector never reached the disk: of this machine (see
last_life), or of the server's (see server_watch). What is missing is asked for anew, by ordinary
jobs of the lowest priority.
"""

import asyncio
import logging

from daemon.errors import InferdError
from daemon.jobs import TaskType
from daemon.queue.audit_findings import Outcome
from daemon.queue.job_ledger import JobLedger
from daemon.upkeep.audit import Audit
from daemon.upkeep.last_life import LastLife

log = logging.getLogger(__name__)

WINDOW_MS = 60_000
"""Before the last completion that is known: engines and disks write within seconds."""
PAGE = 500
AGAIN_SECONDS = 5.0


class Scrub:
    """Looks once, and again while something it needs is away."""

    def __init__(self, ledger: JobLedger, audit: Audit, last_life: LastLife) -> None:
        """Take the jobs, who compares and mends, and what tells whether to look at all."""
        self._ledger, self._audit, self._last_life = ledger, audit, last_life

    async def run(self) -> None:
        """Return when all is looked at, at once where nothing need be; the vectors are open."""
        if not await asyncio.to_thread(self._last_life.begin):
            return
        log.warning("the machine went down without warning: looking for vectors that went with it")
        while True:
            try:
                until = await self._until()
                since = until if self._last_life.since is None else self._last_life.since
                looked, redone = await self.look(since - WINDOW_MS, until)
            except InferdError as error:
                log.warning("cannot look for lost vectors yet: %s", error.message)
                await asyncio.sleep(AGAIN_SECONDS)
            else:
                break
        await asyncio.to_thread(self._last_life.scrubbed)
        log.warning("%d of the last %d jobs had lost vectors and are done again", redone, looked)

    async def look(self, since: int, until: int) -> tuple[int, int]:
        """Ask anew for what completed between two moments (epoch ms) and lacks vectors.

        Returns:
            How many jobs were looked at, and how many are done again.

        Raises:
            InferdError: not all could be looked at, or asked for; the next look does the rest.
        """
        looked = redone = 0
        for task_type in sorted(self._audit.task_types):
            page = since, 0
            while page[0] <= until and (
                jobs := await self._ledger.since(task_type, page, limit=PAGE)
            ):
                meant = [job.media_store_id for (at, _), job in jobs if at <= until]
                looked += len(meant)
                redone += await self._mend(task_type, meant)
                page = jobs[-1][0]
        return looked, redone

    async def _until(self) -> int:
        """Return up to when the life before may have completed jobs; asked once, for all tries."""
        if (until := self._last_life.until) is None:
            until = await self._ledger.newest() or 0
            await asyncio.to_thread(self._last_life.note, until)
        return until

    async def _mend(self, task_type: TaskType, pictures: list[int]) -> int:
        findings = await self._audit.missing(task_type, pictures)
        outcomes = [outcome for outcome, _ in await self._audit.mend(findings)]
        if Outcome.QUEUE_FULL in outcomes:
            raise InferdError("the queue is full")
        return outcomes.count(Outcome.REQUEUED)
