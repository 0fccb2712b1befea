"""`backup` and `restore` of a data folder at rest: whole, checked, refused, or left as it was."""

import asyncio
import json
import os
import re
import resource
import shutil
import sqlite3
import sys
import tarfile
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest

from daemon.backup.archive import Archive, Entry
from daemon.backup.archive_writer import ArchiveWriter
from daemon.errors import ConfigError
from daemon.identity import is_dead
from daemon.queue.backend import Connection
from daemon.queue.database import Database
from daemon.queue.migration import released_migrations
from handlers.qdrant.qdrant_edge import EdgeEngine
from handlers.qdrant.vector_engine import CollectionSpec, Point
from handlers.vectors.model_record import MODELS, Part, Record, Records, physical_name, record_ids
from tests.faults.disk import small_disk
from tests.qdrant_snapshots import snapshot_server

ROOT = Path(__file__).resolve().parents[2]
IMAGES = CollectionSpec("image_embeddings", 512, {"media_store_id": "integer"})
INSERT = (
    "INSERT INTO jobs (job_id, task_type, media_store_id, priority, rank, created_at, status,"
    " completed_at, result, worker, lease_until, attempt)"
    " VALUES (?, 'image_embedding', ?, 5, 0, 1, ?, ?, ?, ?, ?, ?)"
)
JOBS = 300
HELD = {7, 8}


async def fill(data: Path) -> None:
    """Make a queue in which two jobs run and the others are completed, and their vectors."""

    async def work(connection: Connection) -> None:
        for number in range(JOBS):
            held = number in HELD
            row = ("processing", None, None, "elsewhere/boot/1/2/3", 2**60, 3)
            done = ("completed", 1, "{}", None, None, 1)
            await connection.execute(INSERT, (f"{number:036}", number, *(row if held else done)))
        await connection.execute(
            "INSERT INTO outbox (owner, topic, payload, created_at) VALUES ('x', 't', 'p', 1)"
        )

    async with Database(data / "queue.db") as database:
        await database.write(work)
    engine = EdgeEngine(data / "vectors" / "edge")
    await engine.open()
    await engine.ensure_collection(IMAGES)
    rows = np.random.default_rng(0).standard_normal((JOBS, 512), dtype=np.float32)
    points = [Point(n, row, {"media_store_id": n}) for n, row in enumerate(rows)]
    await engine.upsert(IMAGES.name, points)
    await engine.close()


async def vectors(data: Path) -> dict[int | str, bytes]:
    engine = EdgeEngine(data / "vectors" / "edge")
    await engine.open()
    try:
        await engine.ensure_collection(IMAGES)
        page = await engine.scroll(IMAGES.name, limit=10 * JOBS)
        return {point.point_id: point.vector.tobytes() for point in page.points}
    finally:
        await engine.close()


def rows(queue: Path, sql: str) -> list[tuple[object, ...]]:
    with closing(sqlite3.connect(queue)) as file:
        return file.execute(sql).fetchall()


async def run(
    data: Path, *words: str, limit: int = 0, env: dict[str, str] | None = None
) -> tuple[int | None, str, str]:
    """Run a command over a data folder; return its exit code, stdout, and what went wrong."""

    def limit_files() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))

    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "daemon", *words),
        cwd=ROOT,
        env={
            "PATH": os.environ["PATH"],
            "HOME": str(data),
            "INFERD_DATA_DIR": str(data),
            "INFERD_WORKER__TASK_TYPES": "image_embedding",
            "INFERD_CLIP__WEIGHTS": "untrained",
            **(env or {}),
        },
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        preexec_fn=limit_files if limit else None,
    )
    async with asyncio.timeout(120):
        out, err = await process.communicate()
    assert b"Traceback" not in err, err.decode()
    # Not how far it was, which is told every few seconds.
    said = [
        line for line in err.decode().splitlines(keepends=True) if not re.search(r"\d/s\b", line)
    ]
    return process.returncode, out.decode(), "".join(said)


def names(folder: Path) -> set[str]:
    return {each.name for each in folder.iterdir()} if folder.exists() else set()


def sizes(folder: Path) -> tuple[int, int]:
    """Return how many bytes files take, and how many they have with their holes."""
    files = [each for each in folder.rglob("*") if each.is_file()]
    used = sum(each.stat().st_blocks for each in files) * 512
    return used, sum(each.stat().st_size for each in files)


def code_of(archive: Path, entries: list[Entry]) -> str:
    """Return with which code an archive is refused; empty where it holds what it should."""
    try:
        with Archive(archive) as found:
            found.check(lambda _: None)
            return "" if found.entries == entries else "other"
    except ConfigError as error:
        return error.code


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Return a data folder and a backup of it, which tests only read."""
    folder = tmp_path_factory.mktemp("backup")
    asyncio.run(fill(folder / "data"))
    code, out, err = asyncio.run(run(folder / "data", "backup", str(folder / "b.tar")))
    assert (code, err) == (0, ""), out
    return folder / "data", folder / "b.tar"


async def test_all_is_restored_and_whoever_held_jobs_holds_them_no_more(
    tmp_path: Path, made: tuple[Path, Path]
) -> None:
    data, archive = made
    before = await vectors(data)

    code, out, err = await run(tmp_path / "new", "restore", str(archive))

    assert (code, err) == (0, "")
    assert out.startswith(f"restored {JOBS} jobs to {tmp_path}/new/queue.db")
    queue = tmp_path / "new" / "queue.db"
    assert await vectors(tmp_path / "new") == before
    assert rows(queue, "PRAGMA integrity_check") == [("ok",)]
    found = "SELECT job_id, status, attempt, worker FROM jobs ORDER BY id"
    expected = [
        (f"{n:036}", *(("pending", 2, None) if n in HELD else ("completed", 1, None)))
        for n in range(JOBS)
    ]
    assert rows(queue, found) == expected
    ((owner,),) = rows(queue, "SELECT owner FROM outbox")
    assert is_dead(str(owner))
    assert names(tmp_path / "new") == {"queue.db", "vectors"}


async def test_tar_reads_it_too(tmp_path: Path, made: tuple[Path, Path]) -> None:
    data, archive = made
    process = await asyncio.create_subprocess_exec("tar", "xf", str(archive), cwd=tmp_path)
    assert await process.wait() == 0

    assert await vectors(tmp_path) == await vectors(data)
    assert json.loads((tmp_path / "manifest.json").read_text())["queue"]["jobs"] == {
        "completed": JOBS - 2,
        "pending": 2,
    }
    # Mostly holes, here as there.
    used, whole = sizes(tmp_path)
    assert used < whole / 2
    assert archive.stat().st_size < whole / 2


@pytest.mark.timeout(600)
async def test_it_is_checked_and_wherever_it_is_damaged_it_is_refused(
    tmp_path: Path, made: tuple[Path, Path]
) -> None:
    _, archive = made
    assert (await run(tmp_path, "backup", "--check", str(archive)))[0] == 0
    whole = archive.read_bytes()
    with Archive(archive) as sound:
        entries = sound.entries
    damaged = tmp_path / "damaged.tar"
    places = np.random.default_rng(1).integers(0, len(whole), 300).tolist()
    codes = []
    for place in places:
        damaged.write_bytes(whole[:place] + bytes([whole[place] ^ 0x10]) + whole[place + 1 :])
        codes.append(code_of(damaged, entries))
    # Only what fills up a block may differ and nobody notice.
    assert set(codes) <= {"", "backup_damaged"}
    assert codes.count("") < len(codes) / 4
    for length in [0, 1, 511, 512, 10_000, *range(len(whole) // 9, len(whole) - 10_240, 99_999)]:
        damaged.write_bytes(whole[:length])
        with pytest.raises(ConfigError) as told:
            Archive(damaged)
        assert told.value.code == "backup_damaged"


async def test_a_damaged_archive_leaves_what_is_there_as_it_is(
    tmp_path: Path, made: tuple[Path, Path]
) -> None:
    data, archive = made
    shutil.copytree(data, tmp_path / "data")
    before = await vectors(data)
    whole = bytearray(archive.read_bytes())
    with tarfile.open(archive) as tar:
        middle = tar.getmember("queue.db").offset_data + 5000
    whole[middle] ^= 1
    (tmp_path / "damaged.tar").write_bytes(whole)

    code, _, err = await run(tmp_path / "data", "restore", str(tmp_path / "damaged.tar"), "--force")

    assert code == 78
    assert "is damaged: queue.db is not what the manifest says" in err
    assert names(tmp_path / "data") == {"queue.db", "vectors"}
    assert await vectors(tmp_path / "data") == before


@pytest.mark.parametrize("name", ["../outside", "/etc/passwd", "a/../../b", "vectors/./x"])
async def test_an_archive_that_reaches_outside_is_refused(tmp_path: Path, name: str) -> None:
    path = tmp_path / "evil.tar"
    with path.open("wb") as file, pytest.raises(ValueError, match="no name"):
        ArchiveWriter(file, lambda _: None).add_bytes(name, b"x")
    with tarfile.open(path, "w") as tar:
        tar.addfile(tarfile.TarInfo(name))

    with pytest.raises(ConfigError, match="which no backup does"):
        Archive(path)


async def test_a_newer_layout_or_schema_is_refused(tmp_path: Path) -> None:
    def write(version: int, schema: int) -> Path:
        path = tmp_path / f"{version}-{schema}.tar"
        with path.open("wb") as file:
            writer = ArchiveWriter(file, lambda _: None)
            writer.add_bytes("settings.json", b'{"settings": {}, "secrets_left_out": []}')
            told = {"queue": {"schema": schema, "jobs": {}}, "version": version}
            writer.close({**told, "vectors": {"engine": None, "collections": []}})
        return path

    for version, schema, word in ((2, 1, "has layout 2"), (1, 9999, "has schema 9999")):
        code, _, err = await run(tmp_path / "new", "restore", str(write(version, schema)))
        assert (code, word in err) == (78, True), err
        assert names(tmp_path / "new") == set()


async def test_nothing_is_replaced_unless_forced_and_then_it_lies_aside(
    tmp_path: Path, made: tuple[Path, Path]
) -> None:
    data, archive = made
    there = tmp_path / "data"
    shutil.copytree(data, there)
    async with Database(there / "queue.db") as database:
        code, _, err = await run(there, "restore", str(archive), "--force")
        assert (code, "has the queue" in err) == (78, True)
        assert await database.read("SELECT 1")
    code, _, err = await run(there, "restore", str(archive))
    assert (code, "would be replaced" in err) == (78, True)
    assert names(there) == {"queue.db", "vectors"}

    code, _, err = await run(there, "restore", str(archive), "--force")

    assert (code, err) == (0, "")
    aside = sorted(names(there) - {"queue.db", "vectors"})
    assert [each.split(".before-restore-")[0] for each in aside] == ["queue.db", "vectors"]
    assert rows(there / aside[0], "SELECT count(*) FROM jobs WHERE status = 'processing'") == [(2,)]
    assert rows(there / "queue.db", "SELECT count(*) FROM jobs WHERE status = 'pending'") == [(2,)]


async def test_vectors_in_use_by_a_process_without_rest_are_refused(
    tmp_path: Path, made: tuple[Path, Path]
) -> None:
    data, archive = made
    shutil.copytree(data, tmp_path / "data")
    engine = EdgeEngine(tmp_path / "data" / "vectors" / "edge")
    await engine.open()
    try:
        code, _, err = await run(
            *(tmp_path / "data", "backup", str(tmp_path / "b.tar")),
            env={"INFERD_CLIENT__INFERENCE_URL": "http://127.0.0.1:9"},
        )
        assert (code, "start it with" in err) == (3, True)
        code, _, err = await run(tmp_path / "data", "restore", str(archive), "--force")
        assert (code, "in use by process" in err) == (78, True)
    finally:
        await engine.close()
    assert names(tmp_path) == {"data"}


async def test_a_folder_with_nothing_in_it_is_told(tmp_path: Path) -> None:
    code, _, err = await run(tmp_path / "other", "backup", str(tmp_path))
    assert (code, "INFERD_DATA_DIR names the daemon's folder" in err) == (78, True), err

    async with Database(tmp_path / "data" / "queue.db"):
        pass
    code, _, err = await run(tmp_path / "data", "backup", str(tmp_path))
    assert (code, "has no job and no vector yet" in err) == (0, True), err


async def test_a_full_disk_is_noticed_before_and_told_amid_it(
    tmp_path: Path, made: tuple[Path, Path]
) -> None:
    data, archive = made
    code, _, err = await run(data, "backup", str(tmp_path / "b.tar"), limit=100_000)
    assert (code, "cannot be" in err) == (78, True), err
    assert names(tmp_path) == set()
    code, _, err = await run(tmp_path / "new", "restore", str(archive), limit=100_000)
    assert (code, "cannot be" in err) == (78, True), err
    assert names(tmp_path / "new") == set()
    with small_disk(tmp_path / "small", "1m") as disk:
        code, _, err = await run(data, "backup", str(disk))
        assert (code, "no room under" in err) == (78, True), err
        code, _, err = await run(disk / "new", "restore", str(archive))
        assert (code, "no room under" in err) == (78, True), err
        assert not [each for each in disk.rglob("*") if each.is_file()]


async def test_a_servers_collections_come_as_its_snapshots_and_go_back(tmp_path: Path) -> None:
    kept = {"image_embeddings": os.urandom(3_000_000), "inferd_models": b"models"}
    secret = "q-k3y-of-the-server"
    env = {"INFERD_QDRANT__API_KEY": secret}
    async with snapshot_server(**kept, somebody_elses=b"theirs") as server:
        url = {"INFERD_QDRANT__URL": server.url, **env}
        code, out, err = await run(tmp_path, "backup", str(tmp_path / "b.tar"), env=url)
        assert (code, err) == (0, ""), out
        assert "left out, as they are secret: INFERD_QDRANT__API_KEY" in out
        assert server.snapshots == {}
        assert server.keys == {secret}
    assert secret.encode() not in (tmp_path / "b.tar").read_bytes()
    async with snapshot_server() as other:
        url = {"INFERD_QDRANT__URL": other.url, **env}
        code, out, err = await run(tmp_path / "new", "restore", str(tmp_path / "b.tar"), env=url)
        assert (code, err) == (0, ""), out
        assert other.collections == kept

        other.collections["image_embeddings"] = b"newer"
        code, _, err = await run(tmp_path / "new", "restore", str(tmp_path / "b.tar"), env=url)
        assert (code, "the server has" in err) == (78, True)
        assert other.collections["image_embeddings"] == b"newer"
    code, _, err = await run(tmp_path / "new", "restore", str(tmp_path / "b.tar"))
    assert (code, "set INFERD_QDRANT__URL" in err) == (78, True)


async def test_models_come_only_when_asked_for_and_their_checksums_always(tmp_path: Path) -> None:
    await fill(tmp_path / "data")
    models = tmp_path / "models"
    models.mkdir()
    (models / "my own clip.pt").write_bytes(b"weights" * 1000)
    env = {
        "INFERD_CLIP__WEIGHTS": str(models / "my own clip.pt"),
        "INFERD_MODELS_DIR": str(models),
    }
    for words in ((), ("--with-models",)):
        archive = tmp_path / f"{len(words)}.tar"
        code, out, err = await run(tmp_path / "data", "backup", str(archive), *words, env=env)
        assert (code, err) == (0, ""), out
        with Archive(archive) as found:
            (model,) = found.manifest["models"]
            assert len(model["sha256"]) == 64
            assert found.names_below("models") == (["models/my own clip.pt"] if words else [])
    await run(tmp_path, "restore", str(tmp_path / "1.tar"), "--to", str(tmp_path / "new"), env=env)
    restored = tmp_path / "new" / "models" / "my own clip.pt"
    assert restored.read_bytes() == b"weights" * 1000


def record_of_files(active: Path, shadow: Path, previous: Path) -> Record:
    """Return a record amid a change, each part of another file."""
    parts = [
        Part(
            physical_name(IMAGES.name, path.name),
            path.name,
            path.name,
            spec={"model": "ViT-B-32-quickgelu", "weights": str(path)},
        )
        for path in (active, shadow, previous)
    ]
    return Record(IMAGES.name, *parts)


async def test_models_of_the_vectors_come_too_and_what_lacks_is_told(tmp_path: Path) -> None:
    data, models = tmp_path / "data", tmp_path / "models"
    await fill(data)
    models.mkdir()
    files = [models / "configured.pt", tmp_path / "active.pt", models / "shadow.pt"]
    for path in files:
        path.write_bytes(path.name.encode() * 1000)
    record = record_of_files(files[1], files[2], tmp_path / "previous.pt")
    engine = EdgeEngine(data / "vectors" / "edge")
    await engine.open()
    await engine.ensure_collection(MODELS)
    await Records(engine, IMAGES.name).write(record)
    await engine.close()
    env = {"INFERD_CLIP__WEIGHTS": "configured.pt", "INFERD_MODELS_DIR": str(models)}

    code, out, err = await run(data, "backup", str(tmp_path / "b.tar"), "--with-models", env=env)

    assert (code, err) == (0, ""), out
    lacks = f"the model {tmp_path / 'previous.pt'} (image_embeddings: previous)"
    assert f"left out, as its file is not here: {lacks}" in out
    with Archive(tmp_path / "b.tar") as archive:
        told = archive.manifest["models"]
        kept = archive.names_below("models")
    assert [(each["used_by"], each["is_included"]) for each in told] == [
        (["settings"], True),
        (["image_embeddings: active"], True),
        (["image_embeddings: shadow"], True),
        (["image_embeddings: previous"], False),
    ]
    assert {name.rpartition("-")[2].rpartition("/")[2] for name in kept} == {
        path.name for path in files
    }
    for path in files:
        path.unlink()
    new = tmp_path / "new"
    code, out, _ = await run(data, "restore", str(tmp_path / "b.tar"), "--to", str(new), env=env)
    assert code == 0, out
    (active,) = (new / "models").glob("*-active.pt")
    assert active.read_bytes() == b"active.pt" * 1000
    assert f"put {active} where image_embeddings: active looks for it: {files[1]}" in out
    assert f"looks for it: {files[2]}" in out
    assert "configured.pt" not in out


async def test_a_models_folder_that_may_not_be_entered_keeps_nobody_from_it(
    tmp_path: Path,
) -> None:
    data, deep, odd = tmp_path / "data", tmp_path / "deep", tmp_path / "odd"
    await fill(data)
    deep.mkdir()
    for name in ("active.pt", "shadow.pt"):
        (deep / name).write_bytes(name.encode() * 1000)
    # An error but "not there", as of another user's folder; root may enter those.
    odd.symlink_to("x" * 300)
    record = record_of_files(deep / "active.pt", deep / "shadow.pt", odd / "previous.pt")
    engine = EdgeEngine(data / "vectors" / "edge")
    await engine.open()
    await engine.ensure_collection(MODELS)
    await Records(engine, IMAGES.name).write(record)
    await engine.close()

    code, out, err = await run(data, "backup", str(tmp_path / "b.tar"), "--with-models")
    assert (code, err) == (0, ""), out
    assert f"left out, as its file is not here: the model {odd / 'previous.pt'}" in out

    shutil.rmtree(deep)
    deep.symlink_to("x" * 300)
    new = tmp_path / "new"
    code, out, err = await run(data, "restore", str(tmp_path / "b.tar"), "--to", str(new))
    assert code == 0, err
    assert f"looks for it: {deep / 'active.pt'}" in out


async def test_models_of_a_servers_vectors_come_too(tmp_path: Path) -> None:
    paths = [tmp_path / f"{name}.pt" for name in ("active", "shadow", "previous")]
    for path in paths:
        path.write_bytes(path.name.encode())
    record = record_of_files(*paths)
    async with snapshot_server(image_embeddings=b"i", inferd_models=b"m") as server:
        server.points[record_ids(IMAGES.name)[1]] = {
            name: part.to_payload()
            for name, part in zip(("active", "shadow", "previous"), record.parts, strict=True)
        }
        env = {"INFERD_QDRANT__URL": server.url}
        words = ("backup", str(tmp_path / "b.tar"), "--with-models")
        code, out, err = await run(tmp_path, *words, env=env)

    assert (code, err) == (0, ""), out
    with Archive(tmp_path / "b.tar") as archive:
        assert {name.rpartition("-")[2] for name in archive.names_below("models")} == {
            path.name for path in paths
        }


async def test_an_older_schema_is_restored_as_it_was(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    async with Database(tmp_path / "data" / "queue.db", released_migrations()[:2]):
        pass
    assert (await run(tmp_path / "data", "backup", str(tmp_path / "b.tar")))[0] == 0

    assert (await run(tmp_path / "new", "restore", str(tmp_path / "b.tar")))[0] == 0

    assert rows(tmp_path / "new/queue.db", "SELECT max(version) FROM schema_migrations") == [(2,)]
    code, out, _ = await run(tmp_path / "new", "migrate")
    assert (code, out.count("applied now")) == (0, len(released_migrations()) - 2)


async def test_a_servers_models_names_come_first_and_go_back_last(tmp_path: Path) -> None:
    kept = {"face_embeddings": b"f", "image_embeddings": b"i", "inferd_models": b"m"}
    async with snapshot_server(**kept) as server:
        env = {"INFERD_QDRANT__URL": server.url}
        code, out, err = await run(tmp_path, "backup", str(tmp_path / "b.tar"), env=env)
        assert (code, err) == (0, ""), out
        made = [each.split("/")[2] for each in server.asked if each.endswith("/snapshots")]
    assert made == ["inferd_models", "face_embeddings", "image_embeddings"]

    async with snapshot_server() as other:
        env = {"INFERD_QDRANT__URL": other.url}
        await run(tmp_path / "new", "restore", str(tmp_path / "b.tar"), env=env)
        back = [each.split("/")[2] for each in other.asked if each.startswith("POST")]
    assert back == ["face_embeddings", "image_embeddings", "inferd_models"]


async def test_what_is_removed_while_a_server_makes_its_snapshots_goes_from_the_queues_copy(
    tmp_path: Path,
) -> None:
    class Removing(dict[str, bytes]):
        def __setitem__(self, name: str, data: bytes) -> None:
            if name.startswith("image_embeddings"):
                with closing(sqlite3.connect(tmp_path / "queue.db")) as live:
                    live.execute("DELETE FROM jobs WHERE media_store_id = 5")
                    live.commit()
            super().__setitem__(name, data)

    await fill(tmp_path)
    async with snapshot_server(image_embeddings=b"i", inferd_models=b"m") as server:
        server.snapshots = Removing()
        env = {"INFERD_QDRANT__URL": server.url}
        code, out, err = await run(tmp_path, "backup", str(tmp_path / "b.tar"), env=env)
        assert (code, err) == (0, ""), out

    with Archive(tmp_path / "b.tar") as archive:
        archive.extract("queue.db", tmp_path / "copy.db", lambda _: None)
    assert rows(tmp_path / "copy.db", "SELECT 1 FROM jobs WHERE media_store_id = 5") == []


async def test_models_that_cannot_be_written_leave_all_as_it_is(tmp_path: Path) -> None:
    data, weights = tmp_path / "data", tmp_path / "clip.pt"
    await fill(data)
    weights.write_bytes(b"weights" * 1000)
    env = {"INFERD_CLIP__WEIGHTS": str(weights)}
    archive = str(tmp_path / "b.tar")
    code, out, err = await run(data, "backup", archive, "--with-models", env=env)
    assert (code, err) == (0, ""), out
    (tmp_path / "no-folder").write_bytes(b"")
    env["INFERD_MODELS_DIR"] = str(tmp_path / "no-folder")
    before = await vectors(data)

    code, _, err = await run(data, "restore", archive, "--force", env=env)

    assert (code, "cannot be restored" in err) == (78, True)
    assert len(rows(data / "queue.db", "SELECT 1 FROM jobs")) == JOBS
    assert await vectors(data) == before
    assert not [each for each in names(data) if "before-restore" in each]
