"""What the console is told while the queue cannot be read, and after it could be read again."""

import asyncio
import json
from dataclasses import replace
from typing import Any, TypeVar, cast

import pytest

from daemon.errors import StorageError
from daemon.fleet.workers import Workers
from daemon.health import Health
from daemon.jobs import JsonObject, TaskType
from daemon.live import Live, Watcher
from daemon.queue.job_queue import JobQueue
from daemon.queue.job_reader import Snapshot, TaskDepth
from http_shim.console import feed
from http_shim.console.feed import Feed
from http_shim.console.parts import Console
from tests.console.test_routes import Pictures, console

T = TypeVar("T")
DEADLINE = 10.0
DEPTH = TaskDepth(pending=0, processing=0, is_paused=False, paused_until=None)
EMPTY = Snapshot(
    pending=0,
    delayed=0,
    processing=0,
    undelivered=0,
    oldest_pending_seconds=0,
    outbox=0,
    oldest_event_seconds=0,
)


class Queue:
    """A queue that can be away."""

    def __init__(self) -> None:
        self.is_away = False
        self._looks = 0

    def ended(self) -> dict[str, dict[str, int]]:
        return {each: {"completed": 0, "error": 0, "sync_failed": 0} for each in TaskType}

    async def check(self) -> JsonObject:
        return self._read({})

    async def snapshot(self) -> Snapshot:
        # Never twice the same, so that each look is told.
        self._looks += 1
        return self._read(replace(EMPTY, delayed=self._looks))

    async def depth_by_task(self) -> dict[TaskType, TaskDepth]:
        return self._read(dict.fromkeys(TaskType, DEPTH))

    async def failures(self, limit: int) -> list[Any]:
        return self._read([])

    async def latest(self, limit: int) -> list[Any]:
        return self._read([])

    def _read(self, found: T) -> T:
        if self.is_away:
            raise StorageError("the database is away")
        return found


class Ear:
    """Hears what a watcher is told, one event after the other."""

    def __init__(self, watcher: Watcher) -> None:
        self._watcher = watcher
        self._heard: list[str] = []

    async def hear(self, name: str) -> JsonObject:
        """Return the next event of a name."""
        async with asyncio.timeout(DEADLINE):
            while True:
                while not self._heard:
                    self._heard = (await self._watcher.take(DEADLINE)).decode().split("\n\n")
                head, _, data = self._heard.pop(0).partition("\ndata: ")
                if head == f"event: {name}":
                    found: JsonObject = json.loads(data)
                    return found


async def test_who_watches_hears_that_the_queue_is_away_and_each_time_anew(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(feed, "LOOK_SECONDS", 0.01)
    queue, live, health = Queue(), Live(), Health(version="1", worker_id="w")
    health.add("database", queue.check)
    seen: Console = console(live, Pictures())
    workers = Workers("w", queue_id="q", clock=lambda: 0)
    looking = Feed(seen, cast("JobQueue", queue), health, workers)
    with live.watch() as watcher:
        task = asyncio.create_task(looking.run())
        ear = Ear(watcher)
        for _ in range(2):
            await ear.hear("queue")
            queue.is_away = True
            assert (await ear.hear("trouble"))["message"] == "the database is away"
            assert (await ear.hear("daemon"))["status"] == "unavailable"
            queue.is_away = False
            assert (await ear.hear("daemon"))["status"] == "ok"
        task.cancel()
        await asyncio.wait([task])


async def test_who_begins_to_watch_is_told_what_is_as_it_was_before_somebody_left(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(feed, "LOOK_SECONDS", 0.01)
    live, health = Live(), Health(version="1", worker_id="w")
    workers = Workers("w", queue_id="q", clock=lambda: 0)
    looking = Feed(console(live, Pictures()), cast("JobQueue", Queue()), health, workers)
    task = asyncio.create_task(looking.run())
    with live.watch() as watcher:
        assert (await Ear(watcher).hear("daemon"))["status"] == "ok"
    health.is_draining = True
    with live.watch() as watcher:
        assert b'"draining"' in await looking.snapshot()
        health.is_draining = False
        assert (await Ear(watcher).hear("daemon"))["status"] == "ok"
    task.cancel()
    await asyncio.wait([task])
