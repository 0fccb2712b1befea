"""Terminal output of the commands: results on stdout, progress on stderr (tqdm's only home)."""

import contextlib
import os
import sys
import threading
import time
from typing import Any, Self

from tqdm import tqdm

from daemon.spans import span

PLAIN_SECONDS = 5.0
"""Distance of the lines that tell how far it is where there is no terminal."""
TICK_SECONDS = 1.0
USUAL_SIZE = {"ncols": 80, "nrows": 24}
MEGABYTE = 1_000_000


def print_out(text: str) -> None:
    """Write a line to stdout; who reads may have gone, such as `head`."""
    try:
        # At once, so that Ctrl-C leaves no half a line.
        sys.stdout.write(f"{text}\n")
        sys.stdout.flush()
    except BrokenPipeError:
        # What is said from now on is for nobody, and Python must not stumble over it at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


class Meter:
    """Shows how far many requests are: a bar with rate and time left, else a line now and then.

    A context manager; any thread may use it.

    Args:
        unit: what is counted.
        is_bytes: bytes are counted, of what the unit names; they are shown in larger units.
    """

    def __init__(self, unit: str, *, is_bytes: bool = False) -> None:
        self._unit = f"MB of {unit}" if is_bytes else unit
        self._scale = MEGABYTE if is_bytes else 1
        self._began = time.monotonic()
        self._done = self._failed = 0
        self._expected: int | None = None
        self._skipped = 0
        self._lock = threading.Lock()
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._tick, name="inferd-meter", daemon=True)
        self._bar: tqdm | None = None
        if sys.stderr.isatty():
            # Else it makes a semaphore for processes, which we have not.
            tqdm.set_lock(threading.RLock())
            # A terminal that does not know its size says 0, and would get no bar at all.
            is_known = os.get_terminal_size(sys.stderr.fileno()).columns > 0
            size = {"dynamic_ncols": True} if is_known else USUAL_SIZE
            shown: dict[str, Any] = {"unit": f" {unit}"}
            if is_bytes:
                shown = {"unit": "B", "unit_scale": True, "desc": unit}
            self._bar = tqdm(file=sys.stderr, **shown, **size)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()
        if self._bar is not None:
            self._bar.close()

    @property
    def seconds(self) -> float:
        """Since it began."""
        return time.monotonic() - self._began

    def expect(self, total: int) -> None:
        """Tell how many there will be, once that is known."""
        with self._lock:
            self._expected = total
            self._show_total()

    def skip(self) -> None:
        """Leave one out that was expected: it says nothing of the rate."""
        with self._lock:
            self._skipped += 1
            self._show_total()

    def count(self, *, is_failed: bool) -> None:
        """Count one that is done."""
        with self._lock:
            self._done += 1
            self._failed += is_failed
            if self._bar is not None:
                if is_failed:
                    self._bar.set_postfix(failed=self._failed, refresh=False)
                self._bar.update()

    def add(self, amount: int) -> None:
        """Count several that are done."""
        with self._lock:
            self._done += amount
            if self._bar is not None:
                self._bar.update(amount)

    def say(self, text: str) -> None:
        """Write a line to stderr that stays."""
        with self._around():
            print(text, file=sys.stderr, flush=True)

    def result(self, text: str) -> None:
        """Write a line to stdout."""
        # The bar is in the way only where both go to the screen.
        with self._around() if sys.stdout.isatty() else contextlib.nullcontext():
            print_out(text)

    @property
    def _total(self) -> int | None:
        return None if self._expected is None else max(0, self._expected - self._skipped)

    def _show_total(self) -> None:
        if self._bar is not None:
            self._bar.total = self._total

    def _around(self) -> contextlib.AbstractContextManager[None]:
        return contextlib.nullcontext() if self._bar is None else tqdm.external_write_mode()

    def _tick(self) -> None:
        seconds = TICK_SECONDS if self._bar is not None else PLAIN_SECONDS
        while not self._ended.wait(seconds):
            if self._bar is not None:
                self._bar.refresh()
            else:
                self.say(self.line())

    def line(self) -> str:
        """Return how far it is in one line."""
        with self._lock:
            done, failed = self._done // self._scale, self._failed
            total = None if self._total is None else self._total // self._scale
        rate = done / self.seconds if self.seconds else 0.0
        of = f" of {total:,} ({done / total:.0%})" if total else ""
        left = f", {span((total - done) / rate)} left" if total and rate else ""
        failures = f", {failed:,} failed" if failed else ""
        return f"{done:,}{of} {self._unit}, {rate:.1f}/s{left}{failures}"


class Waiting:
    """Shows on a terminal what is waited for, and for how long; elsewhere it says nothing.

    A context manager.

    Args:
        what: a few words, such as `loading models`.
    """

    def __init__(self, what: str) -> None:
        self._what = what
        self._ended = threading.Event()
        self._thread: threading.Thread | None = None

    def __enter__(self) -> Self:
        if sys.stderr.isatty():
            tqdm.set_lock(threading.RLock())
            self._thread = threading.Thread(target=self._tick, name="inferd-waiting", daemon=True)
            self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        if self._thread is not None:
            self._thread.join()

    def _tick(self) -> None:
        # What is over at once would only flicker.
        if self._ended.wait(TICK_SECONDS):
            return
        line = f"{self._what} ... {{elapsed}}"
        with tqdm(bar_format=line, file=sys.stderr, leave=False, **USUAL_SIZE) as bar:
            while not self._ended.wait(TICK_SECONDS):
                bar.refresh()
