"""ModelChange: the model of a collection changes while it is searched, without an outage.

    use         a shadow is begun; search goes on from what is active
    (passes)    shadow.py fills it, while jobs write both; resumed after any crash, since all that
                must be known is in the record
    (swap)      after a pass without a difference: one write of the record
    rollback    the same, back to what was active before; only what differs is embedded again
    drop        what was active before goes for good
    abort       a change that is under way is given up

Who owns the record decides by reading it; this process's memory is a cache and a display.
"""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

from daemon.errors import InferdError, ModelChangeError, RetryableError
from daemon.jobs import JsonObject
from daemon.urgency import LATEST, URGENCY
from handlers.disk_room import require_room
from handlers.image_models import ImageModels
from handlers.model_failures import Failures
from handlers.model_lease import Lease
from handlers.model_record import Part, Record, is_physical_name, physical_name
from handlers.qdrant_store import QdrantStore
from handlers.shadow import Embedder, Progress, Shadowing
from handlers.vector_engine import PointId

log = logging.getLogger(__name__)

POLL_SECONDS = 15.0
"""Where the record may be written by another daemon; else only by a call here."""
RETRY_SECONDS = 2.5
"""Doubles with every failure: each try looks at all points again."""
MOST_RETRY_SECONDS = 300.0
PACE_TIMES = 9
"""While jobs run, so many times as long as a group took is waited: it has a tenth of the time."""
PACE_SECONDS = 20.0
ROOM_FACTOR = 2.5
"""Bytes on the disk for one of a vector's: what an engine keeps beside it."""
TOLD_FAILURES = 10
_LOOK_SECONDS = 0.2


class _EndedError(Exception):
    """The record names this shadow no longer, or another daemon fills it."""


class ModelChange:
    """Changes the model of one collection, and works on a change that is under way.

    Every verb raises:
        ModelChangeError: it cannot be done as things are; the code says why.
        RetryableError: the vector database or a model fails.
    """

    def __init__(
        self,
        store: QdrantStore,
        embedder: Embedder,
        models: ImageModels,
        *,
        folder: Path | None,
        clock: Callable[[], int] = lambda: time.time_ns() // 1_000_000,
    ) -> None:
        """Take the parts; nothing is read yet.

        Args:
            store: whose collection; opened by whoever claims it.
            embedder: makes vectors of the next model.
            models: the models.
            folder: where an embedded engine keeps its vectors, for this process alone.
            clock: epoch milliseconds.
        """
        self._store = store
        self._embedder = embedder
        self._models = models
        self._folder = folder
        self._clock = clock
        self._turn = asyncio.Lock()
        self._bell = asyncio.Event()
        self._progress = Progress()
        self._tries: dict[PointId, int] = {}
        self._lease: Lease | None = None
        self._failed = 0
        self._has_worked = False
        """There is a model in memory, or there may be, that no search needs."""
        self._waits: InferdError | None = None

    @property
    def collection(self) -> str:
        """The fixed name of the collection."""
        return self._store.collection

    # ---- verbs

    async def use(self, spec: Mapping[str, str], *, allow_failed: int = 0) -> JsonObject:
        """Begin to change to a model; said again for the same one it changes `allow_failed`.

        Args:
            spec: `model` and `weights`, as the settings have them.
            allow_failed: the change is done without so many pictures that cannot be embedded.

        Returns:
            What `told` does.

        Raises:
            ConfigError: there is no such model, or its weights are not what they must be.
        """
        model = await self._models.open(spec)
        fingerprint = model.fingerprint
        # Before it takes memory that a refusal would not give back.
        self._require_free(await self._read(), fingerprint)
        await model.runner.load()
        async with self._turn:
            record = await self._read()
            self._require_free(record, fingerprint)
            if record.shadow is not None:
                shadow = replace(record.shadow, allow_failed=allow_failed)
                await self._write(replace(record, shadow=shadow))
            else:
                known = record.previous or Part(
                    physical_name(self.collection, fingerprint), fingerprint, fingerprint
                )
                shadow = replace(
                    known,
                    dimension=model.dimension,
                    spec=dict(model.spec),
                    allow_failed=allow_failed,
                )
                await self._begin(record, shadow)
        return await self.told()

    async def rollback(self) -> JsonObject:
        """Begin to change back to the model that was active before; return what `told` does."""
        async with self._turn:
            record = await self._read()
            if record.previous is None or record.shadow is not None:
                raise ModelChangeError(
                    f"nothing that {self.collection} was of before is kept",
                    code="nothing_to_roll_back",
                )
            await self._models.of(record.previous)
            await self._begin(record, record.previous)
        return await self.told()

    async def abort(self) -> JsonObject:
        """Give up the change that is under way; return what `told` does.

        What it filled is removed, unless it was active before: then it is kept as it was.
        """
        async with self._turn:
            record = await self._read()
            if (shadow := record.shadow) is None:
                raise ModelChangeError(
                    f"no change of {self.collection} is under way", code="no_model_change"
                )
            await self._write(record.without_shadow())
            if not shadow.was_active:
                await self._drop(shadow)
        return await self.told()

    async def drop(self) -> JsonObject:
        """Remove what was active before, and what cut changes left; return what `told` does."""
        async with self._turn:
            record = await self._read()
            leftover = await self._leftover(record)
            if (previous := record.previous) is None and not leftover:
                raise ModelChangeError(
                    f"nothing that {self.collection} was of before is kept", code="nothing_to_drop"
                )
            # The record first: cut in between, a collection is left that nobody names.
            await self._write(record.without_previous())
            if previous is not None:
                await self._drop(previous)
            for physical in leftover:
                await self._store.parts.drop(physical)
        return await self.told()

    async def told(self) -> JsonObject:
        """Return what is behind the collection's name, and how far a change is."""
        record = await self._read()
        told: JsonObject = {
            "collection": self.collection,
            "active": await self._told_part(record.active),
            "change": None,
            "shadow": None,
            "failures": [],
            "waits_for": self._waits.message if self._waits and record.shadow else None,
            "previous": None,
            "leftover": await self._leftover(record),
        }
        if record.previous is not None:
            told["previous"] = await self._told_part(record.previous)
        if (shadow := record.shadow) is not None:
            failures = (await self._failures(shadow)).by_id
            told["change"] = {**self._progress_of(record, shadow), "failed": len(failures)}
            told["shadow"] = await self._told_part(shadow)
            told["failures"] = [each.to_wire() for each in list(failures.values())[:TOLD_FAILURES]]
        return told

    def stats(self) -> JsonObject | None:
        """Return how far a change is, as far as this process knows; None where there is none."""
        record = self._store.seen
        if record is None or record.shadow is None:
            return None
        return self._progress_of(record, record.shadow)

    def _progress_of(self, record: Record, shadow: Part) -> JsonObject:
        """Return how far it is, as who works on it says."""
        if self._lease is not None and self._lease.told is not None:
            return self._lease.told
        return self._told_progress(record, shadow)

    # ---- work

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
                if await self._work(is_busy):
                    again = RETRY_SECONDS
                    continue
                self._waits, again = None, RETRY_SECONDS
                # Of vectors that nobody else can open we know all, once somebody claimed them.
                is_known = self._is_alone and self._store.seen is not None
                wait = None if is_known else POLL_SECONDS
            except _EndedError:
                pass
            except InferdError as error:
                if self._waits is None or self._waits.code != error.code:
                    log.warning("the change of the model waits: %s", error.message)
                self._waits, again = error, min(2 * again, MOST_RETRY_SECONDS)
            except Exception:
                # It must not end for ever over something that may be another thing next time.
                log.exception("the change of the model failed, and is tried again")
                again = min(2 * again, MOST_RETRY_SECONDS)
            with suppress(TimeoutError):
                async with asyncio.timeout(wait):
                    await self._bell.wait()

    async def _work(self, is_busy: Callable[[], bool]) -> bool:
        """Do one pass, and swap where it may be; return whether there is more to do at once."""
        # Opened and claimed by whoever needs it first, which may be later.
        record = None if self._store.seen is None else await self._store.record()
        if record is None or record.shadow is None:
            if record is not None and self._has_worked:
                # Given up, or done by another daemon.
                await self._need_only(record.active)
            return False
        self._has_worked = True
        shadow = record.shadow
        lease = self._lease = self._lease or Lease(
            self._store.parts.engine, self.collection, clock=self._clock, is_alone=self._is_alone
        )

        async def before_write() -> None:
            if not await lease.take(self._told_progress(record, shadow)) or not lease.is_safe:
                raise _EndedError
            now = await self._store.record()
            if now is None or now.shadow is None or now.shadow.physical != shadow.physical:
                raise _EndedError

        async def pace(seconds: float) -> None:
            ends_at = time.monotonic() + min(PACE_TIMES * seconds, PACE_SECONDS)
            while is_busy() and time.monotonic() < ends_at:  # noqa: ASYNC110 - jobs ring no bell
                await asyncio.sleep(_LOOK_SECONDS)

        await before_write()
        for part in record.written:
            await self._store.parts.ensure(part)
        failures = await self._failures(shadow)
        found = await Shadowing(
            active=self._store.at(record.active),
            shadow=self._store.at(shadow),
            part=shadow,
            embedder=self._embedder,
            failures=failures,
            progress=self._progress,
            tries=self._tries,
            before_write=before_write,
            pace=pace,
        ).run_pass()
        self._failed = len(failures.by_id)
        if self._tries:
            raise RetryableError(
                f"{len(self._tries)} pictures could not be read for now", code="media_store_error"
            )
        if found:
            self._waits = None
            return True
        return await self._swap(shadow, before_write, lease)

    async def _swap(
        self, shadow: Part, before_write: Callable[[], Awaitable[None]], lease: Lease
    ) -> bool:
        """Let the shadow answer; return whether that was done."""
        async with self._turn:
            await before_write()
            record = await self._read()
            if record.shadow is None or record.shadow.physical != shadow.physical:
                raise _EndedError
            if self._failed > record.shadow.allow_failed:
                raise ModelChangeError(
                    f"{self._failed} pictures cannot be embedded by {_named(shadow)}, more than"
                    f" the {record.shadow.allow_failed} that are allowed: bring them back, delete"
                    " them, or allow so many",
                    code="model_change_failures",
                )
            changed = record.swapped(self._clock())
            await self._write(changed)
            log.info(
                "the model of %s changed", self.collection, extra={"model": _named(changed.active)}
            )
            await (await self._failures(shadow)).clear()
        await lease.give_back()
        self._tries, self._waits = {}, None
        await self._need_only(changed.active)
        return True

    async def _need_only(self, part: Part) -> None:
        active = await self._models.of(part)
        self._models.need(active)
        await self._models.unload_others(active)
        self._has_worked = False

    # ---- the record

    async def _read(self) -> Record:
        """Return the record of the collection, which somebody claimed."""
        await self._store.open()
        record = await self._store.record()
        if record is None:
            raise RetryableError(
                f"nobody claimed {self.collection} yet: the vector database was away",
                code="vector_store_error",
            )
        return record

    async def _write(self, record: Record) -> None:
        await self._store.parts.records.write(record)
        await self._store.record()
        self._bell.set()

    def _require_free(self, record: Record, fingerprint: str) -> None:
        """Return if a change to a model may begin, or is under way already."""
        if record.active.fingerprint == fingerprint:
            raise ModelChangeError(
                f"{self.collection} is of {_named(record.active)} already", code="model_in_use"
            )
        if record.shadow is not None:
            if record.shadow.fingerprint != fingerprint:
                raise ModelChangeError(
                    f"{self.collection} changes to {_named(record.shadow)} already: wait, or"
                    " abort that first",
                    code="model_change_running",
                )
        elif record.previous is not None and record.previous.fingerprint != fingerprint:
            raise ModelChangeError(
                f"{_named(record.previous)} is still kept to go back to: drop it first",
                code="model_kept",
            )

    async def _begin(self, record: Record, shadow: Part) -> None:
        dimension = self._store.parts.dimension_of(shadow)
        if self._folder is not None:
            count = await self._store.at(record.active).count()
            require_room(self._folder, int(4 * ROOM_FACTOR * dimension * count))
        if record.active.spec is None:
            # From now on the settings need not say it, and may say what comes.
            model = await self._models.of(record.active)
            active = replace(record.active, spec=dict(model.spec), dimension=model.dimension)
            record = replace(record, active=active)
        self._progress, self._tries, self._failed = Progress(), {}, 0
        # The collection first: a record never names one that is not there.
        await self._store.parts.ensure(shadow)
        await self._write(record.begun(replace(shadow, since=self._clock())))

    async def _drop(self, part: Part) -> None:
        await (await self._failures(part)).clear()
        await self._store.parts.drop(part.physical)

    async def _failures(self, part: Part) -> Failures:
        failures = Failures(self._store.parts.engine, part.physical)
        await failures.read()
        return failures

    async def _leftover(self, record: Record) -> list[str]:
        """Return collections that a cut change left, which the record does not name."""
        named = {part.physical for part in record.parts}
        return [
            name
            for name in await self._store.parts.engine.collections()
            if is_physical_name(self.collection, name) and name not in named
        ]

    @property
    def _is_alone(self) -> bool:
        return self._folder is not None

    # ---- what is told

    async def _told_part(self, part: Part) -> JsonObject:
        await self._store.parts.ensure(part)
        spec = part.spec or {}
        return {
            "model": spec.get("model", part.model),
            "weights": spec.get("weights"),
            "fingerprint": part.fingerprint,
            "collection": part.physical,
            "dimension": self._store.parts.dimension_of(part),
            "vectors": await self._store.at(part).count(),
            "since": part.since,
        }

    def _told_progress(self, record: Record, shadow: Part) -> JsonObject:
        progress, waits = self._progress, self._waits
        return {
            "collection": self.collection,
            "from_model": _named(record.active),
            "to_model": _named(shadow),
            "done": progress.done,
            "total": progress.total,
            "failed": self._failed,
            "allow_failed": shadow.allow_failed,
            "passes": progress.passes,
            "seconds_left": progress.seconds_left,
            "began_at": shadow.since,
            "waits": None if waits is None else waits.code,
        }


def _named(part: Part) -> str:
    """Return a model's name, for people."""
    spec = part.spec or {}
    return (
        f"{spec['model']} ({spec['weights']})" if {"model", "weights"} <= set(spec) else part.model
    )
