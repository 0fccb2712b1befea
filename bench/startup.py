"""`python -m bench --only startup`: how soon the daemon answers, and how soon the commands do.

Ready is the moment at which requests are taken; models load meanwhile. The first result is that of
one embedding asked for at that moment, with random weights: those of a file take a second less.
"""

import json
import os
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bench.pictures import mixed
from bench.rows import Options, Row, Side
from demos.client import upload
from demos.stack import Stack

SECTION = "startup"
ROOT = Path(__file__).parent.parent
POLL_SECONDS = 0.005
SECONDS = 120.0
COMMANDS = (
    "doctor --quick",
    "submit --help",
    "search --help",
    "models where",
    "serve --check",
    "--help",
)
ENVIRON = {
    "INFERD_WORKER__TASK_TYPES": "image_embedding",
    "INFERD_CLIP__WEIGHTS": "untrained",
    "INFERD_OFFLINE": "true",
}
LIBRARIES = "import torch, open_clip"
TORCH = "import torch"
"""Where open_clip cannot be imported as it is: torchvision's operators are for another torch."""


def measure(options: Options) -> Sequence[Row]:
    """Return the daemon's start beside its libraries' imports, and each command beside Python's."""
    rounds = options.pick(smallest=1, quick=2, normal=3)
    with tempfile.TemporaryDirectory(prefix="inferd-bench-") as folder:
        rows = _daemon(Path(folder), rounds)
    return [*rows, *_commands(rounds)]


def _daemon(folder: Path, rounds: int) -> list[Row]:
    code = LIBRARIES if _python(LIBRARIES).returncode == 0 else TORCH
    ready, first, imports = [], [], []
    with Stack(folder, ENVIRON) as stack:
        picture = upload(stack.media_store_url, next(iter(mixed(1))), "picture.jpg")
        for _ in range(rounds):
            stack.stop_daemon()
            imports.append(_seconds(["-c", code]))
            began = time.perf_counter()
            stack.start_daemon()
            _until_ready(stack)
            ready.append(time.perf_counter() - began)
            _do(stack, picture)
            first.append(time.perf_counter() - began)
    theirs = Side.of(f"python -c {code!r}", imports)
    note = "from the start of the process"
    if code == TORCH:
        note += "; open_clip cannot be imported here as it is, so only torch is on the other side"
    return [
        Row(
            section=SECTION,
            name="the daemon takes requests",
            unit="s",
            better="less",
            ours=Side.of("python -m daemon", ready),
            theirs=theirs,
            note=note,
        ),
        Row(
            section=SECTION,
            name="first result, models cold",
            unit="s",
            better="less",
            ours=Side.of("python -m daemon and one request", first),
            theirs=theirs,
            note=f"{note}; ours fetches, decodes, makes and calibrates the model, and stores",
        ),
    ]


def _commands(rounds: int) -> list[Row]:
    rows = []
    for command in COMMANDS:
        figures = [
            (_seconds(["-m", "daemon", *command.split()]), _seconds(["-c", "pass"]))
            for _ in range(rounds)
        ]
        ours, theirs = zip(*figures, strict=True)
        rows.append(
            Row(
                section=SECTION,
                name=f"python -m daemon {command}",
                unit="s",
                better="less",
                ours=Side.of(command, ours),
                theirs=Side.of("python -c pass", theirs),
                note="nothing else runs: doctor is refused by broker and media store"
                if command == "doctor --quick"
                else "",
            )
        )
    return rows


def _seconds(arguments: Sequence[str]) -> float:
    began = time.perf_counter()
    _run([sys.executable, *arguments])
    return time.perf_counter() - began


def _python(code: str) -> "subprocess.CompletedProcess[bytes]":
    return _run([sys.executable, "-c", code])


def _run(command: Sequence[str]) -> "subprocess.CompletedProcess[bytes]":
    kept = {name: value for name, value in os.environ.items() if not name.startswith("INFERD_")}
    # Nobody answers at these: a command must not meet a daemon that happens to run here.
    away = {
        "INFERD_MQTT__URL": "mqtt://127.0.0.1:9",
        "INFERD_MEDIA_STORE__URL": "http://127.0.0.1:9",
        "INFERD_HTTP__PORT": "9",
        "AUTH_DISABLED": "true",
    }
    return subprocess.run(
        command,
        cwd=ROOT,
        env=kept | ENVIRON | away,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        timeout=SECONDS,
        check=False,
    )


def _until_ready(stack: Stack) -> None:
    ends_at = time.monotonic() + SECONDS
    while True:
        try:
            _ask(f"{stack.inferd_url}/health/ready")
        except OSError:
            if time.monotonic() > ends_at:
                raise
            time.sleep(POLL_SECONDS)
        else:
            return


def _do(stack: Stack, media_store_id: int) -> None:
    body = {"media_store_id": media_store_id, "force": True}
    job = _ask(f"{stack.inferd_url}/job/image_embedding", body)["job_id"]
    ends_at = time.monotonic() + SECONDS
    while (found := _ask(f"{stack.inferd_url}/job/{job}"))["status"] != "completed":
        if found["status"] == "error" or time.monotonic() > ends_at:
            raise RuntimeError(f"the picture was not embedded: {found}")
        time.sleep(POLL_SECONDS)


def _ask(url: str, body: dict[str, Any] | None = None) -> dict[str, Any]:
    data = None if body is None else json.dumps(body).encode()
    with urllib.request.urlopen(urllib.request.Request(url, data), timeout=SECONDS) as answer:
        found: dict[str, Any] = json.load(answer)
    return found
