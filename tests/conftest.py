"""Fixtures that every layer of tests shares."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.postgresql import Cluster


@pytest.fixture(scope="session")
def assets() -> Path:
    """Return the folder of real photos and weights; without it the test skips, but never in CI."""
    folder = os.environ.get("INFERD_TEST_ASSETS", "")
    if folder and Path(folder).is_dir():
        return Path(folder)
    reason = f"INFERD_TEST_ASSETS={folder!r} names no folder of test material"
    if os.environ.get("CI"):
        pytest.fail(reason)
    pytest.skip(reason)


@pytest.fixture(scope="session")
def cluster() -> Iterator[Cluster]:
    """Return a PostgreSQL server that all tests share, each in a schema of its own."""
    with Cluster() as opened:
        yield opened
