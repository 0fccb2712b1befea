"""Rows for people: columns that stand under each other, and where a face is."""

from collections.abc import Collection, Sequence

from demos.client.sources import shown

SIDES = ("x", "y", "width", "height")


def aligned(rows: Sequence[Sequence[str]], *, numbers: Collection[int]) -> str:
    """Return rows of texts as lines; the columns in `numbers` stand at the right."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return "\n".join(
        shown(
            "  ".join(
                text.rjust(width) if column in numbers else text.ljust(width)
                for column, (text, width) in enumerate(zip(row, widths, strict=True))
            ).rstrip()
        )
        for row in rows
    )


def box_text(box: object) -> str:
    """Return a face's box as `x, y, width, height`, or a question mark where it is none."""
    sides = [box.get(name) for name in SIDES] if isinstance(box, dict) else []
    if not sides or not all(isinstance(side, int | float) for side in sides):
        return "?"
    return ", ".join(f"{side:.0f}" for side in sides)
