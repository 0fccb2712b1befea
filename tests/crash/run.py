"""`make crash`: kills daemons by chance, at points and at moments, and prints what came of it."""

import argparse
import contextlib
import random
import secrets
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass, field
from pathlib import Path

from tests.crash.case import Outcome, run_case
from tests.crash.lives import Fault, Forge, Moment
from tests.crash.points import POINTS
from tests.crash.queues import File, Server
from tests.postgresql import Cluster

ENGINES = ("sqlite", "postgresql")
MOST_KILLS = 3
"""In one case: a job that is in a dead daemon's hands once more has no attempt left, by design."""
MOST_TIMES = 6
"""A point is reached at most so often before its fault strikes."""
MOST_EXTRA = 6
LONGEST_SECONDS = 2.5
"""Of a life that is ended at a moment; the script is over soon after."""
AT_FIRST = 0.6
"""Part of the faults that strike at the first time; what is done once only is reached then."""
AT_A_MOMENT = 0.3
"""Part of the lives that end at a moment, not at a point."""


@dataclass
class Tally:
    """What has been found so far."""

    cases: int = 0
    kills: int = 0
    jobs: int = 0
    lost: int = 0
    doubled: int = 0
    extra: int = 0
    wrong: int = 0
    stuck: int = 0
    """Cases that never came to their end."""
    bad: list[tuple[int, str]] = field(default_factory=list)

    def add(self, outcome: Outcome) -> None:
        """Count one case."""
        self.cases += 1
        self.kills += outcome.kills
        self.jobs += outcome.verdict.jobs
        self.lost += len(outcome.verdict.lost)
        self.doubled += outcome.verdict.doubles
        self.extra += len(outcome.verdict.extra)
        self.wrong += len(outcome.verdict.wrong)

    def table(self) -> str:
        """Return it for people."""
        shown = {
            "cases": self.cases,
            "kills": self.kills,
            "jobs": self.jobs,
            "lost": self.lost,
            "extra": self.extra,
            "wrong": self.wrong,
            "stuck": self.stuck,
            "events sent again": self.doubled,
        }
        head = " | ".join(shown)
        row = " | ".join(str(value).rjust(len(name)) for name, value in shown.items())
        return f"| {head} |\n| {row} |"


def plan(seed: int, number: int) -> tuple[list[Fault | Moment], int]:
    """Return how the lives of a case end, and how many more pictures it has."""
    chance = random.Random(f"{seed}/{number}")
    points = list(POINTS)
    chosen = [chance.choice(points) for _ in range(chance.randint(1, MOST_KILLS))]
    # In the script's order, so that most of them strike.
    chosen.sort(key=lambda name: POINTS[name].phase)
    deaths: list[Fault | Moment] = []
    for name in chosen:
        if chance.random() < AT_A_MOMENT:
            deaths.append(Moment(chance.uniform(0, LONGEST_SECONDS)))
        else:
            nth = 1 if chance.random() < AT_FIRST else chance.randint(2, MOST_TIMES)
            deaths.append(Fault(name, nth))
    return deaths, chance.randint(0, MOST_EXTRA)


def main(argv: Sequence[str] | None = None) -> int:
    """Run cases until there were enough kills; return 1 where a promise was broken."""
    parser = argparse.ArgumentParser(prog="python -m tests.crash.run", description=__doc__)
    parser.add_argument("--kills", type=int, default=200, help="how many at least (200)")
    parser.add_argument("--seed", type=int, default=None, help="of an earlier run, to repeat it")
    parser.add_argument("--only", type=int, default=None, metavar="CASE", help="this case alone")
    parser.add_argument("--at-once", type=int, default=2, help="cases side by side (2)")
    parser.add_argument("--engine", choices=ENGINES, default=ENGINES[0], help="of the queue")
    options = parser.parse_args(argv)
    seed = secrets.randbelow(1_000_000) if options.seed is None else options.seed
    folder = Path(tempfile.mkdtemp(prefix="inferd-crash-"))
    _say(f"seed {seed}, in {folder}")
    tally, began = Tally(), time.monotonic()
    numbers = iter(range(1_000_000)) if options.only is None else iter([options.only])
    with contextlib.ExitStack() as stack:
        cluster = None
        if options.engine == "postgresql":
            cluster = stack.enter_context(Cluster())
        forge = stack.enter_context(Forge())
        pool = stack.enter_context(ThreadPoolExecutor(options.at_once))

        def run(number: int) -> tuple[int, Outcome | str]:
            deaths, extra = plan(seed, number)
            place = folder / f"case-{number}"
            place.mkdir()
            queue = Server(cluster) if cluster else File(place / "data" / "queue.db")
            try:
                return number, run_case(
                    forge, place, deaths, extra=extra, is_strict=False, queue=queue
                )
            except Exception:  # noqa: BLE001 - a case that fails is a result
                return number, traceback.format_exc()

        # Whoever ends us ends the brokers and daemons of the cases under way as well.
        signal.signal(signal.SIGTERM, signal.default_int_handler)
        while tally.kills < options.kills:
            batch = [n for _, n in zip(range(4 * options.at_once), numbers, strict=False)]
            if not batch:
                break
            started = [pool.submit(run, number) for number in batch]
            try:
                for done in as_completed(started):
                    _note(tally, *done.result(), seed=seed, folder=folder)
            except KeyboardInterrupt:
                pool.shutdown(cancel_futures=True)
                raise
            seconds = time.monotonic() - began
            _say(f"{tally.kills} kills in {tally.cases} cases, {seconds:.0f} s")
    _say(tally.table())
    for number, what in tally.bad:
        _say(f"case {number} ({plan(seed, number)[0]}): {what}")
    if tally.bad:
        _say(f"again: --seed {seed} --only CASE; what was left is in {folder}")
        return 1
    shutil.rmtree(folder)
    return 0


def _note(tally: Tally, number: int, result: Outcome | str, *, seed: int, folder: Path) -> None:
    if isinstance(result, str):
        tally.stuck += 1
        faults = [result]
    else:
        tally.add(result)
        faults = result.verdict.faults
    if not faults:
        shutil.rmtree(folder / f"case-{number}")
        return
    tally.bad += [(number, what) for what in faults]
    _say(f"case {number}, seed {seed}: {faults[0]}")


def _say(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
