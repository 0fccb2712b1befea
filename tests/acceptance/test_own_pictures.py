"""`make pictures`: a person's folder is made searchable, kept, and taken up by a second run."""

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from urllib.request import urlopen

import pytest

ROOT = Path(__file__).parents[2]
SECONDS = 150


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Return a folder with two pictures, one below, and a file that is none."""
    folder = tmp_path / "my photos"
    (folder / "2024").mkdir(parents=True)
    shutil.copy(sample("coffee.png"), folder)
    shutil.copy(sample("astronaut.png"), folder / "2024")
    (folder / "notes.txt").write_text("no picture", encoding="utf-8")
    return folder


def sample(name: str) -> Path:
    spec = find_spec("skimage")
    assert spec
    assert spec.origin
    return Path(spec.origin).parent / "data" / name


def words(photos: Path, *more: str) -> list[str]:
    kept = photos.parent / "kept"
    return [sys.executable, "-m", "demos.pictures", str(photos), "--keep", str(kept), *more]


def environ(tmp_path: Path) -> dict[str, str]:
    ours = {name: text for name, text in os.environ.items() if not name.startswith("INFERD_")}
    return ours | {"PYTHONPATH": str(ROOT), "HOME": str(tmp_path), "INFERD_OFFLINE": "true"}


def run(photos: Path, *more: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        words(photos, *more),
        cwd=photos.parent,
        env=environ(photos.parent),
        capture_output=True,
        text=True,
        timeout=SECONDS,
        check=False,
    )


@contextlib.contextmanager
def staying(photos: Path) -> Iterator[dict[str, str]]:
    """Run it until it is left by a kill; yield what it says where things are."""
    process = subprocess.Popen(
        words(photos),
        cwd=photos.parent,
        env=environ(photos.parent),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert process.stdout is not None
    told: dict[str, str] = {}
    try:
        for line in process.stdout:
            name, _, value = line.strip().partition("   ")
            told[name] = value.strip()
            if "Ctrl-C stops it" in line:
                break
        assert "look and search" in told, "\n".join(told)
        yield told
    finally:
        process.send_signal(signal.SIGTERM)
        rest, _ = process.communicate(timeout=60)
    assert process.returncode == 0, rest
    assert "the same command goes on" in rest


@pytest.mark.timeout(400)
@pytest.mark.usefixtures("documented_ports")
def test_a_folder_is_searchable_kept_and_taken_up(photos: Path) -> None:
    with staying(photos) as told:
        with urlopen(f"{told['look and search']}search/image_embeddings?like=1") as answer:
            assert len(json.load(answer)["results"]) == 1
        with urlopen(told["a picture by id"].replace("ID", "1")) as answer:
            assert answer.read() in {path.read_bytes() for path in photos.rglob("*.png")}
        typed = ["sh", "-c", told["back it up"]]
        backup = subprocess.run(
            typed, env=environ(photos.parent), capture_output=True, text=True, check=False
        )
        assert (backup.returncode, "6 jobs" in backup.stdout) == (0, True), backup.stderr
        assert len(list(photos.parent.glob("inferd-*.tar"))) == 1

    shutil.copy(sample("rocket.jpg"), photos)
    began = time.time()
    again = run(photos, "--once")

    assert again.returncode == 0, again.stdout + again.stderr
    lines = [
        json.loads(line)
        for line in (photos.parent / "kept" / "submit.jsonl").read_text("utf-8").splitlines()
    ]
    assert {(Path(line["file"]).name, line["status"]) for line in lines} == {
        ("rocket.jpg", "completed")
    }
    assert len(lines) == 3
    assert "6 asked for in earlier runs" in again.stderr
    assert began < (photos.parent / "kept" / "submit.state").stat().st_mtime


def test_a_folder_that_is_none_and_a_port_that_is_taken_are_told(photos: Path) -> None:
    nothing = run(photos / "nowhere")
    kept = photos.parent / "kept"
    kept.mkdir()
    (kept / "ports.json").write_text("[1, 2]", encoding="utf-8")
    garbled = run(photos, "--once")
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        (kept / "ports.json").write_text(f"[{port}, 2, 3]", encoding="utf-8")
        taken = run(photos, "--once")

    assert (nothing.returncode, garbled.returncode, taken.returncode) == (2, 1, 1)
    assert f"uses port {port}, which is taken" in taken.stderr
    assert f"there is no folder {photos / 'nowhere'}" in nothing.stderr
    assert "ports.json does not hold three ports: remove it" in garbled.stderr
