"""`migrate vectors` between real engines and a server's HTTP: all there, once, and of one model."""

import asyncio
import os
import re
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from uuid import UUID

import numpy as np
import pytest

from daemon.cli.migrate_vectors import _engine
from daemon.settings import Settings
from handlers.inference import Vector
from handlers.qdrant.qdrant_edge import EdgeEngine
from handlers.qdrant.qdrant_local import LocalEngine
from handlers.qdrant.qdrant_server import ServerEngine
from handlers.qdrant.vector_engine import CollectionSpec, Point, PointId, VectorEngine
from handlers.qdrant.vector_points import model_point_id, unit_vector
from handlers.vector_copying import LAST_BITS
from handlers.vectors.model_record import MODELS, Part, Record, Records
from tests.qdrant_http import qdrant_server
from tests.waiting import until

pytestmark = pytest.mark.filterwarnings("ignore:Payload indexes have no effect")

ROOT = Path(__file__).resolve().parents[2]
IMAGES = CollectionSpec("image_embeddings", 512)
FACES = CollectionSpec("face_embeddings", 512)
# A collection that got its name by a change of the model, of another dimension.
CHANGED = CollectionSpec("image_embeddings.0123456789ab", 256)
MANY = 600


def claim(collection: str, fingerprint: str = "clip-a") -> Point:
    payload = {"collection": collection, "fingerprint": fingerprint, "model": fingerprint.upper()}
    return Point(model_point_id(collection), np.ones(1, np.float32), payload)


def points(count: int, dimension: int = 512, *, are_faces: bool = False) -> list[Point]:
    random = np.random.default_rng(dimension + are_faces)
    rows = random.standard_normal((count, dimension), dtype=np.float32)
    return [
        Point(
            str(UUID(int=n * 7919)) if are_faces else n,
            unit_vector(row, dimension, "x"),
            {"media_store_id": n, "job_id": str(UUID(int=n)), "é": [1, {"deep": None}], "n": 0.1},
        )
        for n, row in enumerate(rows)
    ]


async def fill(engine: VectorEngine, count: int = MANY, fingerprint: str = "clip-a") -> None:
    await engine.ensure_collection(MODELS)
    for spec, made in (
        (IMAGES, points(count)),
        (FACES, points(count // 3, are_faces=True)),
        (CHANGED, points(count // 5, 256)),
    ):
        await engine.ensure_collection(spec)
        await engine.upsert(MODELS.name, [claim(spec.name, fingerprint)])
        for start in range(0, len(made), 128):
            await engine.upsert(spec.name, made[start : start + 128])


async def contents(
    engine: VectorEngine, spec: CollectionSpec
) -> dict[PointId, tuple[Vector, object]]:
    await engine.ensure_collection(spec)
    found: dict[PointId, tuple[Vector, object]] = {}
    next_id = None
    while True:
        page = await engine.scroll(spec.name, from_id=next_id)
        found.update({p.point_id: (p.vector, p.payload) for p in page.points})
        if (next_id := page.next_id) is None:
            return found


def same(
    one: dict[str, dict[PointId, tuple[bytes, object]]],
    other: dict[str, dict[PointId, tuple[bytes, object]]],
    bits: float,
) -> bool:
    """Whether both have the same points, numbers in vectors differing by `bits` at most."""
    return one.keys() == other.keys() and all(
        one[name].keys() == other[name].keys()
        and all(
            payload == other[name][key][1]
            and np.allclose(
                np.frombuffer(raw, np.float32),
                np.frombuffer(other[name][key][0], np.float32),
                rtol=0,
                atol=bits,
            )
            for key, (raw, payload) in one[name].items()
        )
        for name in one
    )


async def everything(engine: VectorEngine) -> dict[str, dict[PointId, tuple[bytes, object]]]:
    """Return the bytes of all vectors, and their payloads."""
    return {
        spec.name: {
            point_id: (vector.tobytes(), payload)
            for point_id, (vector, payload) in (await contents(engine, spec)).items()
        }
        for spec in (IMAGES, FACES, CHANGED, MODELS)
    }


@asynccontextmanager
async def opened(engine: VectorEngine) -> AsyncIterator[VectorEngine]:
    await engine.open()
    try:
        yield engine
    finally:
        await engine.close()


def embedded(folder: Path, kind: str) -> VectorEngine:
    place = folder / "vectors" / kind
    return EdgeEngine(place) if kind == "edge" else LocalEngine(place)


async def start(data: Path, *words: str) -> asyncio.subprocess.Process:
    return await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "daemon", "migrate", "vectors", *words),
        cwd=ROOT,
        env={"PATH": os.environ["PATH"], "HOME": str(data), "INFERD_DATA_DIR": str(data)},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )


async def migrate(data: Path, *words: str) -> tuple[int | None, str, str]:
    """Run the command; return its exit code, stdout, and stderr but for how far it was."""
    process = await start(data, *words)
    async with asyncio.timeout(120):
        out, err = await process.communicate()
    assert b"Traceback" not in err, err.decode()
    said = [
        line for line in err.decode().splitlines(keepends=True) if not re.search(r"\d/s\b", line)
    ]
    return process.returncode, out.decode(), "".join(said)


@pytest.mark.parametrize("kind", ["edge", "local"])
async def test_to_a_server_and_back_nothing_is_lost_or_changed(tmp_path: Path, kind: str) -> None:
    # The stand-in is local mode, which makes each vector's length 1 anew: edge's last bits move.
    bits = 0 if kind == "local" else LAST_BITS
    async with opened(embedded(tmp_path / "a", kind)) as engine:
        await fill(engine)
        before = await everything(engine)
    async with qdrant_server() as (url, _, _):
        code, out, err = await migrate(tmp_path / "a", "--to", url)
        assert (code, err) == (0, "")
        assert f"INFERD_QDRANT__URL={url}" in out
        assert not (tmp_path / "a/migrate-vectors.json").exists()
        async with opened(ServerEngine(url)) as server:
            assert same(await everything(server), before, bits)

        code, out, _ = await migrate(tmp_path, "--from", url, "--to", str(tmp_path / "b"))
        assert code == 0, out

    async with opened(embedded(tmp_path / "b", "edge")) as engine:
        assert same(await everything(engine), before, bits)
    assert "DIFFERENT" not in out


async def test_every_bit_is_kept_and_a_second_time_changes_nothing(tmp_path: Path) -> None:
    async with opened(embedded(tmp_path / "a", "edge")) as engine:
        await fill(engine, 100)
        before = await everything(engine)
    for _ in range(2):
        code, _, err = await migrate(tmp_path / "a", "--to", str(tmp_path / "b"))
        assert (code, err) == (0, "")

    async with opened(embedded(tmp_path / "b", "edge")) as engine:
        assert await everything(engine) == before


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT])
async def test_what_was_cut_short_goes_on_where_it_was(tmp_path: Path, how: signal.Signals) -> None:
    async with opened(embedded(tmp_path / "a", "edge")) as engine:
        await fill(engine, 256 * 10)
        before = await everything(engine)
    async with qdrant_server() as (url, client, _):
        process = await start(tmp_path / "a", "--to", url)
        note = tmp_path / "a/migrate-vectors.json"
        await until(lambda: note.exists() and b'"image_embeddings": 1024' in note.read_bytes(), 90)
        process.send_signal(how)
        _, said = await process.communicate()
        assert process.returncode == (-9 if how is signal.SIGKILL else 130), said.decode()
        # No daemon takes what is there for whole: nobody claimed it.
        assert not await client.collection_exists(MODELS.name)
        first = points(1)[0]
        spoiled = Point(first.point_id, first.vector, {"was": "not copied again"})
        async with opened(ServerEngine(url)) as server:
            await server.upsert(IMAGES.name, [spoiled])

        # It goes on behind the cursor, so the comparison alone can tell, and all is copied anew.
        code, out, _ = await migrate(tmp_path / "a", "--to", url)
        assert (code, "1 changed" in out, "such as 0)" in out) == (1, True, True), out
        code, out, err = await migrate(tmp_path / "a", "--to", url)
        assert (code, err) == (0, ""), out
        async with opened(ServerEngine(url)) as server:
            assert same(await everything(server), before, LAST_BITS)


async def test_another_models_target_is_refused_and_left_alone(tmp_path: Path) -> None:
    for name, fingerprint in (("a", "clip-a"), ("b", "clip-b")):
        async with opened(embedded(tmp_path / name, "edge")) as engine:
            await fill(engine, 20, fingerprint)
    async with opened(embedded(tmp_path / "b", "edge")) as engine:
        before = await everything(engine)

    code, _, err = await migrate(tmp_path / "a", "--to", str(tmp_path / "b"))

    assert code == 78
    assert "holds vectors of CLIP-B, and not of CLIP-A" in err
    async with opened(embedded(tmp_path / "b", "edge")) as engine:
        assert await everything(engine) == before


async def test_points_that_nobody_claimed_are_refused_unless_forced(tmp_path: Path) -> None:
    async with opened(embedded(tmp_path / "a", "edge")) as engine:
        await fill(engine, 20)
    async with opened(embedded(tmp_path / "b", "edge")) as engine:
        await engine.ensure_collection(IMAGES)
        await engine.upsert(IMAGES.name, points(3))

    code, _, err = await migrate(tmp_path / "a", "--to", str(tmp_path / "b"))
    assert (code, "nobody said of which model" in err) == (78, True)
    code, _, err = await migrate(tmp_path / "a", "--to", str(tmp_path / "b"), "--force")
    assert (code, err) == (0, "")


async def test_a_target_that_has_more_is_told(tmp_path: Path) -> None:
    for name, count in (("a", 20), ("b", 30)):
        async with opened(embedded(tmp_path / name, "edge")) as engine:
            await fill(engine, count)

    code, out, err = await migrate(tmp_path / "a", "--to", str(tmp_path / "b"))

    assert code == 1
    assert "image_embeddings: DIFFERENT (20 compared, 10 surplus, such as 20, 21, 22)" in out
    assert "it removes nothing there" in err


async def test_a_source_in_use_is_refused(tmp_path: Path) -> None:
    async with opened(embedded(tmp_path / "a", "edge")) as engine:
        await fill(engine, 20)

        code, _, err = await migrate(tmp_path / "a", "--to", str(tmp_path / "b"))

    assert code == 78
    assert "in use by process" in err


async def test_a_server_that_is_away_is_told_and_asked_again_later(tmp_path: Path) -> None:
    async with opened(embedded(tmp_path / "a", "edge")) as engine:
        await fill(engine, 20)

    code, _, err = await migrate(tmp_path / "a", "--to", "http://127.0.0.1:9")

    assert code == 3
    assert "can't be reached" in err


@pytest.mark.parametrize("to", ["ftp://x", "http://me:pw@host:1", "http://"])
async def test_what_is_no_place_is_a_usage_error(tmp_path: Path, to: str) -> None:
    code, _, err = await migrate(tmp_path, "--to", to)

    assert code == 2
    assert "pw" not in err.replace("usage", "").replace("http://me:pw@host:1", "")


async def test_a_target_whose_vectors_would_go_out_of_sight_is_refused(tmp_path: Path) -> None:
    async with opened(embedded(tmp_path / "a", "edge")) as engine:
        for spec in (MODELS, CHANGED):
            await engine.ensure_collection(spec)
        await engine.upsert(CHANGED.name, points(5, 256))
        active = Part(CHANGED.name, "clip-x", "X", 256, {"model": "X", "weights": "x"})
        await Records(engine, IMAGES.name).write(Record(IMAGES.name, active))
    async with opened(embedded(tmp_path / "b", "edge")) as engine:
        for spec in (MODELS, IMAGES):
            await engine.ensure_collection(spec)
        await engine.upsert(MODELS.name, [claim(IMAGES.name)])
        await engine.upsert(IMAGES.name, points(5))

    for source, target in ("ab", "ba"):
        code, _, err = await migrate(tmp_path / source, "--to", str(tmp_path / target))
        assert (code, "nobody would find them" in err) == (78, True), err


async def test_a_target_server_is_laid_out_as_the_settings_say() -> None:
    settings = Settings.from_env({"INFERD_QDRANT__SHARD_NUMBER": "6"})
    shared = _engine("http://qdrant:6333", settings)
    engine = await shared.open()
    assert isinstance(engine, ServerEngine)
    assert engine._layout.shards == 6
    await shared.close()
