"""LastLife: a file that tells whether the machine went down under the daemon that was here before.

What a process wrote survives its own death, and not that of the machine: the embedded vectors'
log reaches the disk some seconds after the write.
"""

from pathlib import Path

from daemon.identity import own_boot
from daemon.noted_file import read_noted, write_noted


class LastLife:
    """The file; its calls block for a moment."""

    def __init__(self, path: Path, *, is_needed: bool = True) -> None:
        """Take the file, and whether what is stored lies on this machine at all."""
        self._path = path
        self._is_needed = is_needed
        self._must_scrub = False
        self._has_begun = False
        self.until: int | None = None
        """When (epoch ms) the last job completed that must be looked at; None until it is noted."""

    def begin(self) -> bool:
        """Note that a life begins; return whether what was stored last must be looked at.

        So it is until `scrubbed`, over lives that end before.
        """
        before = read_noted(self._path)
        went_down = not before.get("ended", True) and before.get("boot") != own_boot()
        self._must_scrub = self._is_needed and (went_down or bool(before.get("must_scrub")))
        self._has_begun = True
        if self._must_scrub and not went_down:
            # Noted by a life that did not come to its end: what completed in it is not meant.
            self.until = before.get("until")
        self._write(ended=False)
        return self._must_scrub

    def note(self, until: int) -> None:
        """Note up to when jobs must be looked at, over lives that end before that is done."""
        self.until = until
        self._write(ended=False)

    def scrubbed(self) -> None:
        """Note that it was looked at."""
        self._must_scrub, self.until = False, None
        self._write(ended=False)

    def end(self) -> None:
        """Note that this life, if it ever began, ends in order: everything is written."""
        if self._has_begun:
            self._write(ended=True)

    def _write(self, *, ended: bool) -> None:
        told = {
            "boot": own_boot(),
            "ended": ended,
            "must_scrub": self._must_scrub,
            "until": self.until,
        }
        write_noted(self._path, told)
