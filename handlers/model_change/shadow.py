"""One pass over a shadow: what differs from the active part is embedded again, surplus goes.

A unit (inventory) is up to date in the shadow where it has the `job_id` that the active one has:
every job writes both (collection_parts), so that this is nearly always so for what was stored
lately. The shadow may become active after a pass that found no difference. One such pass and not
just a filled shadow, since what is embedded here may be stale when it is written: a job may have
done the picture anew meanwhile, and only the next pass sees that its vector was written over.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from daemon.errors import DependencyDownError, HandlerError, PermanentError, RetryableError
from handlers.model_change.failures import Failure, Failures
from handlers.model_change.inventory import BEGIN, Cursor, Inventory, Unit
from handlers.qdrant.vector_engine import PointId
from handlers.vectors.model_record import Part

GROUP = 16
"""Embedded together; between two groups jobs go first."""
TRIES = 3
"""Of a picture whose failure may pass; then it counts as one that cannot be embedded."""
_SAMPLES = 50
"""Groups that the rate is told from."""


class Embedder(Protocol):
    """Makes the vectors of another model."""

    async def embed(self, part: Part, unit: Unit) -> Unit:
        """Return a unit as a part's model sees it, of the same job and with its payload.

        Args:
            part: whose model.
            unit: as it is in the active part, without vectors.

        Raises:
            PermanentError: it can never be.
            RetryableError: it may be later.
        """


@dataclass(slots=True)
class Progress:
    """How far a change is, since this process works on it."""

    passes: int = 0
    total: int = 0
    """Units of the active part when the pass began."""
    done: int = 0
    """Of those, how many are up to date in the shadow, as far as the pass came."""
    left: int = 0
    """How many are to be embedded, as far as one can tell."""
    _took: list[tuple[int, float]] = field(default_factory=list)

    def begin(self, total: int, shadowed: int) -> None:
        """Begin a pass over so many units, of which the shadow has some."""
        self.passes += 1
        self.total, self.done, self.left = total, 0, max(0, total - shadowed)

    def note(self, count: int, seconds: float) -> None:
        """Take note of units that were embedded, and how long that took, waits included."""
        self.done += count
        self.left = max(0, self.left - count)
        self._took = [*self._took[1 - _SAMPLES :], (count, seconds)]

    @property
    def seconds_left(self) -> int | None:
        """How long the rest takes at the rate of late; None while nobody can tell."""
        count, seconds = (
            (sum(each) for each in zip(*self._took, strict=True)) if self._took else (0, 0)
        )
        return round(self.left * seconds / count) if count and seconds else None


@dataclass(frozen=True, slots=True, kw_only=True)
class Shadowing:
    """What a pass works with.

    Attributes:
        active: what the active part has.
        shadow: what the shadow has.
        part: the shadow.
        embedder: makes the vectors.
        failures: of the shadow; read before.
        lacking: what the active part goes without, of which the shadow may have the vector.
        progress: where the pass tells how far it is.
        tries: failures that may pass, by unit; kept between passes.
        before_write: raises where the pass must not go on; asked at every page, too.
        pace: waits until jobs leave room, given how many seconds a group took.
    """

    active: Inventory
    shadow: Inventory
    part: Part
    embedder: Embedder
    failures: Failures
    lacking: Mapping[PointId, Failure]
    progress: Progress
    tries: dict[PointId, int]
    before_write: Callable[[], Awaitable[None]]
    pace: Callable[[float], Awaitable[None]]

    async def run_pass(self) -> int:
        """Go once over all units; return how many differences were found.

        Raises:
            DependencyDownError: something that every picture needs is away.
        """
        before = dict(self.tries)
        self.progress.begin(await self.active.count(), await self.shadow.count())
        found = await self._fill() + await self._thin()
        for key, tries in before.items():
            # Not tried again, so that nothing is to do: a job did it meanwhile, or it is gone.
            if self.tries.get(key) == tries:
                del self.tries[key]
        return found

    async def _fill(self) -> int:
        cursor: Cursor | None = BEGIN
        found = 0
        while cursor is not None:
            # Where nothing differs too: the lease must not run out amid a long pass.
            await self.before_write()
            units, cursor = await self.active.page(cursor)
            found += await self._compare(units)
        return found

    async def _compare(self, units: Sequence[Unit]) -> int:
        theirs = await self.shadow.of([unit.key for unit in units])
        wanted, stale = [], []
        for unit in units:
            failed, their = self.failures.by_id.get(unit.key), theirs.get(unit.key)
            if failed is not None and failed.job_id == unit.job_id:
                if their is not None:
                    stale.append(their)
            elif their is None or not their.is_whole or their.job_id != unit.job_id:
                wanted.append(unit)
            elif failed is not None:
                # A job has done it anew, in both parts.
                await self.failures.remove(unit.key)
        if stale:
            await self.before_write()
            await self.shadow.remove(stale)
        self.progress.done += len(units) - len(wanted)
        for start in range(0, len(wanted), GROUP):
            group = wanted[start : start + GROUP]
            await self._redo([(unit, theirs.get(unit.key)) for unit in group])
        return len(wanted) + len(stale)

    async def _redo(self, group: Sequence[tuple[Unit, Unit | None]]) -> None:
        began = time.monotonic()
        outcomes = await asyncio.gather(
            *(self.embedder.embed(self.part, unit) for unit, _ in group), return_exceptions=True
        )
        for outcome in outcomes:
            if isinstance(outcome, DependencyDownError) or not isinstance(
                outcome, Unit | HandlerError
            ):
                raise outcome
        await self.before_write()
        await self.shadow.put(
            [
                (outcome, their)
                for (_, their), outcome in zip(group, outcomes, strict=True)
                if isinstance(outcome, Unit)
            ]
        )
        if gone := await self._missing([unit.key for unit, _ in group]):
            # Deleted while they were embedded: the shadow may be searched long before `_thin`.
            await self.shadow.remove(list((await self.shadow.of(list(gone))).values()))
        for (unit, their), outcome in zip(group, outcomes, strict=True):
            if isinstance(outcome, HandlerError):
                await self._note_failure(unit, their, outcome)
            else:
                self.tries.pop(unit.key, None)
                await self.failures.remove(unit.key)
        took = time.monotonic() - began
        await self.pace(took)
        self.progress.note(len(group), time.monotonic() - began)

    async def _note_failure(self, unit: Unit, their: Unit | None, error: HandlerError) -> None:
        tries = self.tries[unit.key] = self.tries.get(unit.key, 0) + 1
        if isinstance(error, RetryableError) and tries < TRIES:
            return
        if not isinstance(error, RetryableError | PermanentError):
            raise error
        if their is not None:
            # Else the vectors of what was there before would answer for it.
            await self.shadow.remove([their])
        await self.failures.add(Failure(unit.key, unit.job_id, error.code, error.message))
        self.tries.pop(unit.key, None)

    async def _thin(self) -> int:
        """Remove from the shadow what the active part has not, and failures of what is gone."""
        cursor: Cursor | None = BEGIN
        found = 0
        while cursor is not None:
            await self.before_write()
            units, cursor = await self.shadow.page(cursor)
            missing = await self._missing([unit.key for unit in units])
            if surplus := [
                unit for unit in units if unit.key in missing and not self._is_lacking(unit)
            ]:
                await self.before_write()
                await self.shadow.remove(surplus)
                found += len(surplus)
        for key in await self._missing(list(self.failures.by_id)):
            await self.failures.remove(key)
        return found

    def _is_lacking(self, unit: Unit) -> bool:
        """Whether the active part could not have it, so that this is its one vector."""
        failed = self.lacking.get(unit.key)
        return failed is not None and failed.job_id == unit.job_id

    async def _missing(self, keys: Sequence[PointId]) -> set[PointId]:
        """Return those that the active part has not."""
        return set(keys) - (await self.active.of(keys)).keys()
