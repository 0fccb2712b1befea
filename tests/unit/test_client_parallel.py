"""Work in threads: as a stream, in bounded memory, and left at once."""

import itertools
import threading
from collections.abc import Iterator

import pytest

from demos.client.parallel import in_order, in_parallel

SECONDS = 10.0


def test_an_endless_stream_is_taken_as_there_is_room_for_it() -> None:
    taken: list[int] = []
    go = threading.Semaphore(0)

    def items() -> Iterator[int]:
        for number in itertools.count():
            taken.append(number)
            yield number

    def work(number: int) -> int:
        assert go.acquire(timeout=SECONDS)
        return number

    results = in_parallel(work, items(), 4)
    for done in range(1, 20):
        go.release()
        next(results)
        # Four under way at most, and no more than one that was just taken in place of each.
        assert len(taken) <= done + 4
    go.release(100)
    results.close()  # type: ignore[attr-defined]  # it is a generator


def test_results_are_bounded_while_nobody_takes_them() -> None:
    begun = threading.Semaphore(0)
    count = itertools.count()

    def work(number: int) -> int:
        next(count)
        begun.release()
        return number

    results = in_parallel(work, itertools.count(), 2)
    next(results)
    # Room for four results, two more in the threads' hands, one was taken.
    for _ in range(7):
        assert begun.acquire(timeout=SECONDS)
    assert not begun.acquire(timeout=0.2)
    assert next(count) == 7


def test_who_leaves_does_not_wait_for_a_source_that_stands_still() -> None:
    stuck, go = threading.Event(), threading.Event()

    def items() -> Iterator[int]:
        yield 1
        stuck.set()
        go.wait(SECONDS)

    results = in_parallel(lambda number: number, items(), 2)
    assert next(results) == 1
    assert stuck.wait(SECONDS)

    results.close()  # type: ignore[attr-defined]  # it is a generator

    assert not go.is_set()
    go.set()


def test_threads_end_when_who_takes_results_leaves() -> None:
    before = set(threading.enumerate())
    results = in_parallel(lambda number: number, itertools.count(), 8)
    for _ in range(50):
        next(results)
    crew = set(threading.enumerate()) - before
    assert crew

    results.close()  # type: ignore[attr-defined]  # it is a generator

    for thread in crew:
        thread.join(SECONDS)
        assert not thread.is_alive()


@pytest.mark.parametrize("where", ["work", "items"])
def test_an_error_comes_out_where_results_are_taken(where: str) -> None:
    def items() -> Iterator[int]:
        yield 1
        if where == "items":
            raise LookupError("items")
        yield 2

    def work(number: int) -> int:
        if where == "work" and number == 2:
            raise LookupError("work")
        return number

    with pytest.raises(LookupError, match=where):
        list(in_parallel(work, items(), 3))


@pytest.mark.parametrize("threads", [1, 3, 100])
def test_each_item_is_done_once(threads: int) -> None:
    assert sorted(in_parallel(lambda number: number * 2, range(1000), threads)) == list(
        range(0, 2000, 2)
    )


def test_no_items_no_results() -> None:
    assert list(in_parallel(lambda number: number, [], 5)) == []


def test_in_order_keeps_the_order_and_tells_each_at_once() -> None:
    first, second = threading.Event(), threading.Event()

    def work(word: str) -> str:
        if word == "first":
            assert second.wait(SECONDS)
        return word.upper()

    def told(word: str) -> None:
        (second if word == "SECOND" else first).set()

    assert in_order(work, ["first", "second"], 2, told) == ["FIRST", "SECOND"]
    assert first.is_set()
