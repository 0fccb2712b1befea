"""The lives of one daemon, one after the other: each ends by its fault, the last by SIGTERM."""

import json
import signal
import threading
import time
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from tests.crash.lives import Fault, Forge, Life, Moment
from tests.crash.points import POINTS, Phase

LIFE_SECONDS = 60.0
POLL_SECONDS = 0.02


class WrongEndError(AssertionError):
    """A life ended otherwise than it should, or did not end."""


class Succession:
    """Starts the next life when one is dead, on a thread of its own.

    Args:
        forge: starts the lives.
        environ: of each of them.
        folder: their logs go there.
        deaths: how the lives end, in their order.
        is_strict: each fault must strike; else a life whose fault is not reached lives on.
    """

    def __init__(
        self,
        forge: Forge,
        environ: Mapping[str, str],
        folder: Path,
        deaths: Sequence[Fault | Moment],
        *,
        is_strict: bool = True,
    ) -> None:
        self._forge = forge
        self._environ = environ
        self._folder = folder
        self._deaths = list(deaths)
        self._is_strict = is_strict
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
            WrongEndError: a life ended otherwise.
            AssertionError: one has not struck; its point was never reached.
        """
        for number, death in enumerate(self._deaths):
            if self._is_strict and isinstance(death, Fault) and _phase(death) <= phase:
                self.wait_until(
                    lambda number=number: len(self.lives) > number + 1,  # type: ignore[misc]
                    f"life {number + 1} dies {death.point} ({death.nth})",
                )

    def awaits(self, phase: Phase) -> bool:
        """Whether the latest life is to die in this phase."""
        left = self._deaths[len(self.lives) - 1 :]
        return bool(left) and isinstance(left[0], Fault) and _phase(left[0]) == phase

    def end(self) -> int:
        """Stop the latest life by SIGTERM; return the exit code of the last one.

        Where it dies of its fault while it stops, another life does what is left, and stops.
        """
        self._is_over.set()
        self._thread.join(LIFE_SECONDS)
        if self.failure is not None:
            raise WrongEndError(self.failure)
        life = self.lives[-1]
        life.signal(signal.SIGTERM)
        code = life.wait()
        if code == -signal.SIGKILL:
            life = self._begin(None)
            self.wait_until(lambda: _is_idle(life), "the last life has nothing left to do")
            life.signal(signal.SIGTERM)
            code = life.wait()
        return code

    def abandon(self) -> None:
        """End it all, whatever the state. Safe twice."""
        self._is_over.set()
        if self._thread.ident is not None:
            self._thread.join(LIFE_SECONDS)
        for life in self.lives:
            life.signal(signal.SIGKILL)

    def _begin(self, fault: Fault | None) -> Life:
        log = self._folder / f"life-{len(self.lives) + 1}.log"
        life = self._forge.start(self._environ, log, fault=fault)
        self.lives.append(life)
        return life

    def _reign(self) -> None:
        for death in [*self._deaths, None]:
            life = self._begin(death if isinstance(death, Fault) else None)
            begun = time.monotonic()
            while not life.dead.wait(POLL_SECONDS):
                if self._is_over.is_set():
                    return
                if isinstance(death, Moment) and time.monotonic() - begun >= death.seconds:
                    life.signal(signal.SIGKILL)
                    life.wait()
            if not self._is_right(life, death):
                self.failure = (
                    f"life {len(self.lives)} was to end by {death} and ended with {life.code}:\n"
                    f"{life.text()[-4000:]}"
                )
                return

    def _is_right(self, life: Life, death: Fault | Moment | None) -> bool:
        if isinstance(death, Moment):
            return life.code == -signal.SIGKILL
        # A stop that its fault did not reach is an ordinary one.
        return life.died_of_its_fault or (not self._is_strict and life.code == 0)


def _phase(fault: Fault) -> Phase:
    return POINTS[fault.point].phase


def _is_idle(life: Life) -> bool:
    """Whether a daemon serves, is connected, and has neither jobs nor events left."""
    if life.port is None or not life.is_connected:
        return False
    url = f"http://127.0.0.1:{life.port}/queue"
    with urllib.request.urlopen(url, timeout=LIFE_SECONDS) as answer:
        found = json.loads(answer.read())
    return not any((found["pending"], found["processing"], found["outbox"]))
