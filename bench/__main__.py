"""`python -m bench`, or `make bench`: all measurements, as a table and as JSON.

Every row is a ratio of two things that took turns in one run; above 1 is in inferd's favour.
Figures of other machines, or of another run, are not comparable.
"""

import argparse
import signal
import subprocess
import sys
import tempfile
import time
from datetime import UTC, datetime
from pathlib import Path

from bench import machine, report
from bench.one import read
from bench.report import Run
from bench.rows import Row, Size
from bench.sections import SECTIONS

ROOT = Path(__file__).parent.parent
LIMITS: dict[Size, float] = {"smallest": 250, "quick": 300, "normal": 300, "full": 7200}
"""Seconds after which a section is ended. None takes half of it on two cores."""
LOOK_SECONDS = 5.0
"""So long before that it tells where its threads are."""
STOP_SECONDS = 60
LAST_WORDS = 4000


def main(argv: list[str]) -> int:
    """Measure, print and write; 1 where a section failed."""
    arguments = _parser().parse_args(argv)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("stopped"))
    names = list(dict.fromkeys(arguments.only)) or list(SECTIONS)
    for line in machine.lines():
        print(line)
    rows: list[Row] = []
    runs: dict[str, Run] = {}
    for name in names:
        print(f"... {name}", file=sys.stderr, flush=True)
        some, runs[name] = _run(name, arguments.size)
        rows += some
        report.print_rows(some)
        sys.stdout.flush()
        if runs[name].error:
            print(f"\n{name} FAILED: {runs[name].error}", file=sys.stderr)
        # After each, so that a long run that is stopped leaves what it had.
        report.write(arguments.json, report.as_json(rows, runs, arguments.size))
    seconds = sum(run.seconds for run in runs.values())
    failed = [name for name, run in runs.items() if run.error]
    each = ", ".join(f"{name} {run.seconds:.0f}" for name, run in runs.items())
    print(f"\n{len(rows)} rows in {seconds:.0f} s ({each}), as JSON in {arguments.json}")
    if failed:
        print(f"failed: {', '.join(failed)}", file=sys.stderr)
    return 1 if failed else 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m bench",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--only",
        action="append",
        default=[],
        choices=list(SECTIONS),
        metavar="SECTION",
        help=f"only this one; may be repeated: {', '.join(SECTIONS)}",
    )
    sizes = parser.add_mutually_exclusive_group()
    for size, text in (
        ("smallest", "as little as shows that it runs; its figures mean little"),
        ("quick", "fewer rounds"),
        ("full", "the long rows too, a million vectors among them"),
    ):
        sizes.add_argument(
            f"--{size}", action="store_const", dest="size", const=size, help=text, default="normal"
        )
    now = datetime.now(UTC)
    parser.add_argument(
        "--json",
        type=Path,
        default=Path("bench-output") / f"{now:%Y%m%d-%H%M%S}.json",
        help="where it is written (bench-output/TIME.json)",
    )
    return parser


def _run(name: str, size: Size) -> tuple[list[Row], Run]:
    """Return a section's rows, measured in a process of its own, and how it went."""
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="inferd-bench-") as folder:
        told, log = Path(folder) / "rows.json", Path(folder) / "log"
        limit = LIMITS[size]
        command = [sys.executable, "-m", "bench.one", name, "--size", size, "--json", str(told)]
        command += ["--seconds", str(limit - LOOK_SECONDS)]
        with (
            log.open("wb") as file,
            subprocess.Popen(
                command, cwd=ROOT, stdin=subprocess.DEVNULL, stdout=file, stderr=file
            ) as process,
        ):
            error = _wait(process, limit)
        if error:
            words = log.read_text(encoding="utf-8", errors="replace").strip()[-LAST_WORDS:]
            return [], Run(time.monotonic() - began, f"{error}\n{words}".strip())
        return read(told), Run(time.monotonic() - began)


def _wait(process: "subprocess.Popen[bytes]", seconds: float) -> str:
    """Return why a section failed; empty where it did not."""
    try:
        code = process.wait(seconds)
    except subprocess.TimeoutExpired:
        _end(process)
        return f"it took more than {seconds:.0f} s"
    except BaseException:
        # Ctrl-C, or SIGTERM: what the section has started goes with it.
        _end(process)
        raise
    return f"it ended with {code}" if code else ""


def _end(process: "subprocess.Popen[bytes]") -> None:
    process.terminate()
    try:
        process.wait(STOP_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
