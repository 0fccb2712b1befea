"""What the daemon may say and where, by rules of our own: written without its code on purpose."""

import re
import unicodedata

TOPICS = re.compile(
    r"inference/job/[0-9a-fA-F-]{36}/(accepted|rejected|started|progress|completed|failed)"
    r"|inference/rejected/[a-z][a-z0-9_]{0,63}"
    r"|inference/worker/[A-Za-z0-9_.-]{1,64}/(availability|info|stats)"
    r"|inference/reply/.+",
    re.DOTALL,
)


def check_topic(topic: str) -> None:
    """Fail where the daemon must not publish to a topic, whoever asked it to."""
    assert TOPICS.fullmatch(topic), topic
    assert not set(topic) & set("+#$"), topic
    assert not [char for char in topic if unicodedata.category(char) in ("Cc", "Cs")], topic
    assert "" not in topic.split("/"), topic
    assert len(topic.encode()) <= 256, topic
