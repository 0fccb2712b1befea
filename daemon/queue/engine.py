"""Opens the queue's database where the settings say that it is: a SQLite file, or PostgreSQL."""

from daemon.queue.backend import QueueBackend
from daemon.queue.database import Database
from daemon.settings import Settings


def queue_database(settings: Settings) -> QueueBackend:
    """Return the queue's database, to be entered."""
    if settings.queue.is_postgresql:
        # Here, since a daemon on a file needs no asyncpg.
        from daemon.queue.postgresql.backend import PostgresDatabase  # noqa: PLC0415

        return PostgresDatabase(settings.queue.url)
    return Database(settings.queue_path)
