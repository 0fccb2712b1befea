"""Follows jobs: does what is due for each (listen, ask, poll), and wakes who waits for it."""

import json
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

from daemon.jobs import JsonObject
from demos.client.errors import ClosedError, UnreachableError
from demos.client.http import call, job_url, post_json
from demos.client.link import Link, Secured, Version
from demos.client.outcomes import Progress
from demos.client.watch import Pace, Watch

EventHook = Callable[[str, JsonObject], None]
ProgressHook = Callable[[Progress], None]

SUBSCRIBE_SECONDS = 2.0
"""How long a request over REST waits for the broker before it does without events."""
TICK_SECONDS = 0.5
"""How often `on_progress` is called while nothing happens."""


@dataclass(slots=True)
class _Trouble:
    """What is known of the ways to the daemon."""

    has_reached: bool = False
    broker: str | None = None
    rest: str | None = None

    def __str__(self) -> str:
        return "; ".join(reason for reason in (self.broker, self.rest) if reason) or "no answer"


class Follower:
    """The watches of one client, its link and its REST API; any thread may use it.

    Args:
        broker: its address; None does without events.
        secured: certificates for `mqtts`.
        version: of MQTT.
        rest: base URL of the REST API, or None.
        token: bearer token for it.
        pace: how often it is asked.
        reach_seconds: how long to try before the first sign of life.
        on_event: called for every event of a watched job.

    Raises:
        ValueError: the broker's address is none, or a certificate cannot be used.
    """

    def __init__(
        self,
        broker: str | None,
        *,
        secured: Secured,
        version: Version,
        rest: str | None,
        token: str | None,
        pace: Pace,
        reach_seconds: float,
        on_event: EventHook | None,
    ) -> None:
        self._rest, self._token = rest, token
        self._pace, self._reach = pace, reach_seconds
        self._on_event = on_event
        # Never held while the link is called: paho calls us back under locks of its own.
        self._lock = threading.Lock()
        self._watches: dict[str, Watch] = {}
        self._trouble = _Trouble()
        self._is_closed = False
        self._link = None
        if broker is not None:
            self._link = Link(
                broker,
                secured=secured,
                version=version,
                on_message=self._message,
                on_heard=self._heard,
                on_refused=self._refused,
                on_lost=self._lost,
            )

    @property
    def trouble(self) -> str:
        """What is wrong with the ways to the daemon, in words."""
        return str(self._trouble)

    def open(self) -> None:
        """Begin to connect; return at once."""
        if self._link is not None:
            self._link.open()

    def close(self) -> None:
        """Disconnect; who still waits gets a ClosedError. Safe twice."""
        with self._lock:
            was_closed, self._is_closed = self._is_closed, True
            for watch in self._watches.values():
                watch.changed.notify_all()
        if self._link is not None and not was_closed:
            self._link.close()

    def watch(
        self,
        job_id: str,
        task_type: str | None = None,
        body: JsonObject | None = None,
        *,
        is_rest: bool = False,
    ) -> Watch:
        """Return the watch of a job, listening; with a body, ask for the job.

        Raises:
            ClosedError: the client is closed.
        """
        now = time.monotonic()
        with self._lock:
            self._check_open()
            watch = self._watches.get(job_id)
            is_new = watch is None
            if watch is None:
                watch = Watch(job_id, self._pace, threading.Condition(self._lock))
                self._watches[job_id] = watch
                if self._rest is not None:
                    wait = SUBSCRIBE_SECONDS if self._is_broker_hopeful() else 0.0
                    watch.next_rest = now + wait
            if body is not None and task_type is not None:
                watch.request(task_type, body, is_rest=is_rest, now=now)
        if is_new and self._link is not None:
            self._link.listen(watch.topic)
        return watch

    def forget(self, job_id: str) -> None:
        """Stop listening to a job that nobody will wait for."""
        with self._lock:
            watch = self._watches.pop(job_id, None)
        if watch is not None and self._link is not None:
            self._link.forget(watch.topic)

    def follow(
        self,
        watch: Watch,
        is_done: Callable[[], bool],
        timeout: float,
        on_progress: ProgressHook | None,
    ) -> None:
        """Do what is due for a job, and sleep between, until it is done or the time is over.

        Raises:
            UnreachableError: nothing was ever reached, or the broker does not let us.
            ClosedError: the client was closed meanwhile.
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
                until = min(began + timeout, self._next_due(watch, began))
                if on_progress is not None:
                    until = min(until, now + TICK_SECONDS)
                watch.changed.wait(max(0.0, until - now))

    def _next_due(self, watch: Watch, began: float) -> float:
        """Return when there is something to do for a job next, if nothing comes until then."""
        moments = [watch.next_rest]
        if watch.may_ask:
            moments.append(watch.next_ask)
        if not self._trouble.has_reached:
            moments.append(began + self._reach)
        return min(moments)

    def _is_broker_hopeful(self) -> bool:
        return self._link is not None and (self._link.is_connected or self._trouble.broker is None)

    def _check_open(self) -> None:
        if self._is_closed:
            raise ClosedError("the client is closed")

    def _do_what_is_due(self, watch: Watch) -> None:
        now = time.monotonic()
        with self._lock:
            asked = watch.take_due_ask(now)
            is_polling = watch.take_due_poll(now)
        if asked is not None and self._link is not None:
            topic = f"inference/request/{watch.task_type}"
            self._link.publish(topic, json.dumps(asked), about=watch.topic)
        if is_polling and self._rest is not None:
            self._over_rest(watch, self._rest)

    def _over_rest(self, watch: Watch, rest: str) -> None:
        is_question = watch.is_question
        try:
            if is_question or watch.body is None:
                answer = call("GET", job_url(rest, watch.job_id), token=self._token)
            else:
                answer = post_json(f"{rest}/job/{watch.task_type}", watch.body, token=self._token)
        except UnreachableError as error:
            with self._lock:
                self._trouble.rest = str(error)
            return
        with self._lock:
            self._trouble.has_reached = True
            is_sense = (
                watch.take_state(answer)
                if is_question
                else watch.take_answer(answer, time.monotonic())
            )
            self._trouble.rest = None if is_sense else f"{rest} answers {answer.detail}"

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
            watch.take_event(name, event, data, time.monotonic())
            watch.changed.notify_all()
        if self._on_event is not None:
            self._on_event(name, event)

    def _heard(self, topics: list[str]) -> None:
        now = time.monotonic()
        with self._lock:
            self._trouble.has_reached = True
            self._trouble.broker = None
            for watch in self._watches_of(topics):
                watch.take_heard(now)
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

    def _turn_to_rest(self, watch: Watch) -> None:
        watch.turn_to_rest(time.monotonic(), is_hopeful=self._trouble.rest is None)
        watch.changed.notify_all()

    def _watches_of(self, topics: Iterable[str]) -> Iterator[Watch]:
        for topic in topics:
            watch = self._watches.get(topic.split("/")[2])
            if watch is not None:
                yield watch
