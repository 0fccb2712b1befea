"""Options that say which stored vectors are meant, and the query that they make for a route."""

import argparse
import json

from daemon.jobs import JsonObject
from demos.client import arguments as checked

MAX_LISTED = 200
MAX_EXACT = 2**53 - 1

EPILOG = """\
Moments are `2h` (that long ago; s, m, h, d), `2026-11-21T08:00` (local time, or with its
zone) or epoch milliseconds. --where takes NAME=VALUE of what is stored with a vector, such as
model=ViT-B-32 or bbox.x=5; whole numbers are numbers, so a text of digits is written '"5"'. Given
twice for one name, either value will do.
"""


def add_filter(parser: argparse.ArgumentParser) -> None:
    """Add the options, in a group of their own."""
    group = parser.add_argument_group("which of the stored ones")
    group.add_argument(
        "--stored-after", type=checked.moment, metavar="MOMENT", help="stored then or later"
    )
    group.add_argument("--stored-before", type=checked.moment, metavar="MOMENT")
    for name in ("--min-id", "--max-id"):
        group.add_argument(name, type=checked.between(0, MAX_EXACT), metavar="ID")
    group.add_argument(
        "--only-ids", type=_media_store_ids, metavar="ID,ID...", help="these pictures"
    )
    group.add_argument(
        "--job",
        action="append",
        type=checked.job_id,
        metavar="job_id",
        help="stored by it; repeatable",
    )
    group.add_argument(
        "--request-id",
        type=checked.text,
        metavar="WORD",
        help="stored for requests with this word",
    )
    group.add_argument(
        "--where",
        action="append",
        type=_pair,
        metavar="NAME=VALUE",
        help="what is stored with it; repeatable",
    )


def filter_query(options: argparse.Namespace) -> dict[str, str]:
    """Return what the options ask for, in the names and words of the routes."""
    numbers = {
        "stored_after": options.stored_after,
        "stored_before": options.stored_before,
        "min_media_store_id": options.min_id,
        "max_media_store_id": options.max_id,
        "media_store_ids": options.only_ids,
        "job_ids": ",".join(options.job) if options.job else None,
        "request_id": options.request_id,
        "payload": json.dumps(_payload(options.where)) if options.where else None,
    }
    return {name: str(value) for name, value in numbers.items() if value is not None}


def _payload(pairs: list[tuple[str, str | int]]) -> JsonObject:
    found: dict[str, list[str | int]] = {}
    for name, value in pairs:
        found.setdefault(name, []).append(value)
    return found


def _pair(text: str) -> tuple[str, str | int]:
    name, separator, word = text.partition("=")
    if not separator or not name:
        raise argparse.ArgumentTypeError(f"{text[:80]!r} is not NAME=VALUE")
    try:
        value = json.loads(word)
    except (ValueError, RecursionError):
        return name, word
    is_number = isinstance(value, int) and not isinstance(value, bool)
    return name, value if is_number or isinstance(value, str) else word


def _media_store_ids(text: str) -> str:
    words = text.split(",")
    if len(words) > MAX_LISTED:
        raise argparse.ArgumentTypeError(f"at most {MAX_LISTED} ids in one search")
    return ",".join(str(checked.media_store_id(word.strip())) for word in words)
