"""SideBySide: a few threads that do the same work on many things, and are done together."""

from collections.abc import Callable, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor, wait
from typing import TypeVar

T = TypeVar("T")
R = TypeVar("R")


class SideBySide:
    """Does up to `count` things at a time; one at a time is done by the caller's own thread."""

    def __init__(self, count: int, name: str) -> None:
        """Take how many; threads start with the first work.

        Args:
            count: of things at a time.
            name: of the threads.
        """
        self.count = count
        self._threads = ThreadPoolExecutor(count, thread_name_prefix=name) if count > 1 else None

    def map(self, work: Callable[[T], R], things: Sequence[T]) -> list[R]:
        """Return what `work` gives for each, in order.

        Raises:
            Exception: whatever it raised first, once all have ended.
        """
        if self._threads is None or len(things) == 1:
            return [work(thing) for thing in things]
        return all_of(self._threads, work, things)

    def close(self) -> None:
        """End the threads. Safe twice."""
        if self._threads is not None:
            self._threads.shutdown()
            self._threads = None


def all_of(threads: Executor, work: Callable[[T], R], things: Sequence[T]) -> list[R]:
    """Return what `work` gives for each thing on some threads, in order.

    Raises:
        Exception: whatever it raised first, once all have ended: nothing of it is in use then.
    """
    futures = [threads.submit(work, thing) for thing in things]
    wait(futures)
    return [future.result() for future in futures]
