"""The embedded engine in a process that is killed: what was confirmed stays, the folder is free."""

import asyncio
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from daemon.errors import ConfigError, RetryableError
from handlers.face_store import QdrantFaceStore
from handlers.image_store import QdrantImageStore
from handlers.qdrant.qdrant_edge import EdgeEngine
from handlers.qdrant.vector_engine import CollectionSpec, Point, SharedEngine
from tests.waiting import until

ROOT = Path(__file__).resolve().parents[2]

WRITER = """
import asyncio, sys
import numpy as np
from pathlib import Path
from handlers.qdrant.qdrant_edge import EdgeEngine
from handlers.image_store import QdrantImageStore
from handlers.qdrant.vector_engine import Point, SharedEngine

async def main():
    engine = SharedEngine(lambda: EdgeEngine(Path(sys.argv[1]), flush_seconds=float(sys.argv[2])))
    async with QdrantImageStore(engine=engine) as store:
        await store.claim("f1", "one")
        for first in range(0, 1_000_000, 16):
            points = [
                Point(n, np.random.default_rng(n).standard_normal(512), {"media_store_id": n})
                for n in range(first, first + 16)
            ]
            await store.upsert(points)
            if first == 32:
                await store.remove([0, 1])
            print(first + 16, flush=True)

asyncio.run(main())
"""


def start(folder: Path, flush_seconds: float) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", WRITER, str(folder), str(flush_seconds)],
        stdout=subprocess.PIPE,
        text=True,
        cwd=ROOT,
    )


def kill_after(process: subprocess.Popen[str], confirmed: int) -> int:
    """Return how many points were confirmed by the time the process was dead."""
    assert process.stdout is not None
    last = 0
    for line in process.stdout:
        last = int(line)
        if last >= confirmed and process.poll() is None:
            process.send_signal(signal.SIGKILL)
            break
    rest, _ = process.communicate(timeout=30)
    complete = [line for line in rest.splitlines(keepends=True) if line.endswith("\n")]
    return int(complete[-1]) if complete else last


@pytest.mark.parametrize("flush_seconds", [60, 0], ids=["log only", "amid flushes"])
async def test_a_killed_process_loses_nothing_confirmed(
    tmp_path: Path, flush_seconds: float
) -> None:
    confirmed = kill_after(start(tmp_path, flush_seconds), 160)

    async with QdrantImageStore(engine=SharedEngine(lambda: EdgeEngine(tmp_path))) as store:
        assert await store.count() >= confirmed - 2
        assert await store.fetch(0) is None
        for number in (2, confirmed // 2, confirmed - 1):
            point = await store.fetch(number)
            assert point is not None
            assert point.payload == {"media_store_id": number}
            expected = np.random.default_rng(number).standard_normal(512)
            assert float(point.vector @ (expected / np.linalg.norm(expected))) > 0.99999
        assert len(await store.find_by_media_store_id(confirmed - 1)) == 1
        with pytest.raises(ConfigError, match="of one, not of two"):
            await store.claim("f2", "two")


async def test_a_second_process_is_told_who_has_the_folder(tmp_path: Path) -> None:
    process = start(tmp_path, 60)
    try:
        assert process.stdout is not None
        await asyncio.to_thread(process.stdout.readline)

        with pytest.raises(ConfigError, match=f"in use by process {process.pid}") as caught:
            await QdrantFaceStore(engine=SharedEngine(lambda: EdgeEngine(tmp_path))).open()

        assert caught.value.code == "vector_store_locked"
        assert "INFERD_DATA_DIR" in caught.value.message
    finally:
        process.kill()
        process.communicate(timeout=30)

    async with QdrantFaceStore(engine=SharedEngine(lambda: EdgeEngine(tmp_path))) as store:
        assert await store.count() == 0


async def test_a_collection_that_was_only_begun_is_made_anew(tmp_path: Path) -> None:
    begun = tmp_path / "image_embeddings.begun" / "segments"
    begun.mkdir(parents=True)

    async with QdrantImageStore(engine=SharedEngine(lambda: EdgeEngine(tmp_path))) as store:
        await store.upsert([Point(1, np.ones(512, np.float32))])
        assert await store.count() == 1

    assert not begun.exists()


async def test_a_damaged_collection_is_named(tmp_path: Path) -> None:
    async with QdrantImageStore(engine=SharedEngine(lambda: EdgeEngine(tmp_path))) as store:
        await store.upsert([Point(1, np.ones(512, np.float32))])
    state = next((tmp_path / "image_embeddings" / "segments").glob("*/segment.json"))
    state.write_text("{")

    with pytest.raises(ConfigError, match="image_embeddings") as caught:
        await QdrantImageStore(engine=SharedEngine(lambda: EdgeEngine(tmp_path))).open()

    assert caught.value.code == "vector_store_unusable"


async def test_points_are_synced_to_the_disk_while_idle(tmp_path: Path) -> None:
    engine = EdgeEngine(tmp_path, flush_seconds=0.01)
    await engine.open()
    await engine.ensure_collection(CollectionSpec("c", 4))
    await engine.upsert("c", [Point(1, np.ones(4, np.float32))])

    await until(lambda: not engine._shards["c"].is_unflushed)

    assert await engine.count("c") == 1
    await engine.close()


async def test_a_flush_that_fails_is_told_and_frees_the_folder(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    # Flushed by its close alone.
    engine = EdgeEngine(tmp_path, flush_seconds=3600)
    await engine.open()
    await engine.ensure_collection(CollectionSpec("c", 4))
    await engine.upsert("c", [Point(1, np.ones(4, np.float32))])
    # As if the disk had gone: qdrant_edge goes on in memory, but it can't flush.
    (tmp_path / "c").rename(tmp_path / "gone")

    assert await engine.count("c") == 1
    await engine.close()

    assert "could not flush c" in caplog.text
    again = EdgeEngine(tmp_path)
    await again.open()
    await again.close()


async def test_a_panic_of_the_engine_is_an_ordinary_error(tmp_path: Path) -> None:
    class PanicException(BaseException):
        """What a panic in Rust becomes in Python: no Exception."""

    def panic() -> None:
        raise PanicException("index out of bounds")

    engine = EdgeEngine(tmp_path)
    await engine.open()
    with pytest.raises(RetryableError, match="index out of bounds") as caught:
        await engine._run(panic)
    assert caught.value.code == "vector_store_error"
    await engine.close()
