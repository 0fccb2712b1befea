"""Why jobs wait: the verdict on the queue, from its counts and what the earlier checks found."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from daemon.doctor import mends
from daemon.doctor.facts import Facts
from daemon.doctor.findings import Finding, fail, ok, warn
from daemon.doctor.running import address
from daemon.program import program
from daemon.spans import span

PART = "queue"
STUCK_SECONDS = 120.0
"""Longer than a start, a lost lease or a first backoff; before that, waiting is no fault."""
_MENDS = {
    "media_store": "start the media store, or set INFERD_MEDIA_STORE__URL; see its lines below",
    "vector_store": "see the vectors' lines below",
    "model": "see the models' lines below",
    "out_of_memory": "free the GPU, or set INFERD_CLIP__BATCH_SIZE to half, or INFERD_DEVICE=cpu",
    "worker_lost": "the process died with these jobs: see its log and the system's (memory?)",
    "timeout": "raise INFERD_WORKER__JOB_TIMEOUT_SECONDS, or lower INFERD_WORKER__MAX_IN_FLIGHT",
}
"""By the beginning of the code that put a job off."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Waiting:
    """What waits in the queue at one moment."""

    pending: int
    processing: int
    oldest_seconds: float
    """Since the longest waiting job was accepted."""
    by_task: Mapping[str, int] = field(default_factory=dict)
    """Jobs that wait, by task type."""
    paused: Mapping[str, str] = field(default_factory=dict)
    """Paused task types, and until when, in words."""
    put_off: Mapping[str, int] = field(default_factory=dict)
    """Jobs that wait for another try, by the code of what failed."""


def judge(waiting: Waiting, facts: Facts) -> Iterator[Finding]:
    """Say whether what waits is stuck, and name every cause that is known."""
    if not waiting.pending:
        yield ok(PART, f"no job waits, {waiting.processing} run")
        return
    said = f"{waiting.pending} wait, the oldest for {span(waiting.oldest_seconds)}"
    causes = list(_causes(waiting, facts, said))
    yield from causes
    if causes:
        return
    if waiting.oldest_seconds > STUCK_SECONDS and not waiting.processing:
        yield _cause(
            waiting,
            "stuck",
            f"{said}, a daemon is there and none runs",
            "see the daemon's log (INFERD_LOG__LEVEL=debug) and /health, then restart it",
        )
    else:
        yield ok(PART, f"{said}; {waiting.processing} run")


def _causes(waiting: Waiting, facts: Facts, said: str) -> Iterator[Finding]:
    if not facts.is_daemon_seen:
        found = f"{said}, and no daemon works on this queue"
        yield _cause(waiting, "no_daemon", found, mends.START)
    elif (facts.health or {}).get("status") == "draining":
        mend = f"wait until it ended, then start it: {program()}"
        yield _cause(waiting, "daemon_draining", f"{said}, and the daemon is stopping", mend)
    http = facts.settings.http
    for task, count in sorted(waiting.by_task.items()):
        if task in waiting.paused:
            found = f"{count} of {task} wait because it is paused{waiting.paused[task]}"
            door = address(http.host, http.port)
            mend = f"curl -X POST {door}/queue/{task}/resume (with a token, where one is asked for)"
            yield _cause(waiting, "task_paused", found, mend)
        elif task not in set(facts.task_types):
            ours = ", ".join(facts.task_types)
            found = f"{count} of {task} wait, which this daemon does not work on ({ours})"
            mend = f"add {task} to INFERD_WORKER__TASK_TYPES, or start a daemon for it"
            yield _cause(waiting, "task_not_served", found, mend)
    for code, count in sorted(waiting.put_off.items()):
        known = [mend for start, mend in _MENDS.items() if code.startswith(start)]
        found = f"{count} wait for another try after {code}"
        yield _cause(waiting, code, found, (known or ["see the daemon's log for their job_id"])[0])


def _cause(waiting: Waiting, code: str, found: str, mend: str) -> Finding:
    """Return a cause; it fails once a job has waited for too long."""
    make = fail if waiting.oldest_seconds > STUCK_SECONDS else warn
    return make(PART, code, found, mend)
