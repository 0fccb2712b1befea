"""ChangeWork: the work of a model change, which gives way to jobs, and the swap at its end."""

import asyncio
import logging
import math
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from functools import partial
from typing import Any

from daemon.errors import HandlerError, InferdError, ModelChangeError, RetryableError
from daemon.jobs import JsonObject
from daemon.urgency import LATEST, URGENCY
from handlers.model_change.failures import Failures
from handlers.model_change.inventory import Inventory
from handlers.model_change.lease import Lease
from handlers.model_change.shadow import Embedder, Progress, Shadowing
from handlers.models.models_at_hand import ModelsAtHand
from handlers.qdrant.vector_engine import PointId
from handlers.vectors.model_record import Part, Record, alias_of
from handlers.vectors.qdrant_store import QdrantStore

log = logging.getLogger(__name__)

POLL_SECONDS = 15.0
"""Where the record may be written by another daemon; else only by a call here."""
RETRY_SECONDS = 2.5
"""Doubles with every failure: each try looks at all points again."""
MOST_RETRY_SECONDS = 300.0
PACE_TIMES = 9
"""While jobs run, so many times as long as a group took is waited: it has a tenth of the time."""
PACE_SECONDS = 20.0
AFTER_SECONDS = 60.0
"""After a change, until no job that began before has its picture still to embed."""
_LOOK_SECONDS = 0.2


class _EndedError(Exception):
    """The record names this shadow no longer, or another daemon fills it."""


class ChangeWork:
    """Fills the shadow of one collection whenever its record names one.

    Attributes:
        turn: held by whoever writes the record.
        waits: why nothing goes on; None where it does.
    """

    def __init__(
        self,
        store: QdrantStore,
        embedder: Embedder,
        models: ModelsAtHand[Any],
        inventory: Callable[[Part], Inventory],
        *,
        is_alone: bool,
        clock: Callable[[], int],
    ) -> None:
        """Take the parts; `is_alone` where nobody else can open these vectors."""
        self._store = store
        self._embedder = embedder
        self._models = models
        self._inventory = inventory
        self._is_alone = is_alone
        self._clock = clock
        self.turn = asyncio.Lock()
        self.waits: InferdError | None = None
        self._bell = asyncio.Event()
        self._progress = Progress()
        self._tries: dict[PointId, int] = {}
        self._lease: Lease | None = None
        self._failed = 0
        self._began_at: int | None = None
        """Of the change that was worked on last; what is counted is of that one."""
        self._active: str | None = None
        """The collection that was active at the latest look."""
        self._alias_led_to: str | None = None
        self._has_alias_failed = False
        self._has_worked = False
        """There is a model in memory, or there may be, that no search needs."""
        self._freed_at = -math.inf

    def free(self) -> None:
        """Give back the memory of models that were loaded for a change that did not begin."""
        self._has_worked = True
        self.ring()

    def ring(self) -> None:
        """Look at the record at once."""
        self._bell.set()

    def told(self, record: Record, shadow: Part) -> JsonObject:
        """Return how far a change is, as who works on it says."""
        their = None if self._lease is None else self._lease.told
        # What was read last may be of a change before this one.
        if their is not None and their.get("began_at") == shadow.since:
            return their
        return self._progress_of(record, shadow)

    async def run(self, is_busy: Callable[[], bool]) -> None:
        """Work on changes for ever; what fails is told and tried again.

        Args:
            is_busy: whether jobs run, which go first.
        """
        URGENCY.set(LATEST)
        again = RETRY_SECONDS
        while True:
            wait: float | None = again
            self._bell.clear()
            try:
                if await self._step(is_busy):
                    again = RETRY_SECONDS
                    continue
                self.waits, again = None, RETRY_SECONDS
                # Of vectors that nobody else can open we know all, once somebody claimed them.
                is_known = self._is_alone and self._store.seen is not None
                wait = None if is_known and not self._has_worked else POLL_SECONDS
            except _EndedError:
                # Whoever fills it tells why that waits.
                self.waits = None
            except InferdError as error:
                if self.waits is None or self.waits.code != error.code:
                    log.warning("the change of the model waits: %s", error.message)
                self.waits, again = error, min(2 * again, MOST_RETRY_SECONDS)
            except Exception:
                # It must not end for ever over something that may be another thing next time.
                log.exception("the change of the model failed, and is tried again")
                again = min(2 * again, MOST_RETRY_SECONDS)
            with suppress(TimeoutError):
                async with asyncio.timeout(wait):
                    await self._bell.wait()

    async def _step(self, is_busy: Callable[[], bool]) -> bool:
        """Do one pass, and swap where it may be; return whether there is more to do at once."""
        # Opened and claimed by whoever needs it first, which may be later.
        record = None if self._store.seen is None else await self._store.record()
        if record is not None:
            await self._lead_alias(record)
            if self._active not in (None, record.active.physical):
                # By another daemon, and so quickly that no step here saw it under way.
                self._has_worked = True
            self._active = record.active.physical
        if record is None or record.shadow is None:
            if record is not None and self._has_worked:
                # Given up, or done by another daemon.
                await self._need_only(record.active)
            return False
        self._has_worked = True
        shadow = record.shadow
        if shadow.since != self._began_at:
            self._began_at = shadow.since
            self._progress, self._tries, self._failed = Progress(), {}, 0
        lease = self._lease = self._lease or Lease(
            self._store.parts.engine,
            self._store.collection,
            clock=self._clock,
            is_alone=self._is_alone,
        )
        before_write = partial(self._before_write, lease, record, shadow)
        await before_write()
        for part in record.written:
            await self._store.parts.ensure(part)
        failures = await failures_of(self._store, shadow)
        found = await Shadowing(
            active=self._inventory(record.active),
            shadow=self._inventory(shadow),
            part=shadow,
            embedder=self._embedder,
            failures=failures,
            lacking=(await failures_of(self._store, record.active)).by_id,
            progress=self._progress,
            tries=self._tries,
            before_write=before_write,
            pace=partial(_pace, is_busy),
        ).run_pass()
        self._failed = len(failures.by_id)
        if self._tries:
            raise RetryableError(
                f"{len(self._tries)} pictures could not be read for now", code="media_store_error"
            )
        if found:
            self.waits = None
            return True
        return await self._swap(shadow, before_write, lease)

    async def _before_write(self, lease: Lease, record: Record, shadow: Part) -> None:
        """Return while a pass that began with `record` may go on to fill its shadow.

        Raises:
            _EndedError: the lease is lost, or the shadow is wanted no more.
        """
        if not await lease.take(self._progress_of(record, shadow)) or not lease.is_safe:
            raise _EndedError
        now = await self._store.record()
        if now is None or not _fills(now, shadow):
            raise _EndedError
        # A way back may be said to be at once while a pass goes on for hours.
        await self._lead_alias(now)

    async def _swap(
        self, shadow: Part, before_write: Callable[[], Awaitable[None]], lease: Lease
    ) -> bool:
        """Let the shadow answer; return whether that was done."""
        async with self.turn:
            await before_write()
            record = await self._store.record()
            if record is None or record.shadow is None or not _fills(record, shadow):
                raise _EndedError
            shadow = record.shadow
            if self._failed > shadow.allow_failed:
                raise ModelChangeError(
                    f"{self._failed} pictures cannot be embedded by {shadow.named}, more than"
                    f" the {shadow.allow_failed} that are allowed: bring them back, delete"
                    " them, or allow so many",
                    code="model_change_failures",
                )
            changed = record.swapped(self._clock())
            # The record is synced at once: on a machine that goes down now it must not outlive
            # what passes wrote, which no job is done again for.
            await self._sync(shadow)
            await self._store.parts.records.write(changed)
            self._active = changed.active.physical
            await self._store.record()
            self.ring()
            log.info(
                "the model of %s changed",
                self._store.collection,
                extra={"model": changed.active.named},
            )
            # Its failures stay: a way back keeps the former vectors of those pictures.
        await lease.give_back()
        self._tries, self.waits = {}, None
        await self._need_only(changed.active)
        return True

    async def _sync(self, part: Part) -> None:
        parts = self._store.parts
        for each in (part, *self._store.beside(part)):
            if await parts.has(each.physical):
                await parts.ensure(each)
                await parts.engine.flush(each.physical)

    async def _lead_alias(self, record: Record) -> None:
        """Let the server's other readers find what is searched; we ourselves never go by it."""
        physical = record.searched.physical
        if physical == self._alias_led_to:
            return
        alias = alias_of(self._store.collection)
        # Cut off or failed, the call may have been heard all the same.
        self._alias_led_to = None
        try:
            await self._store.parts.engine.point_alias(alias, physical)
        except HandlerError as error:
            # A key may not be allowed to; nothing of ours needs it, and the next look tries again.
            level = logging.DEBUG if self._has_alias_failed else logging.WARNING
            log.log(level, "%s does not lead to %s: %s", alias, physical, error.message)
            self._has_alias_failed = True
        else:
            self._alias_led_to, self._has_alias_failed = physical, False

    async def _need_only(self, part: Part) -> None:
        active = await self._models.of(part)
        self._models.need(active)
        if await self._models.unload_others(active):
            self._freed_at = time.monotonic()
        # A job that began before loads it again: looked at until nobody did for a while.
        self._has_worked = time.monotonic() < self._freed_at + AFTER_SECONDS

    def _progress_of(self, record: Record, shadow: Part) -> JsonObject:
        # Whoever tells of another change, read before or since, changes nothing of a pass's counts.
        is_this = shadow.since == self._began_at
        progress, failed = (self._progress, self._failed) if is_this else (Progress(), 0)
        waits = self.waits
        return {
            "collection": self._store.collection,
            "from_model": record.active.named,
            "to_model": shadow.named,
            "done": progress.done,
            "total": progress.total,
            "failed": failed,
            "allow_failed": shadow.allow_failed,
            "passes": progress.passes,
            "seconds_left": progress.seconds_left,
            "began_at": shadow.since,
            "waits": None if waits is None else waits.code,
        }


async def _pace(is_busy: Callable[[], bool], seconds: float) -> None:
    """Give way to jobs after a group of pictures that took so many seconds."""
    ends_at = time.monotonic() + min(PACE_TIMES * seconds, PACE_SECONDS)
    while is_busy() and time.monotonic() < ends_at:  # noqa: ASYNC110 - jobs ring no bell
        await asyncio.sleep(_LOOK_SECONDS)


def _fills(record: Record, shadow: Part) -> bool:
    # Given up and begun anew, it has the same collection, made anew.
    now = record.shadow
    return now is not None and (now.physical, now.since) == (shadow.physical, shadow.since)


async def failures_of(store: QdrantStore, part: Part) -> Failures:
    """Return what a part goes without, as it is kept."""
    failures = Failures(store.parts.engine, part.physical)
    await failures.read()
    return failures
