"""What may come of a file: a sane picture, or one named code that docs/errors.md lists."""

from dataclasses import dataclass
from functools import cache

import numpy as np
from numpy.typing import NDArray

from daemon.errors import HandlerError, PermanentError
from handlers.media.images import Limits
from tests.pages import rows

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
    """Return every code with which a job may fail, by docs/errors.md."""
    table = rows("docs/errors.md", "## A job failed", "| code | meaning |")
    return frozenset(cells[0].strip("`") for cells in table)


def of_error(error: HandlerError) -> Verdict:
    """Return the verdict of an error; its code must be one that docs/errors.md lists."""
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
