"""Journal: which requests went well in this run of a command and earlier ones, in a small file.

It is what makes a bulk import resumable: what is in it is not asked for again, and no picture is
uploaded a second time. SQLite, about 15 bytes for each id and 100 for each file; a kill loses the
last second at most, which only means that some are asked for again.
"""

import contextlib
import os
import sqlite3
import threading
import time
from pathlib import Path

APPLICATION_ID = 0x696E666A
"""Tells the file from other programs' SQLite files."""
COMMIT_SECONDS = 1.0
_SCHEMA = """
CREATE TABLE IF NOT EXISTS facts (name TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS tasks (task INTEGER PRIMARY KEY, name TEXT NOT NULL UNIQUE);
CREATE TABLE IF NOT EXISTS done (task INTEGER NOT NULL, media_store_id INTEGER NOT NULL,
                                 PRIMARY KEY (task, media_store_id)) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS files (path BLOB PRIMARY KEY, size INTEGER NOT NULL,
                                  mtime_ns INTEGER NOT NULL, media_store_id INTEGER NOT NULL)
                                  WITHOUT ROWID;
"""


class JournalError(Exception):
    """The file cannot be used; the sentence says why."""


class Journal:
    """One such file, held by one command at a time; any thread may use it.

    Args:
        path: the file; made where there is none.
        **places: where the requests and pictures go, by name; a file of other places is refused.

    Raises:
        JournalError: it is another program's, another command's, of other places, or not writable.
    """

    def __init__(self, path: Path, **places: str) -> None:
        self._path = path
        self._lock = threading.Lock()
        self._tasks: dict[str, int] = {}
        self._commits_at = time.monotonic() + COMMIT_SECONDS
        try:
            self._file = sqlite3.connect(path, timeout=1, check_same_thread=False)
        except sqlite3.Error as error:
            raise JournalError(f"cannot use {path}: {error}") from error
        try:
            self._open(places)
        except sqlite3.Error as error:
            self._file.close()
            is_held = getattr(error, "sqlite_errorcode", 0) == sqlite3.SQLITE_BUSY
            why = "another command uses it" if is_held else str(error)
            raise JournalError(f"cannot use {path}: {why}") from error
        except JournalError:
            self._file.close()
            raise

    def close(self) -> None:
        """Write what is not written yet. Safe twice."""
        # Closed already, or a disk that is full: who has to know was told by a write.
        with self._lock, contextlib.suppress(sqlite3.Error):
            self._file.commit()
            self._file.close()

    def is_done(self, media_store_id: int, task_type: str) -> bool:
        """Whether a request went well before."""
        with self._lock:
            row = self._file.execute(
                "SELECT 1 FROM done WHERE task = ? AND media_store_id = ?",
                (self._task(task_type), media_store_id),
            ).fetchone()
        return row is not None

    def done(self, media_store_id: int, task_type: str) -> None:
        """Note that a request went well.

        Raises:
            JournalError: it cannot be written.
        """
        with self._lock:
            task = self._task(task_type)
        self._write("INSERT OR IGNORE INTO done VALUES (?, ?)", (task, media_store_id))

    def uploaded(self, path: str) -> int | None:
        """Return the id that the media store gave to a file, if the file is as it was then."""
        try:
            found = Path(path).stat()
        except OSError:
            return None
        with self._lock:
            row = self._file.execute(
                "SELECT media_store_id FROM files WHERE path = ? AND size = ? AND mtime_ns = ?",
                (_key(path), found.st_size, found.st_mtime_ns),
            ).fetchone()
        return None if row is None else int(row[0])

    def upload(self, path: str, size: int, mtime_ns: int, media_store_id: int) -> None:
        """Note the id that the media store gave to a file.

        Raises:
            JournalError: it cannot be written.
        """
        self._write(
            "INSERT OR REPLACE INTO files VALUES (?, ?, ?, ?)",
            (_key(path), size, mtime_ns, media_store_id),
        )

    def _open(self, places: dict[str, str]) -> None:
        # Held to the end: two commands on one file would each think that nothing was done.
        self._file.execute("PRAGMA locking_mode = EXCLUSIVE")
        self._file.execute("PRAGMA synchronous = NORMAL")
        self._file.execute("BEGIN EXCLUSIVE")
        (known,) = self._file.execute("PRAGMA application_id").fetchone()
        tables = self._file.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]
        if tables and known != APPLICATION_ID:
            raise JournalError(f"{self._path} is another program's file")
        self._file.execute(f"PRAGMA application_id = {APPLICATION_ID}")
        for statement in _SCHEMA.split(";"):
            self._file.execute(statement)
        for name, value in places.items():
            self._file.execute("INSERT OR IGNORE INTO facts VALUES (?, ?)", (name, value))
            row = self._file.execute("SELECT value FROM facts WHERE name = ?", (name,)).fetchone()
            if row[0] != value:
                raise JournalError(
                    f"{self._path} is of the {name} {row[0]}, not of {value}: take another file"
                )
        self._file.commit()

    def _task(self, name: str) -> int:
        if name not in self._tasks:
            self._file.execute("INSERT OR IGNORE INTO tasks (name) VALUES (?)", (name,))
            row = self._file.execute("SELECT task FROM tasks WHERE name = ?", (name,)).fetchone()
            self._tasks[name] = int(row[0])
        return self._tasks[name]

    def _write(self, statement: str, values: tuple[int | bytes, ...]) -> None:
        try:
            with self._lock:
                self._file.execute(statement, values)
                if time.monotonic() >= self._commits_at:
                    self._file.commit()
                    self._commits_at = time.monotonic() + COMMIT_SECONDS
        except sqlite3.Error as error:
            raise JournalError(f"cannot write {self._path}: {error}") from error


def _key(path: str) -> bytes:
    # Names need not be text.
    return os.fsencode(Path(path).absolute())
