"""`python -m tests.hostile.run --count 10000 --seed 1`: the long run, and its tables.

First each mutant goes alone through a decoder process, timed and measured; then all of them through
the running daemon at full load beside good jobs. What the daemon says of a file has to be what came
of it alone. Exit code 1 where anything was not as promised.
"""

import argparse
import os
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median

from bench.table import show
from handlers.media.images import Limits
from tests.hostile.decoders import Decoder, Measured
from tests.hostile.load import Job, Memory, Outcome, jobs, run
from tests.hostile.mutator import mutant
from tests.hostile.pictures import Source, of_folder, ours

WORST = 20
DECODE_SECONDS = 60.0
FLAT = 1.2
"""How many times its memory after a tenth of the jobs the daemon may have in the last tenth."""
JOBS_FOR_FLAT = 2000
"""Fewer jobs than these say nothing about growth."""
MB = 1 << 20


def sources() -> tuple[Source, ...]:
    """Return what is mutated: our pictures, and those of INFERD_TEST_ASSETS where it is set."""
    folder = os.environ.get("INFERD_TEST_ASSETS", "")
    return ours() + (of_folder(Path(folder)) if folder else ())


def alone(files: Sequence[Source], todo: Sequence[Job], seed: int) -> dict[int, Measured]:
    """Return what comes of each mutant that has a decoder process for itself."""
    limits = Limits(100_000_000, (255, 255, 255))
    found = {}
    with Decoder(limits, seconds=DECODE_SECONDS) as decoder:
        for job in todo:
            if job.good is None and job.file is None:
                work = "square" if job.task == "image_embedding" else "upright"
                found[job.media_id] = decoder.decode(work, mutant(files, seed, job.media_id).data)
    return found


def faults(todo: Sequence[Job], measured: dict[int, Measured], outcome: Outcome) -> list[str]:
    """Return everything that was not as promised."""
    found = [f"a good job went wrong: {each}" for each in outcome.unlike]
    found += [f"the daemon logged an error: {each}" for each in outcome.errors]
    if not outcome.pid_kept:
        found.append("the daemon is not the process that it was, or not ready")
    if outcome.exit_code:
        found.append(f"the daemon ended with {outcome.exit_code}")
    for job in todo:
        code = outcome.codes.get(job.media_id, "no end")
        verdict = measured[job.media_id].verdict if job.media_id in measured else None
        if verdict is not None and verdict.is_final and code != verdict.code:
            message = outcome.messages.get(job.media_id, "")
            found.append(f"mutant {job.media_id}: {verdict.code} alone, {code} {message} at work")
    before, after = growth(outcome.memory)
    if len(todo) >= JOBS_FOR_FLAT and after > FLAT * before:
        found.append(f"the daemon grew from {before // MB} to {after // MB} MB")
    return found


def growth(memory: Sequence[Memory]) -> tuple[int, int]:
    """Return the daemon's bytes in the second tenth of the jobs and in the last, as medians."""
    most = max((each.done for each in memory), default=0)

    def typical(low: float, high: float) -> int:
        within = [each.daemon for each in memory if low * most <= each.done <= high * most]
        return int(median(within)) if within else 0

    return typical(0.1, 0.2), typical(0.9, 1.0)


def show_codes(todo: Sequence[Job], outcome: Outcome) -> None:
    """Print how many ended how."""
    good = {job.media_id for job in todo if job.good is not None}
    counts: dict[bool, Counter[str]] = {True: Counter(), False: Counter()}
    for number, code in outcome.codes.items():
        counts[number in good][code] += 1
    rows = [
        (code, str(counts[False][code]), str(counts[True][code]))
        for code, _ in (counts[False] + counts[True]).most_common()
    ]
    show(f"{len(todo)} jobs in {outcome.seconds:.0f} s", ("ended as", "mutants", "good"), rows)


def show_memory(outcome: Outcome) -> None:
    """Print the memory over the run."""
    most = max((each.done for each in outcome.memory), default=0)
    rows = []
    for part in range(10):
        within = [
            each for each in outcome.memory if part * most <= 10 * each.done <= (part + 1) * most
        ]
        if within:
            rows.append(
                (
                    f"{part * 10}-{part * 10 + 10} %",
                    f"{median(each.daemon for each in within) / MB:.0f}",
                    f"{max(each.daemon for each in within) / MB:.0f}",
                    f"{median(each.decoders for each in within) / MB:.0f}",
                    f"{max(each.decoders for each in within) / MB:.0f}",
                )
            )
    head = ("jobs done", "daemon, median", "most", "its decoders, median", "most")
    show("Resident memory, MB", head, rows)


def show_worst(files: Sequence[Source], measured: dict[int, Measured], seed: int) -> None:
    """Print the slowest, and those that took most memory."""
    keys: dict[str, Callable[[Measured], float]] = {
        "slowest": lambda each: each.seconds,
        "most memory": lambda each: each.peak_bytes,
    }
    for title, key in keys.items():
        worst = sorted(measured.items(), key=lambda item: key(item[1]), reverse=True)[:WORST]
        rows = [
            (
                f"{number} {mutant(files, seed, number).story}",
                f"{each.seconds:.2f} s",
                f"{each.peak_bytes / MB:.0f} MB",
                each.verdict.code,
            )
            for number, each in worst
        ]
        show(f"The {WORST} {title}, alone", ("mutant", "took", "peak", "ended as"), rows)


def main(argv: Sequence[str]) -> int:
    """Run, print, and return 1 where anything was not as promised."""
    parser = argparse.ArgumentParser(prog="python -m tests.hostile.run", description=__doc__)
    parser.add_argument("--count", type=int, default=10_000, help="jobs, the good included (10000)")
    parser.add_argument("--seed", type=int, default=1, help="other mutants each (1)")
    parser.add_argument("--seconds", type=float, default=7200, help="longest for the daemon (7200)")
    arguments = parser.parse_args(argv)
    files, todo = sources(), jobs(arguments.count)
    began = time.monotonic()
    measured = alone(files, todo, arguments.seed)
    print(f"{len(measured)} mutants of {len(files)} files alone: {time.monotonic() - began:.0f} s")
    show_worst(files, measured, arguments.seed)
    with tempfile.TemporaryDirectory(prefix="inferd-hostile-") as folder:
        outcome = run(
            Path(folder),
            files,
            todo,
            seed=arguments.seed,
            seconds=arguments.seconds,
        )
    show_codes(todo, outcome)
    show_memory(outcome)
    found = faults(todo, measured, outcome)
    print(f"\n{len(found)} faults" + "".join(f"\n  {each}" for each in found[:100]))
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
