"""`backup`, `restore` and `migrate` as processes, and what lies in a data folder afterwards."""

import asyncio
import io
import os
import re
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path
from typing import Any, Self

from PIL import Image

from handlers.qdrant.qdrant_edge import EdgeEngine
from handlers.qdrant.vector_engine import CollectionSpec
from tests.acceptance.rig import ROOT

IMAGES = CollectionSpec("image_embeddings", 512, {"media_store_id": "integer"})
EMBEDDING = {"INFERD_WORKER__TASK_TYPES": "image_embedding", "INFERD_CLIP__WEIGHTS": "untrained"}
SECONDS = 120


def environ(data: Path, **more: str) -> dict[str, str]:
    """Return the environment of a command that works on a data folder."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith("INFERD_")}
    return {
        **kept,
        "INFERD_DATA_DIR": str(data),
        "INFERD_MODELS_DIR": str(data / "no-models"),
        "INFERD_OFFLINE": "true",
        **EMBEDDING,
        **more,
    }


def command(*words: str, **env: Any) -> subprocess.CompletedProcess[str]:
    """Run `python -m daemon ...`; whatever goes wrong, no traceback may show."""
    done = subprocess.run(
        [sys.executable, "-m", "daemon", *words],
        cwd=ROOT,
        env=environ(**env),
        capture_output=True,
        check=False,
        text=True,
        timeout=SECONDS,
    )
    assert "Traceback" not in done.stderr, done.stderr
    # Not how far it was, which is told every few seconds.
    lines = done.stderr.splitlines(keepends=True)
    done.stderr = "".join(line for line in lines if not re.search(r"\d/s\b", line))
    return done


def jobs(queue: Path) -> dict[int, tuple[str, str]]:
    """Return job_id and status by picture; a picture has one job in these tests."""
    with closing(sqlite3.connect(queue)) as file:
        rows = file.execute("SELECT media_store_id, job_id, status FROM jobs").fetchall()
    assert len({row[0] for row in rows}) == len(rows)
    return {media: (job_id, status) for media, job_id, status in rows}


def stored(folder: Path) -> dict[Any, tuple[bytes, dict[str, Any]]]:
    """Return the bytes of each vector and its payload by id, from an engine's folder at rest."""

    async def read() -> dict[Any, tuple[bytes, dict[str, Any]]]:
        engine = EdgeEngine(folder)
        await engine.open()
        try:
            await engine.ensure_collection(IMAGES)
            found, next_id = {}, None
            while True:
                page = await engine.scroll(IMAGES.name, from_id=next_id)
                for point in page.points:
                    found[point.point_id] = point.vector.tobytes(), point.payload
                if (next_id := page.next_id) is None:
                    return found
        finally:
            await engine.close()

    return asyncio.run(read())


def of_status(found: dict[int, tuple[str, str]], status: str) -> set[int]:
    """Return the pictures whose job has a status."""
    return {media for media, (_, has) in found.items() if has == status}


def picture(number: int) -> bytes:
    """Return a small JPEG, another one for each number."""
    made = Image.new("RGB", (64, 64), (number % 256, number * 7 % 256, number * 31 % 256))
    data = io.BytesIO()
    made.save(data, "JPEG")
    return data.getvalue()


_STOPPING = """
import sys
from daemon import __main__
from daemon.cli import backup

PLACES = {
    "PINNED": (backup.VectorSource, "open"),
    "COPIED": (backup.PinnedQueue, "copy_to"),
    "WRITTEN": (backup, "publish"),
}
word = sys.argv.pop(1)
owner, name = PLACES[word]
plain = getattr(owner, name)


def stopping(*args, **options):
    print(word, flush=True)
    sys.stdin.readline()
    return plain(*args, **options)


setattr(owner, name, stopping)
sys.exit(__main__.main(sys.argv[1:]))
"""


class Stopped:
    """A command that stands still at a place in `backup`: PINNED, COPIED or WRITTEN."""

    def __init__(self, *words: str, at_word: str, **env: Any) -> None:
        self._words, self._at, self._environ = words, at_word, environ(**env)

    def __enter__(self) -> Self:
        self._process = subprocess.Popen(
            [sys.executable, "-c", _STOPPING, self._at, *self._words],
            cwd=ROOT,
            env=self._environ,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self._process.stdout is not None
        assert self._process.stdout.readline() == f"{self._at}\n"
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()

    def go_on(self) -> int:
        """Let it go on to its end; return its exit code."""
        self._process.communicate("\n", timeout=SECONDS)
        return self._process.returncode

    def kill(self) -> None:
        """End it as a power cut would."""
        self._process.kill()
        self._process.communicate()
