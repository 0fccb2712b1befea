"""The worst files that were found, as their README lists them."""

from dataclasses import dataclass
from pathlib import Path

FOLDER = Path(__file__).parent / "files"


@dataclass(frozen=True, slots=True)
class Kept:
    """One file of the list."""

    name: str
    work: str
    """`square` or `upright`, whichever costs more."""
    code: str
    """`picture`, or the code of its error."""
    data: bytes


def kept() -> list[Kept]:
    """Return every file of the list, in its order."""
    found = []
    for line in (FOLDER / "README.md").read_text(encoding="utf-8").splitlines():
        cells = [cell.strip().strip("`") for cell in line.split("|")]
        if line.startswith("| `"):
            name, work, code = cells[1:4]
            found.append(Kept(name, work, code, (FOLDER / name).read_bytes()))
    return found
