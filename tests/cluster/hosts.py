"""Hosts: network namespaces on a bridge; each has an address of its own and can be cut off.

Whoever is cut off is not refused: nothing answers, as where a cable was pulled. Needs root and
Linux' `ip`; without either the test skips, but fails in CI.
"""

import contextlib
import os
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

import pytest

NAMESPACES = Path("/run/netns")
_PROBE = """
import socket, sys
try:
    socket.create_connection((sys.argv[1], 9), timeout=1)
except ConnectionRefusedError:
    sys.exit(0)
except OSError:
    sys.exit(1)
"""
"""Nobody listens there: who hears that has been answered."""


@dataclass(frozen=True, slots=True)
class Host:
    """One of them."""

    name: str
    address: str

    @property
    def namespace(self) -> Path:
        """The file to enter it by."""
        return NAMESPACES / self.name


class Hosts:
    """A bridge, the address of whoever is not on a host, and hosts; a context manager."""

    def __init__(self, count: int) -> None:
        """Make so many, numbered from 1."""
        mark = os.getpid() % 10_000
        # An interface's name has at most 15 characters.
        self._bridge = f"ifd{mark}"
        self._net = f"10.{64 + mark // 250}.{mark % 250}"
        self.outside = f"{self._net}.1"
        """Where the broker, the database and the media store are."""
        self.all = [
            Host(f"ifd{mark}-{number}", f"{self._net}.{number + 1}")
            for number in range(1, count + 1)
        ]

    def __enter__(self) -> Self:
        try:
            self._make()
        except BaseException:
            self._remove()
            raise
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._remove()

    def cut(self, host: Host) -> None:
        """Pull its cable."""
        _ip("link", "set", self._cable(host), "down")

    def mend(self, host: Host) -> None:
        """Plug it in again."""
        _ip("link", "set", self._cable(host), "up")

    def reaches(self, host: Host, *, seconds: float = 5.0) -> bool:
        """Whether a host's packets get out, and answers back, within so many seconds."""
        deadline = time.monotonic() + seconds
        probe = ("ip", "netns", "exec", host.name, sys.executable, "-c", _PROBE, self.outside)
        while True:
            # A bridge takes a moment before it forwards for who has just been plugged in.
            if subprocess.run(probe, check=False, timeout=20).returncode == 0:
                return True
            if time.monotonic() > deadline:
                return False

    def _make(self) -> None:
        _ip("link", "add", self._bridge, "type", "bridge")
        _ip("addr", "add", f"{self.outside}/24", "dev", self._bridge)
        _ip("link", "set", self._bridge, "up")
        for host in self.all:
            _ip("netns", "add", host.name)
            inside = ("peer", "name", "eth0", "netns", host.name)
            _ip("link", "add", self._cable(host), "type", "veth", *inside)
            _ip("link", "set", self._cable(host), "master", self._bridge, "up")
            _ip("-n", host.name, "addr", "add", f"{host.address}/24", "dev", "eth0")
            _ip("-n", host.name, "link", "set", "eth0", "up")
            _ip("-n", host.name, "link", "set", "lo", "up")

    def _remove(self) -> None:
        for host in self.all:
            with contextlib.suppress(subprocess.CalledProcessError):
                _ip("netns", "del", host.name)
        with contextlib.suppress(subprocess.CalledProcessError):
            _ip("link", "del", self._bridge)

    def _cable(self, host: Host) -> str:
        return f"{self._bridge}v{self.all.index(host)}"


def require() -> None:
    """Skip the test where there cannot be hosts; in CI it fails."""
    reason = None
    if os.geteuid() != 0:
        reason = "network namespaces need root"
    elif shutil.which("ip") is None:
        reason = "network namespaces need `ip` (Debian: apt install iproute2)"
    else:
        tried = subprocess.run(["unshare", "--net", "true"], capture_output=True, check=False)
        if tried.returncode:
            reason = f"this machine gives no network namespaces: {tried.stderr.decode()}"
    if reason is None:
        return
    if os.environ.get("CI"):
        pytest.fail(reason)
    pytest.skip(reason)


def _ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True, timeout=20)
