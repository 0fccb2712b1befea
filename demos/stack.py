"""Everything a demo needs as child processes: broker, media store and daemon."""

import contextlib
import io
import json
import os
import re
import shutil
import signal
import socket
import string
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import FrameType, TracebackType
from typing import NoReturn, Self

from daemon.settings.services import MediaStoreSettings
from demos.ports import keep_port, keep_ports
from demos.readiness import Readiness
from demos.uninterrupted import uninterrupted

TEMPLATE = Path(__file__).parent.parent / "mosquitto" / "demo.conf.template"
SYSTEM_FOLDERS = ("/usr/sbin", "/usr/local/sbin")
"""Where mosquitto lies on Debian, outside a user's PATH."""
DOCUMENTED_PORTS = (1883, 8000, 8001)
"""Broker, media store and REST; others are taken where these are not free."""
STOP_SECONDS = 20
_ELSEWHERE = re.compile(
    r"INFERD_((MQTT|MEDIA_STORE|QUEUE|QDRANT)__(URL|TOKEN|API_KEY)|CLIENT__\w+?)(_FILE)?"
)
"""Settings that lead to another installation, which this process may have for its own daemon."""
_STORE_PATHS = {
    f"INFERD_MEDIA_STORE__{name.upper()}": str(field.default)
    for name, field in MediaStoreSettings.model_fields.items()
    if name.endswith("_path")
}
"""The demo's media store has the paths by default, whatever one's own has."""


class StackError(RuntimeError):
    """A part did not come up; the message holds its last words."""


class Stack:
    """Broker, media store and daemon over one folder; a context manager that leaves no process.

    Its ports are its own from the first moment: no other demo takes them, and nobody is given them.

    Args:
        folder: where all their files lie; absolute.
        environ: settings of the daemon, over those of this process.
        ports: of broker, media store and REST; without them the documented ones, where those are
            free, kept from now until `close`.
    """

    def __init__(
        self, folder: Path, environ: Mapping[str, str], *, ports: Sequence[int] | None = None
    ) -> None:
        self.folder = folder
        self._kept = contextlib.ExitStack()
        self._given = list(ports or ())
        self.ports = self._given or keep_ports(DOCUMENTED_PORTS, self._kept)
        self.broker_port, self.media_store_port, self.http_port = self.ports
        self._environ = {
            **{name: text for name, text in os.environ.items() if not _ELSEWHERE.fullmatch(name)},
            # Over a file of settings, too: our own queue and vectors, and no further door.
            "INFERD_QUEUE__URL": "",
            "INFERD_QDRANT__URL": "",
            "INFERD_DOORS__IMMICH": "false",
            **_STORE_PATHS,
            **environ,
            "INFERD_DATA_DIR": str(folder / "data"),
            "INFERD_MQTT__URL": f"mqtt://127.0.0.1:{self.broker_port}",
            "INFERD_MEDIA_STORE__URL": self.media_store_url,
            # Nobody is asked for a token: this machine only, whatever one's own daemon listens on.
            "INFERD_HTTP__ENABLED": "true",
            "INFERD_HTTP__HOST": "127.0.0.1",
            "INFERD_HTTP__PORT": str(self.http_port),
            "AUTH_DISABLED": "true",
        }
        self._processes: dict[str, subprocess.Popen[bytes]] = {}

    @property
    def media_store_url(self) -> str:
        """Where pictures are uploaded."""
        return f"http://127.0.0.1:{self.media_store_port}"

    @property
    def inferd_url(self) -> str:
        """Where the REST shim answers."""
        return f"http://127.0.0.1:{self.http_port}"

    @property
    def environ(self) -> dict[str, str]:
        """What a command needs to find all parts."""
        return dict(self._environ)

    def __enter__(self) -> Self:
        try:
            for port in self._given:
                self._keep(port)
            self._start_broker()
            self._start(
                "media store",
                [
                    *(sys.executable, "-m", "demos.media_store"),
                    *("--port", str(self.media_store_port)),
                    *("--folder", str(self.folder / "media")),
                ],
            )
            self.start_daemon()
            self._wait_for_http("media store", f"{self.media_store_url}/", seconds=30)
            self._wait_for_http("daemon", f"{self.inferd_url}/health/ready", seconds=120)
        except BaseException:
            # Ctrl-C too: the parts run in sessions of their own and would stay.
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

    def start_daemon(self) -> None:
        """Start the daemon, without waiting for it."""
        self._start("daemon", [sys.executable, "-m", "daemon", "serve"])

    def wait_for_daemon(self, *, seconds: float = 120) -> None:
        """Return once the daemon is ready.

        Raises:
            StackError: it is not, in that time.
        """
        self._wait_for_http("daemon", f"{self.inferd_url}/health/ready", seconds=seconds)

    def wait_for_models(self, *, seconds: float = 600) -> None:
        """Return once every model that jobs need is in memory; a download may be part of that.

        Raises:
            StackError: they are not, in that time.
        """
        deadline = time.monotonic() + seconds
        while not all(
            model["loaded"] or model.get("on_demand") for model in self._models().values()
        ):
            self._check("daemon", deadline)

    def _models(self) -> dict[str, dict[str, bool]]:
        try:
            with urllib.request.urlopen(f"{self.inferd_url}/health", timeout=5) as answer:
                models = dict(json.load(answer)["checks"]["models"])
        except (urllib.error.URLError, OSError):
            return {"daemon": {"loaded": False}}
        return {name: told for name, told in models.items() if isinstance(told, dict)} or {
            "any": {"loaded": False}
        }

    def pid(self, name: str) -> int:
        """Return the process of a part: `broker`, `media store` or `daemon`."""
        return self._processes[name].pid

    def stay(self) -> NoReturn:
        """Wait until a part ends by itself.

        Raises:
            StackError: it did.
        """
        while True:
            for name in self._processes:
                self._check_process(name)
            time.sleep(1)

    def stop_daemon(self) -> int:
        """Ask the daemon to stop (SIGTERM) and return its exit code."""
        process = self._processes["daemon"]
        process.send_signal(signal.SIGTERM)
        code = process.wait(STOP_SECONDS)
        del self._processes["daemon"]
        return code

    def close(self) -> None:
        """Stop all parts, the daemon first. Safe twice."""
        try:
            for name in ("daemon", "media store", "broker"):
                if name in self._processes:
                    self._processes[name].terminate()
                    with contextlib.suppress(subprocess.TimeoutExpired):
                        self._processes[name].wait(STOP_SECONDS)
        finally:
            # A second Ctrl-C, of who does not want to wait, leaves none behind either.
            for process in self._processes.values():
                process.kill()
                process.wait()
            self._processes.clear()
            self._kept.close()

    def _keep(self, port: int) -> None:
        try:
            keep_port(port, self._kept)
        except OSError as error:
            raise StackError(f"another program has port {port} ({error.strerror})") from error

    def last_words(self, name: str, lines: int = 15) -> str:
        """Return the end of a part's log."""
        try:
            text = self._log(name).read_text(encoding="utf-8", errors="replace")
        except OSError:
            return ""
        return "\n".join(text.splitlines()[-lines:])

    def _start_broker(self) -> None:
        path = os.pathsep.join([os.environ.get("PATH", ""), *SYSTEM_FOLDERS])
        program = shutil.which("mosquitto", path=path)
        if program is None:
            raise StackError("mosquitto is not installed: sudo apt-get install mosquitto")
        folder = self.folder / "broker"
        folder.mkdir(parents=True, exist_ok=True)
        config = folder / "mosquitto.conf"
        try:
            template = string.Template(TEMPLATE.read_text(encoding="utf-8"))
        except FileNotFoundError as error:
            # An installed inferd has the packages alone.
            raise StackError(f"{TEMPLATE} is missing: run demos from inferd's checkout") from error
        config.write_text(
            template.substitute(port=self.broker_port, folder=folder), encoding="utf-8"
        )
        self._start("broker", [program, "-c", str(config)])
        deadline = time.monotonic() + 20
        while not _accepts(self.broker_port):
            self._check("broker", deadline)

    def _start(self, name: str, command: list[str]) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        with self._log(name).open("ab") as log, uninterrupted():
            self._processes[name] = subprocess.Popen(
                command,
                env=self._environ,
                stdout=log,
                stderr=log,
                stdin=subprocess.DEVNULL,
                # Ctrl-C is ours to answer: we stop the parts in order.
                start_new_session=True,
            )

    def _wait_for_http(self, name: str, url: str, *, seconds: float) -> None:
        deadline = time.monotonic() + seconds
        part = Readiness(name, url)
        while not part.ask():
            if part.is_disk_full(self.folder):
                # Nothing that we wait for makes room.
                raise StackError(f"the {name} cannot start: {part.why}")
            self._check(name, deadline, part.why)

    def _check(self, name: str, deadline: float, why: str = "") -> None:
        self._check_process(name)
        if time.monotonic() > deadline:
            said = f"the {name} is not up in time{why and ': '}{why}"
            raise StackError(f"{said}\n{self.last_words(name)}")
        time.sleep(0.1)

    def _check_process(self, name: str) -> None:
        code = self._processes[name].poll()
        if code is not None:
            raise StackError(f"the {name} ended with {code}:\n{self.last_words(name)}")

    def _log(self, name: str) -> Path:
        return self.folder / f"{name.replace(' ', '-')}.log"


def talk_to_a_person() -> None:
    """Let a `kill` or a closed terminal end us as Ctrl-C does, and say each line at once."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    # Not under nohup.
    if signal.getsignal(signal.SIGHUP) is signal.SIG_DFL:
        signal.signal(signal.SIGHUP, _hang_up)
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(line_buffering=True)


def _hang_up(_number: int, _frame: FrameType | None) -> None:
    # Both the shell and the system tell us of one closed terminal.
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    raise KeyboardInterrupt


def _accepts(port: int) -> bool:
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=1):
            return True
    except OSError:
        return False
