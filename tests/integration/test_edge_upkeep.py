"""Embedded vectors are optimised while they are used: nothing is lost, whatever is cut short."""

import asyncio
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable
from contextlib import suppress
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import qdrant_edge as edge

from daemon.errors import RetryableError
from handlers.inference import Vector
from handlers.qdrant import edge_copy, edge_upkeep
from handlers.qdrant.edge_copy import copy_shard, working_copy
from handlers.qdrant.edge_schedule import IndexBoard, Schedule
from handlers.qdrant.edge_shard import Shard
from handlers.qdrant.qdrant_edge import EdgeEngine
from handlers.qdrant.vector_engine import CollectionSpec, Equals, Filter, Point
from tests.waiting import until

ROOT = Path(__file__).resolve().parents[2]
SPEC = CollectionSpec("c", 512, {"media_store_id": "integer"})
MANY = 6000
"""So many vectors of 512 numbers get an index; the engine finds fewer not worth it."""
ALL_DAY = "00:00-00:00"


def vectors(count: int, seed: int = 0) -> Vector:
    # Near a few dozen directions, as embeddings are; an index of mere noise finds little.
    random = np.random.default_rng(seed)
    directions = np.random.default_rng(99).standard_normal((32, 512), dtype=np.float32)
    noise = 0.5 * random.standard_normal((count, 512), dtype=np.float32)
    return random.standard_normal((count, 32), dtype=np.float32) @ directions + noise


async def fill(engine: EdgeEngine, found: Vector, first: int = 0) -> None:
    await engine.ensure_collection(SPEC)
    points = [Point(first + n, row, {"media_store_id": first + n}) for n, row in enumerate(found)]
    for start in range(0, len(points), 128):
        await engine.upsert("c", points[start : start + 128])


def approximately(vector: Vector) -> object:
    return pytest.approx(float(vector[0] / np.linalg.norm(vector)), abs=1e-5)


async def everything(engine: EdgeEngine) -> dict[int | str, tuple[int, float]]:
    """Return each id with a payload's number and a vector's first."""
    found = {}
    next_id = None
    while True:
        page = await engine.scroll("c", limit=1000, from_id=next_id)
        for point in page.points:
            found[point.point_id] = point.payload["media_store_id"], float(point.vector[0])
        next_id = page.next_id
        if next_id is None:
            return found


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def indexed(engine: EdgeEngine) -> int:
    return int(engine._shards["c"].native.info().indexed_vectors_count)


@pytest.fixture(autouse=True)
def _as_urgent_as_the_tests_beside_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(edge_upkeep, "NICENESS", 0)


@pytest.fixture
def board() -> IndexBoard:
    return IndexBoard()


@pytest.fixture
async def engine(tmp_path: Path, board: IndexBoard) -> AsyncIterator[EdgeEngine]:
    engine = EdgeEngine(tmp_path, board=board)
    await engine.open()
    yield engine
    await engine.close()


async def test_an_optimised_collection_is_the_same_with_an_index(
    engine: EdgeEngine, tmp_path: Path
) -> None:
    rows = vectors(MANY)
    await fill(engine, rows)
    await engine.delete("c", [0, 1, 2])
    before = await everything(engine)
    assert indexed(engine) == 0

    assert await engine.optimise("c")

    assert indexed(engine) >= MANY - 3
    assert await everything(engine) == before
    assert await engine.count("c", Filter.where(Equals("media_store_id", 70))) == 1
    near = await engine.search("c", rows[7], limit=1)
    assert near[0].point_id == 7
    assert names(tmp_path) == ["c", "c.changed", "inferd.lock"]


async def test_an_index_finds_what_comparing_with_each_finds(engine: EdgeEngine) -> None:
    rows = vectors(MANY)
    await fill(engine, rows)
    await engine.optimise("c")
    unit = rows / np.linalg.norm(rows, axis=1, keepdims=True)

    hits = 0
    for query in vectors(20, seed=5):
        nearest = set(np.argsort(-(unit @ query))[:10].tolist())
        hits += len(
            nearest & {match.point_id for match in await engine.search("c", query, limit=10)}
        )

    assert hits >= 190


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="no affinity here")
async def test_an_index_is_built_by_as_many_threads_as_there_are_cores_or_as_was_said(
    engine: EdgeEngine, tmp_path: Path
) -> None:
    await fill(engine, vectors(MANY))
    engine._shards["c"].flush()
    one = {min(os.sched_getaffinity(0))}
    for said, expected in (({}, 1), ({"QDRANT_NUM_CPUS": "3"}, 3)):
        copy = tmp_path / f"copy-{expected}"
        copy_shard(tmp_path / "c", copy, go_on=lambda: None)
        process = await asyncio.create_subprocess_exec(
            *(
                sys.executable,
                "-m",
                "handlers.qdrant.edge_process",
                str(copy),
                str(os.getpid()),
                "0",
            ),
            env={"PATH": "", "PYTHONPATH": str(ROOT), **said},
            preexec_fn=lambda: os.sched_setaffinity(0, one),
        )
        try:
            await until(partial(builders, process.pid, expected))
            await asyncio.sleep(0.05)
            assert not builders(process.pid, expected + 1)
        finally:
            process.kill()
            await process.wait()


def builders(pid: int, count: int) -> bool:
    """Return whether so many threads of a process build an index; the engine names them."""
    found = 0
    for task in Path(f"/proc/{pid}/task").glob("*"):
        with suppress(OSError):
            found += (task / "comm").read_text().startswith("hnsw-build")
    return found >= count


async def test_what_changes_meanwhile_is_in_the_new_index_too(engine: EdgeEngine) -> None:
    await fill(engine, vectors(MANY))
    other = vectors(1000, seed=1)
    working = asyncio.create_task(engine.optimise("c"))
    rounds = 0
    while not working.done():
        n = rounds % 1000
        await engine.upsert("c", [Point(10_000 + rounds, other[n], {"media_store_id": 1})])
        await engine.upsert("c", [Point(n, other[n], {"media_store_id": 2})])
        await engine.delete("c", [2000 + n])
        await engine.delete_where("c", Filter.where(Equals("media_store_id", 4000 + n)))
        assert await engine.search("c", other[n], limit=1)
        rounds += 1

    assert working.result()
    assert rounds > 20
    found = await everything(engine)
    expected = set(range(MANY)) | {10_000 + n for n in range(rounds)}
    for n in range(min(rounds, 1000)):
        expected -= {2000 + n, 4000 + n}
        assert found[n] == (2, approximately(other[n]))
    assert set(found) == expected


async def test_a_collection_too_small_for_an_index_stays_as_it_is(
    engine: EdgeEngine, board: IndexBoard
) -> None:
    await fill(engine, vectors(100))

    assert not await engine.optimise("c")

    assert (board.state("c").optimised, board.state("c").failed) == (0, 0)
    assert await engine.count("c") == 100


async def test_it_begins_by_itself_within_the_hours(
    tmp_path: Path, board: IndexBoard, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(edge_upkeep, "CHECK_SECONDS", 0.05)
    monkeypatch.setattr("handlers.qdrant.edge_schedule.LEAST_CHANGED", MANY)
    engine = EdgeEngine(tmp_path, schedule=Schedule.parse(ALL_DAY), board=board)
    await engine.open()
    await fill(engine, vectors(MANY - 1))
    await until(lambda: board.state("c").changed == MANY - 1)
    assert not board.state("c").is_optimising

    await fill(engine, vectors(1), first=MANY)
    await until(lambda: board.state("c").optimised == 1, seconds=120)

    assert board.state("c").changed == 0
    assert board.state("c").seconds > 0
    await engine.close()
    assert not board.states()


async def test_changes_since_the_index_are_known_after_a_restart(tmp_path: Path) -> None:
    engine = EdgeEngine(tmp_path)
    await engine.open()
    await fill(engine, vectors(MANY))
    await engine.optimise("c")
    await engine.delete("c", list(range(50)))
    await engine.close()

    engine = EdgeEngine(tmp_path)
    await engine.open()
    await engine.ensure_collection(SPEC)

    assert engine._shards["c"].changed == 50
    await engine.close()


# ---- what fails


async def test_writes_wait_while_the_folder_is_copied_and_searches_do_not(
    engine: EdgeEngine,
) -> None:
    await fill(engine, vectors(10))

    async with engine._gate.hold("c"):
        writing = asyncio.create_task(engine.delete("c", [1]))
        assert await engine.search("c", vectors(1)[0], limit=1)
        assert await engine.count("c") == 10
        assert not writing.done()
    await writing

    assert await engine.count("c") == 9


async def test_a_write_that_waits_too_long_ends_the_copy_and_the_next_one_may_take_longer(
    engine: EdgeEngine,
    board: IndexBoard,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    await fill(engine, vectors(10))
    copying = asyncio.Event()
    loop = asyncio.get_running_loop()

    def endless(_: Path, __: Path, *, go_on: Callable[[], None]) -> None:
        loop.call_soon_threadsafe(copying.set)
        while True:
            go_on()
            time.sleep(0.005)

    monkeypatch.setattr(edge_upkeep, "copy_shard", endless)
    monkeypatch.setattr(edge_upkeep, "WRITE_SECONDS", 0.05)
    monkeypatch.setattr(edge_upkeep, "MOST_WRITE_SECONDS", 0.08)
    for failed in (1, 2):
        copying.clear()
        working = asyncio.create_task(engine.optimise("c"))
        await copying.wait()

        await engine.delete("c", [failed])

        assert not await working
        assert board.state("c").failed_since == failed
    assert await engine.count("c") == 8
    assert board.state("c").told() == {
        "changed": 0,
        "optimising": False,
        "failed": 2,
        "code": "index_build_failed",
        "message": "its folder was still being copied when a write had waited 0.08 s",
    }
    assert "a write had waited 0.05 s" in caplog.text
    assert {getattr(each, "code", None) for each in caplog.records} >= {"index_build_failed"}


async def test_a_copy_that_nobody_waits_for_takes_its_time_and_ends_what_was_told(
    engine: EdgeEngine, board: IndexBoard, monkeypatch: pytest.MonkeyPatch
) -> None:
    await fill(engine, vectors(10))
    board.state("c").has_failed("before")
    monkeypatch.setattr(edge_upkeep, "WRITE_SECONDS", 0)

    assert not await engine.optimise("c")  # too few for an index

    assert board.state("c").told() == {"changed": 0, "optimising": False}
    assert board.state("c").failed == 1


async def test_a_fault_of_ours_is_not_tried_again_at_once_either(
    engine: EdgeEngine, board: IndexBoard, monkeypatch: pytest.MonkeyPatch
) -> None:
    await fill(engine, vectors(10))
    monkeypatch.setattr(Shard, "begin_copy", lambda _: 1 // 0)

    assert not await engine.optimise("c")

    assert "c" in engine._upkeep._not_before
    assert board.state("c").failure.endswith("by zero")


async def test_a_process_that_dies_leaves_the_shard_as_it_was(
    engine: EdgeEngine, board: IndexBoard, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    await fill(engine, vectors(100))
    monkeypatch.setattr(sys, "executable", shutil.which("false"))

    assert not await engine.optimise("c")

    assert board.state("c").failed == 1
    await engine.upsert("c", [Point(500, vectors(1)[0], {"media_store_id": 500})])
    assert await engine.count("c") == 101
    assert not working_copy(tmp_path / "c").exists()


async def test_a_copy_with_other_points_does_not_take_over(
    engine: EdgeEngine, board: IndexBoard, monkeypatch: pytest.MonkeyPatch
) -> None:
    await fill(engine, vectors(MANY))
    catch_up = Shard.catch_up

    def forgetful(shard: Shard) -> int:
        shard._copy.update(edge.UpdateOperation.delete_points([5]))
        return catch_up(shard)

    monkeypatch.setattr(Shard, "catch_up", forgetful)

    assert not await engine.optimise("c")

    assert board.state("c").failed == 1
    assert await engine.count("c") == MANY


async def test_a_swap_that_fails_is_undone(
    engine: EdgeEngine, board: IndexBoard, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    await fill(engine, vectors(MANY))
    before = await everything(engine)
    put_in_place = edge_copy.put_in_place

    def failing(folder: Path, copy: Path) -> None:
        put_in_place(folder, copy)
        raise OSError(5, "the disk is ill")

    monkeypatch.setattr("handlers.qdrant.edge_shard.put_in_place", failing)

    assert not await engine.optimise("c")

    assert board.state("c").failed == 1
    assert await everything(engine) == before
    await engine.delete("c", [3])
    assert await engine.count("c") == MANY - 1
    assert not (tmp_path / "c.replaced").exists()


async def test_a_full_disk_is_no_place_to_begin(
    engine: EdgeEngine, board: IndexBoard, monkeypatch: pytest.MonkeyPatch
) -> None:
    await fill(engine, vectors(10))
    monkeypatch.setattr("handlers.qdrant.edge_copy.ROOM_BYTES", 1 << 60)

    assert not await engine.optimise("c")

    assert board.state("c").failed == 1


async def test_a_failure_is_not_tried_again_at_once(
    engine: EdgeEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    await fill(engine, vectors(10))
    monkeypatch.setattr("handlers.qdrant.edge_schedule.LEAST_CHANGED", 1)
    engine._upkeep._schedule = Schedule.parse(ALL_DAY)
    assert await engine._upkeep._due() == ["c"]
    monkeypatch.setattr(sys, "executable", shutil.which("false"))

    await engine.optimise("c")

    assert await engine._upkeep._due() == []


async def test_closing_does_not_wait_for_the_end(tmp_path: Path) -> None:
    engine = EdgeEngine(tmp_path)
    await engine.open()
    await fill(engine, vectors(MANY))

    async def work() -> None:
        await engine.optimise("c")

    working = engine._upkeep._task = asyncio.create_task(work())
    await until(lambda: working_copy(tmp_path / "c").exists())

    async with asyncio.timeout(60):
        await engine.close()

    assert working.cancelled()
    engine = EdgeEngine(tmp_path)
    await engine.open()
    await engine.ensure_collection(SPEC)
    assert await engine.count("c") == MANY
    await engine.close()


# ---- a process that is killed at any step

KILLED = """
import asyncio, os, signal, sys
from pathlib import Path
from handlers.qdrant import edge_copy
from handlers.qdrant import edge_shard
from handlers.qdrant import edge_upkeep
from handlers.qdrant.edge_shard import Shard
from tests.integration.test_edge_upkeep import EdgeEngine, MANY, Point, fill, vectors

edge_upkeep.NICENESS = 0
step, folder = sys.argv[1], Path(sys.argv[2])

def die(*_, **__):
    os.kill(os.getpid(), signal.SIGKILL)

def then_die(call):
    def both(*arguments, **options):
        result = call(*arguments, **options)
        die()
        return result
    return both

async def main():
    engine = EdgeEngine(folder)
    await engine.open()
    await fill(engine, vectors(MANY))
    match step:
        case "copying":
            edge_copy.copy_file = then_die(edge_copy.copy_file)
        case "copied":
            edge_upkeep._optimise_apart = die
        case "optimising":
            begin = asyncio.create_subprocess_exec
            async def begin_and_die(*arguments, **options):
                process = await begin(*arguments, **options)
                print("child", process.pid, flush=True)
                await asyncio.sleep(0.7)
                die()
            asyncio.create_subprocess_exec = begin_and_die
        case "optimised":
            Shard.open_copy = then_die(Shard.open_copy)
        case "catching up":
            Shard.catch_up = then_die(Shard.catch_up)
        case "half swapped":
            edge_copy._replaced(folder / "c")
            rename = Path.rename
            Path.rename = then_die(rename)
        case "swapped":
            edge_shard.put_in_place = then_die(edge_shard.put_in_place)
        case "not tidied":
            edge_upkeep.recover = die
    working = asyncio.create_task(engine.optimise("c"))
    n = 0
    while True:
        await engine.upsert("c", [Point(100_000 + n, vectors(1, n)[0], {"media_store_id": n})])
        await engine.delete("c", [n])
        print(n, flush=True)
        n += 1
        await asyncio.sleep(0)

asyncio.run(main())
"""
STEPS = (
    "copying",
    "copied",
    "optimising",
    "optimised",
    "catching up",
    "half swapped",
    "swapped",
    "not tidied",
)


@pytest.mark.parametrize("step", STEPS)
async def test_a_process_killed_at_any_step_loses_nothing_confirmed(
    step: str, tmp_path: Path
) -> None:
    done = await asyncio.to_thread(
        subprocess.run,
        [sys.executable, "-c", KILLED, step, str(tmp_path)],
        capture_output=True,
        text=True,
        cwd=ROOT,
        timeout=120,
        check=False,
    )
    assert done.returncode == -signal.SIGKILL, done.stderr
    said = [line for line in done.stdout.splitlines(keepends=True) if line.endswith("\n")]
    children = [int(line.split()[1]) for line in said if line.startswith("child")]
    confirmed = [int(line) for line in said if not line.startswith("child")]
    if step == "optimising":
        await until(lambda: not Path(f"/proc/{children[0]}").exists())
    if step == "half swapped":
        assert not (tmp_path / "c").exists()

    engine = EdgeEngine(tmp_path)
    await engine.open()
    await engine.ensure_collection(SPEC)
    found = await everything(engine)
    for n in confirmed:
        assert found[100_000 + n] == (n, approximately(vectors(1, n)[0]))
        assert n not in found
    assert set(range(len(confirmed) + 1, MANY)) <= set(found)
    assert not {"c.replaced", working_copy(tmp_path / "c").name} & set(names(tmp_path))
    assert not [name for name in names(tmp_path) if "optimising" in name]
    await engine.upsert("c", [Point(1, vectors(1)[0], {"media_store_id": 1})])
    with pytest.raises(RetryableError):
        await engine.count("another")
    await engine.close()


async def test_a_collection_may_be_dropped_while_it_is_optimised(
    engine: EdgeEngine, tmp_path: Path
) -> None:
    await fill(engine, vectors(MANY))
    working = asyncio.create_task(engine.optimise("c"))
    await until(lambda: working_copy(tmp_path / "c").is_dir())

    await engine.drop_collection("c")

    assert not await working
    assert await engine.collections() == []
    assert names(tmp_path) == ["inferd.lock"]


async def test_a_removal_that_was_cut_short_is_ended_at_the_next_start(tmp_path: Path) -> None:
    (tmp_path / "c.dropped").mkdir()
    (tmp_path / "c.dropped" / "segment").write_bytes(b"x")
    engine = EdgeEngine(tmp_path)

    await engine.open()
    try:
        assert await engine.collections() == []
        assert names(tmp_path) == ["inferd.lock"]
    finally:
        await engine.close()
