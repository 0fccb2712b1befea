"""Each link of README, CHANGELOG and docs/ leads to a file and a heading that are there."""

from pathlib import Path

import pytest

from tests.pages import ROOT, anchors, links, pages


def _broken(page: str, target: str) -> bool:
    """Return whether a link of a page, to another file of ours, leads nowhere."""
    place, _, anchor = target.partition("#")
    path = (ROOT / page).parent / place if place else ROOT / page
    if not path.exists():
        return True
    if path.is_dir() and anchor:
        path /= "README.md"
    return bool(anchor) and anchor not in anchors(path.read_text(encoding="utf-8"))


@pytest.mark.parametrize("page", pages())
def test_every_link_leads_somewhere(page: str) -> None:
    ours = [link for link in links(pages()[page]) if "://" not in link]

    assert [link for link in ours if _broken(page, link)] == []


def test_readme_has_links_and_they_are_read() -> None:
    assert "docs/configuration.md" in links(pages()["README.md"])
    assert _broken("README.md", "docs/none.md")
    assert _broken("docs/README.md", "../README.md#none")
    assert _broken("README.md", "#none")
    assert not _broken("docs/README.md", "../README.md#your-own-pictures")


def test_the_index_leads_to_each_page() -> None:
    index = {Path(link.partition("#")[0]).name for link in links(pages()["docs/README.md"])}

    assert {path.name for path in (ROOT / "docs").glob("*.md")} - {"README.md"} <= index


def test_the_anchors_are_those_of_github() -> None:
    text = (
        "# `make demo`: what it does\n\n```sh\n# not one\n```\n## A job failed\n## A job failed\n"
    )

    assert anchors(text) == {"make-demo-what-it-does", "a-job-failed", "a-job-failed-1"}
