"""Tells clients what this daemon is and how busy it is: the retained info and stats topics."""

import asyncio
import logging
import time
from collections import deque
from collections.abc import Awaitable, Callable
from typing import Protocol

from daemon import topics
from daemon.errors import InferdError, PublishError, StorageError
from daemon.jobs import Clock, JobState, JsonObject, dump_json
from daemon.queue.job_queue import JobQueue

log = logging.getLogger(__name__)

LOOK_SECONDS = 1.0
"""How often it is looked whether there is something new to tell, and the most that stats come."""
RATE_SECONDS = 60.0


class Board(Protocol):
    """What is needed of the link."""

    @property
    def connects(self) -> int:
        """How often it connected."""

    async def wait_up(self) -> None:
        """Return once the link is up."""

    async def publish(
        self,
        topic: str,
        payload: bytes,
        *,
        retain: bool = False,
        correlation_data: str | None = None,
    ) -> int:
        """Return after the PUBACK; raises PublishError."""

    def send(
        self,
        topic: str,
        payload: bytes,
        *,
        retain: bool = False,
        correlation_data: str | None = None,
    ) -> bool:
        """Send with QoS 0; never raises."""


class WorkerTopics:
    """Publishes info once a connect and when the models change, stats on a clock and at changes."""

    def __init__(
        self,
        board: Board,
        queue: JobQueue,
        *,
        worker_id: str,
        facts: JsonObject,
        models: Callable[[], Awaitable[JsonObject]],
        is_busy: Callable[[], bool],
        stats_seconds: float,
        clock: Clock,
        model_changes: Callable[[], dict[str, JsonObject]] = dict,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        """Wire it up.

        Args:
            board: where it is published.
            queue: is counted, and counts what ended.
            worker_id: whose topics.
            facts: what never changes: version, task types, limits.
            models: what runs, as far as it is loaded; may raise InferdError.
            is_busy: whether a job runs here.
            stats_seconds: the clock of the stats; 0 publishes none.
            clock: epoch milliseconds.
            model_changes: how far changes of models are, by what stats call them.
            monotonic: seconds, for rates.
        """
        self._board = board
        self._queue = queue
        self._worker_id = worker_id
        self._facts = facts
        self._models = models
        self._is_busy = is_busy
        self._stats_seconds = stats_seconds
        self._clock = clock
        self._model_changes = model_changes
        self._monotonic = monotonic
        self._told_info: tuple[int, JsonObject] | None = None
        self._told_state: tuple[int, bool] | None = None
        self._told_at = 0.0
        self._done: deque[tuple[float, int]] = deque([(monotonic(), 0)])

    async def run(self) -> None:
        """Tell until cancelled."""
        while True:
            await self._board.wait_up()
            try:
                await self.look()
            except (PublishError, StorageError) as error:
                # Tried again at the next look.
                log.debug("info or stats could not be told: %s", error)
            await asyncio.sleep(LOOK_SECONDS)

    async def look(self) -> None:
        """Publish what is due or new.

        Raises:
            PublishError: the link was lost; the info is told again.
            StorageError: the queue cannot be counted.
        """
        connects = self._board.connects
        models = await self._known_models()
        if self._told_info != (connects, models):
            await self._tell_info(models)
            self._told_info = connects, models
        if not self._stats_seconds:
            return
        now, state = self._monotonic(), (connects, self._is_busy())
        if state != self._told_state or now - self._told_at >= self._stats_seconds:
            stats = await self._stats(now, connects)
            if self._board.send(topics.stats(self._worker_id), _payload(stats), retain=True):
                self._told_state, self._told_at = state, now

    async def _known_models(self) -> JsonObject:
        try:
            return await self._models()
        except InferdError as error:
            # Not its words: everybody reads this topic, and /health tells the operator.
            return {"error": error.code}

    async def _tell_info(self, models: JsonObject) -> None:
        info = {**self._header(), **self._facts, "models": models}
        try:
            await self._board.publish(topics.info(self._worker_id), _payload(info), retain=True)
        except PublishError as error:
            if error.reason_code is None:
                raise
            log.warning("nobody hears what we are: %s", error.message)

    async def _stats(self, now: float, connects: int) -> JsonObject:
        found = await self._queue.snapshot()
        ended = self._queue.ended()
        done = {task: each[JobState.COMPLETED] for task, each in ended.items()}
        failed = {
            task: each[JobState.ERROR] + each[JobState.SYNC_FAILED] for task, each in ended.items()
        }
        return {
            **self._header(),
            "pending": found.pending,
            "delayed": found.delayed,
            "processing": found.processing,
            "outbox": found.outbox,
            "oldest_pending_ms": round(found.oldest_pending_seconds * 1000),
            "done": done,
            "failed": failed,
            "images_per_second": self._rate(now, sum(done.values())),
            "reconnects": max(0, connects - 1),
            **self._model_changes(),
        }

    def _rate(self, now: float, done: int) -> float:
        """Return completed jobs a second over the last minute, or since the start."""
        while len(self._done) > 1 and now - self._done[1][0] >= RATE_SECONDS:
            self._done.popleft()
        since, before = self._done[0]
        self._done.append((now, done))
        return round((done - before) / max(now - since, LOOK_SECONDS), 2)

    def _header(self) -> JsonObject:
        return {"v": 1, "worker_id": self._worker_id, "timestamp": self._clock()}


def _payload(value: JsonObject) -> bytes:
    return dump_json(value).encode()
