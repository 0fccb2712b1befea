"""`migrate queue --to URL`: moves the SQLite queue into PostgreSQL, with nothing lost."""

import argparse
import asyncio
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from daemon.command_line import Parser
from daemon.errors import ConfigError
from daemon.redaction import without_password
from daemon.settings import QueueSettings, Settings

MOVED = ".moved"
"""End of the file's name once its queue is elsewhere, so that no daemon goes on with it."""


def make_parser(prog: str, _settings: Settings | None = None) -> argparse.ArgumentParser:
    """Return what reads the command's words."""
    parser = Parser(
        prog=prog,
        description="Move the queue from its SQLite file into PostgreSQL: jobs, events that wait, "
        "pauses. Stop the daemons first. In the end both are read and compared; interrupted, run "
        "it again. The file stays, as queue.db.moved.",
        epilog="Exit codes: 0 moved, 78 refused; the file says then what it said before.",
    )
    parser.add_argument(
        "--to",
        required=True,
        metavar="URL",
        help="postgresql://user@host/database; or the name of a file that holds the URL, as @FILE",
    )
    parser.add_argument(
        "--keep", action="store_true", help="leave the file its name (a daemon may take it again)"
    )
    return parser


def main(argv: Sequence[str], *, prog: str) -> int:
    """Move it; return 0 where the database holds the whole queue afterwards.

    Raises:
        ConfigError: the URL is wrong, or `transfer` refuses.
    """
    arguments = make_parser(prog).parse_args(argv)
    url = _url(arguments.to)
    path = Settings.from_env(os.environ).queue_path
    from daemon.queue.postgresql.transfer import transfer  # noqa: PLC0415 - asyncpg

    moved = asyncio.run(transfer(path, url, told=_tell if sys.stderr.isatty() else None))
    if sys.stderr.isatty():
        sys.stderr.write("\n")
    rows = ", ".join(f"{number} {table}" for table, number in moved.rows.items() if number)
    where = without_password(url)
    sys.stdout.write(
        f"{where} holds what {path} holds: {rows or 'nothing'}; {moved.written} rows were written\n"
    )
    if not arguments.keep:
        kept = path.with_name(path.name + MOVED)
        path.replace(kept)
        sys.stdout.write(f"the file is {kept} now\n")
    sys.stdout.write("set INFERD_QUEUE__URL to the database, then start the daemons\n")
    return 0


def _url(text: str) -> str:
    if text.startswith("@"):
        try:
            text = Path(text[1:]).read_text(encoding="utf-8").strip()
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(f"--to: cannot read the file: {error}") from error
    try:
        queue = QueueSettings(url=text)
    except ValueError as error:
        raise ConfigError(f"--to: {_why(error)}") from error
    if not queue.is_postgresql:
        raise ConfigError("--to: must be postgresql://user@host/database")
    return queue.url


def _why(error: ValueError) -> str:
    # pydantic's own words quote what was given, and with it a password.
    found = getattr(error, "errors", None)
    return str(found(include_input=False)[0]["msg"]) if found else "not a URL"


def _tell(table: str, rows: int) -> None:
    sys.stderr.write(f"\r{table}: {rows} rows looked at ")
    sys.stderr.flush()
