"""Fixtures that every layer of tests shares."""

import os
from pathlib import Path

import pytest


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
