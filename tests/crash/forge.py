"""Forks daemons: imports once what a daemon imports, then starts lives in milliseconds each.

Run as a process of its own, `python -m tests.crash.forge`. It reads one JSON line for each life

    {"number": 1, "environ": {...}, "argv": [...], "log": path, "point": name, "nth": n,
     "stops": bool, "step": n, "namespace": path}

and writes `{"number", "pid"}` when it is born and `{"number", "code"}` when it is dead, where a
negative code is a signal, as in subprocess. At the end of its input it ends what still lives.
"""

import contextlib
import ctypes
import json
import os
import select
import signal
import sys
import traceback
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NoReturn

# All that a life needs, so that it does not import it again. No thread may run before a fork.
from daemon import __main__ as entry
from daemon import app
from daemon.cli import migrate, serve
from handlers.qdrant import qdrant_edge
from tests.crash import faults, stand_ins

IMPORTED = (app, migrate, serve, qdrant_edge)
CLONE_NEWNET = 0x40000000
REAP_SECONDS = 0.01


def main() -> int:
    """Fork lives until the input ends."""
    numbers: dict[int, int] = {}
    # Ctrl-C is for whoever started us, and who ends us then.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    unread = b""
    while True:
        # Not by SIGCHLD: one that comes right before a read that waits would be heard after it.
        if select.select([0], [], [], REAP_SECONDS)[0]:
            read = os.read(0, 65536)
            if not read:
                break
            *lines, unread = (unread + read).split(b"\n")
            for line in lines:
                wanted = json.loads(line)
                pid = os.fork()
                if not pid:
                    _live(wanted)
                numbers[pid] = wanted["number"]
                _say({"number": wanted["number"], "pid": pid})
        _reap(numbers)
    for pid in list(numbers):
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    return 0


def _reap(numbers: dict[int, int]) -> None:
    with contextlib.suppress(ChildProcessError):
        while True:
            pid, status = os.waitpid(-1, os.WNOHANG)
            if not pid:
                return
            _say({"number": numbers.pop(pid), "code": os.waitstatus_to_exitcode(status)})


def _say(what: Mapping[str, int]) -> None:
    os.write(1, json.dumps(what).encode() + b"\n")


def _enter(namespace: str) -> None:
    """Move onto a host: into its network namespace, with all that is started from now on."""
    libc = ctypes.CDLL(None, use_errno=True)
    with Path(namespace).open("rb") as file:
        if libc.setns(file.fileno(), CLONE_NEWNET) != 0:
            raise OSError(ctypes.get_errno(), f"cannot enter {namespace}")


def _live(wanted: Mapping[str, Any]) -> NoReturn:
    """Be a daemon from here on."""
    code = 1
    try:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        os.environ.clear()
        os.environ.update(wanted["environ"])
        nothing = os.open(os.devnull, os.O_RDONLY)
        log = os.open(Path(wanted["log"]), os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        for target, source in ((0, nothing), (1, log), (2, log)):
            os.dup2(source, target)
        os.close(nothing)
        os.close(log)
        if wanted.get("namespace"):
            _enter(wanted["namespace"])
        stand_ins.install()
        if wanted.get("point"):
            faults.install(wanted["point"], wanted["nth"], stops=wanted["stops"])
        if wanted.get("step"):
            faults.install_step(wanted["step"])
        code = entry.main(wanted["argv"])
    except SystemExit as error:
        code = error.code if isinstance(error.code, int) else 1
    except BaseException:  # noqa: BLE001 - a forked child must never return into the forge
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


if __name__ == "__main__":
    sys.exit(main())
