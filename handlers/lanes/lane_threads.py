"""LaneThreads: daemon threads that take a lane's calls from one queue, and may be left behind.

A pool of the standard library would be joined when the interpreter ends, and a call of a model may
never end.
"""

import contextlib
import queue
import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any, TypeVar

T = TypeVar("T")


class LaneThreads:
    """Runs calls one after the other on one thread, or each on a thread that is free.

    Threads start when they are needed. Its own methods must all be called from one thread.
    """

    def __init__(self, name: str, *, is_single: bool = False) -> None:
        """Start nothing yet.

        Args:
            name: of the threads.
            is_single: one thread runs all; otherwise whoever comes while all are busy has a new
                one, so callers bound how many there are.
        """
        self._name = name
        self._is_single = is_single
        self._waiting: queue.SimpleQueue[tuple[Future[Any], Callable[[], Any]] | None]
        self._waiting = queue.SimpleQueue()
        self._idle = threading.Semaphore(0)
        self._threads: list[threading.Thread] = []
        self._ends: list[Future[None]] = []

    def submit(self, work: Callable[[], T]) -> Future[T]:
        """Return the outcome of `work()`."""
        future: Future[T] = Future()
        self._waiting.put((future, work))
        is_enough = self._is_single and bool(self._threads)
        if not is_enough and not self._idle.acquire(blocking=False):
            self._start()
        return future

    def close(self) -> list[Future[None]]:
        """Cancel what waits; return one for each thread, done when it has ended. Once only."""
        # A thread that has just become free may take what was seen to wait.
        with contextlib.suppress(queue.Empty):
            while (waiting := self._waiting.get_nowait()) is not None:
                waiting[0].cancel()
        for _ in self._threads:
            self._waiting.put(None)
        return self._ends

    def _start(self) -> None:
        ended: Future[None] = Future()
        ended.set_running_or_notify_cancel()
        name = self._name if self._is_single else f"{self._name}-{len(self._threads)}"
        thread = threading.Thread(target=self._serve, args=(ended,), name=name, daemon=True)
        self._threads.append(thread)
        self._ends.append(ended)
        thread.start()

    def _serve(self, ended: Future[None]) -> None:
        while (waiting := self._waiting.get()) is not None:
            future, work = waiting
            # Free before the outcome is told: whoever hears of it may come with the next call.
            if not future.set_running_or_notify_cancel():
                self._idle.release()
            else:
                try:
                    result = work()
                except BaseException as error:  # noqa: BLE001 - carried to the caller
                    self._idle.release()
                    future.set_exception(error)
                else:
                    self._idle.release()
                    future.set_result(result)
                    del result
            # What a call was given is not kept alive until the next one comes.
            del waiting, future, work
        ended.set_result(None)
