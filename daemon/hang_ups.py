"""Which event a broker hangs up on: the batches that find it, and the size learned from it.

An MQTT 3.1.1 broker says neither how much it takes nor why it hangs up. Brokers read in order, so
the first event that was not confirmed is the likeliest: it goes alone, then two, then four. Where
it was another, that is found by as many connections as the batch has doublings.
"""

import json
import logging
import sys
from collections.abc import Sequence

from daemon.jobs import Clock, dump_json
from daemon.queue.backend import Row

log = logging.getLogger(__name__)

BATCH = 256
LOST_ALONE = 3
"""How often an event may be lost with its connection, sent alone, before it is to blame: it loses
its result then, and without one it has to wait."""
LEARNED_MS = 3_600_000
"""How long a learned size holds: the broker may take more by then."""
LEAST_LEARNED = 4096
"""Characters from which on size may be the reason: no broker takes less, and right after a start
nothing else speaks against it."""
ANY = sys.maxsize


class HangUps:
    """What the relay knows of a broker that hangs up."""

    def __init__(self, clock: Clock) -> None:
        """Know nothing yet."""
        self.at_once = BATCH
        """How many events the next batch may hold."""
        self._clock = clock
        self._lost_alone: dict[int, int] = {}
        self._shortened: dict[int, int] = {}
        self._largest = 0
        """Characters of the largest event that was taken."""
        self._too_large = ANY
        self._learned_at = 0

    def fitting(self, payload: str) -> str:
        """Return an event as the broker takes it, as far as that is known."""
        if len(payload) < self._too_large:
            return payload
        if 0 <= self._clock() - self._learned_at < LEARNED_MS:
            return without_result(payload)
        self._too_large, self._largest = ANY, 0
        return payload

    def judge(self, rows: Sequence[Row], outcomes: Sequence[int], *, was_up: bool) -> Row | None:
        """Take in how a batch went, and return the event that is to blame, if one is.

        Args:
            rows: the batch, in its order.
            outcomes: for each 0 for taken, 1 for refused, -1 for lost.
            was_up: whether the connection stood before; else nothing is learned of what was lost.
        """
        for row, outcome in zip(rows, outcomes, strict=True):
            if outcome == 0:
                self._take(row)
        if -1 not in outcomes:
            self.at_once = min(BATCH, 2 * self.at_once)
            self._lost_alone.clear()
            return None
        if not was_up:
            return None
        self.at_once = 1
        return rows[0] if len(rows) == 1 and self._is_to_blame(rows[0]) else None

    def shorten(self, row: Row) -> str | None:
        """Return the event that is to blame without its result; None where it has none."""
        shorter = without_result(row["payload"])
        if shorter == row["payload"]:
            # It was not the result that the broker hung up on.
            self._shortened.pop(row["id"], None)
            return None
        self._shortened = {row["id"]: len(row["payload"])}
        return shorter

    def _take(self, row: Row) -> None:
        whole = self._shortened.pop(row["id"], 0)
        # A connection may be lost three times for another reason than size; and the event may have
        # been taken whole, where it could not be stored without its result.
        if whole > max(self._largest, len(row["payload"]), LEAST_LEARNED):
            self._too_large, self._learned_at = whole, self._clock()
            log.warning(
                "events of %d characters and more go without their results for an hour: the broker "
                "hung up on one, and took it without",
                whole,
            )
        elif len(row["payload"]) < self._too_large:
            self._largest = max(self._largest, len(row["payload"]))

    def _is_to_blame(self, row: Row) -> bool:
        """Whether an event was lost alone so often that the broker must be hanging up on it."""
        self._lost_alone = {row["id"]: self._lost_alone.get(row["id"], 0) + 1}
        if self._lost_alone[row["id"]] < LOST_ALONE:
            return False
        log.error(
            "the broker hangs up on an event",
            extra={"topic": row["topic"], "job_id": job_id(row["payload"])},
        )
        self._lost_alone.clear()
        return True


def without_result(payload: str) -> str:
    """Return an event whose result the client must ask for, since the broker takes no more."""
    event = json.loads(payload)
    if isinstance(event.get("data"), dict) and event["data"].get("result") is not None:
        event["data"]["result"] = None
        event["result_truncated"] = True
    return dump_json(event)


def job_id(payload: str) -> str | None:
    """Return the job that an event is about, for the log."""
    event = json.loads(payload)
    return event.get("job_id") if isinstance(event, dict) else None
