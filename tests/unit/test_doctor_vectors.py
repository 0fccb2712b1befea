"""What doctor says of vectors that nobody has open, and what its look at them costs."""

import asyncio
import re
from pathlib import Path

import numpy as np
import pytest

from daemon.doctor import vectors
from daemon.doctor.facts import Facts, begin
from daemon.doctor.qdrant import Claim, Wanted
from daemon.settings import Settings
from handlers.image_store import QdrantImageStore
from handlers.qdrant.vector_engine import Point

MOST_BYTES = 10_000_000
Found = dict[str, tuple[int, Claim | None]]


def on_disk(folder: Path) -> int:
    return sum(each.stat().st_blocks * 512 for each in folder.rglob("*") if each.is_file())


def test_holes_in_the_files_of_vectors_are_neither_counted_nor_filled(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asyncio.run(_store_one(tmp_path))
    # Else the test could not see a hole.
    assert sum(each.stat().st_size for each in tmp_path.rglob("*")) > 5 * MOST_BYTES
    copied: list[int] = []

    async def read(copy: Path, _facts: Facts, _wanted: dict[str, Wanted]) -> Found:
        copied.append(on_disk(copy))
        return {}

    monkeypatch.setattr(vectors, "_read", read)

    (found,) = vectors._embedded(tmp_path, {}, begin(Settings.from_env({}), is_quick=False))

    told = re.search(r"([\d.]+) MB, nobody has it open", found.found)
    assert told
    assert 0 < float(told[1]) < MOST_BYTES / 1e6
    assert 0 < copied[0] < MOST_BYTES


def test_what_was_looked_at_can_be_read(tmp_path: Path) -> None:
    asyncio.run(_store_one(tmp_path))
    wanted = {QdrantImageStore.collection: Wanted(None, 512)}

    _, found = vectors._embedded(tmp_path, wanted, begin(Settings.from_env({}), is_quick=False))

    assert "1 vector" in found.found


async def _store_one(folder: Path) -> None:
    async with QdrantImageStore(path=folder) as store:
        await store.upsert([Point(1, np.ones(512, np.float32), {})])
