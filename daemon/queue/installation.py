"""The queue's identity: a name, equal for all daemons on one queue, and a secret they share."""

import hashlib
from dataclasses import dataclass

from daemon.queue.backend import QueueBackend

FIND_INSTALLATION = "SELECT id FROM installation"


@dataclass(frozen=True, slots=True)
class Installation:
    """One queue, whichever daemons work on it."""

    name: str
    """Told to everybody."""
    secret: str
    """Known to those alone who can read the queue's database: 16 hexadecimal digits."""


async def read_installation(database: QueueBackend) -> Installation:
    """Return name and secret, derived from the id that was made with the queue's schema.

    Raises:
        StorageError: it cannot be read.
    """
    rows = await database.read(FIND_INSTALLATION)
    found = str(rows[0][0]) if rows else ""
    return Installation(_derived("name", found, 32), _derived("secret", found, 16))


def _derived(what: str, found: str, digits: int) -> str:
    return hashlib.sha256(f"inferd {what} {found}".encode()).hexdigest()[:digits]
