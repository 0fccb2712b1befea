"""LastLife: a file that tells whether the machine went down while the last daemon ran.

What a process wrote survives its own death, and not that of the machine: the embedded vectors'
log reaches the disk some seconds after the write. When that was is told by the file, too: the queue
cannot, since others may have gone on with it, and so may this life by the time it is asked.
"""

import asyncio
import threading
from pathlib import Path

from daemon.identity import own_boot
from daemon.jobs import Clock
from daemon.noted_file import read_noted, write_noted
from daemon.wall_clock import epoch_ms

NOTE_SECONDS = 60.0
"""Between two notes that the daemon lives."""
LOOK_SECONDS = 5.0
"""Between two looks whether one is due: a machine that slept, or whose clock was set, is there at
another time at once."""
LATE_SECONDS = 60.0
"""How late a note may be: a slow disk, a busy loop, a clock that was set."""


class LastLife:
    """The file; its calls block for a moment."""

    def __init__(self, path: Path, *, is_needed: bool = True, clock: Clock = epoch_ms) -> None:
        """Take the file, whether what is stored lies on this machine at all, the queue's clock."""
        self._path = path
        self._is_needed = is_needed
        self._clock = clock
        self._turn = threading.Lock()
        self._must_scrub = False
        self._has_begun = False
        self._has_ended = False
        self._alive = 0
        self.since: int | None = None
        """When (epoch ms) a daemon that went down with its machine was last known to live."""
        self.until: int | None = None
        """When (epoch ms) the last job completed that must be looked at; None until it is noted."""

    async def keep(self) -> None:
        """Note until cancelled, now and then, that this life goes on."""
        while self._is_needed:
            await asyncio.sleep(min(LOOK_SECONDS, NOTE_SECONDS))
            is_due = not 0 <= self._clock() - self._alive < 1000 * NOTE_SECONDS
            if self._has_begun and is_due:
                await asyncio.to_thread(self._write, ended=False)

    def begin(self) -> bool:
        """Note that a life begins; return whether what was stored last must be looked at.

        So it is until `scrubbed`, over lives that end before.
        """
        before = read_noted(self._path)
        went_down = not before.get("ended", True) and before.get("boot") != own_boot()
        self._must_scrub = self._is_needed and (went_down or bool(before.get("must_scrub")))
        if self._must_scrub and before.get("must_scrub"):
            # Noted by a life that did not come to its end: what completed in it is not meant.
            self.since, self.until = before.get("since"), before.get("until")
        if self._must_scrub and went_down:
            alive = before.get("alive")
            known = [each for each in (alive, self.since, self.until) if each is not None]
            self.since = min(known, default=None)
            lasted = int(1000 * (NOTE_SECONDS + LATE_SECONDS))
            self.until = None if alive is None else alive + lasted
        self._write(ended=False)
        self._has_begun = True
        return self._must_scrub

    def note(self, until: int) -> None:
        """Note up to when jobs must be looked at, over lives that end before that is done."""
        self.until = until
        self._write(ended=False)

    def scrubbed(self) -> None:
        """Note that it was looked at."""
        self._must_scrub, self.since, self.until = False, None, None
        self._write(ended=False)

    def end(self) -> None:
        """Note that this life, if it ever began, ends in order: everything is written."""
        if self._has_begun:
            self._write(ended=True)

    def _write(self, *, ended: bool) -> None:
        with self._turn:
            if self._has_ended:
                # A note that was under way when its task was cancelled comes too late.
                return
            self._has_ended = ended
            self._alive = self._clock()
            told = {
                "boot": own_boot(),
                "ended": ended,
                "alive": self._alive,
                "must_scrub": self._must_scrub,
                "since": self.since,
                "until": self.until,
            }
            write_noted(self._path, told)
