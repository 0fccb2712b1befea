"""The lives of daemons: forked by one forge, watched, signalled, and their logs read."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from tests.crash.faults import DEATH_CRY, STANDSTILL_CRY

ROOT = Path(__file__).parent.parent.parent
BORN_SECONDS = 30.0
DEATH_SECONDS = 60.0


@dataclass(frozen=True, slots=True)
class Fault:
    """Where a life ends by itself: the nth time that it reaches a point."""

    point: str
    nth: int = 1
    stops: bool = False
    """It does not die there, but stands still until SIGCONT."""


@dataclass(frozen=True, slots=True)
class Moment:
    """When a life is ended from outside, wherever it is then."""

    seconds: float
    """After its start."""


class Life:
    """One process of a daemon, from its fork to its end."""

    def __init__(self, log: Path, fault: Fault | None) -> None:
        self.log_path = log
        self.fault = fault
        self.pid = 0
        self.code: int | None = None
        """Its exit code, negative for a signal; None while it lives."""
        self._port: int | None = None
        self.born = threading.Event()
        self.dead = threading.Event()

    def signal(self, number: signal.Signals) -> None:
        """Send a signal, if it still lives."""
        with contextlib.suppress(ProcessLookupError):
            if not self.dead.is_set():
                os.kill(self.pid, number)

    def wait(self, seconds: float = DEATH_SECONDS) -> int:
        """Return its exit code once it is dead."""
        assert self.dead.wait(seconds), f"it does not end within {seconds:g} s:\n{self.text()}"
        assert self.code is not None
        return self.code

    def text(self) -> str:
        """Return everything it wrote."""
        return self.log_path.read_text(encoding="utf-8", errors="replace")

    def lines(self) -> list[dict[str, Any]]:
        """Return its log lines so far."""
        lines = self.text().splitlines(keepends=True) if self.log_path.exists() else []
        return [json.loads(line) for line in lines if line.startswith("{") and line.endswith("\n")]

    @property
    def port(self) -> int | None:
        """Its REST port, once it serves."""
        if self._port is None:
            said = [line for line in self.lines() if line["message"] == "inferd is running"]
            self._port = said[0]["port"] if said else None
        return self._port

    @property
    def is_connected(self) -> bool:
        """Whether it was connected to the broker."""
        return any(line["message"] == "connected to the broker" for line in self.lines())

    @property
    def stands_still(self) -> bool:
        """Whether its fault has frozen it."""
        return self.fault is not None and f"{STANDSTILL_CRY}: {self.fault.point}\n" in self.text()

    @property
    def died_of_its_fault(self) -> bool:
        """Whether it is dead by its fault and by nothing else."""
        if self.fault is None or self.code != -signal.SIGKILL:
            return False
        return f"{DEATH_CRY}: {self.fault.point}\n" in self.text()


@dataclass
class Forge:
    """The process that forks lives; a context manager that leaves none of them behind."""

    _lives: dict[int, Life] = field(default_factory=dict)
    _turn: threading.Lock = field(default_factory=threading.Lock)

    def __enter__(self) -> Self:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.crash.forge"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=ROOT,
            # numpy's threads would not live on in a fork.
            env={**os.environ, "OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"},
        )
        self._listener = threading.Thread(target=self._listen, name="forge")
        self._listener.start()
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        for life in list(self._lives.values()):
            life.signal(signal.SIGKILL)
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait(DEATH_SECONDS)
        self._listener.join(DEATH_SECONDS)
        assert self._process.stdout is not None
        self._process.stdout.close()

    def start(
        self,
        environ: Mapping[str, str],
        log: Path,
        *,
        fault: Fault | None = None,
        argv: Sequence[str] = ("serve",),
        step: int | None = None,
        namespace: str | None = None,
    ) -> Life:
        """Return a life that has just begun.

        Args:
            environ: all of its environment.
            log: what it writes goes to the end of this file.
            fault: what ends it.
            argv: the daemon's command and its options.
            step: it ends right after so many steps with SQLite.
            namespace: the file of the network namespace that it lives in.
        """
        life = Life(log, fault)
        with self._turn:
            number = len(self._lives)
            self._lives[number] = life
            wanted = {
                "number": number,
                "environ": dict(environ),
                "argv": list(argv),
                "log": str(log),
                "point": fault.point if fault else None,
                "nth": fault.nth if fault else 0,
                "stops": fault.stops if fault else False,
                "step": step,
                "namespace": namespace,
            }
            assert self._process.stdin is not None
            self._process.stdin.write(json.dumps(wanted) + "\n")
            self._process.stdin.flush()
        assert life.born.wait(BORN_SECONDS), "the forge gives no life"
        return life

    def _listen(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            said = json.loads(line)
            life = self._lives[said["number"]]
            if "pid" in said:
                life.pid = said["pid"]
                life.born.set()
            else:
                life.code = said["code"]
                life.dead.set()
