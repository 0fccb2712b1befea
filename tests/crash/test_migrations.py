"""A migration that is killed at any of its steps is done by the next start, and changes no row."""

import asyncio
import os
import sqlite3
import uuid
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from daemon.queue.database import Database
from daemon.queue.migration import backup_path, released_migrations
from tests.crash.lives import Forge

MIGRATIONS = released_migrations()
STATES = (
    "pending",
    "processing",
    "completed",
    "error",
    "sync_failed",
)
MOST_STEPS = 200


@pytest.fixture(scope="module")
def forge() -> Iterator[Forge]:
    with Forge() as forge:
        yield forge


@pytest.mark.parametrize("version", range(len(MIGRATIONS)))
def test_a_migration_may_be_killed_at_each_of_its_steps(
    version: int, forge: Forge, tmp_path: Path
) -> None:
    fresh = _queue(tmp_path / "fresh", len(MIGRATIONS))
    for step in range(1, MOST_STEPS):
        folder = tmp_path / f"step-{step}"
        queue = _queue(folder, version)
        before = _contents(queue)

        died = _migrate(forge, folder, step=step) != 0
        assert _is_sound(queue)
        assert _migrate(forge, folder) == 0

        assert _schema(queue) == _schema(fresh)
        after = _contents(queue)
        assert {table: after[table] for table in before} == before
        assert _is_sound(queue)
        # Not even half a copy is left, and the whole one is of the file as it was.
        assert not list(folder.glob("*.part*"))
        copies = sorted(folder.glob("*.before-*"))
        # Later steps have a copy of their own where they are done by another start.
        assert not version or copies[0] == backup_path(queue, version + 1)
        for copy in copies:
            assert {table: _contents(copy)[table] for table in before} == before
            assert _is_sound(copy)
        if not died:
            # The run came to its end: there are no more steps.
            assert step > 5
            return
    pytest.fail("it never ended by itself")


def test_a_migration_that_is_killed_again_and_again_is_done_at_last(
    forge: Forge, tmp_path: Path
) -> None:
    queue = _queue(tmp_path / "old", 1)
    before = _contents(queue)

    for step in range(1, MOST_STEPS):
        if _migrate(forge, queue.parent, step=step) == 0:
            break

    assert _schema(queue) == _schema(_queue(tmp_path / "fresh", len(MIGRATIONS)))
    assert _contents(queue)["jobs"] == before["jobs"]
    assert not list(queue.parent.glob("*.part*"))


def _migrate(forge: Forge, folder: Path, *, step: int | None = None) -> int:
    environ = {
        "PATH": os.environ["PATH"],
        "AUTH_DISABLED": "true",
        "INFERD_DATA_DIR": str(folder),
    }
    argv = ("migrate", "--create")
    life = forge.start(environ, folder / "migrate.log", argv=argv, step=step)
    code = life.wait()
    assert code in (0, -9), life.text()
    return code


def _queue(folder: Path, version: int) -> Path:
    """Return a file of an older version, with rows in every state; none where there was none."""
    folder.mkdir()
    path = folder / "queue.db"

    async def create() -> None:
        async with Database(path, MIGRATIONS[:version]):
            pass

    if version == 0:
        return path
    asyncio.run(create())
    with closing(sqlite3.connect(path)) as connection, connection:
        for number, state in enumerate(STATES):
            is_held, is_over = state == "processing", state not in ("pending", "processing")
            connection.execute(
                "INSERT INTO jobs (job_id, task_type, media_store_id, priority, rank, status,"
                " created_at, attempt, fence, seq, worker, lease_until, completed_at, result,"
                " error_code, error_message)"
                " VALUES (?, 'image_embedding', ?, 5, 0, ?, 1, 1, 1, 2, ?, ?, ?, ?, ?, ?)",
                (
                    str(uuid.UUID(int=number)),
                    number,
                    state,
                    "somebody" if is_held else None,
                    5 if is_held else None,
                    7 if is_over else None,
                    '{"a": 1}' if state in ("completed", "sync_failed") else None,
                    "internal" if state in ("error", "sync_failed") else None,
                    "internal: oh" if state in ("error", "sync_failed") else None,
                ),
            )
        if version > 1:
            connection.execute(
                "INSERT INTO outbox (owner, topic, payload, created_at) VALUES ('a', 't', 'p', 1)"
            )
    return path


def _read(path: Path, statement: str) -> list[tuple[Any, ...]]:
    if not path.exists():
        return []
    with closing(sqlite3.connect(path)) as connection:
        return connection.execute(statement).fetchall()


def _contents(path: Path) -> dict[str, list[tuple[Any, ...]]]:
    tables = _read(path, "SELECT name FROM sqlite_master WHERE type = 'table' ORDER BY name")
    kept = [name for (name,) in tables if name in ("jobs", "outbox", "pauses")]
    return {name: _read(path, f"SELECT * FROM {name}") for name in kept}


def _schema(path: Path) -> list[tuple[Any, ...]]:
    ledger = _read(path, "SELECT version, name, sha256 FROM schema_migrations ORDER BY version")
    version = _read(path, "PRAGMA user_version")
    return [
        *_read(path, "SELECT type, name, sql FROM sqlite_master ORDER BY type, name"),
        *ledger,
        *version,
    ]


def _is_sound(path: Path) -> bool:
    return _read(path, "PRAGMA integrity_check") in ([("ok",)], [])
