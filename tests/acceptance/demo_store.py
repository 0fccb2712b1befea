"""The demo media store as a process of its own."""

import re
import subprocess
import sys
from pathlib import Path
from types import TracebackType
from typing import Self

from tests.acceptance.rig import ROOT

STOP_SECONDS = 60.0


class DemoStore:
    """The real demo media store; `url` is all that anybody needs to know of it."""

    def __init__(self, folder: Path, *options: str) -> None:
        self._process = subprocess.Popen(
            [
                *(sys.executable, "-u", "-m", "demos.media_store"),
                *("--port", "0", "--folder", str(folder)),
                *options,
            ],
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        found = re.search(r"http://127\.0\.0\.1:\d+", line)
        assert found, line
        self.url = found.group()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._process.terminate()
        self._process.communicate(timeout=STOP_SECONDS)
