"""A small client library for inferd, on paho-mqtt: it blocks, and any thread may use it.

    from demos.client import InferdClient, upload

    media_store_id = upload("localhost:8000", picture.read_bytes(), picture.name)
    with InferdClient("mqtt://localhost:1883", inference_url="localhost:8001") as inferd:
        submitted = inferd.submit("face_detection", media_store_id, priority=7)
        job = inferd.wait(submitted.job_id, timeout=60)
        print(job["status"], job["result"])

What it holds to, so that nothing is missed and nothing is done twice:

* It makes the job_id, and listens to the job's events (SUBACK) before it asks.
* It asks again with the same job_id, at growing distances, until the daemon has accepted or
  rejected; inferd makes that one job however often it hears it.
* After a lost connection it listens and asks again: the answer says how the job stands, so an event
  that came meanwhile is not missed.
* With `inference_url` it asks and polls over REST where the broker is away or silent.
"""

import json
import math
import random
import threading
import time
import uuid
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from http import HTTPStatus
from types import TracebackType
from typing import Any, Literal, Self

from daemon.jobs import JobState, JsonObject
from demos.client_errors import (
    ClientError,
    ClosedError,
    NoAnswerError,
    RejectedError,
    UnreachableError,
    UploadRefusedError,
)
from demos.client_http import Answer, base_url, call, job_url, post_json, upload
from demos.client_link import Link

__all__ = [
    "ClientError",
    "ClosedError",
    "InferdClient",
    "NoAnswerError",
    "Outcome",
    "Progress",
    "RejectedError",
    "Submitted",
    "Tally",
    "UnreachableError",
    "UploadRefusedError",
    "upload",
]

Way = Literal["mqtt", "rest"]
EventHook = Callable[[str, JsonObject], None]

BROKER = "mqtt://localhost:1883"
FIRST_REPEAT_SECONDS = 2.0
LONGEST_REPEAT_SECONDS = 30.0
REPEAT_GROWTH = 2.0
SUBSCRIBE_SECONDS = 2.0
"""How long a request over REST waits for the broker before it does without events."""
TICK_SECONDS = 0.5
"""How often `on_progress` is called while nothing happens."""
_TERMINAL = frozenset(state.value for state in JobState if state.is_terminal)
_NEVER = math.inf


@dataclass(frozen=True, slots=True)
class Submitted:
    """A request that the daemon has durably accepted."""

    job_id: str
    task_type: str
    media_store_id: int
    job: JsonObject
    """The job as it stood when it was accepted."""
    over: Way
    """Which way the answer came."""
    is_duplicate: bool = False
    """The daemon knew this job_id before this request; REST does not tell, and it is False."""


@dataclass(frozen=True, slots=True)
class Progress:
    """How a job stands while somebody waits for it."""

    job_id: str
    stage: str
    """`asking`, `accepted`, `started`, or a stage that the daemon names."""
    seconds: float
    """Since the waiting began."""
    fraction: float | None = None


@dataclass(frozen=True, slots=True)
class Tally:
    """How far `submit_many` is."""

    total: int
    completed: int = 0
    failed: int = 0
    """Jobs that ended in `error` or `sync_failed`."""
    refused: int = 0
    """Requests that never became a job of ours, or whose end did not come in time."""

    @property
    def done(self) -> int:
        """Requests that need nothing more."""
        return self.completed + self.failed + self.refused


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of one request of `submit_many`."""

    request: Mapping[str, Any]
    submitted: Submitted | None = None
    job: JsonObject | None = None
    """The job at its end; None where there is none, or with `wait=False`."""
    error: ClientError | None = None


@dataclass(slots=True)
class _Watch:
    """One job that somebody cares for; everything in it is guarded by the client's lock."""

    job_id: str
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
    next_rest: float = _NEVER

    @property
    def topic(self) -> str:
        return f"inference/job/{self.job_id}/+"

    @property
    def is_over(self) -> bool:
        return self.job is not None and self.job["status"] in _TERMINAL

    @property
    def is_decided(self) -> bool:
        return self.accepted is not None or self.rejected is not None

    def ask_body(self) -> JsonObject:
        """Return the request; once accepted, without what was meant for the first time only."""
        assert self.body is not None
        if self.accepted is None:
            return self.body
        return {k: v for k, v in self.body.items() if k not in ("expires_at", "force")}


@dataclass(slots=True)
class _Trouble:
    """What is known of the ways to the daemon."""

    has_reached: bool = False
    broker: str | None = None
    rest: str | None = None

    def __str__(self) -> str:
        return "; ".join(reason for reason in (self.broker, self.rest) if reason) or "no answer"


class InferdClient:
    """Asks inferd for jobs and waits for their ends. A context manager; any thread may use it.

    Args:
        broker: `mqtt[s]://[user:password@]host[:port]`; None does without events, over REST only.
        inference_url: `host:port` or URL of the REST door: the way around a broker that is away.
        rest: ask over REST; the broker, where there is one, still brings the events.
        token: bearer token for the REST door.
        quiet_seconds: silence after which the REST door is asked how a job stands.
        poll_seconds: distance of those questions while the broker is away.
        reach_seconds: how long to try before the first sign of life of a broker or REST door;
            after one, outages are waited out for as long as the call has time.
        on_event: called with (name, event) for every event of a job that is submitted or waited
            for, such as ("started", {...}), until `wait` has returned; in the library's thread, so
            it must return soon, and not call back.

    Raises:
        ValueError: an address is none, or REST is wanted without `inference_url`.
    """

    def __init__(
        self,
        broker: str | None = BROKER,
        *,
        inference_url: str | None = None,
        rest: bool = False,
        token: str | None = None,
        quiet_seconds: float = 5.0,
        poll_seconds: float = 1.0,
        reach_seconds: float = 10.0,
        on_event: EventHook | None = None,
    ) -> None:
        self._rest = None if inference_url is None else base_url(inference_url)
        self._is_rest = rest or broker is None
        if self._is_rest and self._rest is None:
            raise ValueError("asking over REST needs inference_url")
        self._token = token
        self._quiet, self._poll, self._reach = quiet_seconds, poll_seconds, reach_seconds
        self._on_event = on_event
        # Never held while the link is called: paho calls us back under locks of its own.
        self._lock = threading.Lock()
        self._watches: dict[str, _Watch] = {}
        self._trouble = _Trouble()
        self._is_closed = False
        self._link = None
        if broker is not None:
            self._link = Link(
                broker,
                on_message=self._message,
                on_heard=self._heard,
                on_refused=self._refused,
                on_lost=self._lost,
            )

    def __enter__(self) -> Self:
        if self._link is not None:
            self._link.open()
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Disconnect; who still waits gets a ClosedError. Safe twice."""
        with self._lock:
            was_closed, self._is_closed = self._is_closed, True
            for watch in self._watches.values():
                watch.changed.notify_all()
        if self._link is not None and not was_closed:
            self._link.close()

    def submit(
        self,
        task_type: str,
        media_store_id: int | str,
        *,
        priority: int = 5,
        job_id: str | None = None,
        request_id: str | None = None,
        expires_at: int | None = None,
        force: bool = False,
        rest: bool | None = None,
        timeout: float = 60.0,
        on_progress: Callable[[Progress], None] | None = None,
    ) -> Submitted:
        """Ask for a job; return once the daemon has durably accepted it.

        Args:
            task_type: such as `image_embedding`.
            media_store_id: the picture.
            priority: 0 (last) to 10 (first).
            job_id: a UUID; with the same one again it is the same job. Made here if not given.
            request_id: your own word for it, echoed in events.
            expires_at: epoch milliseconds after which you do not want it any more.
            force: take the place of the job that stands for this picture and task.
            rest: ask over REST, or not, whatever the client was made for.
            timeout: seconds to keep asking. A full queue is asked again as well.
            on_progress: called a few times a second.

        Raises:
            RejectedError: refused; with `conflict` it names the job that stands.
            NoAnswerError: neither accepted nor rejected in time.
            UnreachableError: no way to the daemon was ever found.
            ClosedError: the client was closed meanwhile.
        """
        body: JsonObject = {
            "media_store_id": int(media_store_id),
            "job_id": job_id or str(uuid.uuid4()),
            "priority": priority,
        }
        for name, value in (("request_id", request_id), ("expires_at", expires_at)):
            if value is not None:
                body[name] = value
        if force:
            body["force"] = True
        is_rest = self._is_rest if rest is None else rest
        if is_rest and self._rest is None:
            raise ValueError("asking over REST needs inference_url")
        watch = self._watch(body["job_id"], task_type, body, is_rest=is_rest)
        try:
            self._follow(watch, lambda: watch.is_decided, timeout, on_progress)
            if watch.rejected is not None:
                raise watch.rejected
            if watch.accepted is None:
                raise NoAnswerError(
                    f"no daemon accepted the request within {timeout:g} s ({self._trouble}):"
                    " is it running, and on the same broker?",
                    job_id=watch.job_id,
                )
        except BaseException:
            self.forget(watch.job_id)
            raise
        return Submitted(
            job_id=watch.job_id,
            task_type=task_type,
            media_store_id=body["media_store_id"],
            job=watch.accepted,
            over=watch.over,
            is_duplicate=watch.is_duplicate,
        )

    def wait(
        self,
        job_id: str,
        timeout: float = 300.0,
        *,
        on_progress: Callable[[Progress], None] | None = None,
    ) -> JsonObject:
        """Return a job once it has ended, whichever way: `completed`, `error` or `sync_failed`.

        Of a job that another client asked for, an end that lies in the past is seen over REST only.

        Args:
            job_id: a job, as a rule one of `submit`'s.
            timeout: seconds to wait. The job goes on whatever happens here.
            on_progress: called a few times a second.

        Raises:
            NoAnswerError: not in time; it may be waited for again.
            RejectedError: code `not_found`: no such job, or it was deleted meanwhile.
            ClosedError: the client was closed meanwhile.
        """
        watch = self._watch(job_id)
        self._follow(watch, lambda: watch.is_over or watch.is_gone, timeout, on_progress)
        if watch.is_over:
            self.forget(job_id)
            assert watch.job is not None
            return watch.job
        if watch.is_gone:
            self.forget(job_id)
            raise RejectedError("not_found", "there is no such job", job_id=job_id)
        known = watch.job["status"] if watch.job else "nothing"
        raise NoAnswerError(
            f"the job has not ended within {timeout:g} s; known of it: {known}", job_id=job_id
        )

    def job(self, job_id: str) -> JsonObject | None:
        """Return a job as the REST door shows it, or None where there is none.

        Raises:
            UnreachableError: no answer came, or one that makes no sense.
            ValueError: the client knows no `inference_url`.
        """
        if self._rest is None:
            raise ValueError("looking at a job needs inference_url")
        answer = call("GET", job_url(self._rest, job_id), token=self._token)
        if answer.status == HTTPStatus.NOT_FOUND:
            return None
        if answer.status != HTTPStatus.OK or not _is_job(answer.body):
            raise UnreachableError(f"{self._rest} answers {answer.detail}")
        found: JsonObject = answer.body
        return found

    def forget(self, job_id: str) -> None:
        """Stop listening to a job that nobody will wait for; the job itself goes on."""
        with self._lock:
            watch = self._watches.pop(job_id, None)
        if watch is not None and self._link is not None:
            self._link.forget(watch.topic)

    def submit_many(
        self,
        requests: Iterable[Mapping[str, Any]],
        *,
        on_progress: Callable[[Tally], None] | None = None,
        in_flight: int = 64,
        wait: bool = True,
        timeout: float = 3600.0,
    ) -> list[Outcome]:
        """Ask for many jobs, and wait for their ends; what fails does not stop the others.

        Args:
            requests: arguments of `submit`, such as
                `{"task_type": "image_embedding", "media_store_id": 1}`.
            on_progress: called after each one, in one thread at a time.
            in_flight: how many are under way at a time.
            wait: until they have ended; else until they are accepted, which counts as completed.
            timeout: seconds for each one.

        Returns:
            One outcome for each request, in their order.
        """
        asked = list(requests)
        tally = Tally(len(asked))
        counting = threading.Lock()

        def one(request: Mapping[str, Any]) -> Outcome:
            nonlocal tally
            outcome = self._one(request, wait=wait, timeout=timeout)
            with counting:
                tally = _counted(tally, outcome)
                if on_progress is not None:
                    on_progress(tally)
            return outcome

        with ThreadPoolExecutor(in_flight, "inferd-client") as pool:
            try:
                return list(pool.map(one, asked))
            except BaseException:
                # Such as Ctrl-C: the threads end because the client does.
                pool.shutdown(wait=False, cancel_futures=True)
                self.close()
                raise

    def _one(self, request: Mapping[str, Any], *, wait: bool, timeout: float) -> Outcome:
        ends_at = time.monotonic() + timeout
        submitted = None
        try:
            submitted = self.submit(**{"timeout": timeout, **request})
            if not wait:
                self.forget(submitted.job_id)
                return Outcome(request, submitted)
            job = self.wait(submitted.job_id, max(0.0, ends_at - time.monotonic()))
        except ClosedError:
            raise
        except ClientError as error:
            if submitted is not None:
                self.forget(submitted.job_id)
            return Outcome(request, submitted, error=error)
        return Outcome(request, submitted, job)

    def _watch(
        self,
        job_id: str,
        task_type: str | None = None,
        body: JsonObject | None = None,
        *,
        is_rest: bool = False,
    ) -> _Watch:
        now = time.monotonic()
        with self._lock:
            self._check_open()
            watch = self._watches.get(job_id)
            is_new = watch is None
            if watch is None:
                watch = _Watch(job_id, threading.Condition(self._lock))
                self._watches[job_id] = watch
                if self._rest is not None:
                    wait = SUBSCRIBE_SECONDS if self._is_broker_hopeful() else 0.0
                    watch.next_rest = now + wait
            if body is not None:
                watch.task_type, watch.body, watch.is_rest = task_type, body, is_rest
                watch.accepted = watch.rejected = watch.job = None
                watch.is_answered = False
                watch.next_ask, watch.repeat = now, FIRST_REPEAT_SECONDS
                if is_rest and watch.is_heard:
                    watch.next_rest = now
        if is_new and self._link is not None:
            self._link.listen(watch.topic)
        return watch

    def _is_broker_hopeful(self) -> bool:
        return self._link is not None and (self._link.is_connected or self._trouble.broker is None)

    def _check_open(self) -> None:
        if self._is_closed:
            raise ClosedError("the client is closed")

    def _follow(
        self,
        watch: _Watch,
        is_done: Callable[[], bool],
        timeout: float,
        on_progress: Callable[[Progress], None] | None,
    ) -> None:
        """Do what is due for a job, and sleep between, until it is done or the time is over.

        Raises:
            UnreachableError: nothing was ever reached, or the broker does not let us.
        """
        began = time.monotonic()
        while True:
            if on_progress is not None:
                seconds = time.monotonic() - began
                on_progress(Progress(watch.job_id, watch.stage, seconds, watch.fraction))
            self._do_what_is_due(watch)
            with self._lock:
                self._check_open()
                if is_done():
                    return
                now = time.monotonic()
                if watch.refusal is not None and self._rest is None:
                    raise UnreachableError(watch.refusal)
                if not self._trouble.has_reached and now >= began + min(timeout, self._reach):
                    raise UnreachableError(str(self._trouble))
                if now >= began + timeout:
                    return
                until = [began + timeout, watch.next_rest]
                if self._may_ask(watch):
                    until.append(watch.next_ask)
                if not self._trouble.has_reached:
                    until.append(began + self._reach)
                if on_progress is not None:
                    until.append(now + TICK_SECONDS)
                watch.changed.wait(max(0.0, min(until) - now))

    def _may_ask(self, watch: _Watch) -> bool:
        """Whether the daemon should be asked over MQTT: it has not spoken on this connection."""
        is_ours = watch.body is not None and not watch.is_over and watch.rejected is None
        is_mqtt = not watch.is_rest or watch.accepted is not None
        return is_ours and is_mqtt and watch.is_heard and not watch.is_answered

    def _do_what_is_due(self, watch: _Watch) -> None:
        now = time.monotonic()
        with self._lock:
            is_asking = self._may_ask(watch) and now >= watch.next_ask
            if is_asking:
                watch.next_ask = now + watch.repeat * random.uniform(0.8, 1.2)
                watch.repeat = min(watch.repeat * REPEAT_GROWTH, LONGEST_REPEAT_SECONDS)
                body = json.dumps(watch.ask_body())
            is_polling = now >= watch.next_rest and watch.rejected is None and not watch.is_over
            if is_polling:
                watch.next_rest = now + (self._quiet if watch.is_heard else self._poll)
        if is_asking and self._link is not None:
            self._link.publish(f"inference/request/{watch.task_type}", body, about=watch.topic)
        if is_polling and self._rest is not None:
            self._over_rest(watch, self._rest)

    def _over_rest(self, watch: _Watch, rest: str) -> None:
        is_question = watch.body is None or watch.accepted is not None
        try:
            if is_question:
                answer = call("GET", job_url(rest, watch.job_id), token=self._token)
            else:
                assert watch.body is not None
                answer = post_json(f"{rest}/job/{watch.task_type}", watch.body, token=self._token)
        except UnreachableError as error:
            with self._lock:
                self._trouble.rest = str(error)
            return
        with self._lock:
            self._trouble.has_reached = True
            self._trouble.rest = None
            if is_question:
                self._take_state(watch, answer)
            else:
                self._take_answer(watch, answer)

    def _take_state(self, watch: _Watch, answer: Answer) -> None:
        if answer.status == HTTPStatus.OK and _is_job(answer.body):
            self._take_job(watch, answer.body)
            if watch.stage == "asking":
                watch.stage = "accepted"
            if watch.job is not None and watch.job["status"] == JobState.PROCESSING:
                watch.stage = "started"
        elif answer.status == HTTPStatus.NOT_FOUND and (watch.body is None or watch.over == "rest"):
            # A job that was accepted over MQTT is simply not known to this door: another daemon's.
            watch.is_gone = True
        else:
            self._trouble.rest = f"{self._rest} answers {answer.detail}"

    def _take_answer(self, watch: _Watch, answer: Answer) -> None:
        """Take the answer to a request: accepted, rejected, or neither yet."""
        if watch.is_decided:
            return  # an event was faster
        if answer.status in (200, 201) and _is_job(answer.body):
            self._take_accepted(watch, answer.body, "rest", is_duplicate=False)
            # Who listened before will hear the events, and need not ask over MQTT as well.
            watch.is_answered = watch.is_heard
            return
        if answer.status >= HTTPStatus.INTERNAL_SERVER_ERROR or answer.status in (408, 429):
            self._trouble.rest = f"{self._rest} answers {answer.detail}"
            watch.next_rest = time.monotonic() + (answer.retry_after or self._quiet)
            return
        is_locked = answer.status in (401, 403)
        if is_locked and not watch.is_rest and watch.is_heard:
            # The broker is the way that was chosen, and it stands.
            self._trouble.rest = f"{self._rest} answers {answer.detail}"
            watch.next_rest = _NEVER
            return
        told: Mapping[str, Any] = answer.body if isinstance(answer.body, dict) else {}
        is_conflict = answer.status == HTTPStatus.CONFLICT
        code = str(told.get("code") or ("conflict" if is_conflict else f"http_{answer.status}"))
        watch.rejected = RejectedError(
            code,
            answer.detail,
            job_id=watch.job_id,
            existing_job_id=told.get("existing_job_id"),
            field=told.get("field"),
        )

    def _take_accepted(
        self, watch: _Watch, job: JsonObject, over: Way, *, is_duplicate: bool
    ) -> None:
        if watch.accepted is None:
            watch.accepted, watch.over, watch.is_duplicate = job, over, is_duplicate
        if watch.stage == "asking":
            watch.stage = "accepted"
        self._take_job(watch, job)

    def _take_job(self, watch: _Watch, job: JsonObject) -> None:
        # A late answer about an earlier state must not undo the end.
        if not watch.is_over:
            watch.job = job

    def _message(self, topic: str, payload: bytes) -> None:
        name = topic.rpartition("/")[2]
        try:
            event = json.loads(payload)
            data = event["data"]
            job_id = event["job_id"]
        except (ValueError, KeyError, TypeError):
            return  # not ours to judge: whoever may publish there is the broker's business
        with self._lock:
            watch = self._watches.get(job_id) if isinstance(job_id, str) else None
            if watch is None or topic != f"{watch.topic[:-1]}{name}" or not isinstance(data, dict):
                return
            self._take_event(watch, name, event, data)
            watch.changed.notify_all()
        if self._on_event is not None:
            self._on_event(name, event)

    def _take_event(self, watch: _Watch, name: str, event: JsonObject, data: JsonObject) -> None:
        now = time.monotonic()
        if self._rest is not None:
            watch.next_rest = now + self._quiet
        match name:
            case "accepted" if _is_job(data):
                watch.is_answered = True
                self._take_accepted(
                    watch, data, "mqtt", is_duplicate=event.get("duplicate") is True
                )
            case "rejected":
                self._take_rejection(watch, data, now)
            case "progress":
                watch.stage = str(data.get("stage", watch.stage))
                fraction = data.get("fraction")
                watch.fraction = fraction if isinstance(fraction, int | float) else None
            case "started" | "completed" | "failed" if _is_job(data):
                watch.is_answered = True
                watch.stage = name
                # Nothing of a job comes before it was accepted: that event was lost or is late.
                self._take_accepted(watch, data, "mqtt", is_duplicate=False)

    def _take_rejection(self, watch: _Watch, data: JsonObject, now: float) -> None:
        if watch.accepted is not None:
            return
        wait_ms = data.get("retry_after_ms")
        if data.get("code") == "queue_full" and isinstance(wait_ms, int | float):
            watch.next_ask = now + wait_ms / 1000 * random.uniform(1, 1.5)
            return
        watch.is_answered = True
        watch.rejected = RejectedError(
            str(data.get("code", "rejected")),
            str(data.get("message", "")),
            job_id=watch.job_id,
            existing_job_id=data.get("existing_job_id"),
            field=data.get("field"),
        )

    def _heard(self, topics: list[str]) -> None:
        now = time.monotonic()
        with self._lock:
            self._trouble.has_reached = True
            self._trouble.broker = None
            for watch in self._watches_of(topics):
                watch.is_heard, watch.is_answered, watch.refusal = True, False, None
                watch.next_ask, watch.repeat = now, FIRST_REPEAT_SECONDS
                if watch.body is None or (watch.is_rest and watch.accepted is None):
                    watch.next_rest = now if self._rest is not None else _NEVER
                elif self._rest is not None:
                    watch.next_rest = now + self._quiet
                watch.changed.notify_all()

    def _refused(self, topic: str, reason: str) -> None:
        with self._lock:
            self._trouble.broker = reason
            for watch in self._watches_of([topic]):
                watch.refusal = reason
                self._turn_to_rest(watch)

    def _lost(self, reason: str) -> None:
        with self._lock:
            self._trouble.broker = reason
            for watch in self._watches.values():
                watch.is_heard = False
                self._turn_to_rest(watch)

    def _turn_to_rest(self, watch: _Watch) -> None:
        if self._rest is not None:
            watch.next_rest = min(watch.next_rest, time.monotonic() + self._poll)
            if watch.accepted is None and self._trouble.rest is None:
                watch.next_rest = time.monotonic()
        watch.changed.notify_all()

    def _watches_of(self, topics: Iterable[str]) -> Iterable[_Watch]:
        for topic in topics:
            watch = self._watches.get(topic.split("/")[2])
            if watch is not None:
                yield watch


def _counted(tally: Tally, outcome: Outcome) -> Tally:
    completed, failed, refused = tally.completed, tally.failed, tally.refused
    if outcome.error is not None:
        refused += 1
    elif outcome.job is not None and outcome.job["status"] != JobState.COMPLETED:
        failed += 1
    else:
        completed += 1
    return Tally(tally.total, completed, failed, refused)


def _is_job(body: Any) -> bool:
    return isinstance(body, dict) and isinstance(body.get("status"), str) and "job_id" in body
