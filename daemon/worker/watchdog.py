"""Watchdog: a thread that notices a model's call or an event loop that hangs, and ends the process.

A thread that hangs in a model cannot be stopped, so the process must go; a supervisor starts it
again. Time counts only while this thread gets to run: a machine that slept, or a process that was
stopped, hung nowhere.
"""

import asyncio
import contextlib
import faulthandler
import logging
import os
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterable
from contextvars import Context
from dataclasses import dataclass
from typing import NoReturn, Protocol, Self

from daemon.logs import said_about

log = logging.getLogger(__name__)

EXIT_STALLED = 75
"""EX_TEMPFAIL of sysexits.h: something hung; a supervisor should start the daemon again."""
LOADS_LONGER = 5
"""A first load may compile kernels or read a slow disk: so many times the time of other calls."""
ENDS_AFTER = 2
"""A hang is logged once the time is over, and ends the process after so many times of it."""
LAST_RESORT_AFTER = 5
"""The same for faulthandler, which needs no Python: for a thread that keeps the interpreter."""
LEAVE_SECONDS = 60.0
"""For an orderly end, beyond the grace of running jobs."""
POLL_SECONDS = 1.0
FRAMES = 8
SAY_SECONDS = 2.0
"""For a line of the log: whoever reads it may hang too."""


class Call(Protocol):
    """What the device lane is busy with."""

    @property
    def model(self) -> str:
        """Name of the model."""

    @property
    def work(self) -> str:
        """What it does: load, infer, ..."""

    @property
    def number(self) -> int:
        """Unique for each call."""

    @property
    def contexts(self) -> Iterable[Context]:
        """Of the jobs that wait for it."""


@dataclass(frozen=True, slots=True)
class Stall:
    """A model's call that hangs."""

    model: str
    message: str
    job_ids: frozenset[str]
    """Jobs whose pictures the model has: one of them may be why."""


class Watchdog:
    """Watches from a thread of its own; a context manager inside the loop that it watches.

    Attributes:
        stall: the call that hangs, from when it is told until it comes back after all; of
            several lanes that hang, the first one's.
        is_over: set in the loop when the daemon must end because of it.
    """

    def __init__(
        self,
        *,
        stall_seconds: float,
        end: Callable[[int], None] = os._exit,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Watch nothing yet.

        Args:
            stall_seconds: how long one call, or one step of the loop, may take; 0 watches nothing.
            end: ends the process at once.
            clock: seconds that only rise.
        """
        self._lanes: list[_Lane] = []
        self._stall_seconds = stall_seconds
        self._end = end
        self._clock = clock
        self._poll_seconds = min(POLL_SECONDS, stall_seconds / 10)
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)
        self._beats = 0
        self._loop_age = _Age()
        self._told_of_loop = False
        self._beating: asyncio.TimerHandle | None = None
        self._left: float | None = None
        self._why_end = ""
        self._stalled: _Lane | None = None
        self.stall: Stall | None = None
        self.is_over = asyncio.Event()

    @property
    def call_seconds(self) -> float:
        """How long the oldest call of a lane has been running."""
        return max((lane.age.seconds for lane in self._lanes), default=0.0)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        """Watch no more."""
        self._closing.set()
        if self._beating is not None:
            self._beating.cancel()
            self._thread.join(POLL_SECONDS + SAY_SECONDS)
            faulthandler.cancel_dump_traceback_later()

    def start(self, *calls: Callable[[], Call | None]) -> None:
        """Watch from now on: the running loop, and what the device lanes are busy with.

        Args:
            calls: one for each lane, asked from the watchdog's thread.
        """
        if self._stall_seconds:
            self._lanes = [_Lane(call, _Age()) for call in calls]
            self._loop = asyncio.get_running_loop()
            self._loop_thread = threading.get_ident()
            self._beat()
            self._thread.start()

    def expect_end(self, seconds: float) -> None:
        """End the process if it still runs after so long: a stop that hangs is no stop."""
        self._why_end = f"the stop took more than {seconds:g} s"
        self._left = seconds

    # -- in the loop ---------------------------------------------------------------------------

    def _beat(self) -> None:
        self._beats += 1
        self._beating = self._loop.call_later(self._poll_seconds, self._beat)

    # -- in the thread -------------------------------------------------------------------------

    def _watch(self) -> None:
        looked_at = self._clock()
        while not self._closing.wait(self._poll_seconds):
            now = self._clock()
            awake = min(now - looked_at, 2 * self._poll_seconds)
            looked_at = now
            self._arm_last_resort()
            self._look_at_loop(awake)
            for lane in self._lanes:
                self._look_at_lane(lane, awake)
            self._look_at_end(awake)

    def _arm_last_resort(self) -> None:
        # It needs a standard error with a number, which a process may lack.
        with contextlib.suppress(RuntimeError, ValueError, OSError):
            faulthandler.dump_traceback_later(LAST_RESORT_AFTER * self._stall_seconds, exit=True)

    def _look_at_loop(self, awake: float) -> None:
        seconds = self._loop_age.note(self._beats, awake)
        if seconds < self._stall_seconds:
            if self._told_of_loop:
                self._say(logging.WARNING, "the event loop goes on")
            self._told_of_loop = False
            return
        if not self._told_of_loop:
            self._told_of_loop = True
            where = self._place_of_loop()
            self._say(logging.CRITICAL, f"the event loop has hung for {seconds:.0f} s in {where}")
        if seconds >= ENDS_AFTER * self._stall_seconds:
            self._leave("the event loop hangs")

    def _look_at_lane(self, lane: "_Lane", awake: float) -> None:
        call = lane.call()
        seconds = lane.age.note(call.number if call else None, awake)
        limit = self._stall_seconds * (LOADS_LONGER if call and call.work == "load" else 1)
        if call is None or seconds < limit:
            if lane is self._stalled:
                if self.stall is not None:
                    self._say(logging.WARNING, f"{self.stall.model} goes on after all")
                self.stall = self._stalled = None
            return
        if self._stalled is None:
            self._stalled = lane
            message = f"{call.model} has been busy with one call ({call.work}) for {seconds:.0f} s"
            job_ids = frozenset(
                job_id for each in call.contexts if (job_id := said_about(each).get("job_id"))
            )
            self.stall = Stall(call.model, message, job_ids)
            jobs = f"; it has the pictures of {', '.join(sorted(job_ids))}" if job_ids else ""
            self._say(logging.CRITICAL, f"{message}{jobs}")
        if seconds >= ENDS_AFTER * limit and self._left is None:
            self._say(logging.CRITICAL, f"{call.model} hangs: the daemon ends")
            self.expect_end(LEAVE_SECONDS)
            self._loop.call_soon_threadsafe(self.is_over.set)

    def _look_at_end(self, awake: float) -> None:
        if self._left is not None:
            self._left -= awake
            if self._left <= 0:
                self._leave(self._why_end)

    def _place_of_loop(self) -> str:
        """Return where the loop's thread is, innermost first, on one line."""
        frame = sys._current_frames().get(self._loop_thread)  # noqa: SLF001 - the only way to it
        frames = traceback.extract_stack(frame)[: -FRAMES - 1 : -1] if frame else []
        return " < ".join(f"{each.name} ({each.filename}:{each.lineno})" for each in frames)

    def _leave(self, why: str) -> None:
        self._say(logging.CRITICAL, f"{why}: the process ends with exit code {EXIT_STALLED}")
        self._end(EXIT_STALLED)

    def _say(self, level: int, message: str) -> None:
        # In a thread of its own: what hangs may hold the log, or be whoever reads it.
        saying = threading.Thread(target=log.log, args=(level, "%s", message), daemon=True)
        saying.start()
        saying.join(SAY_SECONDS)


def leave(code: int) -> NoReturn:
    """End the process at once, after all that was logged: a thread that hangs is not waited for."""
    logging.shutdown()
    os._exit(code)


@dataclass(frozen=True, slots=True, eq=False)
class _Lane:
    """A lane, and for how long its call has been the same."""

    call: Callable[[], Call | None]
    age: "_Age"


class _Age:
    """For how long something has been the same."""

    def __init__(self) -> None:
        self._what: int | None = None
        self.seconds = 0.0

    def note(self, what: int | None, awake: float) -> float:
        """Return the age, after `awake` more seconds of it if it is still the same."""
        self.seconds = self.seconds + awake if what == self._what else 0.0
        self._what = what
        return self.seconds
