"""Fixtures that every layer of tests shares."""

import compileall
import importlib.util
import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from handlers.faces import openvino_session
from tests.postgresql import Cluster

ROOT = Path(__file__).parents[1]
STARTED = ("daemon", "handlers", "http_shim", "demos", "tests")
"""Packages that tests start as programs, hundreds of times."""


def pytest_configure(config: pytest.Config) -> None:
    """Let Ctrl-C through, and let no daemon compile itself.

    What a shell starts with `&` ignores Ctrl-C, and so would all children. Where Python is told to
    write no bytecode, each start would compile hundreds of files anew.
    """
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    if sys.dont_write_bytecode and not hasattr(config, "workerinput"):
        for package in STARTED:
            compileall.compile_dir(ROOT / package, quiet=2)


@pytest.fixture(scope="session", autouse=True)
def faces_by_onnxruntime() -> Iterator[None]:
    """Let no face model choose its runtime by measuring, unless a test says so.

    Which one is quicker is no fact of the code, and the trial takes a second at each load.
    """
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(openvino_session, "is_installed", lambda: False)
        yield


@pytest.fixture(scope="session")
def openvino() -> None:
    """Skip where the extra is not installed, but never in CI."""
    if importlib.util.find_spec("openvino") is None:
        reason = "OpenVINO is not installed (OPENVINO=1 make setup)"
        if os.environ.get("CI"):
            pytest.fail(reason)
        pytest.skip(reason)


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
