"""`workers`: shows all daemons at the broker, as the running daemon hears them."""

import json
from collections.abc import Sequence
from datetime import datetime

from daemon.command_line import Parser, settings_for
from daemon.jobs import JsonObject
from daemon.settings import Settings
from demos.client import ClientError
from demos.client.exit_codes import COMPLETED
from demos.client.management import Door, add_place, fail, say
from demos.client.sources import shown
from demos.client.tables import aligned
from demos.client.terminal import print_out

_EPILOG = """\
A daemon is offline, `silent`, where it missed three of its stats and left no last will.

exit codes:
  0  told
  2  usage
  3  no daemon answers, or it cannot now
  5  refused: no permission
  78  wrong configuration

examples:
  %(prog)s
  %(prog)s --json | jq .images_per_second
"""


def main(argv: Sequence[str], *, prog: str) -> int:
    """Show them; return the exit code.

    Raises:
        ConfigError: the configuration is wrong.
    """
    parser = make_parser(prog, settings_for(argv))
    options = parser.parse_args(argv)
    try:
        told = Door(options, parser).ask("GET", "/workers")
    except ClientError as error:
        return fail(error)
    if options.json:
        print_out(json.dumps(told))
        return COMPLETED
    rows: list[tuple[str, ...]]
    rows = [("daemon", "state", "since", "a second", "done", "failed", "device", "version")]
    rows += [_row(each) for each in told["workers"]]
    print_out(aligned(rows, numbers=()))
    say(f"{told['living']} living, {told['images_per_second']:g} images a second together")
    return COMPLETED


def _row(worker: JsonObject) -> tuple[str, ...]:
    # What daemons say of themselves may hold what a terminal obeys.
    return tuple(map(shown, _cells(worker)))


def _when(since: int | None) -> str:
    if since is None:
        return ""
    try:
        return f"{datetime.fromtimestamp(since / 1000):%Y-%m-%d %H:%M:%S}"  # noqa: DTZ006 - people's own time
    except (ValueError, OverflowError, OSError):
        # A clock that is beyond all years.
        return "?"


def _cells(worker: JsonObject) -> tuple[str, ...]:
    rate, since = worker["images_per_second"], worker["since"]
    state = worker["state"]
    if state == "offline" and worker["reason"] not in ("shutdown", "unknown"):
        state = f"{state} ({worker['reason']})"
    return (
        f"{worker['worker_id']}{' *' if worker['is_self'] else ''}",
        state,
        _when(since),
        "" if rate is None else f"{rate:g}",
        str(sum(worker["done"].values())),
        str(sum(worker["failed"].values())),
        ",".join(worker["devices"]),
        worker["version"] or "",
    )


def make_parser(prog: str, settings: Settings) -> Parser:
    """Return the parser; `settings` give where the daemon is."""
    parser = Parser(
        prog=prog,
        description="All daemons at the broker, what each does and how fast; * answers.",
        epilog=_EPILOG,
    )
    parser.add_argument("--json", action="store_true", help="what REST answers, for programs")
    add_place(parser, settings)
    return parser
