"""`make cluster`: jobs on a fleet of daemons amid trouble, and a table of what came of it."""

import argparse
import secrets
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path

from tests.cluster.asker import Asker, jobs
from tests.cluster.fleet import LEASE_SECONDS, Fleet
from tests.cluster.hosts import Hosts
from tests.cluster.queues import Queue, a_file, postgresql
from tests.cluster.trouble import Trouble
from tests.cluster.verdict import Findings, judge

MOST_OPEN = 2000
"""Jobs asked for and not yet ended, so that the trouble lasts as long as the jobs do."""
TROUBLES = 80
"""About so many happen in a run, none within FEWEST jobs of the one before."""
FEWEST = 40
PER_TROUBLE = 3
"""A quick fleet would be done before its first trouble: after each one so many times FEWEST jobs
more may be asked for."""
MARGIN_SECONDS = 2.0 * LEASE_SECONDS
"""A trouble is felt for so long after its end: leases run out, connections come back."""


@dataclass(frozen=True, slots=True)
class Report:
    """What one run came to."""

    findings: Findings
    queue: str
    jobs: int
    daemons: int
    seconds: float
    repeats: int
    trouble: str

    def table(self) -> str:
        """Return it for people."""
        verdict = self.findings.verdict
        shown = {
            "queue": self.queue,
            "daemons": self.daemons,
            "jobs": self.jobs,
            "lost": len(verdict.lost),
            "extra": len(verdict.extra),
            "wrong": len(verdict.wrong),
            "given up after 4 deaths": self.findings.given_up,
            "attempts again": self.findings.again,
            "requests repeated": self.repeats,
            "events sent again": verdict.doubles,
            "events lost with the broker": len(self.findings.unheard),
            "jobs/s": round(self.jobs / self.seconds),
        }
        head = " | ".join(shown)
        row = " | ".join(str(value).rjust(len(name)) for name, value in shown.items())
        return f"| {head} |\n| {row} |\n{self.trouble}"


def run(
    folder: Path,
    *,
    daemons: int,
    count: int,
    seed: int,
    make_queue: Callable[[Path, Hosts], AbstractContextManager[Queue]] = a_file,
    settings: Mapping[str, str] | None = None,
    seconds: float = 1800.0,
) -> Report:
    """Run `count` jobs on so many daemons amid trouble; return what was found.

    Args:
        folder: empty; everything stays there.
        daemons: how many, each on a host of its own.
        count: how many jobs.
        seed: of the trouble.
        make_queue: gives the queue's database.
        settings: further settings of the daemons.
        seconds: how long it may take.

    Raises:
        AssertionError: something never ended.
    """
    wanted = jobs(count)
    with (
        Hosts(daemons) as hosts,
        make_queue(folder, hosts) as queue,
        Fleet(folder, hosts, queue.url, settings or {}) as fleet,
    ):
        for each in wanted:
            fleet.store.put(each.media_id, each.faces)
        fleet.start_all()
        asker = Asker(fleet.client, fleet.heard, wanted)
        every = max(FEWEST, count // TROUBLES)
        trouble = Trouble(fleet, seed, every, queue.ways_to_break)
        began = time.monotonic()

        def until() -> bool:
            if asker.done < count * 0.95:
                trouble.step(asker.done)
            else:
                trouble.mend()
            return asker.done == count

        def most_asked() -> int:
            return PER_TROUBLE * every * (1 + len(trouble.moments))

        try:
            asker.finish(until, MOST_OPEN, most_asked, seconds)
        except AssertionError as error:
            raise AssertionError(f"{error}\n{fleet.tails()}") from None
        took = time.monotonic() - began
        fleet.wait(lambda: not queue.read()[1], "every event is sent")
        fleet.stop()
        fleet.heard.listen()
        rows, unsent = queue.read()

        def troubled(start: float, end: float) -> bool:
            return any(
                first < end and start < last + MARGIN_SECONDS for first, last in trouble.moments
            )

        findings = judge(
            fleet,
            wanted,
            rows=rows,
            unsent=unsent,
            troubled=troubled,
            broker_died=trouble.did["kill -9 of the broker"] > 0,
        )
        return Report(findings, queue.name, count, daemons, took, asker.repeats, trouble.table())


def main(argv: Sequence[str] | None = None) -> int:
    """Run once and print the table; return 1 where a promise was broken."""
    parser = argparse.ArgumentParser(prog="python -m tests.cluster.run", description=__doc__)
    parser.add_argument("--jobs", type=int, default=20_000, help="how many (20000)")
    parser.add_argument("--daemons", type=int, default=4, help="how many, one a host (4)")
    parser.add_argument("--seed", type=int, default=None, help="of an earlier run's trouble")
    parser.add_argument("--file", action="store_true", help="a SQLite file for a queue")
    parser.add_argument("--seconds", type=float, default=1800, help="how long at most (1800)")
    options = parser.parse_args(argv)
    seed = secrets.randbelow(1_000_000) if options.seed is None else options.seed
    folder = Path(tempfile.mkdtemp(prefix="inferd-cluster-"))
    # Whoever ends us ends the hosts and daemons as well.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    _say(f"seed {seed}, in {folder}")
    report = run(
        folder,
        daemons=options.daemons,
        count=options.jobs,
        seed=seed,
        make_queue=a_file if options.file else postgresql,
        seconds=options.seconds,
    )
    _say(report.table())
    faults = report.findings.verdict.faults
    for what in faults[:20]:
        _say(what)
    if faults:
        _say(f"again: --seed {seed}; what was left is in {folder}")
        return 1
    shutil.rmtree(folder)
    return 0


def _say(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
