"""`python -m daemon migrate` on real files: old, current, newer, damaged, locked or absent."""

import asyncio
import os
import sqlite3
import sys
from pathlib import Path

import pytest

from daemon.errors import ConfigError
from daemon.queue.backend import Connection
from daemon.queue.database import Database
from daemon.queue.migration import Migration, backup_path, released_migrations

ROOT = Path(__file__).resolve().parents[2]
STEPS = released_migrations()
NEWEST = STEPS[-1].version
FUTURE = Migration(NEWEST + 1, "future", "CREATE TABLE future (x INTEGER) STRICT;")
INSERT = (
    "INSERT INTO jobs (job_id, task_type, media_store_id, priority, rank, created_at)"
    " VALUES (?, 'image_embedding', ?, 5, 0, 1)"
)


async def migrate(folder: Path, *arguments: str) -> tuple[int, str, str]:
    """Run the command on `folder/queue.db`; return its exit code, stdout and stderr."""
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "daemon",
        "migrate",
        *arguments,
        cwd=ROOT,
        env={"PATH": os.environ["PATH"], "HOME": str(folder), "INFERD_DATA_DIR": str(folder)},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    try:
        async with asyncio.timeout(60):
            out, err = await process.communicate()
    except TimeoutError:
        process.kill()
        await process.wait()
        raise
    assert process.returncode is not None
    assert b"Traceback" not in err
    return process.returncode, out.decode(), err.decode()


async def make(path: Path, steps: list[Migration], rows: int = 0) -> None:
    async def fill(connection: Connection) -> None:
        for number in range(rows):
            await connection.execute(INSERT, (f"{number:036}", number))

    async with Database(path, steps) as database:
        await database.write(fill)


def query(path: Path, sql: str) -> list[tuple[object, ...]]:
    connection = sqlite3.connect(path)
    try:
        return connection.execute(sql).fetchall()
    finally:
        connection.close()


def versions(path: Path) -> list[int]:
    return [number for (number,) in query(path, "SELECT version FROM schema_migrations")]  # type: ignore[misc]


def content(path: Path) -> bytes:
    return path.read_bytes()


def write(path: Path, whole: bytes) -> None:
    path.write_bytes(whole)


def modified(path: Path) -> int:
    return path.stat().st_mtime_ns


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "queue.db"


async def test_an_old_file_gets_every_step_and_keeps_its_rows(path: Path) -> None:
    await make(path, STEPS[:1], rows=3)

    code, out, err = await migrate(path.parent)

    assert (code, err) == (0, "")
    assert query(path, "SELECT job_id FROM jobs ORDER BY id") == [(f"{n:036}",) for n in range(3)]
    assert versions(path) == [step.version for step in STEPS]
    lines = out.splitlines()
    assert lines[0] == f"{path}: schema {NEWEST}, this version's is {NEWEST}"
    assert lines[1].split()[:2] == ["0001", STEPS[0].name]
    assert "applied now" not in lines[1]
    for line, step in zip(lines[2:], STEPS[1:], strict=False):
        assert line.split()[:2] == [f"{step.version:04}", step.name]
        assert line.endswith("Z  applied now")
    copy = backup_path(path, 2)
    assert lines[-1] == f"copy from before 0002: {copy}"
    assert versions(copy) == [1]
    assert query(copy, "SELECT count(*) FROM jobs") == [(3,)]


async def test_check_says_what_would_be_done_and_does_nothing(path: Path) -> None:
    await make(path, STEPS[:1], rows=1)
    before = content(path)

    code, out, err = await migrate(path.parent, "--check")

    assert (code, err) == (1, "")
    assert out.startswith(f"{path}: schema 1, this version's is {NEWEST}\n")
    assert out.count("to be applied") == NEWEST - 1
    assert content(path) == before
    assert [each.name for each in path.parent.iterdir()] == [path.name]


@pytest.mark.parametrize("arguments", [(), ("--check",), ("--create",)])
async def test_a_current_file_is_left_alone(path: Path, arguments: tuple[str, ...]) -> None:
    await make(path, STEPS, rows=1)
    before = content(path), modified(path)

    code, out, _ = await migrate(path.parent, *arguments)

    assert code == 0
    assert out.startswith(f"{path}: schema {NEWEST}, this version's is {NEWEST}\n")
    assert "applied" not in out
    assert (content(path), modified(path)) == before
    assert [each.name for each in path.parent.iterdir()] == [path.name]


@pytest.mark.parametrize("arguments", [(), ("--check",)])
async def test_a_newer_file_is_shown_and_refused(path: Path, arguments: tuple[str, ...]) -> None:
    await make(path, [*STEPS, FUTURE])

    code, out, err = await migrate(path.parent, *arguments)

    assert code == 78
    assert f"has schema {NEWEST + 1}, this version knows {NEWEST}: use a newer inferd" in err
    assert out.splitlines()[-1].endswith("unknown to this version")
    assert versions(path)[-1] == NEWEST + 1


async def test_a_file_whose_step_was_edited_is_refused(path: Path) -> None:
    await make(path, [Migration(1, STEPS[0].name, f"{STEPS[0].sql}\n-- edited\n")])

    code, _, err = await migrate(path.parent)

    assert code == 78
    assert "migration 1 of" in err
    assert versions(path) == [1]


async def test_a_damaged_file_is_refused_before_it_is_changed(path: Path) -> None:
    await make(path, STEPS[:1], rows=500)
    # Past the schema's pages: only reading the whole file finds it.
    whole = bytearray(content(path))
    whole[(middle := len(whole) // 2 // 4096 * 4096) : middle + 4096] = b"\xff" * 4096
    write(path, bytes(whole))
    before = content(path)

    code, _, err = await migrate(path.parent)

    assert code == 78
    assert f"{path} is damaged" in err
    assert content(path) == before
    assert not backup_path(path, 2).exists()


async def test_a_letter_is_no_queue(path: Path) -> None:
    write(path, b"Dear friend, this is no database. " * 300)

    code, _, err = await migrate(path.parent)

    assert code == 78
    assert "no SQLite file" in err


@pytest.mark.parametrize("arguments", [(), ("--check",), ("--create",)])
async def test_another_programs_file_is_left_alone(path: Path, arguments: tuple[str, ...]) -> None:
    connection = sqlite3.connect(path)
    connection.execute("CREATE TABLE bookmarks (url TEXT)")
    connection.close()
    before = content(path)

    code, _, err = await migrate(path.parent, *arguments)

    assert code == 78
    assert "another program" in err
    assert content(path) == before


async def test_a_daemon_leaves_another_programs_file_alone_too(path: Path) -> None:
    connection = sqlite3.connect(path)
    connection.execute("CREATE TABLE bookmarks (url TEXT)")
    connection.close()
    before = content(path)

    with pytest.raises(ConfigError, match="another program"):
        await make(path, STEPS)

    assert content(path) == before


async def test_a_missing_file_is_said_and_made_on_request_only(path: Path) -> None:
    code, out, _ = await migrate(path.parent, "--check")
    assert code == 1
    assert f"there is no queue at {path}" in out

    code, _, err = await migrate(path.parent)
    assert code == 78
    assert "migrate --create" in err
    assert list(path.parent.iterdir()) == []

    code, out, _ = await migrate(path.parent, "--create")
    assert code == 0
    assert out.count("applied now") == NEWEST
    assert versions(path) == [step.version for step in STEPS]
    assert list(path.parent.glob("*.before-*")) == []


async def test_a_locked_file_is_told_and_left_as_it_is(path: Path) -> None:
    await make(path, STEPS[:1], rows=1)
    rival = sqlite3.connect(path, isolation_level=None)
    rival.execute("BEGIN IMMEDIATE")

    code, _, err = await migrate(path.parent, "--wait", "0.1")

    assert code == 1
    assert "locked" in err
    rival.execute("ROLLBACK")
    rival.close()
    assert versions(path) == [1]
    assert (await migrate(path.parent))[0] == 0
    assert versions(path)[-1] == NEWEST


async def test_a_daemon_of_the_older_version_goes_on_meanwhile(path: Path) -> None:
    await make(path, STEPS[:1])

    async def add(connection: Connection) -> None:
        await connection.execute(INSERT, ("x" * 36, 9))

    async with Database(path, STEPS[:1]) as running:
        code, _, err = await migrate(path.parent)
        assert (code, err) == (0, "")
        await running.write(add, durable=True)
        assert len(await running.read("SELECT * FROM jobs")) == 1

    assert query(path, "PRAGMA integrity_check") == [("ok",)]
    assert versions(path)[-1] == NEWEST


async def test_two_at_once_both_succeed(path: Path) -> None:
    await make(path, STEPS[:1], rows=200)

    both = await asyncio.gather(migrate(path.parent), migrate(path.parent))

    assert [code for code, _, _ in both] == [0, 0], both
    assert versions(path) == [step.version for step in STEPS]
    assert query(path, "SELECT count(*) FROM jobs") == [(200,)]
    assert not list(path.parent.glob("*.part"))


@pytest.mark.parametrize("wait", ["-1", "soon", "1e9", "nan"])
async def test_a_wait_that_is_none_is_a_usage_error(path: Path, wait: str) -> None:
    code, _, err = await migrate(path.parent, f"--wait={wait}")

    assert code == 2
    assert "--wait" in err
