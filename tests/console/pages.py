"""What the tests do to a page, and what they notice on it."""

import base64
import os
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from typing import Any

from playwright.sync_api import Locator, Page, expect

SECONDS = 60.0
expect.set_options(timeout=SECONDS * 1000)
FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--no-first-run",
]
RULES = ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa", "best-practice"]
SHOTS = os.environ.get("INFERD_TEST_SHOTS", "")
"""A folder for screenshots to look at; empty makes none."""

DROP = """
([data, name, type, what]) => {
  const bytes = Uint8Array.from(atob(data), (each) => each.charCodeAt(0));
  const transfer = new DataTransfer();
  transfer.items.add(new File([bytes], name, { type }));
  const send = (kind, target) =>
    target.dispatchEvent(
      new DragEvent(kind, { dataTransfer: transfer, bubbles: true, cancelable: true }));
  send("dragenter", document.body);
  const target = document.querySelector(`[data-drop="${what}"]`);
  if (document.getElementById("drop").hidden || target.hidden) throw new Error("not offered");
  send("dragover", target);
  send("drop", target);
}
"""


SHIFTS = """
() => new Promise((done) => {
  new PerformanceObserver((list) => {
    done(list.getEntries().reduce((sum, each) => sum + (each.hadRecentInput ? 0 : each.value), 0));
  }).observe({ type: "layout-shift", buffered: true });
  // Where nothing moved, nothing is observed.
  setTimeout(() => done(0), 1000);
})
"""


@dataclass
class Watched:
    """A page, and what went wrong on it."""

    page: Page
    url: str
    errors: list[str] = field(default_factory=list)
    outside: list[str] = field(default_factory=list)
    """Addresses asked for that are not the daemon's."""

    def check(self) -> None:
        """Fail where anything went wrong."""
        assert self.errors == []
        assert self.outside == []

    def by(self, selector: str) -> Locator:
        """Return what a selector finds."""
        return self.page.locator(selector)

    def ready(self) -> "Watched":
        """Return once the daemon has told everything."""
        expect(self.by("#link")).to_have_text("All well")
        expect(self.by("#parts li")).to_have_count(4)
        return self

    def tile(self, media_store_id: int, where: str = "#latest") -> Locator:
        """Return the tile of a picture."""
        return self.by(f'{where} button[aria-label^="Picture {media_store_id},"]')

    def drop(self, data: bytes, name: str, what: str) -> None:
        """Drag a file onto the page and let it go on one of the three fields."""
        self.page.evaluate(DROP, [base64.b64encode(data).decode(), name, "image/png", what])

    def shoot(self, name: str) -> None:
        """Keep a screenshot for a person, where one wants it."""
        if SHOTS:
            self.page.screenshot(path=Path(SHOTS) / f"{name}.png")

    def violations(self) -> list[str]:
        """Return what axe finds, in words."""
        script = resources.files("axe_playwright_python").joinpath("axe.min.js").read_text("utf-8")
        self.page.evaluate(f"() => {{ {script} }}")
        found: dict[str, Any] = self.page.evaluate(
            "(tags) => axe.run(document, { runOnly: { type: 'tag', values: tags } })", RULES
        )
        return [
            f"{each['id']}: {node['target']} {node['failureSummary']}"
            for each in found["violations"]
            for node in each["nodes"]
        ]

    def shifts(self) -> float:
        """Return how much moved by itself since the page was opened, as browsers measure it."""
        return float(self.page.evaluate(SHIFTS))

    def is_too_wide(self) -> bool:
        """Whether one has to scroll sideways."""
        root = "document.documentElement"
        return bool(self.page.evaluate(f"{root}.scrollWidth > {root}.clientWidth"))


def watch(page: Page, url: str) -> Watched:
    """Return a page whose errors are noted."""
    watched = Watched(page, url)
    page.on("pageerror", lambda error: watched.errors.append(str(error)))
    page.on(
        "console",
        lambda line: (
            watched.errors.append(line.text) if line.type in ("error", "warning") else None
        ),
    )
    page.on(
        "request",
        lambda asked: (
            None
            if asked.url.startswith((url, "blob:", "data:"))
            else watched.outside.append(asked.url)
        ),
    )
    return watched
