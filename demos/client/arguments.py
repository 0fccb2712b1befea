"""Words of a command line, checked: argparse's `type=` for what clients are told.

Each raises argparse.ArgumentTypeError, with a sentence that repeats no password.
"""

import argparse
import math
import threading
import time
from collections.abc import Callable
from datetime import datetime

from daemon.jobs import MAX_MEDIA_STORE_ID
from daemon.settings.header_secrets import fits_a_header
from daemon.topics import is_job_id
from demos.client.http import base_url
from demos.client.link import split_address

HIGHEST_PRIORITY = 10
SHORTEST_MOMENT = 12
"""Digits of epoch milliseconds; fewer may be a date, such as 20261121."""
_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86400}


def address(text: str) -> str:
    """Take `host:port` or a URL; return a base URL."""
    try:
        return base_url(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def broker(text: str) -> str:
    """Take a broker's address, and return it as it is."""
    try:
        split_address(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None
    return text


def seconds(text: str) -> float:
    """Take a positive number of seconds that a thread can wait."""
    value = _float(text)
    if not 0 < value < threading.TIMEOUT_MAX:
        raise argparse.ArgumentTypeError(f"{text!r} is no number of seconds")
    return value


def text(word: str) -> str:
    """Take what can be sent: a shell passes on bytes that are no UTF-8."""
    try:
        word.encode()
    except UnicodeEncodeError:
        raise argparse.ArgumentTypeError(f"{ascii(word)[:80]} is not UTF-8") from None
    return word


def token(word: str) -> str:
    """Take a bearer token, and never repeat it."""
    if not fits_a_header(word):
        raise argparse.ArgumentTypeError("a token is one line of ASCII")
    return word


def priority(text: str) -> int:
    """Take 0 to 10."""
    return between(0, HIGHEST_PRIORITY)(text)


def job_id(text: str) -> str:
    """Take the id of a job."""
    if not is_job_id(text):
        raise argparse.ArgumentTypeError(f"{text[:80]!r} is no job_id, a UUID")
    return text


def media_store_id(text: str) -> int:
    """Take the id of a picture in the media store."""
    value = whole(text)
    if value is None or value > MAX_MEDIA_STORE_ID:
        raise argparse.ArgumentTypeError(f"{text[:80]!r} is no media_store_id")
    return value


def between(lowest: int, highest: int) -> Callable[[str], int]:
    """Return a type that takes whole numbers in these bounds, themselves included."""

    def take(text: str) -> int:
        value = whole(text)
        if value is None or not lowest <= value <= highest:
            raise argparse.ArgumentTypeError(f"{text[:80]!r} is not {lowest} to {highest}")
        return value

    return take


def moment(text: str) -> int:
    """Take how long ago (`2h`), a time in ISO 8601, or epoch milliseconds; return the last."""
    number = whole(text[:-1]) if text[-1:] in _UNITS else None
    if number is not None:
        return max(0, int((time.time() - number * _UNITS[text[-1]]) * 1000))
    if len(text) >= SHORTEST_MOMENT and (milliseconds := whole(text)) is not None:
        return milliseconds
    try:
        return max(0, int(datetime.fromisoformat(text).astimezone().timestamp() * 1000))
    except (ValueError, OverflowError, OSError):
        raise argparse.ArgumentTypeError(
            f"{text[:40]!r} is no moment, such as 2h, 2026-11-21T08:00 or epoch milliseconds"
        ) from None


def score(text: str) -> float:
    """Take a cosine."""
    value = _float(text)
    if not -1 <= value <= 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not -1 to 1")
    return value


def whole(text: str) -> int | None:
    """Return a plain decimal number of at most 19 digits, as 2**63 has, or None."""
    is_plain = text.isascii() and text.isdigit() and len(text) <= 19  # noqa: PLR2004 - see above
    return int(text) if is_plain else None


def _float(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return math.nan
