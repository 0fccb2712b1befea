"""SelfTest: a built-in picture through a loaded model, which must give the same as the first time.

A device that fails and memory that flips a bit give wrong numbers without an error, and a wrong
vector would be stored for good.
"""

import logging
from typing import Any

import numpy as np
from numpy.typing import NDArray

from daemon.errors import HandlerError, OutOfMemoryError
from handlers.inference import MLInference, Numbers

log = logging.getLogger(__name__)

TOLERANCE = 0.02
"""Largest distance from the first result, as a part of its length. Other batches, threads and
drivers stay far below it; a flipped bit that stays below it changes no vector that matters."""


class SelfTest:
    """Tests one model; on the device lane only. The attributes may be read from any thread.

    Attributes:
        error: what the latest test found wrong; None where nothing is.
        runs: how often it was tested.
        failures: how many of these tests failed.
    """

    def __init__(self, name: str, inference: MLInference[Any]) -> None:
        self._name = name
        self._inference = inference
        self._first: dict[tuple[str, str], Numbers] = {}
        """By device and precision, each of which rounds in its own way."""
        self.error: str | None = None
        self.runs = 0
        self.failures = 0

    def run(self) -> None:
        """Test the model, which must be loaded; sets `error`."""
        try:
            numbers = self._inference.self_test()
        except OutOfMemoryError:
            # Says nothing of the model; what it makes do with is told elsewhere.
            return
        except HandlerError as error:
            self._note(error.message)
        except Exception as error:
            log.exception("the self-test of %s broke", self._name)
            self._note(str(error) or type(error).__name__)
        else:
            if numbers.size:
                self._note(self._compare(numbers))

    def _compare(self, numbers: Numbers) -> str | None:
        if not np.isfinite(numbers).all():
            return "the built-in picture gave NaN"
        ran = self._inference.provenance
        first = self._first.setdefault((ran.device, ran.precision), numbers.copy())
        if first.shape != numbers.shape:
            return "the built-in picture gave another number of results than the first time"
        length = float(np.linalg.norm(first)) or 1.0
        distance = float(np.linalg.norm(numbers - first)) / length
        if distance > TOLERANCE:
            return (
                f"the built-in picture gave another result than the first time, by {distance:.1%}"
            )
        return None

    def _note(self, error: str | None) -> None:
        self.runs += 1
        if error is not None:
            self.failures += 1
            log.error("%s failed its self-test: %s", self._name, error)
        elif self.error is not None:
            log.info("%s passed its self-test again", self._name)
        self.error = error


def synthetic_picture(height: int, width: int) -> NDArray[np.uint8]:
    """Return uint8 RGB [height, width, 3]: waves of all directions and colours, always the same."""
    rows, columns = np.mgrid[:height, :width].astype(np.float64)
    down, across = rows / height, columns / width
    waves = [
        np.sin(2 * np.pi * (3 * down + across)) * np.cos(2 * np.pi * 5 * across),
        np.sin(2 * np.pi * (down - 2 * across)) * np.cos(2 * np.pi * 7 * down),
        np.sin(2 * np.pi * 4 * (down + across) ** 2),
    ]
    picture: NDArray[np.uint8] = np.rint(127.5 + 127 * np.stack(waves, axis=-1)).astype(np.uint8)
    return picture
