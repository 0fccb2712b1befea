"""What may come of a file: a sane picture, or one named code that README lists."""

import re
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from daemon.errors import HandlerError, PermanentError
from handlers.images import Limits

README = Path(__file__).parent.parent.parent / "README.md"
SIDE = 224


@dataclass(frozen=True, slots=True)
class Verdict:
    """How a file ended."""

    code: str
    """`picture`, or the code of its error."""
    is_final: bool
    """It would end the same way another time: no retry is worth it."""
    message: str = ""


@cache
def known_codes() -> frozenset[str]:
    """Return every code in the first column of README's table of codes."""
    text = README.read_text(encoding="utf-8")
    table = text.partition("| code | meaning |")[2].partition("\n\n")[0]
    cells = [line.split("|")[1] for line in table.splitlines() if line.count("|") > 1]
    return frozenset(re.findall(r"`([a-z_]+)`", " ".join(cells)))


def of_error(error: HandlerError) -> Verdict:
    """Return the verdict of an error; one with a code that README lacks is a bug of ours."""
    assert error.code in known_codes(), (error.code, error.message)
    return Verdict(error.code, isinstance(error, PermanentError), error.message)


def of_picture(
    pixels: NDArray[np.uint8], width: int, height: int, limits: Limits, *, is_square: bool
) -> Verdict:
    """Return the verdict of a picture, after a look whether it is sane."""
    assert pixels.dtype == np.uint8
    assert 1 <= width * height <= limits.max_pixels
    assert min(width, height) >= 1
    assert pixels.shape == ((SIDE, SIDE, 3) if is_square else (height, width, 3))
    return Verdict("picture", is_final=True)
