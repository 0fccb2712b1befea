"""README's screenshots can be made anew, of the real daemon, and those that are kept are whole."""

import io
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image, ImageChops, ImageStat

from tests.console.drawn import SIZE as DRAWN
from tests.console.drawn import all_pictures
from tests.console.screenshots import CHROMIUM, FOLDER, SCHEMES, SHOTS, SIZE

ROOT = Path(__file__).parents[2]
NAMES = {f"{shot}-{scheme}.webp" for shot in SHOTS for scheme in SCHEMES}
MOST_BYTES = 120_000


def check(folder: Path) -> None:
    assert {path.name for path in folder.glob("*.webp")} == NAMES
    for name in NAMES:
        with Image.open(folder / name) as picture:
            assert picture.size == (SIZE["width"], SIZE["height"])
            colours = picture.convert("RGB").getcolors(maxcolors=1 << 24)
            assert colours is not None
            assert len(colours) > 500, f"{name} shows nothing"
        assert (folder / name).stat().st_size < MOST_BYTES
    for shot in SHOTS:
        light, dark = (Image.open(folder / f"{shot}-{each}.webp").convert("L") for each in SCHEMES)
        darker = ImageChops.subtract(light, dark)
        assert ImageStat.Stat(darker).mean[0] > 20, f"{shot} is not dark in the dark"


def test_the_kept_screenshots_are_whole() -> None:
    check(FOLDER)


@pytest.mark.timeout(300)
def test_they_can_be_made_anew(tmp_path: Path) -> None:
    if not any(shutil.which(name) for name in CHROMIUM) and not os.environ.get("CI"):
        pytest.skip("no Chromium is installed: .ci/ensure-chromium.sh does it on Debian")

    done = subprocess.run(
        [sys.executable, "-m", "tests.console.screenshots", tmp_path / "shots"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
    )

    assert done.returncode == 0, done.stdout + done.stderr
    check(tmp_path / "shots")


def test_the_drawn_pictures_are_the_same_each_time_and_all_different() -> None:
    one, other = all_pictures(), all_pictures()

    assert one == other
    assert len(set(one.values())) == len(one)
    for data in one.values():
        assert Image.open(io.BytesIO(data)).size == DRAWN
