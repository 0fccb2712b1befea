"""README's screenshots: the real daemon, its real results, of pictures that we drew.

    python -m tests.console.screenshots [FOLDER]

CLIP and ArcFace are untrained here and faces are the cascade's, as everywhere without weights; the
page says so itself, and nothing on it is made up.
"""

import argparse
import io
import shutil
import sys
import tempfile
import uuid
from collections.abc import Sequence
from pathlib import Path

from PIL import Image
from playwright.sync_api import Browser, FilePayload, Page, expect, sync_playwright

from tests.console.drawn import all_pictures
from tests.console.pages import FLAGS, SECONDS
from tests.console.rig import Stack, stack
from tests.waiting import wait_until

FOLDER = Path(__file__).parents[2] / "docs" / "images"
SCHEMES = ("light", "dark")
SHOTS = ("console", "picture", "search")
SIZE = {"width": 1280, "height": 860}
QUALITY = 82
CHROMIUM = ("chromium", "chromium-browser", "google-chrome")
TASKS = ("image_embedding", "face_detection", "face_embedding")


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Make README's screenshots anew.")
    parser.add_argument("folder", nargs="?", type=Path, default=FOLDER)
    folder: Path = parser.parse_args(argv).folder
    found = next((path for name in CHROMIUM if (path := shutil.which(name))), None)
    if found is None:
        sys.stderr.write("no Chromium is installed: .ci/ensure-chromium.sh does it on Debian\n")
        return 1
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as scratch, stack(Path(scratch)) as running:
        ids = take(running, all_pictures())
        with sync_playwright() as playwright:
            browser = playwright.chromium.launch(executable_path=found, args=FLAGS)
            for scheme in SCHEMES:
                shoot(browser, running, ids, scheme, folder)
            browser.close()
    return 0


def take(running: Stack, pictures: dict[str, bytes]) -> dict[str, int]:
    """Send pictures through all three tasks, one after the other; return their ids by name."""
    ids = {}
    for name, data in pictures.items():
        ids[name] = running.add(data, name)
        jobs = [str(uuid.uuid4()) for _ in TASKS]
        for job_id, task in zip(jobs, TASKS, strict=True):
            body = {"media_store_id": ids[name], "job_id": job_id}
            status, said = running.daemon.request("POST", f"/job/{task}", body)
            assert status == 201, said
        for job_id in jobs:
            wait_until(lambda job_id=job_id: is_over(running, job_id))  # type: ignore[misc]
    return ids


def is_over(running: Stack, job_id: str) -> bool:
    job = running.daemon.job(job_id)
    assert job["status"] != "error", job["error_message"]
    return bool(job["status"] == "completed")


def shoot(browser: Browser, running: Stack, ids: dict[str, int], scheme: str, folder: Path) -> None:
    context = browser.new_context(
        viewport=SIZE,  # type: ignore[arg-type]  # playwright's TypedDict
        color_scheme="dark" if scheme == "dark" else "light",
        reduced_motion="reduce",
        locale="en-GB",
        timezone_id="UTC",
    )
    context.set_default_timeout(SECONDS * 1000)
    page = context.new_page()
    page.goto(running.url)
    expect(page.locator("#link")).to_have_text("All well")
    expect(page.locator("#latest img")).to_have_count(len(ids))
    # Small pictures come as they are made.
    wait_until(lambda: all_loaded(page, "#latest img"))
    keep(page, folder / f"console-{scheme}.webp")

    page.locator(f'#latest button[aria-label^="Picture {ids["family.jpg"]},"]').click()
    expect(page.locator("#detail rect.line")).to_have_count(3)
    wait_until(lambda: all_loaded(page, "#detail img"))
    keep(page, folder / f"picture-{scheme}.webp")
    page.keyboard.press("Escape")

    sunset = all_pictures()["sunset.jpg"]
    with page.expect_file_chooser() as chooser:
        page.locator("#pick-similar").click()
    chooser.value.set_files(FilePayload(name="sunset.jpg", mimeType="image/jpeg", buffer=sunset))
    expect(page.locator("#found-list > li")).not_to_have_count(0)
    wait_until(lambda: all_loaded(page, "#found-list img"))
    keep(page, folder / f"search-{scheme}.webp")
    context.close()


def all_loaded(page: Page, selector: str) -> bool:
    script = "all => all.length > 0 && all.every((each) => each.complete && each.naturalWidth > 0)"
    return bool(page.locator(selector).evaluate_all(script))


def keep(page: Page, path: Path) -> None:
    page.mouse.move(0, 0)
    picture = Image.open(io.BytesIO(page.screenshot()))
    picture.save(path, "WEBP", quality=QUALITY, method=6)
    sys.stdout.write(f"{path.name}: {path.stat().st_size // 1024} KB\n")


if __name__ == "__main__":
    sys.exit(main())
