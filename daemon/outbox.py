"""The relay: takes events from the outbox, publishes them, and ticks off what was confirmed."""

import asyncio
import logging
from collections.abc import Sequence
from typing import Protocol

from daemon.bell import Bell
from daemon.errors import PublishError, StorageError
from daemon.events import Message
from daemon.hang_ups import HangUps, job_id, without_result
from daemon.jobs import Clock, dump_json
from daemon.metrics import Metrics
from daemon.queue.backend import Connection, QueueBackend, Row
from daemon.queue.outbox_statements import CONFIRM, DELAY, HAS_DUE, NEXT, PROMOTE, SHORTEN
from daemon.worker.retry import backoff_ms

log = logging.getLogger(__name__)

POLL_SECONDS = 1.0
LOOK_MS = 500
"""How often refused events are looked for whose next try has come."""
REFUSED_MAX_SECONDS = 300


class Publisher(Protocol):
    """What the relay needs of the link."""

    @property
    def is_up(self) -> bool:
        """Whether publishing may work now."""

    async def wait_up(self) -> None:
        """Return once it may."""

    async def publish_all(self, messages: Sequence[Message]) -> list[int | PublishError]:
        """Send in order; return for each, after the PUBACKs, 0 or above, or why it is not there."""


class Outbox:
    """Publishes this daemon's events in their order, at least once each.

    A refused event waits for its next try and holds up no other.
    """

    def __init__(
        self,
        database: QueueBackend,
        publisher: Publisher,
        ready: Bell,
        *,
        owner: str,
        clock: Clock,
        metrics: Metrics | None = None,
    ) -> None:
        self._database = database
        self._publisher = publisher
        self._ready = ready
        self._owner = owner
        self._clock = clock
        self._metrics = metrics or Metrics()
        self._relaying = asyncio.Lock()
        self._hang_ups = HangUps(clock)
        self._is_drained = False
        """The latest batch took all that there was."""
        self._looked_at = 0

    async def run(self) -> None:
        """Relay until cancelled."""
        while True:
            await self._publisher.wait_up()
            heard = self._ready.rings
            try:
                if not await self.relay() or self._is_drained:
                    await self._ready.wait(heard, timeout_seconds=POLL_SECONDS)
            except StorageError as error:
                log.warning("the outbox cannot be read or ticked off: %s", error)
                await asyncio.sleep(POLL_SECONDS)

    async def flush(self, *, timeout_seconds: float) -> None:
        """Relay what is there while the link is up; for the end, so it gives up in time."""
        try:
            async with asyncio.timeout(timeout_seconds):
                while self._publisher.is_up and await self.relay():
                    pass
        except (TimeoutError, StorageError) as error:
            log.warning("events are left for the next start: %s", error or "no time left")

    async def relay(self) -> int:
        """Publish one batch; return how many events were confirmed.

        Raises:
            StorageError: the outbox cannot be read, or what was confirmed not be ticked off.
        """
        # `flush` may come while `run` waits for confirmations: nothing is sent twice for that.
        async with self._relaying:
            return await self._relay()

    async def _relay(self) -> int:
        await self._promote()
        at_once = self._hang_ups.at_once
        rows = await self._database.read(NEXT, (self._owner, 0, at_once))
        self._is_drained = len(rows) < at_once
        if not rows:
            return 0
        was_up = self._publisher.is_up
        outcomes = await self._publish(rows)
        self._metrics.events_sent("published", outcomes.count(0))
        self._metrics.events_sent("refused", outcomes.count(1))
        self._metrics.events_sent("unconfirmed", outcomes.count(-1))
        confirmed = [
            [row["id"], row["created_at"]]
            for row, code in zip(rows, outcomes, strict=True)
            if code == 0
        ]
        refused = [
            [row["id"], self._clock() + _delay_ms(row["attempt"]), row["created_at"]]
            for row, code in zip(rows, outcomes, strict=True)
            if code > 0
        ]
        shortened: list[tuple[str, int, int]] = []
        blamed = self._hang_ups.judge(rows, outcomes, was_up=was_up)
        if blamed is not None:
            shorter = self._hang_ups.shorten(blamed)
            if shorter is not None:
                shortened = [(shorter, blamed["id"], blamed["created_at"])]
            else:
                run_at = self._clock() + _delay_ms(blamed["attempt"])
                refused = [[blamed["id"], run_at, blamed["created_at"]]]

        async def settle(connection: Connection) -> None:
            if confirmed:
                await connection.execute(CONFIRM, (dump_json(confirmed),))
            if refused:
                await connection.execute(DELAY, (dump_json(refused),))
            if shortened:
                await connection.executemany(SHORTEN, shortened)

        if confirmed or refused or shortened:
            await self._database.write(settle)
        return len(confirmed)

    async def _promote(self) -> None:
        now = self._clock()
        if self._looked_at <= now < self._looked_at + LOOK_MS:
            return
        self._looked_at = now
        if await self._database.read(HAS_DUE, (now,)):

            async def promote(connection: Connection) -> None:
                await connection.execute(PROMOTE, (now,))

            await self._database.write(promote)

    async def _publish(self, rows: list[Row]) -> list[int]:
        """Return for each 0 for confirmed, 1 for refused, -1 for not sent."""
        found = await self._publisher.publish_all(
            [_message(row, self._hang_ups.fitting(row["payload"])) for row in rows]
        )
        large = [place for place, each in enumerate(found) if _is_too_large(each)]
        if large:
            shorter = [_message(rows[i], without_result(rows[i]["payload"])) for i in large]
            for place, outcome in zip(
                large, await self._publisher.publish_all(shorter), strict=True
            ):
                found[place] = outcome
        return [_fate(row, outcome) for row, outcome in zip(rows, found, strict=True)]


def _message(row: Row, payload: str) -> Message:
    return Message(row["topic"], payload, row["correlation_data"])


def _is_too_large(outcome: int | PublishError) -> bool:
    return isinstance(outcome, PublishError) and outcome.code == "too_large"


def _fate(row: Row, outcome: int | PublishError) -> int:
    if not isinstance(outcome, PublishError):
        return 0
    if outcome.reason_code is None and not _is_too_large(outcome):
        return -1
    log.error(
        "an event was not taken: %s",
        outcome.message,
        extra={"topic": row["topic"], "job_id": job_id(row["payload"])},
    )
    return 1


def _delay_ms(attempt: int) -> int:
    return backoff_ms(attempt + 1, first_seconds=5, most_seconds=REFUSED_MAX_SECONDS)
