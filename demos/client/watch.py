"""What is known of one job that somebody cares for, and when to ask again: pure, without a clock.

Everything here is guarded by the lock of whoever owns the watch; `changed` is a condition on it.
"""

import math
import random
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any

from daemon.jobs import JobState, JsonObject
from demos.client.errors import RejectedError
from demos.client.http import Answer, is_job
from demos.client.outcomes import Way

FIRST_REPEAT_SECONDS = 2.0
LONGEST_REPEAT_SECONDS = 30.0
REPEAT_GROWTH = 2.0
NEVER = math.inf
_TERMINAL = frozenset(state.value for state in JobState if state.is_terminal)


@dataclass(frozen=True, slots=True)
class Pace:
    """How often the REST API is asked, where there is one."""

    has_rest: bool
    quiet_seconds: float
    """Silence on the broker after which it is asked how a job stands."""
    poll_seconds: float
    """Distance of these questions while the broker is away."""


@dataclass(slots=True)
class Watch:
    """One job; times are those of `time.monotonic`."""

    job_id: str
    pace: Pace
    changed: threading.Condition
    task_type: str | None = None
    body: JsonObject | None = None
    """The request; None for jobs that somebody else asked for."""
    is_rest: bool = False
    is_heard: bool = False
    """SUBACK came on the connection that stands."""
    is_answered: bool = False
    """The daemon has spoken since we began to listen on this connection."""
    refusal: str | None = None
    accepted: JsonObject | None = None
    over: Way = "mqtt"
    is_duplicate: bool = False
    rejected: RejectedError | None = None
    is_gone: bool = False
    job: JsonObject | None = None
    stage: str = "asking"
    fraction: float | None = None
    next_ask: float = 0.0
    repeat: float = FIRST_REPEAT_SECONDS
    next_rest: float = NEVER

    @property
    def topic(self) -> str:
        """What is listened to for this job."""
        return f"inference/job/{self.job_id}/+"

    @property
    def is_over(self) -> bool:
        """The job has ended."""
        return self.job is not None and self.job["status"] in _TERMINAL

    @property
    def is_decided(self) -> bool:
        """The request was accepted or rejected."""
        return self.accepted is not None or self.rejected is not None

    @property
    def may_ask(self) -> bool:
        """Whether the daemon should be asked over MQTT: it has not spoken on this connection."""
        is_ours = self.body is not None and not self.is_over and self.rejected is None
        is_mqtt = not self.is_rest or self.accepted is not None
        return is_ours and is_mqtt and self.is_heard and not self.is_answered

    @property
    def is_question(self) -> bool:
        """Whether REST is asked how the job stands, rather than for the job."""
        return self.body is None or self.accepted is not None

    def request(self, task_type: str, body: JsonObject, *, is_rest: bool, now: float) -> None:
        """Begin to ask for the job, anew if it was asked for before."""
        self.task_type, self.body, self.is_rest = task_type, body, is_rest
        self.accepted = self.rejected = self.job = None
        self.is_answered = False
        self.next_ask, self.repeat = now, FIRST_REPEAT_SECONDS
        if is_rest and self.is_heard:
            self.next_rest = now

    def take_due_ask(self, now: float) -> JsonObject | None:
        """Return what to publish now, if anything, and count on the next time."""
        if not self.may_ask or now < self.next_ask or self.body is None:
            return None
        self.next_ask = now + self.repeat * random.uniform(0.8, 1.2)
        self.repeat = min(self.repeat * REPEAT_GROWTH, LONGEST_REPEAT_SECONDS)
        if self.accepted is None:
            return self.body
        # Once accepted, without what was meant for the first time only.
        return {k: v for k, v in self.body.items() if k not in ("expires_at", "force")}

    def take_due_poll(self, now: float) -> bool:
        """Return whether to ask over REST now, and count on the next time."""
        if now < self.next_rest or self.rejected is not None or self.is_over:
            return False
        self.next_rest = now + (
            self.pace.quiet_seconds if self.is_heard else self.pace.poll_seconds
        )
        return True

    def take_state(self, answer: Answer) -> bool:
        """Take REST's answer to how the job stands; False where it makes no sense."""
        if answer.status == HTTPStatus.OK and is_job(answer.body):
            self._take_job(answer.body)
            if self.stage == "asking":
                self.stage = "accepted"
            if self.job is not None and self.job["status"] == JobState.PROCESSING:
                self.stage = "started"
            return True
        if answer.status == HTTPStatus.NOT_FOUND and (self.body is None or self.over == "rest"):
            # A job that was accepted over MQTT is simply not known to this door: another daemon's.
            self.is_gone = True
            return True
        return False

    def take_answer(self, answer: Answer, now: float) -> bool:
        """Take REST's answer to a request: accepted, rejected, or False: neither yet."""
        if self.is_decided:
            return True  # an event was faster
        if answer.status in (200, 201) and is_job(answer.body):
            self._take_accepted(answer.body, "rest", is_duplicate=False)
            # Who listened before will hear the events, and need not ask over MQTT as well.
            self.is_answered = self.is_heard
            return True
        if answer.status >= HTTPStatus.INTERNAL_SERVER_ERROR or answer.status in (408, 429):
            self.next_rest = now + (answer.retry_after or self.pace.quiet_seconds)
            return False
        if answer.status in (401, 403) and not self.is_rest and self.is_heard:
            # The broker is the way that was chosen, and it stands.
            self.next_rest = NEVER
            return False
        told: Mapping[str, Any] = answer.body if isinstance(answer.body, dict) else {}
        is_conflict = answer.status == HTTPStatus.CONFLICT
        code = str(told.get("code") or ("conflict" if is_conflict else f"http_{answer.status}"))
        self.rejected = self._rejection(code, answer.detail, told)
        return True

    def take_event(self, name: str, event: JsonObject, data: JsonObject, now: float) -> None:
        """Take an event of the job; `data` is the event's."""
        if self.pace.has_rest:
            self.next_rest = now + self.pace.quiet_seconds
        match name:
            case "accepted" if is_job(data):
                self.is_answered = True
                self._take_accepted(data, "mqtt", is_duplicate=event.get("duplicate") is True)
            case "rejected":
                self._take_rejection(data, now)
            case "progress":
                self.stage = str(data.get("stage", self.stage))
                fraction = data.get("fraction")
                self.fraction = fraction if isinstance(fraction, int | float) else None
            case "started" | "completed" | "failed" if is_job(data):
                self.is_answered = True
                # How far it had come says nothing of an end.
                self.stage, self.fraction = name, None
                # Nothing of a job comes before it was accepted: that event was lost or is late.
                self._take_accepted(data, "mqtt", is_duplicate=False)

    def take_heard(self, now: float) -> None:
        """The broker has confirmed that we listen, on a connection that is new."""
        self.is_heard, self.is_answered, self.refusal = True, False, None
        self.next_ask, self.repeat = now, FIRST_REPEAT_SECONDS
        if self.body is None or (self.is_rest and self.accepted is None):
            self.next_rest = now if self.pace.has_rest else NEVER
        elif self.pace.has_rest:
            self.next_rest = now + self.pace.quiet_seconds

    def turn_to_rest(self, now: float, *, is_hopeful: bool) -> None:
        """The broker is away or does not let us: ask over REST, at once where there is hope."""
        if self.pace.has_rest:
            self.next_rest = min(self.next_rest, now + self.pace.poll_seconds)
            if self.accepted is None and is_hopeful:
                self.next_rest = now

    def _take_accepted(self, job: JsonObject, over: Way, *, is_duplicate: bool) -> None:
        if self.accepted is None:
            self.accepted, self.over, self.is_duplicate = job, over, is_duplicate
        if self.stage == "asking":
            self.stage = "accepted"
        self._take_job(job)

    def _take_job(self, job: JsonObject) -> None:
        # A late answer about an earlier state must not undo the end.
        if not self.is_over:
            self.job = job

    def _take_rejection(self, data: JsonObject, now: float) -> None:
        if self.accepted is not None:
            return
        wait_ms = data.get("retry_after_ms")
        if data.get("code") == "queue_full" and isinstance(wait_ms, int | float):
            self.next_ask = now + wait_ms / 1000 * random.uniform(1, 1.5)
            return
        self.is_answered = True
        code = str(data.get("code", "rejected"))
        self.rejected = self._rejection(code, str(data.get("message", "")), data)

    def _rejection(self, code: str, message: str, told: Mapping[str, Any]) -> RejectedError:
        return RejectedError(
            code,
            message,
            job_id=self.job_id,
            existing_job_id=told.get("existing_job_id"),
            field=told.get("field"),
        )
