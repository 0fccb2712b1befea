"""A browser for the tests of the console, and pages that notice every error."""

import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from playwright.sync_api import Browser, BrowserContext, Page, sync_playwright

from tests.console.pages import FLAGS, SECONDS, Watched, watch
from tests.console.rig import Stack, stack

NAMES = ("chromium", "chromium-browser", "google-chrome")


# Of a module, never of the session: while it is open, Playwright's event loop counts as running
# in this thread, and no other test could begin one of its own.
@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """Return the system's Chromium; without it the test skips, but never in CI."""
    found = next((path for name in NAMES if (path := shutil.which(name))), None)
    if found is None:
        reason = "no Chromium is installed: .ci/ensure-chromium.sh does it on Debian"
        if os.environ.get("CI"):
            pytest.fail(reason)
        pytest.skip(reason)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=found, headless=True, args=FLAGS, timeout=SECONDS * 1000
        )
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory, browser: Browser) -> Iterator[Stack]:
    """Run one stack for all tests that leave it as they found it, or only add to it."""
    with stack(tmp_path_factory.mktemp("console")) as running:
        yield running


Opener = Callable[..., Watched]


@pytest.fixture
def open_page(browser: Browser) -> Iterator[Opener]:
    """Return what opens the console in a fresh profile; an error on any page fails the test."""
    with ExitStack() as stack:
        pages: list[Watched] = []

        def open_one(
            where: Stack, *, width: int = 1280, height: int = 900, scheme: str = "light"
        ) -> Watched:
            context: BrowserContext = browser.new_context(
                viewport={"width": width, "height": height},
                color_scheme="dark" if scheme == "dark" else "light",
                reduced_motion="reduce",
                locale="en-GB",
            )
            stack.callback(context.close)
            context.set_default_timeout(SECONDS * 1000)
            page: Page = context.new_page()
            watched = watch(page, where.url)
            pages.append(watched)
            page.goto(where.url)
            return watched

        yield open_one
        for each in pages:
            each.check()


@pytest.fixture(scope="session")
def portrait() -> bytes:
    """Return a real photo with one face."""
    return picture("astronaut.png")


def picture(name: str) -> bytes:
    """Return a picture that comes with scikit-image."""
    import skimage  # noqa: PLC0415 - only its folder is wanted

    return (Path(skimage.__file__).parent / "data" / name).read_bytes()
