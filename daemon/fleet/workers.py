"""Workers: all daemons at the broker, this one included, from their retained topics.

They may be of any version: what is missing or malformed in a message is left out, nothing raises.
"""

import json
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

from daemon import topics
from daemon.bell import Bell
from daemon.jobs import Clock, JsonObject, TaskType

WATCHED = [topics.availability("+"), topics.info("+"), topics.stats("+")]
MOST_WORKERS = 512
MOST_BYTES = 65_536
STATES = ("online", "paused", "draining", "offline")
STATS_SECONDS = 20.0
"""Assumed interval between stats of a daemon that does not tell its own."""
MISSED = 3
"""After so many missed stats a daemon counts as gone, though no last will said so."""
SLACK_SECONDS = 10.0


@dataclass(slots=True)
class _Heard:
    """The latest words of one daemon."""

    parts: dict[str, JsonObject] = field(default_factory=dict)
    """By the last level of their topic."""
    seen_at: float = 0.0
    """When its latest word was said, by our own clock of seconds that only rises."""


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerState:
    """The state of one daemon, as far as is known."""

    worker_id: str
    is_self: bool
    state: str
    """online, paused, draining or offline."""
    reason: str
    """The reason that it gives itself; `silent` where it stopped sending without a goodbye."""
    since: int | None
    """When it said so, in epoch milliseconds of its clock."""
    version: str | None
    task_types: list[str]
    paused: list[str]
    devices: list[str]
    """Where its loaded models run."""
    shares_queue: bool | None
    """Whether it works on this daemon's queue; None where it does not tell."""
    images_per_second: float | None
    done: dict[str, int]
    failed: dict[str, int]

    @property
    def is_living(self) -> bool:
        """Whether it is there."""
        return self.state != "offline"

    def to_wire(self) -> JsonObject:
        """Return it as REST tells it."""
        return {name: getattr(self, name) for name in self.__slots__}


class Workers:
    """Collects what the daemons say of themselves.

    Attributes:
        changed: rings when a daemon came, went, or is about to go.
    """

    def __init__(
        self,
        worker_id: str,
        *,
        queue_id: str,
        clock: Clock,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._worker_id = worker_id
        self._queue_id = queue_id
        self._clock = clock
        self._monotonic = monotonic
        self._heard: dict[str, _Heard] = {}
        self.changed = Bell()

    def hear(self, topic: str, payload: bytes, *, is_retained: bool) -> bool:
        """Take a message of a worker topic; return False for every other topic."""
        found = topics.worker_part(topic)
        if found is None:
            return False
        worker_id, part = found
        said = _read(payload)
        if said is None:
            # An empty payload takes back what was retained.
            heard = self._heard.get(worker_id)
            if heard is not None and not payload:
                heard.parts.pop(part, None)
                if not heard.parts:
                    del self._heard[worker_id]
        elif worker_id in self._heard or len(self._heard) < MOST_WORKERS:
            heard = self._heard.setdefault(worker_id, _Heard())
            heard.parts[part] = said
            age = max(0.0, (self._clock() - _number(said, "timestamp")) / 1000)
            seen_at = self._monotonic() - (age if is_retained else 0)
            heard.seen_at = max(heard.seen_at, seen_at)
        if part == "availability":
            self.changed.ring()
        return True

    def all(self) -> list[WorkerState]:
        """Return all that were ever heard of, in the order of their names."""
        return [self._state(name, heard) for name, heard in sorted(self._heard.items())]

    def others(self) -> Iterator[WorkerState]:
        """Give the living that may work on our queue, without ourselves."""
        for each in self.all():
            if each.is_living and not each.is_self and each.shares_queue is not False:
                yield each

    def to_wire(self) -> JsonObject:
        """Return all, with what the living do together."""
        found = self.all()
        rates = [each.images_per_second or 0 for each in found if each.is_living]
        return {
            "workers": [each.to_wire() for each in found],
            "living": sum(each.is_living for each in found),
            "images_per_second": round(sum(rates), 2),
        }

    def _state(self, name: str, heard: _Heard) -> WorkerState:
        said = heard.parts.get("availability", {})
        info, stats = heard.parts.get("info", {}), heard.parts.get("stats", {})
        state, reason = _text(said, "state"), _text(said, "reason")
        if state not in STATES:
            state, reason = "offline", "unknown"
        elif state != "offline" and self._is_silent(heard, info):
            state, reason = "offline", "silent"
        queue = _text(info, "queue")
        is_self = name == self._worker_id
        return WorkerState(
            worker_id=name,
            is_self=is_self,
            state=state,
            reason=reason or "unknown",
            since=int(_number(said, "timestamp")) or None,
            version=_text(info, "version") or None,
            task_types=_task_types(info.get("task_types")),
            paused=_task_types(said.get("paused")),
            devices=_devices(info.get("models")),
            shares_queue=queue == self._queue_id if queue else (True if is_self else None),
            images_per_second=_rate(stats) if state != "offline" else None,
            done=_counts(stats.get("done")),
            failed=_counts(stats.get("failed")),
        )

    def _is_silent(self, heard: _Heard, info: JsonObject) -> bool:
        """Whether it ought to have told its stats by now."""
        seconds = _number(info, "stats_seconds") if "stats_seconds" in info else STATS_SECONDS
        if not seconds or "stats" not in heard.parts:
            return False
        return self._monotonic() - heard.seen_at > MISSED * seconds + SLACK_SECONDS


def _read(payload: bytes) -> JsonObject | None:
    if len(payload) > MOST_BYTES:
        return None
    try:
        said = json.loads(payload)
    except (ValueError, RecursionError):
        return None
    return said if isinstance(said, dict) else None


def _text(said: JsonObject, name: str) -> str:
    value = said.get(name)
    return value if isinstance(value, str) else ""


def _number(said: JsonObject, name: str) -> float:
    value = said.get(name)
    if not isinstance(value, int | float) or isinstance(value, bool):
        return 0
    return value if 0 <= value < 2**53 else 0


def _rate(stats: JsonObject) -> float | None:
    return round(float(_number(stats, "images_per_second")), 2) if stats else None


def _task_types(value: Any) -> list[str]:
    # Of a newer version there may be some that we do not know.
    known = {each.value for each in TaskType}
    found = value if isinstance(value, list) else ()
    return [each for each in found if isinstance(each, str) and each in known]


def _counts(value: Any) -> dict[str, int]:
    found = value if isinstance(value, dict) else {}
    return {each.value: int(_number(found, each)) for each in TaskType if each.value in found}


def _devices(models: Any) -> list[str]:
    found = models.values() if isinstance(models, dict) else ()
    loaded = [each for each in found if isinstance(each, dict) and each.get("loaded") is True]
    return sorted({_text(each, "device") for each in loaded} - {""})
