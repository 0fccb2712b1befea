"""Columns for a person to read; the first is to the left, numbers to the right."""

from collections.abc import Iterable, Sequence

import numpy as np


def show(title: str, head: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """Print a table under its title."""
    lines = [list(head), *(list(row) for row in rows)]
    widths = [max(len(line[column]) for line in lines) for column in range(len(head))]
    print(f"\n{title}\n")
    for line in lines:
        first, *others = [
            cell.ljust(width) if not column else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(line, widths, strict=True))
        ]
        print("  ".join([first, *others]).rstrip())


def spread(values: Sequence[float], digits: int) -> str:
    """Return least / median / greatest."""
    if not values:
        return "-"
    return " / ".join(
        f"{value:.{digits}f}" for value in (min(values), float(np.median(values)), max(values))
    )
