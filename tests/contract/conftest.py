"""Fixtures of the contract tests: what is true of the queue is true of it on each engine."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.postgresql import Cluster
from tests.queue_bench import Bench, open_bench


@pytest.fixture(params=["sqlite", "postgresql"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Path | str:
    """Return where a new queue may be: a SQLite file, or the URL of an empty schema."""
    if request.param == "sqlite":
        return tmp_path / "queue.db"
    cluster: Cluster = request.getfixturevalue("cluster")
    return cluster.schema()


@pytest.fixture
async def bench(place: Path | str) -> AsyncIterator[Bench]:
    async with open_bench(place) as opened:
        yield opened
