"""What the console is sent besides events: the queue, failures, latest results, the daemon."""

import asyncio
import contextlib
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable

from aiohttp import web

from daemon.errors import StorageError
from daemon.fleet.workers import Workers
from daemon.health import Health
from daemon.jobs import Job, JobState, JsonObject, TaskType, dump_json
from daemon.live import encode
from daemon.queue.job_queue import JobQueue
from daemon.queue.job_reader import TaskDepth
from http_shim.console.elsewhere import Elsewhere
from http_shim.console.parts import CONSOLE, Console
from http_shim.console.rate import Rate
from http_shim.keys import HEALTH, QUEUE, WORKERS

log = logging.getLogger(__name__)

LOOK_SECONDS = 1.0
"""Between two looks at the queue while somebody watches."""
SLOW_LOOKS = 4
"""Each so many looks the daemon's health, the failures and the latest results are looked at too."""
COST = 20.0
"""The pause after a look is so many times as long as it took, to bound what looking costs."""
LATEST = 72
"""Jobs: a picture may have one of each task type."""
MOST_FAILURES = 30
MOST_FACES = 100
"""Of a result; nobody sees more in a picture."""


class Feed:
    """Looks at the daemon while somebody watches, and tells what changed."""

    def __init__(
        self,
        console: Console,
        queue: JobQueue,
        health: Health,
        workers: Workers,
        *,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._live = console.live
        self._task_types = console.task_types
        self._queue = queue
        self._health = health
        self._workers = workers
        self._elsewhere = Elsewhere()
        self._monotonic = monotonic
        self._rates = {task_type: Rate() for task_type in TaskType}
        self._depths: dict[TaskType, TaskDepth] = {}
        self._told: dict[str, str] = {}
        self._slow: dict[str, Callable[[], Awaitable[JsonObject]]] = {
            "daemon": self.daemon,
            "failures": self.failures,
            "workers": self.workers,
            "latest": self.latest,
        }

    async def run(self) -> None:
        """Look until cancelled."""
        looks = 0
        while True:
            began = self._monotonic()
            try:
                if self._live.is_watched:
                    await self._look(is_slow=looks % SLOW_LOOKS == 0)
                    looks += 1
                    self._told.pop("trouble", None)
                else:
                    self._depths.clear()
                    self._sample()
            except StorageError as error:
                self._tell("trouble", {"code": error.code, "message": error.message})
                # How long it waited in vain is no work.
                looks, began = 0, self._monotonic()
            except Exception:
                # A look that breaks is told in the log; the daemon's work does not depend on it.
                log.exception("the console could not look")
            took = self._monotonic() - began
            await asyncio.sleep(max(LOOK_SECONDS, COST * took))

    async def _look(self, *, is_slow: bool) -> None:
        # The daemon first, which says so where the queue cannot be read.
        if is_slow:
            for name, look in self._slow.items():
                self._tell(name, await look())
        self._tell("queue", await self.queue())

    async def snapshot(self) -> bytes:
        """Return everything at once, as server-sent events, for somebody who begins to watch."""
        looks = {"queue": self.queue, **self._slow}
        # Who begins to watch may not have heard what was told last: it is told to all once more.
        self._told.clear()
        return b"".join([encode(name, dump_json(await look())) for name, look in looks.items()])

    async def failures(self) -> JsonObject:
        """Return what failed and was not asked for again, by code.

        Raises:
            StorageError: the queue cannot be read.
        """
        return {
            "groups": [
                {
                    "code": each.code,
                    "task_type": each.task_type.value,
                    "number": each.number,
                    "latest": each.latest,
                    "message": each.message,
                    "media_store_id": each.media_store_id,
                }
                for each in await self._queue.failures(MOST_FAILURES)
            ]
        }

    async def latest(self) -> JsonObject:
        """Return the jobs that ended last, whichever daemon did them.

        Raises:
            StorageError: the queue cannot be read.
        """
        return {"jobs": [_brief(job) for job in await self._queue.latest(LATEST)]}

    async def workers(self) -> JsonObject:
        """Return all daemons at the broker, and how fast they are together."""
        return self._workers.to_wire()

    async def daemon(self) -> JsonObject:
        """Return the daemon's health, models included; that is open to everybody."""
        report = await self._health.report()
        # It would change each time, and so be told each time.
        del report["uptime_seconds"]
        return report

    async def queue(self) -> JsonObject:
        """Return how much waits, runs and is done, how fast it goes and how long it will take.

        Raises:
            StorageError: the queue cannot be read.
        """
        found, self._depths = await asyncio.gather(
            self._queue.snapshot(), self._queue.depth_by_task()
        )
        ended = self._sample()
        tasks = {
            task_type.value: self._task(task_type, ended[task_type.value])
            for task_type in TaskType
            if task_type in self._task_types
        }
        return {
            "pending": found.pending,
            "delayed": found.delayed,
            "processing": found.processing,
            "undelivered": found.undelivered,
            "outbox": found.outbox,
            "oldest_pending_ms": round(found.oldest_pending_seconds * 1000),
            "task_types": tasks,
        }

    def _task(self, task_type: TaskType, ended: dict[str, int]) -> JsonObject:
        depth, rate = self._depths[task_type], self._rates[task_type]
        waiting = depth.pending + depth.processing
        left = None if depth.is_paused or not waiting else rate.seconds_left(waiting)
        return {
            "pending": depth.pending,
            "processing": depth.processing,
            "paused": depth.is_paused,
            "paused_until": depth.paused_until,
            "done": ended[JobState.COMPLETED],
            "failed": ended[JobState.ERROR] + ended[JobState.SYNC_FAILED],
            "per_second": None if rate.per_second is None else round(rate.per_second, 2),
            "seconds_left": None if left is None else round(left),
        }

    def _sample(self) -> dict[str, dict[str, int]]:
        now, ended = self._monotonic(), self._queue.ended()
        elsewhere = self._elsewhere.ended(self._workers.all())
        for task_type, rate in self._rates.items():
            depth = self._depths.get(task_type)
            is_busy = depth is None or bool(depth.processing)
            total = sum(ended[task_type.value].values()) + elsewhere[task_type]
            rate.add(now, total, is_busy=is_busy)
        return ended

    def _tell(self, name: str, value: JsonObject) -> None:
        text = dump_json(value)
        if self._told.get(name) != text:
            self._live.tell(name, value)
            self._told[name] = text


FEED = web.AppKey("feed", Feed)


async def feeding(app: web.Application) -> AsyncIterator[None]:
    """Run the feed for as long as the application does, where there is a console."""
    console = app[CONSOLE]
    if console is None:
        yield
        return
    feed = app[FEED] = Feed(console, app[QUEUE], app[HEALTH], app[WORKERS])
    task = asyncio.create_task(feed.run(), name="console-feed")
    yield
    task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await task


def _brief(job: Job) -> JsonObject:
    wire = job.to_wire()
    faces = (wire["result"] or {}).get("faces", ())
    if len(faces) > MOST_FACES:
        wire["result"] = {**wire["result"], "faces": faces[:MOST_FACES]}
    return wire
