"""Fixtures that every layer of tests shares."""

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.postgresql import Cluster


def pytest_configure() -> None:
    """Let Ctrl-C through: what a shell starts with `&` ignores it, and so would all children."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


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
