"""`python -m bench --only vectors`: embedded vectors beside qdrant-client's own local mode.

Both through inferd's engine interface, on the same points: 512 numbers near a space of 64
dimensions plus noise, harder than embeddings of pictures. `--full` goes on to 100,000 and, ours
alone, to 1,000,000 points.
"""

import asyncio
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import numpy as np

from bench.rows import Options, Row, Side
from handlers.inference import Vector
from handlers.qdrant import edge_upkeep
from handlers.qdrant.qdrant_edge import EdgeEngine
from handlers.qdrant.qdrant_local import LocalEngine
from handlers.qdrant.vector_engine import AtLeast, CollectionSpec, Filter, Point, VectorEngine

SECTION = "vectors"
SPEC = CollectionSpec("points", 512, {"media_store_id": "integer"})
LATENT, NOISE = 64, 4.0
BATCH = 64
TOP = 10
QUERIES = 30
SEARCHES = 3
"""Rounds of all queries, in turns with the other side."""
ROUNDS_OF_UPSERTS = 5
LARGE = 200_000
"""Beyond, the other side would take most of an hour and 8 GB of memory."""
EDGE, LOCAL = "qdrant-edge", "qdrant-client's local mode"


def measure(options: Options) -> Sequence[Row]:
    """Return upserts, searches and reopening, before and after optimising."""
    sizes = [options.pick(smallest=200, quick=2000, normal=10_000)]
    if options.is_full:
        sizes += [100_000, 1_000_000]
    rows: list[Row] = []
    for count in sizes:
        with tempfile.TemporaryDirectory(prefix="inferd-bench-") as folder:
            rows += asyncio.run(_size(Path(folder), count))
    # An index is built from 5,000 vectors on; without one there is nothing to compare.
    optimised = options.pick(smallest=0, quick=0, normal=20_000, full=0)
    if optimised:
        with tempfile.TemporaryDirectory(prefix="inferd-bench-") as folder:
            rows += asyncio.run(_optimised_alone(Path(folder), optimised))
    return rows


def points_like_embeddings(count: int, seed: int) -> Vector:
    """Return float32 [count, 512]."""
    basis = np.random.default_rng(0).standard_normal((LATENT, SPEC.dimension), dtype=np.float32)
    random = np.random.default_rng([seed, count])
    inner = random.standard_normal((count, LATENT), dtype=np.float32)
    noise = random.standard_normal((count, SPEC.dimension), dtype=np.float32)
    return inner @ basis + np.float32(NOISE) * noise


class _Meter:
    """One engine that is filled, and asked."""

    def __init__(self, engine: VectorEngine) -> None:
        self.engine = engine
        self.upserts: list[float] = []
        self.searches: list[float] = []
        self.filtered: list[float] = []

    async def fill(self, first: int, rows: Vector) -> None:
        began = time.perf_counter()
        for start in range(0, len(rows), BATCH):
            await self.engine.upsert(
                SPEC.name,
                [
                    Point(first + start + n, row, {"media_store_id": first + start + n})
                    for n, row in enumerate(rows[start : start + BATCH])
                ],
            )
        self.upserts.append(len(rows) / (time.perf_counter() - began))

    async def search(self, queries: Vector, where: Filter | None = None) -> list[set[int | str]]:
        found = []
        figures = self.searches if where is None else self.filtered
        for query in queries:
            began = time.perf_counter()
            matches = await self.engine.search(SPEC.name, query, limit=TOP, where=where)
            figures.append((time.perf_counter() - began) * 1000)
            found.append({match.point_id for match in matches})
        return found


@asynccontextmanager
async def _opened(engine: VectorEngine) -> AsyncIterator[_Meter]:
    await engine.open()
    try:
        await engine.ensure_collection(SPEC)
        yield _Meter(engine)
    finally:
        await engine.close()


async def _size(folder: Path, count: int) -> list[Row]:
    queries = points_like_embeddings(QUERIES, seed=2)
    upper = Filter.where(AtLeast("media_store_id", count * 9 // 10))
    has_other = count <= LARGE
    edge, local = EdgeEngine(folder / "edge"), LocalEngine(folder / "local")
    async with _opened(edge) as ours:
        others = [_opened(local)] if has_other else []
        theirs = await others[0].__aenter__() if others else None
        meters = [ours, theirs] if theirs else [ours]
        try:
            step = count // ROUNDS_OF_UPSERTS
            for n in range(ROUNDS_OF_UPSERTS):
                rows = points_like_embeddings(step, seed=10 + n)
                for meter in meters:
                    await meter.fill(n * step, rows)
            for _ in range(SEARCHES):
                for meter in meters:
                    await meter.search(queries)
                    await meter.search(queries[: QUERIES // 3], upper)
        finally:
            for other in others:
                await other.__aexit__(None, None, None)
    reopened = [await _reopen(lambda: EdgeEngine(folder / "edge"), runs=3)]
    if has_other:
        reopened.append(await _reopen(lambda: LocalEngine(folder / "local"), runs=1))
    kinds: list[tuple[str, str, Callable[[_Meter], list[float]]]] = [
        (f"upserts, up to {count} points", "/s", lambda meter: meter.upserts),
        (f"search, {count} points, no index", "ms", lambda meter: meter.searches),
        (f"search of a tenth, {count} points, no index", "ms", lambda meter: meter.filtered),
    ]
    note = f"batches of {BATCH}, top {TOP}"
    found = [
        _row(name, unit, [figures(meter) for meter in meters], note)
        for name, unit, figures in kinds
    ]
    found.append(_row(f"reopen {count} points", "s", reopened, "until it answers"))
    if count >= LARGE // 2:
        found += await _optimised(folder / "edge", count, queries, upper)
    return found


async def _optimised_alone(folder: Path, count: int) -> list[Row]:
    async with _opened(EdgeEngine(folder)) as ours:
        step = count // ROUNDS_OF_UPSERTS
        for n in range(ROUNDS_OF_UPSERTS):
            await ours.fill(n * step, points_like_embeddings(step, seed=10 + n))
    queries = points_like_embeddings(QUERIES, seed=2)
    upper = Filter.where(AtLeast("media_store_id", count * 9 // 10))
    return await _optimised(folder, count, queries, upper)


async def _optimised(folder: Path, count: int, queries: Vector, upper: Filter) -> list[Row]:
    """Compare one engine with itself, before and after; what it answers before is exact."""
    edge_upkeep.NICENESS = 0
    async with _opened(EdgeEngine(folder)) as before:
        engine = before.engine
        if not isinstance(engine, EdgeEngine):
            raise TypeError("only edge has an index to build")
        exact = await before.search(queries)
        await before.search(queries, upper)
        after = _Meter(engine)
        began = time.perf_counter()
        waits = await _search_while(engine.optimise(SPEC.name), engine, queries[0])
        seconds = time.perf_counter() - began
        found = await after.search(queries)
        await after.search(queries, upper)
    hits = sum(len(some & all_) for some, all_ in zip(found, exact, strict=True))
    recall = hits / sum(len(each) for each in exact)
    reopened = await _reopen(lambda: EdgeEngine(folder), runs=3)
    note = f"theirs: the same without an index; recall {recall:.3f} of the top {TOP}"
    built = (
        f"built in {seconds:.0f} s; searches meanwhile: median"
        f" {np.median(waits):.0f} ms, longest {max(waits):.0f}"
    )
    return [
        _row(f"search, {count} points, index", "ms", [after.searches, before.searches], note),
        _row(
            f"search of a tenth, {count} points, index",
            "ms",
            [after.filtered, before.filtered],
            built,
        ),
        _row(f"reopen {count} points, index", "s", [reopened], "until it answers"),
    ]


async def _search_while(
    work: Coroutine[None, None, bool], engine: EdgeEngine, query: Vector
) -> list[float]:
    """Return the milliseconds of the searches that were asked while something was done."""
    task = asyncio.ensure_future(work)
    waits: list[float] = []
    while not task.done():
        began = time.perf_counter()
        await engine.search(SPEC.name, query, limit=TOP)
        waits.append((time.perf_counter() - began) * 1000)
        await asyncio.sleep(0.02)
    if not await task:
        raise RuntimeError("nothing was optimised")
    return waits


async def _reopen(make: Callable[[], VectorEngine], *, runs: int) -> list[float]:
    seconds = []
    query = points_like_embeddings(1, seed=2)[0]
    for _ in range(runs):
        began = time.perf_counter()
        async with _opened(make()) as meter:
            await meter.engine.search(SPEC.name, query, limit=TOP)
            seconds.append(time.perf_counter() - began)
    return seconds


def _row(name: str, unit: str, sides: Sequence[Sequence[float]], note: str) -> Row:
    what = (EDGE, EDGE if "index" in name and "no index" not in name else LOCAL)
    made = [Side.of(each, figures) for each, figures in zip(what, sides, strict=False)]
    return Row(
        section=SECTION,
        name=name,
        unit=unit,
        better="more" if unit == "/s" else "less",
        ours=made[0],
        theirs=made[1] if len(made) > 1 else None,
        note=note if len(made) > 1 else f"{note}; local mode: not measured at this size",
    )
