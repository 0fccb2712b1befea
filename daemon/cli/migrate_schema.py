"""`migrate schema`, also `migrate`: brings the queue's file to this schema; shows its ledger."""

import argparse
import asyncio
import importlib
import os
import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

from daemon.command_line import Parser
from daemon.errors import ConfigError
from daemon.queue.database import Database
from daemon.queue.migration import released_migrations
from daemon.queue.schema import Schema, Step, read_schema
from daemon.settings import Settings

BEHIND = 1
"""Exit code: --check found steps to apply, or the file stayed locked."""
_EPILOG = """\
exit codes:
  0  up to date
  1  behind (--check), or the file stayed locked
  2  usage
  78  unusable

examples:
  %(prog)s --check
  %(prog)s --wait 60
"""


def main(argv: Sequence[str], *, prog: str) -> int:
    """Migrate; return 0 where the file has this version's schema afterwards.

    Raises:
        ConfigError: there is no file, or this version cannot serve it.
    """
    arguments = make_parser(prog).parse_args(argv)
    settings = Settings.from_env(os.environ)
    if settings.queue.is_postgresql:
        # A command of its own, which imports asyncpg.
        server = importlib.import_module("daemon.cli.migrate_server")
        code: int = server.migrate_server(settings.queue.url, check=arguments.check)
        return code
    path = settings.queue_path
    steps = released_migrations()
    before = read_schema(path, steps)
    if before.refusal:
        _show(before, {})
        raise before.refusal
    if before.is_new and not arguments.create:
        absent = f"there is no queue at {path}: a daemon's first start makes it, or {prog} --create"
        if not arguments.check:
            raise ConfigError(absent, code="queue_absent")
        sys.stdout.write(f"{absent}\n")
        return BEHIND
    if arguments.check:
        _show(before, {step.number: "to be applied" for step in before.pending})
        return BEHIND if before.pending else 0
    if before.pending:
        try:
            asyncio.run(_migrate(path, arguments.wait))
        except ConfigError as error:
            if error.code != "queue_locked":
                raise
            sys.stderr.write(f"inferd: {error}: somebody writes it; try again, or --wait longer\n")
            return BEHIND
    _show(
        read_schema(path, steps),
        {step.number: "applied now" for step in before.pending},
    )
    return 0


def make_parser(prog: str, _settings: Settings | None = None) -> argparse.ArgumentParser:
    """Return what reads the command line."""
    parser = Parser(
        prog=prog,
        description="Bring the queue's file to this version's schema and show which steps it "
        "went through. A daemon does the same when it starts; daemons may run meanwhile, and "
        "those of an older version should be restarted soon.",
        epilog=_EPILOG,
    )
    parser.add_argument("--check", action="store_true", help="change nothing: say what would be")
    parser.add_argument("--create", action="store_true", help="make the file where there is none")
    parser.add_argument(
        "--wait",
        type=_seconds,
        default=10.0,
        metavar="SECONDS",
        help="for others that write the file (10)",
    )
    return parser


async def _migrate(path: Path, wait_seconds: float) -> None:
    async with Database(path, busy_timeout_ms=round(wait_seconds * 1000)):
        pass


def _show(schema: Schema, notes: dict[int, str]) -> None:
    newest = max(step.version for step in released_migrations())
    sys.stdout.write(f"{schema.path}: schema {schema.version}, this version's is {newest}\n")
    for step in schema.steps:
        when = _time(step)
        note = notes.get(step.number, "" if step.number <= newest else "unknown to this version")
        sys.stdout.write(f"  {step.number:04}  {step.name:<12}  {when:<20}  {note}".rstrip() + "\n")
    for copy in schema.copies:
        sys.stdout.write(f"copy from before {copy.name[-4:]}: {copy}\n")


def _time(step: Step) -> str:
    if step.applied_at is None:
        return "-"
    moment = datetime.fromtimestamp(step.applied_at / 1000, UTC)
    return moment.strftime("%Y-%m-%dT%H:%M:%SZ")


def _seconds(text: str) -> float:
    value = float(text)
    if not 0 <= value <= 3600:  # noqa: PLR2004 - an hour
        raise argparse.ArgumentTypeError("must lie between 0 and 3600")
    return value
