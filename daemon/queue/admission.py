"""Decides what becomes of requests: accepted, known already, or refused, and why."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, TypeAlias

from daemon.events import Event, Message, rejection_messages, terminal_events
from daemon.jobs import Job, JobState, dump_json
from daemon.queue import statements as sql
from daemon.queue.announcer import Announcer
from daemon.queue.backend import Connection, Turn
from daemon.queue.job_rows import jobs_from_rows, pair
from daemon.settings import QueueSettings

STRICT_LEVEL_MS = 10**13
"""Milliseconds for a priority level where aging is off: more than any waiting time."""

NEAR = 50_000
"""More jobs than all daemons on one queue could accept within the second that a count lasts."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Submission:
    """One request on its way into the queue."""

    job: Job
    """A pending job as it will be if it is accepted."""
    force: bool = False
    """Take the place of the pair's old job, unless that is being processed."""
    instead_of: str | None = None
    """With `force`: only of the job with this id, and only while it stands for the pair."""
    body: bytes | None = None
    """What came over MQTT, to answer a refusal with; None where the caller answers itself."""
    sha256: str | None = None
    """Of the whole message that it came in, where that held more than `body`."""
    index: int | None = None
    """Its place in a batch."""
    has_client_job_id: bool = False
    """The client chose the job_id, so that a refusal can be told on its topic."""


@dataclass(frozen=True, slots=True)
class Accepted:
    """The job is durably in the queue."""

    job: Job
    is_duplicate: bool
    """The job_id was there before: nothing was added."""
    superseded: Job | None = None
    """The pair's pending job, ended because this one took its place by `force`."""


@dataclass(frozen=True, slots=True)
class Refused:
    """The request was not queued, and says so."""

    code: str
    message: str
    field: str | None = None
    """Of the request, where one is at fault."""
    existing_job_id: str | None = None
    retry_after_ms: int | None = None


Outcome: TypeAlias = Accepted | Refused


@dataclass(slots=True)
class _Changes:
    """What a batch has to tell, and how many events of known jobs that makes."""

    messages: list[Message] = field(default_factory=list)
    told: dict[str, int] = field(default_factory=dict)


class Admission:
    """Applies the rules to a batch of requests, within the caller's transaction."""

    def __init__(self, settings: QueueSettings, announcer: Announcer) -> None:
        self._settings = settings
        self._announcer = announcer
        self._room_left = 0
        self._room_expires_at = 0
        self._counted_at: int | None = -1

    async def admit(
        self, connection: Connection, submissions: Sequence[Submission], now: int
    ) -> tuple[list[Outcome], list[Message]]:
        """Insert what is accepted; return each request's outcome, and the messages to send.

        Requests of one batch are held to the same rules as if they had come one by one.
        """
        changes = _Changes()
        ids = dump_json([submission.job.job_id for submission in submissions])
        pairs = dump_json([pair(submission.job) for submission in submissions])
        by_id = {job.job_id: job for job in await _find(connection, sql.FIND_JOBS, ids)}
        by_pair = {pair(job): job for job in await _find(connection, sql.FIND_PAIRS, pairs)}
        room = await self._room(connection, len(submissions), now)
        fresh: dict[str, Job] = {}
        outcomes: list[Outcome] = []
        for submission in submissions:
            job = submission.job
            known, rival = by_id.get(job.job_id), by_pair.get(pair(job))
            if known is not None:
                outcome = self._repeat(known, job, changes, now)
            elif (refused := _expired(job, now) or _conflict(submission, rival)) is not None:
                outcome = refused
            elif len(fresh) >= room:
                outcome = Refused("queue_full", "too many jobs wait already", retry_after_ms=10_000)
            else:
                superseded = None
                if rival is not None:
                    fresh.pop(rival.job_id, None)
                    by_id.pop(rival.job_id, None)
                    superseded = await self._replace(connection, rival, changes, now)
                job = replace(job, seq=1)
                by_id[job.job_id] = by_pair[pair(job)] = fresh[job.job_id] = job
                outcome = Accepted(job, is_duplicate=False, superseded=superseded)
                changes.messages += self._announcer.happened(
                    Event.ACCEPTED, job, now, duplicate=False
                )
            if isinstance(outcome, Refused) and submission.body is not None:
                changes.messages += self._rejection(submission, outcome, now)
            outcomes.append(outcome)
        self._room_left -= len(fresh)
        if fresh:
            rows = dump_json([self._new_row(job) for job in fresh.values()])
            await connection.execute(sql.INSERT, (rows,))
            taken = dump_json([pair(job) for job in fresh.values()])
            await connection.execute(sql.SUPERSEDE_SYNC, (taken,))
        if changes.told:
            await connection.execute(sql.COUNT_EVENTS, (dump_json(list(changes.told.items())),))
        return outcomes, changes.messages

    async def _room(self, connection: Connection, wanted: int, now: int) -> int:
        """Return how many more jobs may wait; counted anew once a second, since it costs.

        Near the limit it is also counted after each change by another daemon.
        """
        most = self._settings.max_pending
        if not most:
            return wanted
        is_near, is_old = self._room_left < NEAR, now >= self._room_expires_at
        if is_near or is_old:
            await connection.take_turn(Turn.INTAKE)
        changes = await connection.foreign_changes()
        is_stale = is_near and (changes is None or changes != self._counted_at)
        if is_old or self._room_left < wanted or is_stale:
            self._counted_at = changes
            rows = list(await connection.execute_fetchall(sql.COUNT_PENDING, (most,)))
            self._room_left = most - int(rows[0][0])
            self._room_expires_at = now + 1000
        return self._room_left

    def _repeat(self, known: Job, asked: Job, changes: _Changes, now: int) -> Outcome:
        if pair(known) != pair(asked):
            return Refused(
                "conflict",
                "this job_id belongs to another picture or task",
                existing_job_id=known.job_id,
            )
        changes.told[known.job_id] = changes.told.get(known.job_id, 0) + 1
        known = replace(known, seq=known.seq + changes.told[known.job_id])
        changes.messages += self._announcer.happened(Event.ACCEPTED, known, now, duplicate=True)
        return Accepted(known, is_duplicate=True)

    async def _replace(
        self, connection: Connection, rival: Job, changes: _Changes, now: int
    ) -> Job | None:
        """Drop the pair's old row; return it if it was still waiting: it ends with an event."""
        ended = None
        if rival.status is JobState.PENDING:
            ended = replace(
                rival,
                status=JobState.ERROR,
                completed_at=now,
                seq=rival.seq + changes.told.get(rival.job_id, 0) + terminal_events(JobState.ERROR),
                error_code="superseded",
                error_message="superseded: a newer request with force took its place",
            )
            changes.messages += self._announcer.ended(ended, now)
        await connection.execute(sql.DROP, (rival.job_id,))
        return ended

    def _new_row(self, job: Job) -> list[Any]:
        level_ms = int(self._settings.aging_seconds * 1000) or STRICT_LEVEL_MS
        return [
            job.job_id,
            job.task_type.value,
            job.media_store_id,
            job.priority,
            job.created_at - job.priority * level_ms,
            job.created_at,
            job.expires_at,
            job.request_id,
            job.reply_to,
            job.correlation_data,
        ]

    def _rejection(self, submission: Submission, refused: Refused, now: int) -> list[Message]:
        job = submission.job
        return rejection_messages(
            code=refused.code,
            message=refused.message,
            topic_task=job.task_type.value,
            body=submission.body or b"",
            job_id=job.job_id if submission.has_client_job_id else None,
            request_id=job.request_id,
            worker_id=self._announcer.worker_id,
            now=now,
            field=refused.field,
            existing_job_id=refused.existing_job_id,
            retry_after_ms=refused.retry_after_ms,
            sha256=submission.sha256,
            index=submission.index,
            reply_to=job.reply_to,
            correlation_data=job.correlation_data,
        )


async def _find(connection: Connection, statement: str, keys: str) -> list[Job]:
    return jobs_from_rows(await connection.execute_fetchall(statement, (keys,)))


def _expired(job: Job, now: int) -> Refused | None:
    if job.expires_at is None or job.expires_at > now:
        return None
    return Refused("expired", "the request expired before it came", field="expires_at")


def _conflict(submission: Submission, rival: Job | None) -> Refused | None:
    """Return why the job of the same picture and task stands in the way; None where it does not."""
    if submission.instead_of not in (None, rival and rival.job_id):
        return Refused(
            "conflict",
            f"job {submission.instead_of} stands for this picture and task no longer",
            existing_job_id=rival.job_id if rival is not None else None,
        )
    if rival is None or (submission.force and rival.status is not JobState.PROCESSING):
        return None
    return Refused(
        "conflict",
        f"job {rival.job_id} for this picture and task is {rival.status}",
        existing_job_id=rival.job_id,
    )
