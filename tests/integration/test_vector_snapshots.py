"""Copies of embedded vectors as of one moment, while they are written to and optimised."""

import asyncio
import fcntl
import os
import threading
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric import ec

from daemon.errors import DependencyDownError, NotFoundError
from daemon.settings import AuthSettings
from handlers.qdrant.edge_copy import copy_shard
from handlers.qdrant.qdrant_edge import EdgeEngine
from handlers.qdrant.qdrant_local import LocalEngine
from handlers.qdrant.vector_engine import CollectionSpec, Point, SharedEngine, VectorEngine
from handlers.vectors import vector_snapshots
from handlers.vectors.engine_choice import embedded_engine, server_engine
from handlers.vectors.vector_snapshots import READER_LOCK, Holding, VectorSnapshots, collections_of
from tests.integration.rest_rig import rest
from tests.integration.test_http_auth import Issuer, bearer, public_pem
from tests.waiting import until

FIRST, SECOND = CollectionSpec("first", 8), CollectionSpec("second", 8)
LONG_AGO = time.time() - 3600


def point(number: int) -> Point:
    return Point(number, np.ones(8, np.float32), {"number": number})


def spoil(folder: Path) -> None:
    os.utime(folder, (LONG_AGO, LONG_AGO))


def names(folder: Path) -> list[str]:
    return sorted(each.name for each in folder.iterdir())


async def ids(engine: VectorEngine, spec: CollectionSpec) -> set[int | str]:
    await engine.ensure_collection(spec)
    page = await engine.scroll(spec.name, limit=100_000)
    return {each.point_id for each in page.points}


@pytest.fixture(params=["edge", "local"])
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
async def shared(tmp_path: Path, kind: str) -> AsyncIterator[SharedEngine]:
    (tmp_path / "v").mkdir()
    shared = embedded_engine(tmp_path / "v", kind)  # type: ignore[arg-type]
    await shared.open()
    yield shared
    await shared.close()


async def test_no_collection_is_made_amid_a_copy(shared: SharedEngine) -> None:
    engine = await shared.open()
    await engine.ensure_collection(FIRST)
    began, may_end = threading.Event(), threading.Event()
    seen: list[list[str]] = []

    def copy(folder: Path) -> None:
        began.set()
        may_end.wait()
        seen.append(collections_of(folder))

    assert isinstance(engine, Holding)
    copying = asyncio.create_task(engine.while_still(copy))
    await until(began.is_set)
    making = asyncio.create_task(engine.ensure_collection(SECOND))
    await asyncio.wait([making], timeout=0.2)
    may_end.set()
    await asyncio.gather(copying, making)

    assert seen == [["first"]]
    assert await engine.collections() == ["first", "second"]
    await shared.close()


async def test_a_copy_is_of_one_moment_and_writes_go_on_afterwards(
    tmp_path: Path, shared: SharedEngine, kind: str
) -> None:
    engine = await shared.open()
    written = 0
    is_over = asyncio.Event()

    async def write() -> None:
        nonlocal written
        while not is_over.is_set():
            # The second never has what the first has not.
            await engine.upsert(FIRST.name, [point(written)])
            await engine.upsert(SECOND.name, [point(written)])
            written += 1

    for spec in (FIRST, SECOND):
        await engine.ensure_collection(spec)
    writing = asyncio.create_task(write())
    await until(lambda: written >= 50)
    before = written
    made = await VectorSnapshots(shared).make_snapshot()
    after = written
    is_over.set()
    await writing
    await shared.close()

    assert made["engine"] == kind
    assert made["collections"] == ["first", "second"]
    place = tmp_path / "v" / "snapshots" / made["snapshot_id"]
    assert made["folder"] == str(place)
    make: Callable[[Path], VectorEngine] = EdgeEngine if kind == "edge" else LocalEngine
    copy = make(place / kind)
    await copy.open()
    first, second = await ids(copy, FIRST), await ids(copy, SECOND)
    await copy.close()
    assert second <= first
    assert len(first) - len(second) <= 1
    assert before <= len(first) <= after + 1
    assert written > before


async def test_a_copy_and_an_optimisation_wait_for_each_other(tmp_path: Path) -> None:
    (tmp_path / "v").mkdir()
    shared = embedded_engine(tmp_path / "v", "edge")
    engine = await shared.open()
    assert isinstance(engine, EdgeEngine)
    rows = np.random.default_rng(0).standard_normal((3000, 512), dtype=np.float32)
    spec = CollectionSpec("wide", 512)
    await engine.ensure_collection(spec)
    await engine.upsert("wide", [Point(n, row) for n, row in enumerate(rows)])
    snapshots = VectorSnapshots(shared)

    _, *made = await asyncio.gather(
        engine.optimise("wide"), snapshots.make_snapshot(), snapshots.make_snapshot()
    )

    for each in made:
        copy = EdgeEngine(Path(str(each["folder"])) / "edge")
        await copy.open()
        assert len(await ids(copy, spec)) == 3000
        await copy.close()
    assert await engine.count("wide") == 3000
    await shared.close()


async def test_a_copy_that_nobody_reads_is_removed_before_the_next(
    tmp_path: Path, shared: SharedEngine
) -> None:
    engine = await shared.open()
    await engine.ensure_collection(FIRST)
    snapshots = VectorSnapshots(shared)
    parent = tmp_path / "v" / "snapshots"
    held, left = [str((await snapshots.make_snapshot())["snapshot_id"]) for _ in range(2)]
    for each in (held, left):
        spoil(parent / each)
    with (parent / held / READER_LOCK).open("a") as reader:
        fcntl.flock(reader, fcntl.LOCK_SH)

        new = str((await snapshots.make_snapshot())["snapshot_id"])

        assert names(parent) == sorted([held, new])
        assert await snapshots.remove_snapshot(new)
        assert not await snapshots.remove_snapshot(new)
    await snapshots.sweep()
    assert names(parent) == []
    await shared.close()


@pytest.mark.parametrize("word", ["", "..", "../edge", "x" * 32, "edge"])
async def test_only_copies_are_removed(
    shared: SharedEngine, tmp_path: Path, word: str, kind: str
) -> None:
    await (await shared.open()).ensure_collection(FIRST)

    assert not await VectorSnapshots(shared).remove_snapshot(word)
    assert kind in names(tmp_path / "v")
    await shared.close()


async def test_without_room_nothing_is_left_and_writes_go_on(
    tmp_path: Path, shared: SharedEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = await shared.open()
    await engine.ensure_collection(FIRST)
    monkeypatch.setattr(vector_snapshots, "ROOM_BYTES", 2**60)

    with pytest.raises(DependencyDownError, match="no room to copy the vectors"):
        await VectorSnapshots(shared).make_snapshot()

    assert names(tmp_path / "v" / "snapshots") == []
    await engine.upsert(FIRST.name, [point(1)])
    await shared.close()


async def test_a_servers_vectors_are_not_copied() -> None:
    with pytest.raises(NotFoundError) as told:
        await VectorSnapshots(server_engine("http://127.0.0.1:9")).make_snapshot()

    assert told.value.code == "vectors_not_embedded"


async def test_only_an_admin_has_vectors_copied(tmp_path: Path) -> None:
    (tmp_path / "v").mkdir()
    shared = embedded_engine(tmp_path / "v", "edge")
    issuer = Issuer(ec.generate_private_key(ec.SECP256R1()))
    key = tmp_path / "issuer.pem"
    write(key, public_pem(issuer.key))
    auth = AuthSettings(public_key_path=key)
    async with rest(tmp_path / "q.db", auth=auth, snapshots=VectorSnapshots(shared)) as rig:
        for headers, status in (
            ({}, 401),
            (bearer(issuer.token()), 403),
            (bearer(issuer.token(is_admin=True, permissions=[])), 201),
        ):
            answer = await rig.ask("POST", "/vectors/snapshots", headers=headers)
            assert answer.status == status
        path = f"/vectors/snapshots/{answer.body['snapshot_id']}"
        assert (await rig.ask("DELETE", path, headers=bearer(issuer.token()))).status == 403
        assert (await rig.ask("DELETE", path, headers=headers)).body == {"removed": True}


def write(path: Path, data: bytes) -> None:
    path.write_bytes(data)


def is_there(folder: str) -> bool:
    return Path(folder).is_dir()


async def test_a_copy_that_took_long_is_still_there_for_its_reader(
    tmp_path: Path, shared: SharedEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = await shared.open()
    await engine.ensure_collection(FIRST)

    def slow(folder: Path, target: Path, **words: Any) -> None:
        copy_shard(folder, target, **words)
        # As if it had begun long ago.
        os.utime(target.parent.parent, (1, 1))

    monkeypatch.setattr(vector_snapshots, "copy_shard", slow)
    snapshots = VectorSnapshots(shared)
    made = await snapshots.make_snapshot()
    await snapshots.sweep()
    assert is_there(str(made["folder"]))
    await shared.close()
