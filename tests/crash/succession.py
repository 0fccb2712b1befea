"""The lives of one daemon, one after the other: each ends by its fault, the last by SIGTERM."""

import signal
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from tests.crash.lives import Fault, Forge, Life
from tests.crash.points import POINTS, Phase

LIFE_SECONDS = 60.0
POLL_SECONDS = 0.02


class WrongEndError(AssertionError):
    """A life ended otherwise than it should, or did not end."""


class Succession:
    """Starts the next life when one is dead, on a thread of its own."""

    def __init__(
        self, forge: Forge, environ: Mapping[str, str], folder: Path, faults: Sequence[Fault]
    ) -> None:
        self._forge = forge
        self._environ = environ
        self._folder = folder
        self._faults = list(faults)
        self._is_over = threading.Event()
        self._thread = threading.Thread(target=self._reign, name="succession")
        self.lives: list[Life] = []
        self.failure: str | None = None
        """What went wrong with a life."""

    def start(self) -> None:
        """Begin the first life."""
        self._thread.start()

    @property
    def kills(self) -> int:
        """How many lives ended by SIGKILL."""
        return sum(life.code == -signal.SIGKILL for life in self.lives)

    @property
    def current(self) -> Life | None:
        """The latest life, which may be dead."""
        return self.lives[-1] if self.lives else None

    def wait_until(self, predicate: Callable[[], bool], what: str, seconds: float = 60) -> None:
        """Return once something is true, over the deaths that happen meanwhile.

        Raises:
            WrongEndError: a life ended otherwise than by its fault.
            AssertionError: it does not become true.
        """
        deadline = time.monotonic() + seconds
        while not predicate():
            if self.failure is not None:
                raise WrongEndError(self.failure)
            assert time.monotonic() < deadline, f"not within {seconds:g} s: {what}"
            time.sleep(POLL_SECONDS)

    def pass_phase(self, phase: Phase) -> None:
        """Return once all faults of this phase and of those before it have struck.

        Raises:
            WrongEndError: one has not; its point was never reached.
        """
        for number, fault in enumerate(self._faults):
            if POINTS[fault.point].phase <= phase:
                self.wait_until(
                    lambda number=number: len(self.lives) > number + 1,  # type: ignore[misc]
                    f"life {number + 1} dies {fault.point} ({fault.nth})",
                )

    def awaits(self, phase: Phase) -> bool:
        """Whether a fault of this phase has still to strike."""
        left = self._faults[len(self.lives) - 1 :]
        return any(POINTS[fault.point].phase == phase for fault in left)

    def end(self) -> int:
        """Stop the last life by SIGTERM; return its exit code."""
        self._is_over.set()
        self._thread.join(LIFE_SECONDS)
        if self.failure is not None:
            raise WrongEndError(self.failure)
        assert self.current is not None
        self.current.signal(signal.SIGTERM)
        return self.current.wait()

    def abandon(self) -> None:
        """End it all, whatever the state. Safe twice."""
        self._is_over.set()
        if self.failure is None:
            self.failure = "abandoned"
        for life in self.lives:
            life.signal(signal.SIGKILL)
        if self._thread.ident is not None:
            self._thread.join(LIFE_SECONDS)
        for life in self.lives:
            life.signal(signal.SIGKILL)

    def _reign(self) -> None:
        for number, fault in enumerate([*self._faults, None], start=1):
            log = self._folder / f"life-{number}.log"
            life = self._forge.start(self._environ, log, fault=fault)
            self.lives.append(life)
            while not life.dead.wait(POLL_SECONDS):
                if self._is_over.is_set() or self.failure is not None:
                    return
            if not life.died_of_its_fault and not self._is_over.is_set():
                self.failure = (
                    f"life {number} was to die {fault.point if fault else 'by SIGTERM'} and ended "
                    f"with {life.code}:\n{life.text()[-4000:]}"
                )
                return
