"""The measurements of bench/ run from nothing and print tables; their figures are no test's."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from tests.unit.face_rig import astronaut

ROOT = Path(__file__).parent.parent.parent
SECONDS = 290


def run_decoding(*arguments: str) -> subprocess.CompletedProcess[str]:
    environ = {name: value for name, value in os.environ.items() if not name.startswith("INFERD_")}
    return subprocess.run(
        [sys.executable, "-m", "bench.decoding", *arguments],
        cwd=ROOT,
        env=environ,
        capture_output=True,
        text=True,
        timeout=150,
        check=False,
    )


def row(text: str, first: str) -> list[str]:
    (line,) = [line for line in text.splitlines() if line.strip().startswith(first)]
    return line.split(first)[1].split()


def test_decoding_is_compared_on_the_pictures_of_a_folder(tmp_path: Path) -> None:
    photo = Image.fromarray(astronaut()).resize((1601, 1501), Image.Resampling.BICUBIC)
    photo.save(tmp_path / "large.jpg", quality=90)
    photo.resize((300, 281)).save(tmp_path / "small.jpg", quality=90)
    (tmp_path / "damaged.jpg").write_bytes((tmp_path / "large.jpg").read_bytes()[:20_000])
    (tmp_path / "no picture.txt").write_text("none")

    done = run_decoding(str(tmp_path), "--rounds", "1")

    assert done.returncode == 0, done.stderr
    assert "damaged.jpg" in done.stderr
    assert "UNTRAINED" in done.stdout
    pictures, _, _, _, least, *_ = row(done.stdout, "1-4 MP")
    assert pictures == "1"
    assert 0.999 < float(least) < 1
    # A small picture is the same either way.
    assert float(row(done.stdout, "0-1 MP")[4]) == 1
    scaled, _, faces, *_ = row(done.stdout, ">= 640")
    assert scaled == "1"
    assert int(faces) >= 1


def test_a_folder_without_pictures_is_told(tmp_path: Path) -> None:
    done = run_decoding(str(tmp_path))

    assert done.returncode == 1
    assert "holds no JPEG" in done.stderr


@pytest.mark.timeout(SECONDS + 10)
def test_memory_is_shown_for_each_life_of_the_daemon() -> None:
    small = ("--rows", "120", "--pictures", "120", "--events", "70")
    done = subprocess.run(
        [sys.executable, "-m", "bench.memory", "waiting", "pictures", "outbox", *small],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=SECONDS,
        check=False,
    )

    assert done.returncode == 0, done.stderr
    # Jobs done, megabytes of the daemon's own and of files, and of its decoders.
    found, own, files, decoders, _ = map(int, row(done.stdout, "leasing from them"))
    assert found >= 100
    assert min(own, files, decoders) > 0
    assert row(done.stdout, "all sent")[0] == "70"
