"""One pass over a shadow: what differs from the active part is embedded again, surplus goes.

A point is up to date in the shadow where it has the `job_id` that the active one has: every job
writes both (collection_parts), so that this is nearly always so for what was stored lately. The
shadow may become active after a pass that found no difference. One such pass and not just a filled
shadow, since what is embedded here may be stale when it is written: a job may have done the picture
anew meanwhile, and only the next pass sees that its vector was written over.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from daemon.errors import DependencyDownError, HandlerError, PermanentError, RetryableError
from handlers.model_failures import Failure, Failures
from handlers.model_record import Part
from handlers.qdrant_store import QdrantStore
from handlers.vector_engine import Point, PointId

GROUP = 16
"""Embedded together; between two groups jobs go first."""
PAGE = 256
TRIES = 3
"""Of a picture whose failure may pass; then it counts as one that cannot be embedded."""
_SAMPLES = 50
"""Groups that the rate is told from."""


class Embedder(Protocol):
    """Makes the vectors of another model."""

    async def embed(self, part: Part, stored: Point) -> Point:
        """Return a point as a part's model sees it, under the same id and with its payload.

        Args:
            part: whose model.
            stored: the active point, without its vector.

        Raises:
            PermanentError: it can never be.
            RetryableError: it may be later.
        """


@dataclass(slots=True)
class Progress:
    """How far a change is, since this process works on it."""

    passes: int = 0
    total: int = 0
    """Points of the active part when the pass began."""
    done: int = 0
    """Of those, how many are up to date in the shadow, as far as the pass came."""
    left: int = 0
    """How many are to be embedded, as far as one can tell."""
    embedded: int = 0
    _took: list[tuple[int, float]] = field(default_factory=list)

    def begin(self, total: int, shadowed: int) -> None:
        """Begin a pass over so many points, of which the shadow has some."""
        self.passes += 1
        self.total, self.done, self.left = total, 0, max(0, total - shadowed)

    def note(self, count: int, seconds: float) -> None:
        """Take note of points that were embedded, and how long that took, waits included."""
        self.embedded += count
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
        active: the store as of the active part.
        shadow: the store as of the shadow.
        part: the shadow.
        embedder: makes the vectors.
        failures: of the shadow; read before.
        progress: where the pass tells how far it is.
        tries: failures that may pass, by point; kept between passes.
        before_write: raises where the pass must not go on; asked at every page, too.
        pace: waits until jobs leave room, given how many seconds a group took.
    """

    active: QdrantStore
    shadow: QdrantStore
    part: Part
    embedder: Embedder
    failures: Failures
    progress: Progress
    tries: dict[PointId, int]
    before_write: Callable[[], Awaitable[None]]
    pace: Callable[[float], Awaitable[None]]

    async def run_pass(self) -> int:
        """Go once over all points; return how many differences were found.

        Raises:
            DependencyDownError: something that every picture needs is away.
        """
        before = dict(self.tries)
        self.progress.begin(await self.active.count(), await self.shadow.count())
        found = await self._fill() + await self._thin()
        for point_id, tries in before.items():
            # Not tried again, so that nothing is to do: a job did it meanwhile, or it is gone.
            if self.tries.get(point_id) == tries:
                del self.tries[point_id]
        return found

    async def _fill(self) -> int:
        from_id: PointId | None = None
        found = 0
        while True:
            # Where nothing differs too: the lease must not run out amid a long pass.
            await self.before_write()
            page = await self.active.page(from_id, limit=PAGE)
            found += await self._compare(page.points)
            if (from_id := page.next_id) is None:
                return found

    async def _compare(self, points: Sequence[Point]) -> int:
        theirs = {
            point.point_id: _job_of(point)
            for point in await self.shadow.payloads([point.point_id for point in points])
        }
        wanted, stale = [], []
        for point in points:
            failed = self.failures.by_id.get(point.point_id)
            if failed is not None and failed.job_id == _job_of(point):
                if point.point_id in theirs:
                    stale.append(point.point_id)
            elif point.point_id not in theirs or theirs[point.point_id] != _job_of(point):
                wanted.append(point)
            elif failed is not None:
                # A job has done it anew, in both parts.
                await self.failures.remove(point.point_id)
        if stale:
            await self.before_write()
            await self.shadow.remove(stale)
        self.progress.done += len(points) - len(wanted)
        for start in range(0, len(wanted), GROUP):
            await self._redo(wanted[start : start + GROUP])
        return len(wanted) + len(stale)

    async def _redo(self, group: Sequence[Point]) -> None:
        began = time.monotonic()
        outcomes = await asyncio.gather(
            *(self.embedder.embed(self.part, point) for point in group), return_exceptions=True
        )
        for outcome in outcomes:
            if isinstance(outcome, DependencyDownError) or not isinstance(
                outcome, Point | HandlerError
            ):
                raise outcome
        await self.before_write()
        await self.shadow.parts.put_stored(
            self.part, [each for each in outcomes if isinstance(each, Point)]
        )
        for point, outcome in zip(group, outcomes, strict=True):
            if isinstance(outcome, HandlerError):
                await self._note_failure(point, outcome)
            else:
                self.tries.pop(point.point_id, None)
                await self.failures.remove(point.point_id)
        took = time.monotonic() - began
        await self.pace(took)
        self.progress.note(len(group), time.monotonic() - began)

    async def _note_failure(self, point: Point, error: HandlerError) -> None:
        tries = self.tries[point.point_id] = self.tries.get(point.point_id, 0) + 1
        if isinstance(error, RetryableError) and tries < TRIES:
            return
        if not isinstance(error, RetryableError | PermanentError):
            raise error
        # Else the vector of what was there before would answer for it.
        await self.shadow.remove([point.point_id])
        await self.failures.add(Failure(point.point_id, _job_of(point), error.code, error.message))
        self.tries.pop(point.point_id, None)

    async def _thin(self) -> int:
        """Remove from the shadow what the active part has not, and failures of what is gone."""
        from_id: PointId | None = None
        found = 0
        while True:
            await self.before_write()
            page = await self.shadow.page(from_id, limit=PAGE)
            surplus = await self._missing([point.point_id for point in page.points])
            if surplus:
                await self.before_write()
                await self.shadow.remove(surplus)
                found += len(surplus)
            if (from_id := page.next_id) is None:
                break
        for point_id in await self._missing(list(self.failures.by_id)):
            await self.failures.remove(point_id)
        return found

    async def _missing(self, point_ids: Sequence[PointId]) -> list[PointId]:
        """Return those that the active part has not."""
        there = {point.point_id for point in await self.active.payloads(point_ids)}
        return [point_id for point_id in point_ids if point_id not in there]


def _job_of(point: Point) -> str | None:
    job_id = point.payload.get("job_id")
    return None if job_id is None else str(job_id)
