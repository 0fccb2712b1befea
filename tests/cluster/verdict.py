"""What must be true of a fleet once its daemons have stopped, whatever was killed and cut off."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

from daemon.jobs import JsonObject
from tests.cluster.fleet import Fleet
from tests.crash.invariants import (
    MOST_ATTEMPTS,
    Expected,
    Verdict,
    check_delivered,
    check_rows,
    check_vectors,
    points,
)


@dataclass
class Findings:
    """What was found; all is well where `verdict` has no faults."""

    verdict: Verdict = field(default_factory=Verdict)
    unheard: list[str] = field(default_factory=list)
    """Jobs of whose end no event came: the broker was killed with it."""
    given_up: int = 0
    """Jobs that were in a daemon's hands at each of four deaths: by rule they end in error."""
    again: int = 0
    """Attempts beyond the first of a job."""


def judge(
    fleet: Fleet,
    expected: Sequence[Expected],
    *,
    rows: Mapping[str, Mapping[str, Any]],
    unsent: Iterable[str],
    troubled: Callable[[float, float], bool],
    broker_died: bool,
) -> Findings:
    """Hold what is left to the promises.

    Args:
        fleet: whose daemons have stopped.
        expected: every request that was made.
        rows: the queue's jobs, by job_id.
        unsent: topics that are still in the outbox.
        troubled: whether something was wrong between two moments, epoch seconds.
        broker_died: so events may be gone that it had taken.
    """
    found = Findings(Verdict(jobs=len(expected)))
    verdict = found.verdict
    verdict.doubles = fleet.heard.doubles
    for each in expected:
        row = rows.get(each.job_id)
        if row and row["error_code"] == "worker_lost" and row["lost"] >= MOST_ATTEMPTS:
            each.becomes("error", {"worker_lost"}, has_row=True)
            found.given_up += 1
    verdict.lost += [f"event {topic} is still in the outbox" for topic in unsent]
    check_rows(expected, rows, verdict)
    for each in expected:
        _check_events(each, fleet.heard.events.get(each.job_id, []), found, troubled)
    if not broker_died:
        verdict.lost += [f"no event told of the end of {job_id}" for job_id in found.unheard]
    strangers = fleet.heard.events.keys() - {each.job_id for each in expected}
    verdict.extra += [f"events of job {job_id}, which nobody asked for" for job_id in strangers]
    check_delivered(expected, fleet.store.delivered, verdict)
    folders = [fleet.data_dir(host) / "vectors" / "edge" for host in fleet.hosts.all]
    stored = [point for folder in folders if folder.exists() for point in points(folder)]
    check_vectors(expected, stored, verdict)
    return found


def _check_events(
    job: Expected,
    events: Sequence[JsonObject],
    found: Findings,
    troubled: Callable[[float, float], bool],
) -> None:
    by_id = {event["event_id"]: event for event in events}
    numbers = [event["seq"] for event in by_id.values()]
    if len(numbers) != len(set(numbers)):
        found.verdict.extra.append(f"{job}: two events for one seq: {sorted(numbers)}")
    if not any(event["event"] == "job_completed" for event in by_id.values()):
        found.unheard.append(job.job_id)
    started = sorted(
        event["timestamp"] for event in by_id.values() if event["event"] == "job_started"
    )
    found.again += max(0, len(started) - 1)
    for first, second in pairwise(started):
        # A lease is taken from nobody who lives and is heard of.
        if not troubled(first / 1000, second / 1000):
            found.verdict.wrong.append(
                f"{job}: leased twice within {second - first} ms, for nothing"
            )
