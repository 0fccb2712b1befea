"""Measures how long each step of one job takes, and reports each step as it begins."""

import contextlib
import time
from collections.abc import Callable, Iterator


class Timings:
    """Measures the steps of one job; a step that runs twice is added up."""

    def __init__(
        self, report: Callable[[str], None], clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._report = report
        self._clock = clock
        self._seconds: dict[str, float] = {}

    @contextlib.contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Report the step and measure the block, also when it raises."""
        self._report(name)
        began = self._clock()
        try:
            yield
        finally:
            self._seconds[name] = self._seconds.get(name, 0.0) + self._clock() - began

    def to_wire(self) -> dict[str, float]:
        """Return milliseconds by step, in the order they began, to a tenth."""
        return {name: round(seconds * 1000, 1) for name, seconds in self._seconds.items()}
