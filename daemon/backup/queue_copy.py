"""Copies the queue's SQLite file as of one moment, and makes a copy ready for another daemon.

Daemons go on meanwhile: a reader of SQLite's WAL waits for nobody and holds up nobody. The moment
is pinned before the vectors are copied, so that every job the copy calls completed had stored its
vector before. What was removed in between is removed from the copy as well; what another job took
the place of waits again, since its vector may be gone by then and the other's not there yet.
"""

import contextlib
import sqlite3
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from daemon.errors import ConfigError
from daemon.wall_clock import epoch_ms

PAGES = 512
"""Copied between two words on how far it is: 2 MiB."""
BUSY_SECONDS = 10.0

COUNTS = "SELECT status, count(*) FROM jobs GROUP BY status ORDER BY status"
VERSION = "SELECT max(version) FROM schema_migrations"
# By its moment too: a client may ask again under the job_id that it used before.
IS_GONE = """
    NOT EXISTS (SELECT 1 FROM live.jobs AS same
                WHERE same.job_id = jobs.job_id AND same.created_at = jobs.created_at)
"""
# In two parts, each with an index of its own: else each job that is gone would cost a whole scan.
IS_REPLACED = " OR ".join(
    f"""
    EXISTS (SELECT 1 FROM live.jobs AS other
            WHERE other.media_store_id = jobs.media_store_id AND other.task_type = jobs.task_type
              AND other.status IN ({states})
              AND NOT EXISTS (SELECT 1 FROM main.jobs AS known
                              WHERE known.job_id = other.job_id
                                AND known.created_at = other.created_at))
    """  # noqa: S608 - of constants
    for states in ("'pending', 'processing', 'completed'", "'error', 'sync_failed'")
)
"""By a job that was asked for since the copy was pinned; those of before stand in the copy too."""
DROP_REMOVED = f"""
DELETE FROM main.jobs
WHERE {IS_GONE} AND NOT ({IS_REPLACED})
"""  # noqa: S608 - of constants
REDO_REPLACED = f"""
UPDATE main.jobs SET status = 'pending', completed_at = NULL, started_at = NULL, run_at = NULL,
    expires_at = NULL, attempt = 0, lost = 0, sync_attempt = 0, waiting_since = NULL, result = NULL
WHERE status = 'completed' AND {IS_GONE}
"""  # noqa: S608 - of constants
GIVE_BACK = """
UPDATE jobs SET status = 'pending', worker = NULL, lease_until = NULL, attempt = max(0, attempt - 1)
WHERE status = 'processing'
"""
HAND_OVER = "UPDATE outbox SET owner = ?"


@dataclass(frozen=True, slots=True)
class Contents:
    """What a copy holds."""

    schema: int
    """Number of the newest step its schema went through."""
    jobs: dict[str, int]
    """How many, by status."""


class PinnedQueue:
    """The queue's file as of the moment at which this was entered; a context manager.

    Args:
        path: the file, in use or not.

    Raises:
        ConfigError: it cannot be read, code queue_unusable.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self.pinned_at = 0
        """Epoch milliseconds."""

    def __enter__(self) -> Self:
        with _told(self._path):
            self._source = sqlite3.connect(
                f"{self._path.absolute().as_uri()}?mode=rw",
                uri=True,
                timeout=BUSY_SECONDS,
                isolation_level=None,
            )
            try:
                self._source.execute("PRAGMA query_only = ON")
                self._source.execute("BEGIN")
                # Only a read takes the snapshot; it lasts until the transaction ends.
                self._source.execute(VERSION).fetchone()
            except BaseException:
                # Ctrl-C too: `with` closes nothing whose entering failed.
                self._source.close()
                raise
        self.pinned_at = epoch_ms()
        return self

    def __exit__(self, *_: object) -> None:
        # The last to close the file tidies its log up, as every daemon does.
        self._source.close()

    @property
    def size(self) -> int:
        """Bytes of the copy that will be made."""
        with _told(self._path):
            (pages,) = self._source.execute("PRAGMA page_count").fetchone()
            (size,) = self._source.execute("PRAGMA page_size").fetchone()
        return int(pages) * int(size)

    def copy_to(self, target: Path, tell: Callable[[int], None]) -> None:
        """Write the copy.

        Args:
            target: a file that is not there.
            tell: is told how many bytes more are done.

        Raises:
            ConfigError: it cannot be read or written, code queue_unusable.
        """
        done = 0

        def progress(_status: int, remaining: int, total: int) -> None:
            nonlocal done
            now = (total - remaining) * self.size // max(1, total)
            tell(now - done)
            done = now

        with _told(self._path), contextlib.closing(sqlite3.connect(target)) as made:
            self._source.backup(made, pages=PAGES, progress=progress)


def follow_removals(copy: Path, live: Path) -> None:
    """Bring into a copy what was removed from the queue while the vectors were copied.

    A job that is gone goes, unless another was asked for of its picture and task type since: then
    it waits again, if it was completed. That other came too late for the copy.

    Raises:
        ConfigError: one of them cannot be read or written.
    """
    with _told(copy), _opened(copy) as file:
        file.execute("ATTACH ? AS live", (f"{live.absolute().as_uri()}?mode=ro",))
        file.execute("BEGIN IMMEDIATE")
        file.execute(DROP_REMOVED)
        file.execute(REDO_REPLACED)
        file.execute("COMMIT")
        file.execute("DETACH live")


def release_all(copy: Path, owner: str) -> None:
    """Give every leased job of a copy back, its attempt uncounted: whoever holds it is elsewhere.

    Args:
        copy: nobody has it open.
        owner: identity of this process, whose events they become until a daemon adopts them.

    Raises:
        ConfigError: it cannot be written.
    """
    with _told(copy), _opened(copy) as file:
        file.execute("BEGIN IMMEDIATE")
        file.execute(GIVE_BACK)
        file.execute(HAND_OVER, (owner,))
        file.execute("COMMIT")
    with _told(copy), _opened(copy) as file:
        # One file, without a log beside it.
        file.execute("PRAGMA journal_mode = DELETE")


def look_into(copy: Path) -> Contents:
    """Read a copy through; say what it holds.

    Raises:
        ConfigError: it is damaged or no queue, code queue_damaged.
    """
    with _told(copy), _opened(copy) as file:
        said = [row[0] for row in file.execute("PRAGMA quick_check(3)")]
        if said != ["ok"]:
            raise ConfigError(f"{copy} is damaged: {'; '.join(said)}", code="queue_damaged")
        (schema,) = file.execute(VERSION).fetchone()
        return Contents(int(schema), dict(file.execute(COUNTS)))


def is_in_use(path: Path) -> bool:
    """Whether a process has the queue's file open; in doubt, it has."""
    if not path.exists():
        return False
    try:
        with contextlib.closing(sqlite3.connect(path, timeout=0, isolation_level=None)) as file:
            # Without shared memory a log can be used by one process only, which locks the file.
            file.execute("PRAGMA locking_mode = EXCLUSIVE")
            file.execute("BEGIN EXCLUSIVE")
            file.execute("ROLLBACK")
    except sqlite3.OperationalError:
        return True
    except sqlite3.DatabaseError:
        # No SQLite file: nobody works with it.
        return False
    return False


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[sqlite3.Connection]:
    uri = f"{path.absolute().as_uri()}?mode=rw"
    with contextlib.closing(
        sqlite3.connect(uri, uri=True, timeout=BUSY_SECONDS, isolation_level=None)
    ) as file:
        yield file


@contextlib.contextmanager
def _told(path: Path) -> Iterator[None]:
    try:
        yield
    except sqlite3.Error as error:
        raise ConfigError(
            f"the queue {path} cannot be read or copied: {error}", code="queue_unusable"
        ) from error
