"""docs/upgrading.md on a queue of an older schema: each of its commands, in its order."""

import os
import re
import shutil
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from daemon.queue.migration import released_migrations
from tests.acceptance.rig import MediaStore
from tests.broker import Broker

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs" / "upgrading.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```sh\n(.*?)^```$", PAGE, re.DOTALL | re.MULTILINE)
OLD = 3
"""Steps that the older version knew."""
INSERT = (
    "INSERT INTO jobs (job_id, task_type, media_store_id, priority, rank, created_at)"
    " VALUES (?, 'face_detection', ?, 5, 0, ?)"
)


def add(queue: Path, number: int) -> None:
    """Add a job, as a daemon of whatever version would."""
    with closing(sqlite3.connect(queue)) as file, file:
        # Of now: one that waits for long is what doctor warns of.
        file.execute(INSERT, (f"{number:036}", number, time.time_ns() // 1_000_000))


def state(queue: Path) -> tuple[int, list[int]]:
    """Return a queue's schema and the pictures of its jobs."""
    with closing(sqlite3.connect(queue)) as file:
        (version,) = file.execute("SELECT max(version) FROM schema_migrations").fetchone()
        rows = file.execute("SELECT media_store_id FROM jobs ORDER BY 1").fetchall()
        return version, [row[0] for row in rows]


@pytest.fixture
def old(tmp_path: Path) -> Path:
    """Return a data folder whose queue an older version made, with one job."""
    data = tmp_path / "data"
    data.mkdir()
    queue = data / "queue.db"
    with closing(sqlite3.connect(queue)) as file:
        file.execute(
            "CREATE TABLE schema_migrations (version INTEGER PRIMARY KEY, name TEXT NOT NULL,"
            " sha256 TEXT NOT NULL, applied_at INTEGER NOT NULL) STRICT"
        )
        for step in released_migrations()[:OLD]:
            file.executescript(step.sql)
            row = (step.version, step.name, step.sha256, 1)
            file.execute("INSERT INTO schema_migrations VALUES (?, ?, ?, ?)", row)
        file.commit()
    add(queue, 1)
    return data


@pytest.fixture
def environ(tmp_path: Path, old: Path) -> Iterator[dict[str, str]]:
    """Give what the page expects: the settings, and `python` on the path."""
    with Broker(tmp_path) as broker, MediaStore() as store:
        yield {
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
            "HOME": str(tmp_path),
            "AUTH_DISABLED": "true",
            "INFERD_DATA_DIR": str(old),
            "INFERD_MQTT__URL": broker.url,
            "INFERD_MEDIA_STORE__URL": store.url,
            "INFERD_WORKER__TASK_TYPES": "face_detection",
            "INFERD_FACES__PACK": "cascade",
        }


def test_each_command_of_the_page_does_what_the_page_says(
    tmp_path: Path, old: Path, environ: dict[str, str]
) -> None:
    backups = tmp_path / "backups"
    backups.mkdir()
    newest = len(released_migrations())

    def run(block: str) -> str:
        text = block.replace("/backups", str(backups)).replace("NNNN", f"{OLD + 1:04}")
        done = subprocess.run(
            ["bash", "-euo", "pipefail", "-c", text],
            cwd=ROOT,
            env=environ,
            capture_output=True,
            check=False,
            text=True,
            timeout=120,
        )
        failing = [line for line in done.stdout.splitlines() if line.startswith("FAIL")]
        assert done.returncode == 0, (failing, block, done.stdout, done.stderr)
        return done.stdout

    before, look, upgrade, well, back, lists, restore = BLOCKS
    assert ": sound, " in run(before)
    assert run(look).count("to be applied") == newest - OLD
    assert state(old / "queue.db") == (OLD, [1])
    assert f"copy from before {OLD + 1:04}" in run(upgrade)
    assert state(old / "queue.db") == (newest, [1])
    run(well)
    add(old / "queue.db", 2)

    run(back)

    assert state(old / "queue.db") == (OLD, [1])
    run(lists)
    assert (old / "asked-since.face_detection.txt").read_text() == "2\n"
    run(restore)
    assert state(old / "queue.db") == (OLD, [1])
    assert len(list(old.glob("queue.db.before-restore-*"))) == 1


def test_what_the_page_names_is_there() -> None:
    acl = (ROOT / "mosquitto" / "acl").read_text(encoding="utf-8")

    for line in re.findall(r"`(topic [^`]+)`", PAGE):
        assert line in acl.splitlines()
    assert shutil.which("bash")
