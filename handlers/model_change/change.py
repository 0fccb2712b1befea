"""ModelChange: the model of a collection changes while it is searched, without an outage.

    use         a shadow is begun; search goes on from what is active
    (work)      work.py fills it, while jobs write both, and lets it answer; resumed
                after any crash, since all that must be known is in the record
    rollback    the same, back to what was active before; only what differs is embedded again
    drop        what was active before goes for good
    abort       a change that is under way is given up

The stored record decides; what this process remembers is a cache and for display.
"""

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from daemon.errors import ChangedError, ModelChangeError, RetryableError
from daemon.jobs import JsonObject
from daemon.wall_clock import epoch_ms
from handlers.model_change.inventory import Inventory
from handlers.model_change.shadow import Embedder
from handlers.model_change.work import ChangeWork, failures_of
from handlers.models.models_at_hand import ModelsAtHand
from handlers.qdrant.disk_room import require_room
from handlers.qdrant.vector_engine import DroppedError
from handlers.vectors.model_record import Part, Record, is_physical_name, physical_name
from handlers.vectors.qdrant_store import QdrantStore

ROOM_FACTOR = 2.5
"""Bytes on the disk for one of a vector's: what an engine keeps beside it."""
TOLD_FAILURES = 10
TELLS = 2
"""Another daemon may drop what is being told of; then it is not told of."""


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
        models: ModelsAtHand[Any],
        inventory: Callable[[Part], Inventory],
        *,
        folder: Path | None,
        clock: Callable[[], int] = epoch_ms,
    ) -> None:
        """Take the parts; nothing is read yet.

        Args:
            store: whose collection; opened by whoever claims it.
            embedder: makes vectors of the next model.
            models: the models.
            inventory: what there is in a part of the collection.
            folder: where an embedded engine keeps its vectors, for this process alone.
            clock: epoch milliseconds.
        """
        self._store = store
        self._models = models
        self._folder = folder
        self._clock = clock
        self._work = ChangeWork(
            store, embedder, models, inventory, is_alone=folder is not None, clock=clock
        )

    @property
    def collection(self) -> str:
        """The fixed name of the collection."""
        return self._store.collection

    async def run(self, is_busy: Callable[[], bool]) -> None:
        """Work on changes for ever; what fails is told and tried again.

        Args:
            is_busy: whether jobs run, which go first.
        """
        await self._work.run(is_busy)

    # ---- verbs

    async def use(self, spec: Mapping[str, str], *, allow_failed: int = 0) -> JsonObject:
        """Begin to change to a model; called again for the same one, change `allow_failed`.

        Args:
            spec: how the model is configured; `model`, and what else its kind has.
            allow_failed: the change is done without so many pictures that cannot be embedded.

        Returns:
            What `told` does.

        Raises:
            ConfigError: there is no such model, or its weights are not what they must be.
            InvalidRequestError: the spec has a name that such a model does not know.
        """
        model = await self._models.open(spec)
        fingerprint = model.fingerprint
        # Before it takes memory that a refusal would not give back.
        self._require_free(await self._read(), fingerprint)
        try:
            for runner in model.needed:
                await runner.load()
            async with self._work.turn:
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
        except BaseException:
            self._work.free()
            raise
        return await self.told()

    async def rollback(self, *, now: bool = False, seen: str | None = None) -> JsonObject:
        """Begin to change back to the model that was active before; return what `told` does.

        Args:
            now: answer searches by it at once, though it lacks what was stored since, until the
                change is done; also for a rollback that is under way.
            seen: the `version` that the caller was told; None skips the check.

        Raises:
            ChangedError: the version is another one by now.
        """
        async with self._work.turn:
            record = await self._seen(seen)
            if (former := record.shadow or record.previous) is not None and former.was_active:
                await self._models.of(former)
                # That may have read gigabytes; another daemon may have dropped it meanwhile.
                record = await self._seen(record.version)
            if record.shadow is not None and record.shadow.was_active:
                # Under way already: whoever had no answer asks again.
                if now:
                    shadow = replace(record.shadow, is_searched=True)
                    await self._write(replace(record, shadow=shadow))
                return await self.told()
            if record.previous is None or record.shadow is not None:
                raise ModelChangeError(
                    f"nothing that {self.collection} was of before is kept",
                    code="nothing_to_roll_back",
                )
            await self._begin(record, replace(record.previous, is_searched=now))
        return await self.told()

    async def abort(self, *, seen: str | None = None) -> JsonObject:
        """Give up the change that is under way; return what `told` does.

        What it filled is removed, unless it was active before: then it is kept as it was.

        Args:
            seen: as for `rollback`.

        Raises:
            ChangedError: it is another by now, or another daemon ended the change meanwhile.
        """
        async with self._work.turn:
            record = await self._seen(seen)
            if (shadow := record.shadow) is None:
                raise ModelChangeError(
                    f"no change of {self.collection} is under way", code="no_model_change"
                )
            await self._write(record.without_shadow())
            if not shadow.was_active:
                await self._drop(shadow)
        return await self.told()

    async def drop(self, *, seen: str | None = None) -> JsonObject:
        """Remove what was active before, and what cut changes left; return what `told` does.

        Args:
            seen: as for `rollback`.

        Raises:
            ChangedError: it is another by now, or another daemon began to go back to it meanwhile.
        """
        async with self._work.turn:
            record = await self._seen(seen)
            leftover = await self._leftover(record)
            if (previous := record.previous) is None and not leftover:
                raise ModelChangeError(
                    f"nothing that {self.collection} was of before is kept", code="nothing_to_drop"
                )
            # The record first: cut in between, a collection is left that nobody names.
            await self._write(record.without_previous())
            if previous is not None:
                await self._drop(previous)
            # Another daemon may have begun to fill one meanwhile.
            for physical in await self._leftover(await self._read()):
                await self._store.parts.drop(physical)
        return await self.told()

    async def told(self) -> JsonObject:
        """Return what is behind the collection's name, and how far a change is."""
        for _ in range(TELLS):
            with suppress(DroppedError):
                return await self._tell()
        return await self._tell()

    async def _tell(self) -> JsonObject:
        record = await self._read()
        told: JsonObject = {
            "collection": self.collection,
            "version": record.version,
            "active": await self._told_part(record.active),
            "searched": record.searched.physical,
            "change": None,
            "shadow": None,
            "failures": [],
            "waits_for": waits.message if (waits := self._work.waits) and record.shadow else None,
            "previous": None,
            "leftover": await self._leftover(record),
        }
        if record.previous is not None:
            told["previous"] = await self._told_part(record.previous)
        if (shadow := record.shadow) is not None:
            failures = (await failures_of(self._store, shadow)).by_id
            told["change"] = {**self._work.told(record, shadow), "failed": len(failures)}
            told["shadow"] = await self._told_part(shadow)
            told["failures"] = [each.to_wire() for each in list(failures.values())[:TOLD_FAILURES]]
        return told

    def stats(self) -> JsonObject | None:
        """Return how far a change is, as far as this process knows; None where there is none."""
        record = self._store.seen
        if record is None or record.shadow is None:
            return None
        return self._work.told(record, record.shadow)

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

    async def _seen(self, version: str | None) -> Record:
        """Return the record, which must be the one that somebody saw, if they say so."""
        record = await self._read()
        if version not in (None, record.version):
            raise ChangedError(
                f"somebody changed what {self.collection} is of since you looked: look again"
            )
        return record

    async def _write(self, record: Record) -> None:
        await self._store.parts.records.write(record)
        await self._store.record()
        self._work.ring()

    def _require_free(self, record: Record, fingerprint: str) -> None:
        """Return if a change to a model may begin, or is under way already."""
        if record.active.fingerprint == fingerprint:
            raise ModelChangeError(
                f"{self.collection} is of {record.active.named} already", code="model_in_use"
            )
        if record.shadow is not None:
            if record.shadow.fingerprint != fingerprint:
                raise ModelChangeError(
                    f"{self.collection} changes to {record.shadow.named} already: wait, or"
                    " abort that first",
                    code="model_change_running",
                )
        elif record.previous is not None and record.previous.fingerprint != fingerprint:
            raise ModelChangeError(
                f"{record.previous.named} is still kept to go back to: drop it first",
                code="model_kept",
            )

    async def _begin(self, record: Record, shadow: Part) -> None:
        dimension = self._store.parts.dimension_of(shadow)
        if self._folder is not None:
            count = await self._store.at(record.active).count()
            if (kept := record.previous) is not None and kept.physical == shadow.physical:
                await self._store.parts.ensure(kept)
                count = max(0, count - await self._store.at(kept).count())
            require_room(self._folder, int(4 * ROOM_FACTOR * dimension * count))
        if record.active.spec is None:
            # From now on the settings need not say it, and may say what comes.
            model = await self._models.of(record.active)
            active = replace(record.active, spec=dict(model.spec), dimension=model.dimension)
            record = replace(record, active=active)
        # What failed before is tried again.
        await (await failures_of(self._store, shadow)).clear()
        # The collection first: a record never names one that is not there.
        begun = record.begun(replace(shadow, since=self._clock()))
        await self._store.parts.begin(shadow, lambda: self._write(begun))

    async def _drop(self, part: Part) -> None:
        # Nothing else holds off another daemon, which may have written over what we wrote.
        record = await self._read()
        if any(each.physical == part.physical for each in record.parts):
            raise ChangedError(
                f"another daemon changed what {self.collection} is of at the same moment, and"
                f" needs {part.physical}, which stays: look again"
            )
        await (await failures_of(self._store, part)).clear()
        for each in reversed(self._all_of(part)):
            await self._store.parts.drop(each.physical)

    def _all_of(self, part: Part) -> Sequence[Part]:
        return (part, *self._store.beside(part))

    async def _leftover(self, record: Record) -> list[str]:
        """Return collections that a cut change left, which the record does not name."""
        named = {each.physical for part in record.parts for each in self._all_of(part)}
        return [
            name
            for name in await self._store.parts.engine.collections()
            if is_physical_name(self.collection, name) and name not in named
        ]

    async def _told_part(self, part: Part) -> JsonObject:
        await self._store.parts.ensure(part)
        spec = part.spec or {}
        return {
            "model": spec.get("model", part.model),
            "weights": spec.get("weights"),
            "detector": spec.get("detector"),
            "fingerprint": part.fingerprint,
            "collection": part.physical,
            "dimension": self._store.parts.dimension_of(part),
            "vectors": await self._store.at(part).count(),
            "since": part.since,
        }
