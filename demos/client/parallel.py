"""Work done in threads, its results given out as they come, in memory that does not grow.

Unlike concurrent.futures it takes the next item only when a thread is free for it, so that the
items may be a stream without an end, and its threads are daemons: who leaves early, such as by
Ctrl-C, does not have to wait until a source that stands still gives its next item.
"""

import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from queue import Queue
from typing import Generic, TypeVar

T = TypeVar("T")
R = TypeVar("R")


def in_parallel(work: Callable[[T], R], items: Iterable[T], threads: int) -> Iterator[R]:
    """Yield what `work` returns for each item, in the order in which that is done.

    Args:
        work: called in one of the threads.
        items: taken one by one, in one thread at a time, as threads become free.
        threads: how many items are under way at most.

    Raises:
        Exception: whatever `work` or the items raise; items that are under way are left alone.
    """
    crew = _Crew(work, iter(items), threads)
    try:
        yield from crew.results()
    finally:
        crew.leave()


def in_order(
    work: Callable[[T], R], items: Sequence[T], threads: int, on_result: Callable[[R], None]
) -> list[R]:
    """Return what `work` returns for each item, in their order; `on_result` hears each at once."""

    def one(number: int) -> tuple[int, R]:
        return number, work(items[number])

    done: dict[int, R] = {}
    for number, result in in_parallel(one, range(len(items)), threads):
        done[number] = result
        on_result(result)
    return [done[number] for number in range(len(items))]


class _Crew(Generic[T, R]):
    def __init__(self, work: Callable[[T], R], source: Iterator[T], threads: int) -> None:
        self._work, self._source, self._most = work, source, max(1, threads)
        # Once nobody takes results any more, each thread puts at most its last one and its end:
        # with room for these, and what lay there taken away, none blocks for ever.
        self._results: Queue[tuple[R] | BaseException | None] = Queue(2 * self._most)
        self._left = threading.Event()
        self._taking = threading.Lock()
        self._started = self._ended = 0

    def results(self) -> Iterator[R]:
        self._start()
        while True:
            result = self._results.get()
            if isinstance(result, BaseException):
                raise result
            if result is not None:
                yield result[0]
                continue
            self._ended += 1
            if self._ended == self._started:
                return

    def leave(self) -> None:
        self._left.set()
        while not self._results.empty():
            self._results.get_nowait()

    def _start(self) -> None:
        self._started += 1
        threading.Thread(target=self._run, name="inferd-client", daemon=True).start()

    def _run(self) -> None:
        try:
            while self._do_one():
                pass
        except BaseException as error:  # noqa: BLE001 - it is raised again where results are taken
            self._results.put(error)
        else:
            self._results.put(None)

    def _do_one(self) -> bool:
        with self._taking:
            if self._left.is_set():
                return False
            try:
                item = next(self._source)
            except StopIteration:
                return False
            if self._started < self._most:
                self._start()
        self._results.put((self._work(item),))
        return True
