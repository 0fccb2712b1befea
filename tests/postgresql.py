"""A real PostgreSQL for tests: a cluster of its own in a temporary folder, reached by a socket.

    with Cluster(folder) as cluster:
        url = cluster.schema()      # an empty place for one queue
        cluster.kill()              # as a power cut would
        cluster.start()

PostgreSQL refuses to run as root: then its programs run as the user `postgres`.
"""

import contextlib
import itertools
import os
import re
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Self
from urllib.parse import quote

import pytest

DEADLINE = 30.0
OPTIONS = {
    "max_connections": "120",
    "shared_buffers": "32MB",
    "log_min_messages": "fatal",
    # Deadlocks are made on purpose.
    "deadlock_timeout": "100ms",
}


def programs() -> Path:
    """Return the folder of PostgreSQL's programs; without one the test skips, but fails in CI."""
    asked = os.environ.get("INFERD_TEST_POSTGRESQL")
    found = [Path(asked)] if asked else sorted(Path("/usr/lib/postgresql").glob("*/bin"))
    if not found and (initdb := shutil.which("initdb")):
        found = [Path(initdb).parent]
    if found and (found[-1] / "initdb").is_file():
        return found[-1]
    reason = "PostgreSQL's server is not installed: apt-get install postgresql"
    if os.environ.get("CI"):
        pytest.fail(reason)
    pytest.skip(reason)


def _as_its_user(*command: str | Path) -> list[str]:
    words = [str(word) for word in command]
    return ["runuser", "-u", "postgres", "--", *words] if os.geteuid() == 0 else words


class Cluster:
    """One server.

    Args:
        fsync: off but where a test wants to see what a crash leaves.
        address: where it listens beside its socket; all who come are let in.
        tls: the PEM files of its key and certificate: who comes to the address must use TLS.
        standby_of: the running server that it follows; see `promote`.
    """

    def __init__(
        self,
        *,
        fsync: bool = False,
        address: str = "",
        tls: tuple[Path, Path] | None = None,
        standby_of: "Cluster | None" = None,
    ) -> None:
        self._programs = programs()
        # pytest's folders are closed to others, and too long for a socket's name.
        self.folder = Path(tempfile.mkdtemp(prefix="pg-", dir="/tmp"))
        self._fsync = fsync
        self._address = address
        self._tls = tls
        self._primary = standby_of
        self._schemas = itertools.count(1)
        self._server: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        if os.geteuid() == 0:
            shutil.chown(self.folder, "postgres", "postgres")
        self._initialise() if self._primary is None else self._copy(self._primary)
        if self._address:
            with (self.folder / "data" / "pg_hba.conf").open("a", encoding="utf-8") as file:
                kind = "hostssl" if self._tls else "host"
                file.write(f"{kind} all all 0.0.0.0/0 trust\n")
        for pem in self._tls or ():
            kept = shutil.copy(pem, self.folder / "data")
            Path(kept).chmod(0o600)
            if os.geteuid() == 0:
                shutil.chown(kept, "postgres", "postgres")
        self.start()
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.stop()
        shutil.rmtree(self.folder, ignore_errors=True)

    def _initialise(self) -> None:
        words: list[str | Path] = [
            "-D",
            self.folder / "data",
            "-U",
            "inferd",
            "-A",
            "trust",
            "-E",
            "UTF8",
        ]
        self._make("initdb", *words, "--no-sync", "--locale=C.UTF-8")

    def _copy(self, primary: "Cluster") -> None:
        words: list[str | Path] = ["-h", primary.folder, "-U", "inferd", "-D", self.folder / "data"]
        self._make("pg_basebackup", *words, "--write-recovery-conf", "--no-sync", "-c", "fast")

    def _make(self, program: str, *words: str | Path) -> None:
        command = _as_its_user(self._programs / program, *words)
        done = subprocess.run(command, capture_output=True, check=False, cwd="/tmp")
        assert done.returncode == 0, done.stderr.decode()

    def start(self) -> None:
        """Start, and return once it answers."""
        options = {
            **OPTIONS,
            "unix_socket_directories": str(self.folder),
            "fsync": "on" if self._fsync else "off",
            "listen_addresses": self._address,
        }
        if self._tls:
            key, certificate = self._tls
            more = {"ssl": "on", "ssl_key_file": key.name, "ssl_cert_file": certificate.name}
            options.update(more)
        words = [word for name, value in options.items() for word in ("-c", f"{name}={value}")]
        command = _as_its_user(self._programs / "postgres", "-D", self.folder / "data", *words)
        log = (self.folder / "log").open("ab")
        self._server = subprocess.Popen(command, stdout=log, stderr=log, cwd="/tmp")
        log.close()
        self._until(self.answers, "PostgreSQL never answered")

    def answers(self) -> bool:
        """Whether it takes connections now."""
        asked: list[str | Path] = [self._programs / "pg_isready", "-q", "-h", self.folder]
        return subprocess.run(asked, check=False).returncode == 0

    def stop(self, how: signal.Signals = signal.SIGINT) -> None:
        """End it: SIGINT ends sessions in order, SIGQUIT at once and without a checkpoint."""
        if self._server is None:
            return
        pid = int((self.folder / "data" / "postmaster.pid").read_text().splitlines()[0])
        os.kill(pid, how)
        self._server.wait(DEADLINE)
        self._server = None

    def follow_in_step(self) -> None:
        """Let a commit of the primary wait for this standby, from now on."""
        primary = self._primary
        assert primary is not None
        primary.psql("ALTER SYSTEM SET synchronous_standby_names = '*'")
        primary.psql("SELECT pg_reload_conf()")
        state = "SELECT sync_state FROM pg_stat_replication"
        self._until(lambda: primary.psql(state) == "sync", "it does not follow in step")

    def promote(self) -> None:
        """Make a standby the primary."""
        assert self.psql("SELECT pg_promote()") == "t"

    def kill(self) -> None:
        """End it by SIGKILL, all its processes, as a power cut would."""
        pid = int((self.folder / "data" / "postmaster.pid").read_text().splitlines()[0])
        for each in (pid, *_children(pid)):
            _kill(each)
        assert self._server is not None
        self._server.wait(DEADLINE)
        self._server = None
        self._until(self._is_gone, "it did not die")

    def schema(self) -> str:
        """Return the URL of a new and empty place."""
        name = f"place{next(self._schemas)}"
        self.psql(f"CREATE SCHEMA {name}")
        return self.url(name)

    def url(self, schema: str = "public", **options: str) -> str:
        """Return the URL of a schema."""
        more = "".join(f"&{name}={quote(value)}" for name, value in options.items())
        where = quote(str(self.folder), safe="")
        return f"postgresql://inferd@/postgres?host={where}&search_path={schema}{more}"

    def url_by_address(self, schema: str) -> str:
        """Return the URL of a schema for who cannot reach the socket."""
        return f"postgresql://inferd@{self._address}:5432/postgres?search_path={schema}"

    def psql(self, sql: str, *, schema: str = "public") -> str:
        """Run statements as the independent opinion on what is there; return what they say."""
        command: list[str | Path] = [
            self._programs / "psql",
            "-h",
            self.folder,
            "-U",
            "inferd",
            "-d",
            "postgres",
        ]
        done = subprocess.run(
            [*command, "-qAtX", "-v", "ON_ERROR_STOP=1", "-c", sql],
            capture_output=True,
            check=False,
            text=True,
            env={**os.environ, "PGOPTIONS": f"-c search_path={schema}"},
        )
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()

    def _is_gone(self) -> bool:
        """Whether none of its processes lives; one that was forked late is killed now."""
        left = _living_in(self.folder / "data")
        for pid in left:
            _kill(pid)
        return not left

    def _until(self, is_true: Callable[[], bool], what: str) -> None:
        ends_at = time.monotonic() + DEADLINE
        while not is_true():
            log = self.folder / "log"
            said = f"{what}: {log.read_text() if log.exists() else ''}"
            assert self._server is None or self._server.poll() is None, said
            assert time.monotonic() < ends_at, said
            time.sleep(0.02)


def url_of_servers(*places: Cluster | Path, schema: str = "public") -> str:
    """Return a URL that names several servers, by themselves or the folders of their sockets."""
    folders = [str(each.folder if isinstance(each, Cluster) else each) for each in places]
    hosts = ",".join(quote(each, safe="") for each in folders)
    return f"postgresql://inferd@/postgres?host={hosts}&search_path={schema}"


def schema_of(url: str) -> str:
    """Return the name of the schema that a URL names."""
    found = re.search(r"search_path=(\w+)", url)
    assert found is not None
    return found[1]


def _children(pid: int) -> list[int]:
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            parent = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
        except (OSError, ValueError, IndexError):
            continue
        if parent == pid:
            found.append(int(entry.name))
    return found


def _living_in(folder: Path) -> list[int]:
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        # Of a zombie it cannot be read.
        with contextlib.suppress(OSError):
            if (entry / "cwd").readlink() == folder:
                found.append(int(entry.name))
    return found


def _kill(pid: int) -> None:
    """Kill a process; one whose server has just been killed may have gone by itself."""
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)
