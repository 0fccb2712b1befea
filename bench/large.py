"""`python -m bench.large FOLDER`: one large embedded collection, step by step, over a kept folder.

    fill      upserts up to `--points`, through the engine; goes on where it was stopped
    exact     the true nearest by numpy, over the same points: what recall is told against
    plain     reopen, memory and searches without an index
    index     the index, by the same upkeep that quiet hours use, while it is searched and written
    indexed   reopen, memory, searches and recall with it

Each step that was done before is passed over, so that a build of an hour can be stopped, and run
under `nice -n 19` beside other work; times of fill and index mean something only without that.
The figures are kept in FOLDER/figures.json and printed as they come.
"""

import argparse
import asyncio
import json
import sys
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import numpy as np

from bench import machine, report, table
from bench.vectors import BATCH, SPEC, TOP, points_like_embeddings
from handlers.inference import Vector
from handlers.qdrant.qdrant_edge import EdgeEngine
from handlers.qdrant.vector_engine import AtLeast, Filter, Point

BLOCK = 10_000
"""Points made, and counted, at a time."""
QUERIES = 200
REOPENS = 3
WRITE_EVERY = 5.0
Figures = dict[str, float]


def main(argv: list[str]) -> int:
    """Do the steps that are still to be done, and print all figures."""
    parser = argparse.ArgumentParser(
        prog="python -m bench.large",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("folder", type=Path, help="kept; about 10 GB for a million points")
    parser.add_argument("--points", type=int, default=1_000_000, help="a multiple of 10,000")
    parser.add_argument(
        "--again",
        action="append",
        default=[],
        choices=[*STEPS],
        metavar="STEP",
        help="do this step once more, where it can be: plain, indexed",
    )
    parser.add_argument("--until", choices=[*STEPS], default="indexed", help="the last step")
    arguments = parser.parse_args(argv)
    count = arguments.points
    if count % BLOCK or count <= 0:
        parser.error(f"--points must be a multiple of {BLOCK}")
    arguments.folder.mkdir(parents=True, exist_ok=True)
    file = arguments.folder / "figures.json"
    known: dict[str, Figures] = json.loads(file.read_text()) if file.exists() else {}
    names = list(STEPS)
    for name in names[: names.index(arguments.until) + 1]:
        if name in known and name not in arguments.again:
            continue
        if name == "plain" and "index" in known:
            continue
        known[name] = asyncio.run(STEPS[name](arguments.folder, count))
        file.write_text(json.dumps(known, indent=2) + "\n", encoding="utf-8")
        print(json.dumps({name: known[name]}), flush=True)
    _print(known, count)
    return 0


async def fill(folder: Path, count: int) -> Figures:
    """Upsert the blocks that are not there yet."""
    seconds, stored = 0.0, 0
    async with _opened(folder) as engine:
        there = await engine.count(SPEC.name)
        for first in range(there // BLOCK * BLOCK, count, BLOCK):
            rows = _block(first)
            began = time.perf_counter()
            for start in range(0, BLOCK, BATCH):
                await engine.upsert(
                    SPEC.name,
                    [
                        _point(first + start + n, row)
                        for n, row in enumerate(rows[start : start + BATCH])
                    ],
                )
            seconds += time.perf_counter() - began
            stored += BLOCK
        await engine.flush(SPEC.name)
        found = await engine.count(SPEC.name)
    if found != count:
        raise RuntimeError(f"{found} points are stored, not {count}")
    return {"upserts_per_second": stored / seconds if seconds else 0.0, "points": found}


async def exact(folder: Path, count: int) -> Figures:
    """Write the ids of the nearest of each query, best first, without the engine."""
    queries = _unit(_queries())
    scores = np.full((QUERIES, TOP), -2.0, np.float32)
    ids = np.zeros((QUERIES, TOP), np.int64)
    for first in range(0, count, BLOCK):
        some = queries @ _unit(_block(first)).T
        scores = np.concatenate([scores, some], axis=1)
        ids = np.concatenate([ids, np.broadcast_to(np.arange(first, first + BLOCK), some.shape)], 1)
        best = np.argsort(-scores, axis=1)[:, :TOP]
        scores, ids = np.take_along_axis(scores, best, 1), np.take_along_axis(ids, best, 1)
    np.save(folder / "exact.npy", ids)
    return {"queries": QUERIES, "top": TOP}


async def searched(folder: Path, count: int) -> Figures:
    """Open it anew, and search it."""
    reopened = []
    for _ in range(REOPENS):
        began = time.perf_counter()
        async with _opened(folder) as engine:
            await engine.search(SPEC.name, _queries()[0], limit=TOP)
            reopened.append(time.perf_counter() - began)
    true = np.load(folder / "exact.npy")
    upper = Filter.where(AtLeast("media_store_id", count * 9 // 10))
    empty = _memory_mib()
    async with _opened(folder) as engine:
        opened = _memory_mib()
        first, _ = await _search(engine, _queries())
        waits, found = await _search(engine, _queries())
        of_a_tenth, _ = await _search(engine, _queries()[: QUERIES // 4], upper)
        used = _memory_mib()
    hits = sum(len(set(some) & set(all_)) for some, all_ in zip(found, true.tolist(), strict=True))
    return {
        "reopen_seconds": float(np.median(reopened)),
        "first_p50_ms": float(np.median(first)),
        "first_max_ms": max(first),
        "p50_ms": float(np.median(waits)),
        "p95_ms": float(np.percentile(waits, 95)),
        "max_ms": max(waits),
        "tenth_p50_ms": float(np.median(of_a_tenth)),
        "tenth_p95_ms": float(np.percentile(of_a_tenth, 95)),
        "recall": hits / true.size,
        "rss_anonymous_opened_mib": opened["RssAnon"] - empty["RssAnon"],
        "rss_anonymous_mib": used["RssAnon"] - empty["RssAnon"],
        "rss_mapped_mib": used["RssFile"] - empty["RssFile"],
        "disk_mib": _disk_mib(folder / "edge"),
    }


async def index(folder: Path, count: int) -> Figures:
    """Optimise it, searched all the time and written from time to time."""
    writes: list[float] = []
    waits: list[float] = []
    async with _opened(folder) as engine:
        began = time.perf_counter()
        work = asyncio.ensure_future(engine.optimise(SPEC.name))
        writing = asyncio.ensure_future(_write(engine, writes))
        try:
            while not work.done():
                waits += (await _search(engine, _queries()[:1]))[0]
                await asyncio.sleep(0.5)
        finally:
            writing.cancel()
            with suppress(asyncio.CancelledError):
                await writing
        if not await work:
            raise RuntimeError("it was not optimised; the log says why")
        seconds = time.perf_counter() - began
        found = await engine.count(SPEC.name)
    if found != count:
        raise RuntimeError(f"{found} points are stored, not {count}")
    return {
        "index_seconds": seconds,
        "searches_meanwhile": len(waits),
        "search_p50_ms": float(np.median(waits)),
        "search_max_ms": max(waits),
        "writes_meanwhile": len(writes),
        "write_p50_ms": float(np.median(writes)),
        "write_max_ms": max(writes),
    }


STEPS: Mapping[str, Callable[[Path, int], Coroutine[None, None, Figures]]] = {
    "fill": fill,
    "exact": exact,
    "plain": searched,
    "index": index,
    "indexed": searched,
}


@asynccontextmanager
async def _opened(folder: Path) -> AsyncIterator[EdgeEngine]:
    engine = EdgeEngine(folder / "edge")
    await engine.open()
    try:
        await engine.ensure_collection(SPEC)
        yield engine
    finally:
        await engine.close()


async def _search(
    engine: EdgeEngine, queries: Vector, where: Filter | None = None
) -> tuple[list[float], list[list[int | str]]]:
    """Return the milliseconds of each search, and the ids that it found."""
    waits, found = [], []
    for query in queries:
        began = time.perf_counter()
        matches = await engine.search(SPEC.name, query, limit=TOP, where=where)
        waits.append((time.perf_counter() - began) * 1000)
        found.append([match.point_id for match in matches])
    return waits, found


async def _write(engine: EdgeEngine, waits: list[float]) -> None:
    """Store the first points again, as they are, until this is cancelled."""
    points = [_point(n, row) for n, row in enumerate(_block(0)[:BATCH])]
    while True:
        began = time.perf_counter()
        await engine.upsert(SPEC.name, points)
        waits.append((time.perf_counter() - began) * 1000)
        await asyncio.sleep(WRITE_EVERY)


def _block(first: int) -> Vector:
    return points_like_embeddings(BLOCK, seed=1000 + first // BLOCK)


def _queries() -> Vector:
    return points_like_embeddings(QUERIES, seed=2)


def _point(number: int, row: Vector) -> Point:
    return Point(number, row, {"media_store_id": number})


def _unit(rows: Vector) -> Vector:
    unit: Vector = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    return unit


def _memory_mib() -> dict[str, float]:
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    pairs = (line.split(":", 1) for line in lines)
    return {name: int(rest.split()[0]) / 1024 for name, rest in pairs if name.startswith("Rss")}


def _disk_mib(folder: Path) -> float:
    return sum(each.stat().st_blocks * 512 for each in folder.rglob("*") if each.is_file()) / 2**20


def _print(known: Mapping[str, Figures], count: int) -> None:
    lines = [
        (f"{step}: {name}", report.number(value))
        for step, figures in known.items()
        for name, value in figures.items()
    ]
    table.show(
        f"{count} points of {SPEC.dimension}, {machine.describe()['cores']} cores", ("", ""), lines
    )


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
