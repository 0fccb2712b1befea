"""An embedded engine writes nothing where a memory map might find no room."""

from pathlib import Path

import numpy as np
import pytest

from daemon.errors import DependencyDownError
from handlers.image_store import QdrantImageStore
from handlers.qdrant import disk_room
from handlers.qdrant.disk_room import require_room
from handlers.qdrant.vector_engine import Point


def test_a_disk_with_room_is_fine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(disk_room, "ROOM_BYTES", 1)

    require_room(tmp_path)


async def test_a_full_disk_is_named_before_anything_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with QdrantImageStore(path=tmp_path) as store:
        monkeypatch.setattr(disk_room, "ROOM_BYTES", 2**62)

        with pytest.raises(DependencyDownError, match="is full") as caught:
            await store.upsert([Point(1, np.ones(512, np.float32), {})])
        with pytest.raises(DependencyDownError, match="is full"):
            await store.check_room()

        assert caught.value.code == "vector_store_error"
        assert await store.count() == 0
