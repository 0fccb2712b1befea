"""`stored`: lists the vectors that the running daemon has stored, and what is stored with them."""

import argparse
import json
from collections.abc import Iterator, Sequence
from datetime import datetime
from urllib.parse import urlencode

from daemon.command_line import Parser, settings_for
from daemon.jobs import JsonObject
from daemon.settings import Settings
from demos.client import ClientError, filter_options
from demos.client import arguments as checked
from demos.client.exit_codes import COMPLETED
from demos.client.management import PATIENCE, Door, add_place, fail, say
from demos.client.sources import shown
from demos.client.tables import box_text
from demos.client.terminal import print_out

PAGE = 500
FEW = 50
MOST = 1_000_000_000

_EPILOG = """\
exit codes:
  0  listed, also where nothing is stored
  2  usage
  3  no daemon answers, or it cannot now
  5  refused: no such collection here, or no permission
  78  wrong configuration

examples:
  %(prog)s --stored-after 1h
  %(prog)s --faces --only-ids 12345
  %(prog)s --limit 1000000 --json > stored.jsonl
"""


def main(argv: Sequence[str], *, prog: str) -> int:
    """List; return the exit code.

    Raises:
        ConfigError: the configuration is wrong.
    """
    parser = make_parser(prog, settings_for(argv))
    options = parser.parse_args(argv)
    door = Door(options, parser)
    number, follows = 0, None
    try:
        for number, (point, after) in enumerate(_points(door, options), 1):
            follows = after
            if options.json:
                print_out(json.dumps(point))
                continue
            if number == 1:
                print_out(_head(is_face=options.faces))
            print_out(_row(point, is_face=options.faces))
    except ClientError as error:
        return fail(error)
    if not number:
        say("nothing is stored" + (" of that" if filter_options.filter_query(options) else ""))
    elif number == options.limit and follows is not None:
        say(f"there may be more: --after {follows}, or --limit N")
    return COMPLETED


def _points(door: Door, options: argparse.Namespace) -> Iterator[tuple[JsonObject, str | None]]:
    """Yield points page by page, as they are needed, each with where the list goes on after it."""
    collection = "face_embeddings" if options.faces else "image_embeddings"
    asked = filter_options.filter_query(options)
    left, after = options.limit, options.after
    while left:
        query = asked | {"limit": str(min(left, PAGE))} | ({"after": after} if after else {})
        path = f"/stored/{collection}?{urlencode(query)}"
        page = door.ask("GET", path, patience=PATIENCE)
        after = page["next"]
        for point in page["points"]:
            yield point, after
        left -= len(page["points"])
        if after is None:
            return


def _head(*, is_face: bool) -> str:
    face = f"{'media_store_id':<19}  face  {'x, y, width, height':<24}  " if is_face else ""
    return f"{'stored':<19}  {'point_id':<36}  {face}job_id"


def _row(point: JsonObject, *, is_face: bool) -> str:
    payload = point["payload"]
    face = ""
    if is_face:
        picture, index = point["media_store_id"], payload.get("face_index")
        face = (
            f"{_or_dash(picture):<19}  {_or_dash(index):<4}  {box_text(payload.get('bbox')):<24}  "
        )
    when = _moment(payload.get("stored_at"))
    return shown(f"{when:<19}  {point['point_id']!s:<36}  {face}{_or_dash(point['job_id'])}")


def _moment(value: object) -> str:
    try:
        if isinstance(value, int):
            return f"{datetime.fromtimestamp(value / 1000).astimezone():%Y-%m-%d %H:%M:%S}"
    except (ValueError, OverflowError, OSError):
        # Another program's; no moment that this machine can show.
        pass
    return "-"


def _or_dash(value: object) -> str:
    return "-" if value is None else str(value)


def make_parser(prog: str, settings: Settings) -> argparse.ArgumentParser:
    """Return what reads the command line; defaults are the daemon's own settings."""
    parser = Parser(
        prog=prog,
        description="List the vectors that the running daemon has stored, by their ids.",
        epilog=f"{filter_options.EPILOG}\n{_EPILOG}",
    )
    parser.add_argument("--faces", action="store_true", help="faces instead of pictures")
    parser.add_argument(
        "--limit", default=FEW, type=checked.between(1, MOST), metavar="N", help="at most (50)"
    )
    parser.add_argument(
        "--after", metavar="point_id", help="begin after it, as the page before said"
    )
    filter_options.add_filter(parser)
    parser.add_argument("--json", action="store_true", help="one line of JSON for each")
    add_place(parser, settings)
    return parser
