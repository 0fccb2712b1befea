"""The poisoned daemon, a supervisor that starts it again, and a look into its queue."""

import sqlite3
import subprocess
import sys
import threading
from contextlib import closing
from types import TracebackType
from typing import IO, Any, Self

from tests.acceptance.rig import ROOT, START_SECONDS
from tests.faults.rig import FaultyDaemon


class PoisonedDaemon(FaultyDaemon):
    """The daemon as `tests.poison.daemon` starts it."""

    def launch(self, *, stderr: IO[bytes] | None = None) -> None:
        """Start it, without waiting."""
        with (self.folder / "daemon.log").open("ab") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "tests.poison.daemon"],
                cwd=ROOT,
                env=self._environ,
                stderr=stderr or log,
            )

    def row(self, job_id: str) -> dict[str, Any]:
        """Return a job's row, read from the file."""
        with closing(sqlite3.connect(self.folder / "data" / "queue.db")) as file:
            file.row_factory = sqlite3.Row
            return dict(file.execute("SELECT * FROM jobs WHERE job_id = ?", (job_id,)).fetchone())

    def await_exit(self, seconds: float = START_SECONDS) -> int:
        """Return the exit code of the process that runs now."""
        assert self._process is not None
        return self._process.wait(seconds)


class Supervisor:
    """Starts the daemon again whenever it ends, as `Restart=always` does; notes its exit codes."""

    def __init__(self, daemon: PoisonedDaemon) -> None:
        self._daemon = daemon
        self._is_over = False
        self._thread = threading.Thread(target=self._supervise)
        self.codes: list[int] = []

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._is_over = True
        process = self._daemon._process
        assert process is not None
        process.terminate()
        self._thread.join()

    def _supervise(self) -> None:
        while True:
            code = self._daemon.await_exit(600)
            if self._is_over:
                return
            self.codes.append(code)
            self._daemon.launch()
