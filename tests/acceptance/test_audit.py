"""`python -m daemon audit` and `stored` against the real daemon, and on its files without it."""

import contextlib
import json
import sqlite3
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from subprocess import CompletedProcess
from typing import Any, cast

import pytest
from PIL import Image

from handlers.image_store import QdrantImageStore
from tests.acceptance.demo_store import DemoStore
from tests.acceptance.rig import CASCADE_ONLY, Daemon, MediaStore
from tests.acceptance.test_search_command import SECONDS, TYPES, command
from tests.broker import Broker
from tests.waiting import wait_until


@dataclass
class World:
    """A daemon that did some pictures, and how a person speaks to it."""

    daemon: Daemon
    environ: dict[str, str]
    ids: dict[str, int]

    def run(self, *words: str) -> CompletedProcess[str]:
        return command({**self.environ, "INFERD_HTTP__PORT": str(self.daemon.port)}, *words)

    def findings(self, *words: str) -> list[tuple[str, int]]:
        """Return what an audit finds; it must say so by its exit code."""
        ran = self.run("audit", "--json", *words)
        assert ran.returncode == (1 if ran.stdout else 0), ran.stderr
        found: list[dict[str, Any]] = [json.loads(line) for line in ran.stdout.splitlines()]
        return sorted((each["kind"], each["media_store_id"]) for each in found)

    def lose_vector(self, name: str) -> None:
        with QdrantImageStore(path=self.daemon.folder / "data" / "vectors") as store:
            store.delete(self.ids[name])

    def lose_jobs(self, name: str) -> None:
        with contextlib.closing(sqlite3.connect(self.daemon.folder / "data" / "queue.db")) as file:
            file.execute("DELETE FROM jobs WHERE media_store_id = ?", (self.ids[name],))
            file.commit()


@pytest.fixture
def world(portrait: bytes, tmp_path: Path) -> Iterator[World]:
    pictures = tmp_path / "pictures"
    pictures.mkdir()
    (pictures / "portrait.png").write_bytes(portrait)
    Image.linear_gradient("L").save(pictures / "gradient.png")
    Image.effect_mandelbrot((256, 256), (-2, -1.5, 1, 1.5), 50).save(pictures / "fractal.png")
    Image.radial_gradient("L").save(pictures / "radial.png")
    with contextlib.ExitStack() as stack:
        broker = stack.enter_context(Broker(tmp_path))
        store = stack.enter_context(DemoStore(tmp_path / "media"))
        daemon = Daemon(tmp_path, broker, cast("MediaStore", store), **TYPES)
        stack.enter_context(daemon)
        environ = {
            **CASCADE_ONLY,
            **TYPES,
            "AUTH_DISABLED": "true",
            "INFERD_OFFLINE": "true",
            "INFERD_DATA_DIR": str(tmp_path / "data"),
            "INFERD_MQTT__URL": broker.url,
            "INFERD_MEDIA_STORE__URL": store.url,
        }
        world = World(daemon, environ, {})
        tasks = ("--task", "image_embedding", "--task", "face_embedding")
        done = world.run("submit", "--folder", str(pictures), "--wait", *tasks)
        assert done.returncode == 0, done.stderr
        for line in map(json.loads, done.stdout.splitlines()):
            world.ids[Path(line["file"]).stem] = line["media_store_id"]
        yield world


def test_what_was_lost_is_found_and_mended(world: World) -> None:
    ids, daemon = world.ids, world.daemon
    fits = world.run("audit", "--deep")
    assert (fits.returncode, fits.stdout) == (0, ""), fits.stderr
    assert "8 completed jobs and 5 vectors compared: all fits" in fits.stderr
    locked = world.run("audit", "--files")
    assert locked.returncode == 78, locked.stderr
    lost = sorted(
        [("missing_vector", ids["gradient"]), ("orphan_vector", ids["fractal"])],
    )

    assert daemon.terminate() == 0
    world.lose_vector("gradient")
    world.lose_jobs("fractal")
    assert world.findings("--files") == lost
    nobody = world.run("audit")
    assert (nobody.returncode, nobody.stdout) == (3, "")

    daemon.start()
    assert world.findings() == lost
    told = world.run("audit")
    assert told.returncode == 1
    assert f"{ids['gradient']}: no vector is stored of its completed job" in told.stdout
    assert world.findings("--mend", "orphans") == lost
    assert world.findings() == lost[:1]

    mended = world.run("audit", "--mend", "--json")
    assert mended.returncode == 0, mended.stderr
    (line,) = mended.stdout.splitlines()
    job_id = json.loads(line)["mended"]["job_id"]
    wait_until(lambda: daemon.job(job_id)["status"] == "completed", SECONDS)
    assert daemon.job(job_id)["priority"] == 0
    assert world.findings("--deep") == []
    again = world.run("search", "--like", str(ids["gradient"]), "--json")
    assert again.returncode == 0, again.stderr


def test_vectors_that_went_with_the_machine_are_made_again_after_the_next_start(
    world: World,
) -> None:
    ids, daemon = world.ids, world.daemon
    daemon.kill()
    world.lose_vector("gradient")
    world.lose_vector("radial")
    noted = daemon.folder / "data" / "last-life.json"
    # What the last seconds before a power cut leave, seen from the boot after it.
    noted.write_text(json.dumps({**json.loads(noted.read_text()), "boot": "the one before"}))

    daemon.start()
    wait_until(lambda: "2 of the last 8 jobs had lost vectors" in daemon.text(), SECONDS)

    def is_found(name: str) -> bool:
        return world.run("search", "--like", str(ids[name]), "--json").returncode == 0

    wait_until(lambda: is_found("gradient") and is_found("radial"), SECONDS)
    assert world.findings() == []
    assert daemon.terminate() == 0
    daemon.start()
    wait_until(lambda: daemon.text().count("inferd is running") == 3, SECONDS)
    assert daemon.text().count("looking for vectors that went") == 1


def test_what_is_stored_is_listed_page_by_page(world: World) -> None:
    ids = sorted(world.ids.values())

    table = world.run("stored")
    assert table.returncode == 0, table.stderr
    head, *rows = table.stdout.splitlines()
    assert head.split() == ["stored", "point_id", "job_id"]
    assert [int(row.split()[2]) for row in rows] == ids

    page = world.run("stored", "--limit", "2", "--json")
    points = [json.loads(line) for line in page.stdout.splitlines()]
    assert [point["point_id"] for point in points] == ids[:2]
    assert f"--after {ids[1]}" in page.stderr
    rest = world.run("stored", "--after", str(ids[1]), "--json")
    assert [json.loads(line)["point_id"] for line in rest.stdout.splitlines()] == ids[2:]

    face = world.run("stored", "--faces", "--only-ids", str(world.ids["portrait"]))
    assert len(face.stdout.splitlines()) == 2
    assert str(world.ids["portrait"]) in face.stdout
    nothing = world.run("stored", "--stored-before", "1d")
    assert (nothing.returncode, nothing.stdout) == (0, "")
    assert "nothing is stored of that" in nothing.stderr
    narrowed = world.run(
        "search",
        "--text",
        "x",
        "--only-ids",
        f"{ids[0]},{ids[1]}",
        "--stored-after",
        "1h",
        "--json",
    )
    found = json.loads(narrowed.stdout)["results"]
    assert sorted(each["media_store_id"] for each in found) == ids[:2]
