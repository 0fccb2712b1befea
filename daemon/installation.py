"""Which queue this is: an id of its own, by which daemons know that they share it."""

from daemon.queue_backend import QueueBackend

FIND_INSTALLATION = "SELECT id FROM installation"


async def installation_id(database: QueueBackend) -> str:
    """Return the queue's id, made with its schema.

    Raises:
        StorageError: it cannot be read.
    """
    rows = await database.read(FIND_INSTALLATION)
    return str(rows[0][0]) if rows else ""
