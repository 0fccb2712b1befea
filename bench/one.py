"""`python -m bench.one SECTION --size SIZE --json FILE`: one section, in this process.

`make bench` runs each section so: in a process of its own, whose stdout is nobody's.
"""

import argparse
import faulthandler
import json
import logging
import signal
import sys
from pathlib import Path
from typing import get_args

from bench.rows import Options, Row, Size
from bench.sections import SECTIONS, measure_of


def main(argv: list[str]) -> int:
    """Measure a section and write its rows."""
    parser = argparse.ArgumentParser(prog="python -m bench.one", description=__doc__)
    parser.add_argument("section", choices=list(SECTIONS))
    parser.add_argument("--size", choices=get_args(Size), default="normal")
    parser.add_argument("--json", type=Path, required=True)
    parser.add_argument("--seconds", type=float, default=0, help="then it tells where it is")
    arguments = parser.parse_args(argv)
    if arguments.seconds:
        # Whoever ends it shortly after has something to show of where it hung.
        faulthandler.dump_traceback_later(arguments.seconds)
    logging.basicConfig(level=logging.ERROR, format="%(message)s")
    # So that what it has started is stopped when its time is over.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("stopped"))
    rows = measure_of(arguments.section)(Options(size=arguments.size))
    if wrong := [row.name for row in rows if row.section != arguments.section]:
        raise ValueError(f"rows of another section: {wrong}")
    write(arguments.json, list(rows))
    return 0


def write(path: Path, rows: list[Row]) -> None:
    path.write_text(json.dumps([row.as_json() for row in rows]), encoding="utf-8")


def read(path: Path) -> list[Row]:
    return [Row.from_json(told) for told in json.loads(path.read_text(encoding="utf-8"))]


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
