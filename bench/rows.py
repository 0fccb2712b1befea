"""What a measurement is: a `Row` with both sides' figures and their ratio; the size asked for.

A section is a module with `measure(options: Options) -> Sequence[Row]`, named in bench/sections.py.
Both sides of a row are measured in turns (A B A B ...) within one run, one figure a round, so that
a slow spell of the machine meets both; the ratio is the median of the rounds' own ratios.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

Size = Literal["smallest", "quick", "normal", "full"]
"""smallest: as little as shows that it runs (tests); quick: half a minute or less a section;
normal: what `make bench` takes, all sections in under 10 minutes on 2 cores; full: the long rows
(a million vectors) too."""
Better = Literal["more", "less"]
"""Whether greater figures are better (pictures a second) or smaller ones (milliseconds)."""


@dataclass(frozen=True, slots=True)
class Options:
    """What was asked for."""

    size: Size = "normal"

    def pick(
        self, *, smallest: int, normal: int, quick: int | None = None, full: int | None = None
    ) -> int:
        """Return the count for the size; quick falls back to smallest, full to normal."""
        counts = {
            "smallest": smallest,
            "quick": smallest if quick is None else quick,
            "normal": normal,
            "full": normal if full is None else full,
        }
        return counts[self.size]

    @property
    def is_full(self) -> bool:
        """Whether the long rows are wanted."""
        return self.size == "full"


@dataclass(frozen=True, slots=True)
class Side:
    """One side of a comparison: what it is, and its figure of each round in the row's unit."""

    what: str
    figures: tuple[float, ...]

    @classmethod
    def of(cls, what: str, figures: Sequence[float] | NDArray[np.float64]) -> "Side":
        """Return a side of any sequence of numbers.

        Raises:
            ValueError: there is no figure.
        """
        if not len(figures):
            raise ValueError(f"{what}: no figure")
        return cls(what, tuple(float(figure) for figure in figures))

    @property
    def median(self) -> float:
        return float(np.median(self.figures))

    def as_json(self) -> dict[str, Any]:
        """Return the figures with their median and spread."""
        return asdict(self) | {
            "median": self.median,
            "least": min(self.figures),
            "greatest": max(self.figures),
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """Ours against theirs; no sides where it could not be measured, and a note that says so."""

    section: str
    name: str
    unit: str
    better: Better
    ours: Side | None
    theirs: Side | None
    note: str = ""
    """Anything a reader must know to judge it: sizes, precision, what is not in the figure."""

    @property
    def ratio(self) -> float | None:
        """How many times as good as theirs ours is: above 1 is in our favour. None: not measured.

        The median of the rounds' own ratios where both sides have as many rounds, else the ratio
        of the medians.
        """
        if self.ours is None or self.theirs is None:
            return None
        ours, theirs = self.ours.figures, self.theirs.figures
        if len(ours) != len(theirs):
            ours, theirs = (self.ours.median,), (self.theirs.median,)
        good, other = (ours, theirs) if self.better == "more" else (theirs, ours)
        # A figure too small for its clock is 0: then there is no ratio.
        if not all(other):
            return None
        return float(np.median(np.divide(good, other)))

    @classmethod
    def from_json(cls, told: dict[str, Any]) -> "Row":
        """Return the row that `as_json` told; what is computed is computed again."""
        ours, theirs = (
            Side.of(told[name]["what"], told[name]["figures"]) if told[name] else None
            for name in ("ours", "theirs")
        )
        plain = {name: told[name] for name in ("section", "name", "unit", "better", "note")}
        return cls(ours=ours, theirs=theirs, **plain)

    def as_json(self) -> dict[str, Any]:
        """Return all of it for a machine."""
        return {
            "section": self.section,
            "name": self.name,
            "unit": self.unit,
            "better": self.better,
            "ours": self.ours and self.ours.as_json(),
            "theirs": self.theirs and self.theirs.as_json(),
            "ratio": self.ratio,
            "note": self.note,
        }


def not_measured(section: str, name: str, why: str) -> Row:
    """Return a row that says why there is no figure."""
    return Row(
        section=section,
        name=name,
        unit="",
        better="more",
        ours=None,
        theirs=None,
        note=f"not measured: {why}",
    )


class Measure(Protocol):
    """A section's own `measure`: takes its turns and returns its rows, smallest sizes included.

    It prints nothing on stdout and leaves nothing behind; it may raise anything: the run goes on
    with the other sections and exits with 1.
    """

    def __call__(self, options: Options) -> Sequence[Row]: ...
