"""What people read: README and docs/, as text, blocks of code, headings and links."""

import re
from collections import Counter
from functools import cache
from pathlib import Path

ROOT = Path(__file__).parent.parent
_FENCED = re.compile(r"^ *```.*?^ *```$", re.DOTALL | re.MULTILINE)


@cache
def pages() -> dict[str, str]:
    """Return README, docs/ and the folders' own READMEs, by their paths below the root."""
    paths = [
        ROOT / "README.md",
        ROOT / "CHANGELOG.md",
        *sorted((ROOT / "docs").glob("*.md")),
        ROOT / "mosquitto" / "README.md",
        ROOT / "deploy" / "kubernetes" / "README.md",
    ]
    return {path.relative_to(ROOT).as_posix(): path.read_text(encoding="utf-8") for path in paths}


def everything() -> str:
    """Return all pages in one."""
    return "\n".join(pages().values())


def blocks(language: str, *names: str) -> list[str]:
    """Return the blocks of code in a language, of the pages named, or of all."""
    texts = [pages()[name] for name in names] if names else pages().values()
    return [
        block
        for text in texts
        for block in re.findall(rf"^```{language}\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)
    ]


def rows(name: str, *marks: str) -> list[list[str]]:
    """Return the cells of a page's table: lines that begin with each of the marks lead to it."""
    after = pages()[name]
    for mark in marks:
        _, found, after = after.partition(f"\n{mark}")
        assert found, (name, mark)
    lines = after.partition("\n\n")[0].splitlines()[2:]
    return [[cell.strip() for cell in line.strip().strip("|").split("|")] for line in lines]


def prose(text: str) -> str:
    """Return a page without its blocks of code."""
    return _FENCED.sub("", text)


def anchors(text: str) -> set[str]:
    """Return what `#...` may name in a page: its headings, as GitHub spells them."""
    found: set[str] = set()
    seen: Counter[str] = Counter()
    for heading in re.findall(r"^#{1,6} +(.+?) *#*$", prose(text), re.MULTILINE):
        plain = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading).lower()
        slug = re.sub(r"[^\w\- ]", "", plain).replace(" ", "-")
        found.add(f"{slug}-{seen[slug]}" if seen[slug] else slug)
        seen[slug] += 1
    return found


def links(text: str) -> list[str]:
    """Return where a page leads: its links and its pictures."""
    plain = re.sub(r"`[^`\n]*`", "", prose(text))
    shown = re.findall(r'\b(?:src|srcset|href)="([^"]+)"', plain)
    return [*re.findall(r"\]\(([^)\s]+)\)", plain), *shown]
