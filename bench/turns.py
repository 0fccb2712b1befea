"""Works in processes of their own that take turns: `Turns` here, a module's `prepare` there.

A module that is measured beside others has `prepare(given) -> Take`: it loads what it needs, and
the `Take` is called once for each turn. So each has the libraries, threads and settings that it
would have alone, and waits asleep while another has its turn.
"""

import importlib
import json
import os
import select
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeAlias

ROOT = Path(__file__).parent.parent
Told: TypeAlias = dict[str, Any]
"""What travels between the processes: anything that JSON can say."""
Take: TypeAlias = Callable[[Told], Told]
PREPARE_SECONDS = 300.0
STOP_SECONDS = 20.0


class TurnError(RuntimeError):
    """A process that was to take turns ended or does not answer; its last words are on stderr."""


class Turns:
    """A process that takes turns; a context manager that leaves nothing.

    Args:
        module: has `prepare`.
        given: what it is given.
        environ: instead of this process's own.
    """

    def __init__(
        self, module: str, given: Told, *, environ: Mapping[str, str] | None = None
    ) -> None:
        self._module = module
        self._process = subprocess.Popen(
            [sys.executable, "-m", "bench.turns", module, json.dumps(given)],
            cwd=ROOT,
            env=None if environ is None else dict(environ),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        self._rest = b""

    @property
    def pid(self) -> int:
        return self._process.pid

    def __enter__(self) -> Self:
        try:
            self._line(PREPARE_SECONDS)
        except BaseException:
            # Ctrl-C too: `with` closes nothing whose entering failed.
            self.close()
            raise
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def take(self, asked: Told, *, seconds: float = 300) -> Told:
        """Let it have its turn, and return what it told.

        Raises:
            TurnError: it ended, or took too long.
        """
        if self._process.stdin is None:
            raise TurnError(f"{self._module} was closed")
        try:
            self._process.stdin.write(json.dumps(asked).encode() + b"\n")
            self._process.stdin.flush()
        except OSError as error:
            raise TurnError(f"{self._module} ended") from error
        return self._line(seconds)

    def close(self) -> None:
        """End the process. Safe twice."""
        self._process.terminate()
        try:
            self._process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                pipe.close()

    def _line(self, seconds: float) -> Told:
        pipe = self._process.stdout
        if pipe is None:
            raise TurnError(f"{self._module} was closed")
        ends = time.monotonic() + seconds
        while b"\n" not in self._rest:
            left = ends - time.monotonic()
            if left <= 0 or not select.select([pipe], [], [], left)[0]:
                raise TurnError(f"{self._module} did not answer in {seconds:.0f} s")
            if not (more := os.read(pipe.fileno(), 2**20)):
                raise TurnError(f"{self._module} ended")
            self._rest += more
        line, _, self._rest = self._rest.partition(b"\n")
        told: Told = json.loads(line)
        return told


def main(module: str, given: str) -> int:
    """Prepare, say so, and take a turn for each line."""
    # What libraries print must not come between the answers.
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    take: Take = importlib.import_module(module).prepare(json.loads(given))
    answers.write(b'{"is_ready": true}\n')
    answers.flush()
    for line in sys.stdin.buffer:
        answers.write(json.dumps(take(json.loads(line))).encode() + b"\n")
        answers.flush()
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
