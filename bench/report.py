"""Rows for a person, as a table with notes, and for a machine, as JSON."""

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import groupby
from pathlib import Path

from bench import machine
from bench.rows import Row, Side
from bench.table import show

FORMAT = 1
"""Of the JSON; rises when something in it changes its meaning."""


@dataclass(frozen=True, slots=True)
class Run:
    """How a section went."""

    seconds: float
    error: str = ""


def print_rows(rows: Sequence[Row]) -> None:
    """Print a table for each section, and what must be known of its rows beneath."""
    for section, some in groupby(rows, key=lambda row: row.section):
        group = list(some)
        show(
            section,
            ("", "unit", "ours", "theirs", "ratio"),
            [
                (row.name, row.unit, _cell(row.ours), _cell(row.theirs), _ratio(row))
                for row in group
            ],
        )
        notes = [row.note.split("; ") for row in group]
        common = [part for part in notes[0] if len(group) > 1 and all(part in n for n in notes)]
        print(f"\n  {'; '.join(common)}" if any(common) else "")
        for row, parts in zip(group, notes, strict=True):
            sides = [side.what for side in (row.ours, row.theirs) if side is not None]
            own = [part for part in parts if part and part not in common]
            if said := "; ".join(filter(None, [" against ".join(sides), *own])):
                print(f"  {row.name}: {said}")


def as_json(rows: Sequence[Row], runs: Mapping[str, Run], size: str) -> str:
    """Return everything: the machine, how each section went, and the rows."""
    told = {
        "format": FORMAT,
        "made_at": datetime.now(UTC).isoformat(timespec="seconds"),
        "size": size,
        "machine": machine.describe(),
        "sections": {
            name: {"seconds": round(run.seconds, 1), "error": run.error or None}
            for name, run in runs.items()
        },
        "rows": [row.as_json() for row in rows],
    }
    return json.dumps(told, indent=1) + "\n"


def write(path: Path, text: str) -> None:
    """Write a whole file or none."""
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f"{path.name}.{os.getpid()}.part")
    draft.write_text(text, encoding="utf-8")
    draft.replace(path)


def number(value: float) -> str:
    """Return three significant digits or all before the point: 0.0123, 12.3, 1234."""
    if value == 0:
        return "0"
    digits = 2
    size = abs(value)
    while size >= 10 and digits > 0:  # noqa: PLR2004 - decimal digits
        size, digits = size / 10, digits - 1
    while 0 < size < 1:
        size, digits = size * 10, digits + 1
    return f"{value:,.{digits}f}"


def _cell(side: Side | None) -> str:
    if side is None:
        return "-"
    least, greatest = min(side.figures), max(side.figures)
    if len(side.figures) == 1:
        return number(least)
    return f"{number(side.median)} ({number(least)} to {number(greatest)})"


def _ratio(row: Row) -> str:
    if row.ours is None:
        return "not measured"
    return "-" if row.ratio is None else f"{row.ratio:.2f}"
