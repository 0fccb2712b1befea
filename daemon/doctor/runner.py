"""Runs checks one after the other, each in a thread of its own: one that hangs is left behind."""

import queue
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TypeAlias

from daemon.doctor.facts import Facts
from daemon.doctor.findings import Finding, fail
from daemon.errors import InferdError

Look: TypeAlias = Callable[[Facts], Iterator[Finding]]
Tell: TypeAlias = Callable[[Finding], None]


@dataclass(frozen=True, slots=True)
class Check:
    """One part to look at."""

    part: str
    look: Look
    seconds: float
    """How long all of it may take."""
    mend: str
    """What to do where it takes longer."""


def run_checks(checks: Sequence[Check], facts: Facts, tell: Tell) -> bool:
    """Run all checks, whatever becomes of each, and tell every finding as it comes.

    Returns:
        Whether none hangs; the thread of one that does cannot be ended.
    """
    # No generator: every check runs, even where an earlier one hangs.
    ended = [_run(check, facts, tell) for check in checks]
    return all(ended)


def _run(check: Check, facts: Facts, tell: Tell) -> bool:
    said: queue.SimpleQueue[Finding | None] = queue.SimpleQueue()

    def work() -> None:
        try:
            for finding in check.look(facts):
                said.put(finding)
        except InferdError as error:
            mend = "change what the message names"
            said.put(fail(check.part, error.code, error.message, mend))
        except Exception as error:  # noqa: BLE001 - the other checks run all the same
            what = f"the check itself broke: {type(error).__name__}: {error}"
            said.put(fail(check.part, "check_broke", what, "report it, with this line"))
        finally:
            said.put(None)

    threading.Thread(target=work, name=f"doctor-{check.part}", daemon=True).start()
    ends_at = time.monotonic() + check.seconds
    while True:
        try:
            finding = said.get(timeout=max(0.0, ends_at - time.monotonic()))
        except queue.Empty:
            what = f"no answer within {check.seconds:g} s"
            tell(fail(check.part, "timeout", what, check.mend))
            return False
        if finding is None:
            return True
        tell(finding)
