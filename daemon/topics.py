"""The topic grammar: builds and parses names, and knows which words are safe in one."""

import re

ROOT = "inference"
REQUEST_FILTER = f"{ROOT}/request/+"
CANCEL_FILTER = f"{ROOT}/cancel/+"
DELETE_FILTER = f"{ROOT}/delete/+"
WAKE_FILTER = f"{ROOT}/wake/+"
WAKE_INTAKE = "_intake"
"""Last level of a wake-up: the intake roles are to be looked at; every other is a task type."""
PROBE = "_probe"
"""Last level of a request or cancel topic by which `doctor` finds out whether it is read. Neither
a task type nor a job_id can be this word, and a daemon passes over it without a trace."""

UUID = "[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}"
"""The pattern of a job_id."""

_UUID = re.compile(UUID)
_WORD = re.compile(r"[a-z][a-z0-9_]{0,63}")
# Control characters, surrogates and noncharacters: a broker hangs up on whoever publishes to a
# topic with one of them, and an event is sent again until it is confirmed.
_UNSENDABLE = r"\x00-\x1f\x7f-\x9f\ud800-\udfff\ufdd0-\ufdef" + "".join(
    rf"\U{plane:04x}fffe\U{plane:04x}ffff" for plane in range(17)
)
_REPLY = re.compile(rf"{ROOT}/reply(/[^/+#${_UNSENDABLE}]+)+")

MAX_REPLY_BYTES = 256


def is_job_id(text: str) -> bool:
    """Whether a text may be a job_id: a UUID in its usual spelling, of either case."""
    return _UUID.fullmatch(text) is not None


def is_reply_topic(text: str) -> bool:
    """Whether events may be sent there: only below inference/reply/, no wildcards, 256 bytes.

    Anything else would let one client make the daemon write into another's topics.
    """
    return len(text.encode(errors="replace")) <= MAX_REPLY_BYTES and bool(_REPLY.fullmatch(text))


def job_event(job_id: str, event: str) -> str:
    """Return the topic of a job's event, such as `accepted` or `completed`."""
    return f"{ROOT}/job/{job_id}/{event}"


def event_of(topic: str) -> str | None:
    """Return the event of a topic that `job_event` built, or None for any other topic."""
    job_id, _, event = topic.removeprefix(f"{ROOT}/job/").partition("/")
    return event if topic.startswith(f"{ROOT}/job/") and is_job_id(job_id) else None


def dead_letter(task_type: str) -> str:
    """Return the topic for requests that have no usable job_id to answer to."""
    return f"{ROOT}/rejected/{task_type if _WORD.fullmatch(task_type) else 'unknown'}"


def availability(worker_id: str) -> str:
    """Return the retained topic that says whether a daemon is online."""
    return f"{ROOT}/worker/{worker_id}/availability"


def info(worker_id: str) -> str:
    """Return the retained topic that says what a daemon is."""
    return f"{ROOT}/worker/{worker_id}/info"


def stats(worker_id: str) -> str:
    """Return the retained topic that says how busy a daemon is."""
    return f"{ROOT}/worker/{worker_id}/stats"


def pause(worker_id: str, task_type: str) -> str:
    """Return the topic that pauses (ON) and resumes (OFF) a task type, as Home Assistant does."""
    return f"{ROOT}/worker/{worker_id}/pause/{task_type}"


def pause_filter(worker_id: str) -> str:
    """Return the filter of a daemon's pause topics."""
    return pause(worker_id, "+")


def paused_task(topic: str, worker_id: str) -> str | None:
    """Return the last level of a daemon's pause topic, or None for any other topic."""
    return _last_level(topic, pause(worker_id, ""))


def worker_part(topic: str) -> tuple[str, str] | None:
    """Return a topic's worker_id and its part: availability, info or stats; None for any other."""
    levels = topic.split("/")
    if len(levels) != 4 or levels[:2] != [ROOT, "worker"]:  # noqa: PLR2004 - levels of one
        return None
    return (levels[2], levels[3]) if levels[3] in ("availability", "info", "stats") else None


def wake(what: str) -> str:
    """Return the topic that wakes daemons with free workers for a task type, or WAKE_INTAKE."""
    return f"{ROOT}/wake/{what}"


def woken(topic: str) -> str | None:
    """Return the last level of a wake-up's topic, or None for any other topic."""
    return _last_level(topic, wake(""))


def is_probe(topic: str) -> bool:
    """Whether a topic is only a probe of `doctor`; see PROBE."""
    kinds = ("request", "cancel", "delete", "wake")
    return topic in {f"{ROOT}/{each}/{PROBE}" for each in kinds}


def requested_task(topic: str) -> str | None:
    """Return the last level of a request topic, or None for any other topic."""
    return _last_level(topic, f"{ROOT}/request/")


def is_cancel(topic: str) -> bool:
    """Whether it is a cancel topic, even with an empty job_id: `+` matches an empty level too."""
    return topic.startswith(f"{ROOT}/cancel/")


def cancelled_job(topic: str) -> str | None:
    """Return the last level of a cancel topic, or None for any other topic."""
    return _last_level(topic, f"{ROOT}/cancel/")


def is_delete(topic: str) -> bool:
    """Whether it is a delete topic, even with an empty id: `+` matches an empty level too."""
    return topic.startswith(f"{ROOT}/delete/")


def deleted_media(topic: str) -> str | None:
    """Return the last level of a delete topic, or None for any other topic."""
    return _last_level(topic, f"{ROOT}/delete/")


def media_deleted(media_store_id: int | str) -> str:
    """Return the topic that says that a picture was deleted."""
    return f"{ROOT}/media/{media_store_id}/deleted"


def _last_level(topic: str, prefix: str) -> str | None:
    level = topic.removeprefix(prefix)
    return level if topic.startswith(prefix) and level and "/" not in level else None
