"""Ports of tests: free, kept from other tests, and none that the system gives away by itself."""

import atexit
import errno
import random
import socket

import pytest

PORTS = range(20_000, 30_000)
"""Below the ports that systems give to outgoing connections and to `bind(0)`."""


def claim_port() -> tuple[socket.socket, int]:
    """Return a free TCP port, and the lock that keeps other tests from it.

    The lock is a UDP socket on the same number: it excludes everybody on this machine who asks
    here, ends with its process, and leaves TCP to whoever is to listen. As the port is not one
    that the system gives away by itself, it stays free over a restart too.
    """
    for port in random.sample(PORTS, 1000):
        lock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        try:
            lock.bind(("127.0.0.1", port))
            with socket.socket() as probe:
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                probe.bind(("127.0.0.1", port))
        except OSError as error:
            lock.close()
            if error.errno not in (errno.EADDRINUSE, errno.EACCES):
                raise
        else:
            return lock, port
    pytest.fail("no port is free")


def free_port() -> int:
    """Return a TCP port where nobody listens, and nobody will but who is told of it."""
    lock, port = claim_port()
    # Kept until this process ends: the port may be used late, and again.
    atexit.register(lock.close)
    return port
