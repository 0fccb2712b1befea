"""Trouble: what happens to a fleet by chance, with a seed: kills, restarts, and cables pulled."""

import random
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from tests.cluster.fleet import LEASE_SECONDS, Fleet
from tests.cluster.hosts import Host

SHORTEST_CUT, LONGEST_CUT = 1.0, 2.5 * LEASE_SECONDS
"""Some shorter than a lease, some longer."""
PAUSE = (1.0, 4.0)
"""Seconds between one trouble and the next, at least."""


@dataclass
class Trouble:
    """Troubles a fleet, one step at a time; `mend` ends what lasts.

    Args:
        fleet: what is troubled.
        seed: of the dice.
        every: how many jobs must end between one trouble and the next: a fleet that is troubled
            faster than it works would never end, and give up jobs that died four times.
        database: breaks and mends the queue's database, by name of the way; none for a file.
    """

    fleet: Fleet
    seed: int
    every: int
    database: Mapping[str, Callable[[], None]]
    did: Counter[str] = field(default_factory=Counter)
    moments: list[tuple[float, float]] = field(default_factory=list)
    """From when to when (epoch seconds) something was wrong."""

    def __post_init__(self) -> None:
        self._dice = random.Random(self.seed)
        self._next = time.monotonic() + self._dice.uniform(*PAUSE)
        self._next_done = self.every
        self._cut: dict[Host, tuple[float, float]] = {}

    def step(self, done: int) -> None:
        """Do what is due when so many jobs have ended."""
        now = time.monotonic()
        for host, (until, _) in list(self._cut.items()):
            if now >= until:
                self._mend(host)
        if now < self._next or done < self._next_done:
            return
        began = time.time()
        self._choose()()
        self.moments.append((began, time.time()))
        self._next = time.monotonic() + self._dice.uniform(*PAUSE)
        self._next_done = done + self.every

    def mend(self) -> None:
        """Plug in every cable."""
        for host in list(self._cut):
            self._mend(host)

    def table(self) -> str:
        """Return what happened, for people."""
        return ", ".join(f"{number} x {what}" for what, number in sorted(self.did.items()))

    def _choose(self) -> Callable[[], None]:
        ways: Sequence[Callable[[], None]] = [
            *(3 * [self._kill_a_daemon]),
            *(2 * [self._pull_a_cable]),
            self._kill_the_broker,
            *([self._break_the_database] if self.database else []),
        ]
        return self._dice.choice(ways)

    def _kill_a_daemon(self) -> None:
        # One whose cable is out could not begin again.
        hosts = [host for host in self.fleet.hosts.all if host not in self._cut]
        if hosts:
            self.fleet.kill(self._dice.choice(hosts))
            self.did["kill -9 of a daemon"] += 1

    def _pull_a_cable(self) -> None:
        hosts = [host for host in self.fleet.hosts.all if host not in self._cut]
        if len(hosts) > 1:
            host = self._dice.choice(hosts)
            seconds = self._dice.uniform(SHORTEST_CUT, LONGEST_CUT)
            self.fleet.hosts.cut(host)
            self._cut[host] = (time.monotonic() + seconds, time.time())
            self.did["host cut off"] += 1

    def _mend(self, host: Host) -> None:
        self.fleet.hosts.mend(host)
        _, began = self._cut.pop(host)
        self.moments.append((began, time.time()))

    def _kill_the_broker(self) -> None:
        self.fleet.broker.settle()
        self.fleet.broker.kill()
        self.fleet.broker.start()
        self.did["kill -9 of the broker"] += 1

    def _break_the_database(self) -> None:
        way = self._dice.choice(sorted(self.database))
        self.database[way]()
        self.did[way] += 1
