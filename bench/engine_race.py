"""Processes that lease and complete jobs of one queue, all from the same moment on.

They start once and wait between two races, so that what Python takes to start is in no figure and
does not have to be waited for. Each is what a daemon is to the queue, and nothing else.
"""

import asyncio
import contextlib
import multiprocessing
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass
from multiprocessing.connection import Connection
from types import TracebackType
from typing import Any, Self

from bench.queue import submission
from bench.raw_queue import RESULT, first_picture
from daemon.jobs import TaskType, load_json
from daemon.queue.engine import queue_database
from daemon.queue.job_queue import JobQueue
from daemon.settings import QueueSettings, Settings
from daemon.wall_clock import epoch_ms

IMAGE = TaskType.IMAGE_EMBEDDING
LEASE_SECONDS = 60.0
PATIENCE = 120.0
"""Seconds for anything that another process does."""
AT_ONCE = 1000
"""Requests enqueued in one transaction."""


@dataclass(frozen=True, slots=True)
class _Asked:
    """What a process is to do in a race."""

    url: str
    batch: int


@dataclass(frozen=True, slots=True)
class _Score:
    """What the processes share."""

    left: Any
    """Jobs that are not complete."""
    ended: Any
    """When the last one was, by time.monotonic(): what a process takes to stop is not counted."""


class Crew:
    """So many processes; a context manager that leaves none."""

    def __init__(self, most: int) -> None:
        context = multiprocessing.get_context("spawn")
        self._score = _Score(context.Value("q", 0), context.Value("d", 0.0))
        pipes = [context.Pipe() for _ in range(most)]
        self._pipes = [ours for ours, _ in pipes]
        self._processes = [
            context.Process(target=_serve, args=(number, theirs, self._score), daemon=True)
            for number, (_, theirs) in enumerate(pipes)
        ]
        for process in self._processes:
            process.start()
        for _, theirs in pipes:
            # Else the end of a process would never be seen.
            theirs.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        for process in self._processes:
            process.kill()
            process.join(PATIENCE)
        for pipe in self._pipes:
            pipe.close()

    def race(self, url: str, *, jobs: int, batch: int, daemons: int) -> float:
        """Return how many jobs a second so many daemons lease and complete together.

        Raises:
            RuntimeError: one ended, or did not answer in time, or jobs were left.
        """
        asyncio.run(enqueue(url, jobs))
        self._score.left.value, self._score.ended.value = jobs, 0.0
        pipes = self._pipes[:daemons]
        for pipe in pipes:
            pipe.send(_Asked(url, batch))
        for pipe in pipes:
            _hear(pipe)
        began = time.monotonic()
        for pipe in pipes:
            pipe.send(None)
        for pipe in pipes:
            _hear(pipe)
        if self._score.left.value:
            raise RuntimeError(f"{self._score.left.value} of {jobs} jobs were left")
        return jobs / (float(self._score.ended.value) - began)


async def enqueue(url: str, jobs: int) -> None:
    """Put jobs into a queue, which is made where it is not there yet."""
    async with _queue(url, 9999) as queue:
        first = first_picture()
        for start in range(0, jobs, AT_ONCE):
            numbers = range(first + start, first + min(start + AT_ONCE, jobs))
            await queue.enqueue_all([submission(number) for number in numbers])


def _hear(pipe: "Connection[Any, Any]") -> None:
    try:
        if not pipe.poll(PATIENCE):
            raise RuntimeError(f"a daemon said nothing for {PATIENCE:.0f} s")
        pipe.recv()
    except (EOFError, OSError) as error:
        raise RuntimeError("a daemon ended amid a race; its words are on stderr") from error


def _serve(number: int, pipe: "Connection[Any, Any]", score: _Score) -> None:
    """Take part in races until the other end is closed."""
    with contextlib.suppress(EOFError):
        while True:
            asked: _Asked = pipe.recv()
            asyncio.run(_work(asked, number, pipe, score))
            pipe.send("done")


async def _work(asked: _Asked, number: int, pipe: "Connection[Any, Any]", score: _Score) -> None:
    result = load_json(RESULT)
    async with _queue(asked.url, number) as queue:
        pipe.send("ready")
        pipe.recv()
        while score.left.value > 0:
            leases = await queue.lease(IMAGE, asked.batch, seconds=LEASE_SECONDS)
            await asyncio.gather(*(queue.complete(lease, result, RESULT) for lease in leases))
            with score.left.get_lock():
                score.left.value -= len(leases)
                # One clock for all processes.
                score.ended.value = max(score.ended.value, time.monotonic())


@contextlib.asynccontextmanager
async def _queue(url: str, number: int) -> AsyncIterator[JobQueue]:
    settings = Settings(queue=QueueSettings(url=url))
    worker = f"host/boot/ns/{number}/1"
    async with (
        queue_database(settings) as database,
        JobQueue(
            database, QueueSettings(), clock=epoch_ms, worker=worker, worker_id="bench"
        ) as queue,
    ):
        yield queue
