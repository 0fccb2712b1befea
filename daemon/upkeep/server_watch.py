"""ServerWatch: notices a restart of the Qdrant server, and has lost vectors embedded again.

A new process of the server is the only sign that never fails: whoever did not die has lost nothing.
Whether its machine went down with it cannot be told from here, and looking costs little. So all
that completed since we last saw the process before, and in the time that it may have kept on no
disk, is compared with the vectors; what is missing is asked for anew.
"""

import asyncio
import hashlib
import logging
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Protocol

from daemon.errors import InferdError
from daemon.jobs import Clock, JsonObject
from daemon.noted_file import read_noted, write_noted
from daemon.upkeep.scrub import WINDOW_MS

log = logging.getLogger(__name__)

POLL_SECONDS = 20.0
SAVE_MS = 300_000
"""What a death of ours costs is to look back so far more."""
FORGOTTEN_MS = 3_600_000
"""A process that did not answer for so long, while others did, is no more."""
MOST_LIVES = 16
"""Of the nodes behind one address; one more is only looked after once more."""


class Life(Protocol):
    """One process of the server."""

    @property
    def name(self) -> str | None:
        """Another one for each process; None where the server does not tell."""

    @property
    def flush_seconds(self) -> float:
        """At most so long is what it confirmed on no disk, as far as is known."""


class ServerWatch:
    """Asks the server which process it is, now and then, over our own lives too.

    Where it does not tell, each time that it was away counts as a new start, and so does our own
    absence: a start between two of our calls that failed neither is not noticed then.
    """

    def __init__(
        self,
        path: Path,
        *,
        server: str,
        life: Callable[[], Awaitable[Life]],
        look: Callable[[int, int], Awaitable[tuple[int, int]]],
        clock: Clock,
    ) -> None:
        """Wire it up.

        Args:
            path: the file that it keeps its notes in.
            server: its address; notes about another one are of no account.
            life: asks which process answers.
            look: compares the jobs that completed between two moments (epoch ms) with the
                vectors; returns how many these are, and how many are done again.
            clock: the queue's.
        """
        self._path = path
        self._server = hashlib.sha256(server.encode()).hexdigest()[:16]
        self._life, self._look_at, self._clock = life, look, clock
        self._lives: dict[str, int] | None = None
        """When each process was last seen, by its name; empty where none was."""
        self._seen: int | None = None
        self._owed: int | None = None
        """From when on must be looked."""
        self._is_again = False
        self._was_away = True
        self._is_mute = False
        self._saved = 0

    async def run(self) -> None:
        """Watch until cancelled."""
        try:
            while True:
                await self.look()
                await asyncio.sleep(POLL_SECONDS)
        finally:
            if self._lives:
                self._write()

    async def look(self) -> None:
        """Ask once, and do what follows from the answer; what fails is tried by the next one."""
        if self._lives is None:
            await asyncio.to_thread(self._read)
        asked_at = self._clock()
        try:
            life = await self._life()
            # Its time on no disk, and as much for the disk; nobody's clock matters but ours.
            await self._note(life.name, asked_at, WINDOW_MS + int(2000 * life.flush_seconds))
            if self._owed is not None:
                await self._settle(self._owed)
        except InferdError as error:
            # The handlers tell of it; here it only means that it may have been started anew.
            log.debug("the vectors' server: %s", error.message)
            self._was_away = True

    async def _note(self, name: str | None, asked_at: int, window_ms: int) -> None:
        lives = self._lives = self._lives or {}
        is_new = name not in lives if name is not None else self._was_away
        if name is None and not self._is_mute:
            self._is_mute = True
            log.info("the vectors' server does not tell when it started: looking after outages")
        if self._seen is not None and is_new:
            # Which of the processes it is that this one replaces is not known; those that were
            # replaced long ago are not meant.
            recent = [seen for seen in lives.values() if seen > self._seen - FORGOTTEN_MS]
            # Not later than now either: the clock may have gone back since it was noted.
            since = min([self._seen, asked_at, *recent]) - window_ms
            self._owed = since if self._owed is None else min(since, self._owed)
            self._is_again = False
        self._seen, self._was_away = asked_at, False
        if name is not None:
            lives[name] = asked_at
            while len(lives) > MOST_LIVES:
                del lives[min(lives, key=lives.__getitem__)]
        if is_new or not 0 <= asked_at - self._saved < SAVE_MS:
            self._saved = asked_at
            await asyncio.to_thread(self._write)

    async def _settle(self, since: int) -> None:
        until = self._clock()
        looked, redone = await self._look_at(since, until)
        # Once more at the next poll: a job's vector may have gone before, and its end came after.
        self._owed = None if self._is_again else until - WINDOW_MS
        self._is_again = not self._is_again
        await asyncio.to_thread(self._write)
        log.log(
            logging.WARNING if redone else logging.INFO,
            "the vectors' server was away or started anew: of %d jobs %d had lost vectors and are"
            " done again",
            looked,
            redone,
        )

    def _read(self) -> None:
        told = read_noted(self._path)
        self._lives = {}
        if told.get("server") != self._server:
            return
        try:
            self._lives = {str(name): int(seen) for name, seen in told["lives"].items()}
            self._seen = int(told["seen"])
            self._owed = None if told["owed"] is None else int(told["owed"])
        except (AttributeError, KeyError, TypeError, ValueError):
            log.warning("%s is not as it was written", self._path)
            self._lives, self._seen, self._owed = {}, None, None

    def _write(self) -> None:
        told: JsonObject = {
            "server": self._server,
            "lives": dict(self._lives or {}),
            "seen": self._seen,
            "owed": self._owed,
        }
        write_noted(self._path, told)
