"""What the daemon may say, where, and how often: the rules that fuzzers hold it to."""

import re
import unicodedata

from daemon.errors import InvalidRequestError
from daemon.requests import parse_batch, parse_json
from daemon.topics import is_probe

TOPICS = re.compile(
    r"inference/job/[0-9a-fA-F-]{36}/(accepted|rejected|started|progress|completed|failed)"
    r"|inference/media/[0-9]{1,19}/deleted"
    r"|inference/rejected/[a-z][a-z0-9_]{0,63}"
    r"|inference/worker/[A-Za-z0-9_.-]{1,64}/(availability|info|stats)"
    r"|inference/reply/.+",
    re.DOTALL,
)


def check_topic(topic: str) -> None:
    """Fail where the daemon must not publish to a topic, whoever asked it to.

    Written without the daemon's own rule on purpose.
    """
    assert TOPICS.fullmatch(topic), topic
    assert not set(topic) & set("+#$"), topic
    assert not [char for char in topic if unicodedata.category(char) in ("Cc", "Cs")], topic
    assert "" not in topic.split("/"), topic
    assert len(topic.encode()) <= 256, topic


def asked(topic: str, payload: bytes, *, max_bytes: int) -> int:
    """Return how many answers a message must have: accepted, rejected, an end or a removal."""
    if is_probe(topic):
        return 0
    if topic.startswith(("inference/cancel/", "inference/delete/")) or len(payload) > max_bytes:
        return 1
    try:
        batch = parse_batch(parse_json(payload))
    except InvalidRequestError:
        return 1
    return 1 if batch is None else len(batch)
