"""Ports of a demo: free ones, and kept for its parts until it ends."""

import contextlib
import socket
import sys
from collections.abc import Sequence

HOST = "127.0.0.1"
TRIES = 20
"""For any port: the number that the system gives for TCP may be taken in UDP."""


def keep_ports(preferred: Sequence[int], until: contextlib.ExitStack) -> list[int]:
    """Return the preferred ports, each replaced by a free one where somebody has it.

    Args:
        preferred: which were best.
        until: nobody else is given them before it ends.
    """
    ports = []
    for wanted in preferred:
        try:
            ports.append(keep_port(wanted, until))
        except OSError:
            ports.append(_keep_any(until))
    return ports


def _keep_any(until: contextlib.ExitStack) -> int:
    for _ in range(TRIES - 1):
        with contextlib.suppress(OSError):
            return keep_port(0, until)
    return keep_port(0, until)


def keep_port(port: int, until: contextlib.ExitStack) -> int:
    """Keep a TCP port of this machine for a process of ours, and return it.

    Args:
        port: 0 is any.
        until: others may have it when this ends.

    Raises:
        OSError: somebody has it.
    """
    with contextlib.ExitStack() as kept:
        # Bound but not listening: who is to listen still can, as it says SO_REUSEADDR too, and the
        # system gives the port to nobody who asks for any. Linux alone parts the two.
        held = contextlib.ExitStack()
        listener = held.enter_context(socket.socket())
        with held:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind((HOST, port))
            found = int(listener.getsockname()[1])
            # Another demo could bind it as we did. The same number in UDP excludes it.
            lock = kept.enter_context(socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
            lock.bind((HOST, found))
            if sys.platform == "linux":
                kept.push(held.pop_all())
        until.push(kept.pop_all())
        return found
