"""What of a bulk submission is due: batches, repeats, full queues, by moments told."""

import itertools
import json
import math

import pytest

from demos.client.ledger import (
    FIRST_REPEAT_SECONDS,
    LINGER_SECONDS,
    PATIENCE_SECONDS,
    PAUSE_SECONDS,
    Ledger,
)


def ledger(*, batch: int = 3, max_bytes: int = 100_000, wait: bool = False) -> Ledger[int]:
    return Ledger(batch=batch, max_bytes=max_bytes, timeout=60, wait=wait)


def add(book: Ledger[int], *numbers: int, now: float = 0.0, force: bool = False) -> None:
    for number in numbers:
        request = {
            "task_type": "image_embedding",
            "media_store_id": number,
            "priority": 5,
            "force": force,
            "job_id": f"job-{number}",
        }
        book.add(number, request, now)


def numbers(messages: list[tuple[str, list]]) -> list[list[int]]:  # type: ignore[type-arg]
    return [[entry.tag for entry in entries] for _, entries in messages]


def test_a_lone_request_goes_almost_at_once_and_others_gather_while_it_is_unanswered() -> None:
    book = ledger()
    assert book.send_at(is_fed=True) == math.inf
    add(book, 1)
    assert book.send_at(is_fed=False) == PAUSE_SECONDS
    assert numbers(book.take_fresh(1)) == [[1]]

    add(book, 2, now=1.5)
    assert book.send_at(is_fed=False) == 1.5 + LINGER_SECONDS
    assert book.send_at(is_fed=True) <= 1.5

    add(book, 3, 4, now=1.6)
    assert book.send_at(is_fed=False) <= 1.6  # a batch is full
    assert numbers(book.take_fresh(1.6)) == [[2, 3, 4]]
    assert book.send_at(is_fed=True) == math.inf


def test_a_message_holds_no_more_than_a_batch_and_no_more_than_the_bytes_allowed() -> None:
    book = ledger()
    add(book, *range(7))
    messages = book.take_fresh(0)
    assert numbers(messages) == [[0, 1, 2], [3, 4, 5], [6]]
    assert len(json.loads(book.payload(messages[0][1]))["requests"]) == 3
    assert json.loads(book.payload(messages[2][1]))["media_store_id"] == 6

    tight = ledger(batch=1000, max_bytes=400)
    add(tight, *range(20), force=True)
    for _, entries in tight.take_fresh(0):
        assert len(tight.payload(entries)) <= 400


def test_what_is_not_answered_is_repeated_at_growing_distances() -> None:
    book = ledger()
    add(book, 1, 2)
    book.take_fresh(0)
    answered = book.get("job-1")
    assert answered is not None
    assert book.remove(answered)
    assert not book.remove(answered)

    moments = [second for second in range(200) if book.take_repeats(second)]

    assert moments[0] in range(int(0.8 * FIRST_REPEAT_SECONDS), int(1.2 * FIRST_REPEAT_SECONDS) + 2)
    waits = [after - before for before, after in itertools.pairwise(moments)]
    assert waits[0] > FIRST_REPEAT_SECONDS
    assert max(waits) <= 37


def test_while_answers_are_coming_nothing_is_repeated_until_patience_ends() -> None:
    book = ledger()
    add(book, 1)
    book.take_fresh(0)

    book.heard_at = FIRST_REPEAT_SECONDS * 2
    assert book.take_repeats(FIRST_REPEAT_SECONDS * 2) == []
    book.heard_at = PATIENCE_SECONDS
    assert numbers(book.take_repeats(PATIENCE_SECONDS)) == [[1]]


def test_a_full_queue_holds_everything_and_gives_new_time() -> None:
    book = ledger()
    add(book, 1)
    book.take_fresh(0)
    entry = book.get("job-1")
    assert entry is not None

    book.full(entry, 10, now=59)
    add(book, 2, 3, 4, now=59)

    assert book.send_at(is_fed=True) == 69
    assert book.take_repeats(68.9) == []
    assert book.overdue(100) != [entry]
    assert numbers(book.take_repeats(72)) == [[1]]


@pytest.mark.parametrize("force", [True, False])
def test_force_is_asked_for_once_only(force: bool) -> None:
    book = ledger(wait=True)
    add(book, 1, force=force)
    ((_, entries),) = book.take_fresh(0)
    assert json.loads(book.payload(entries)).get("force", False) is force

    book.accepted(entries[0], {"job_id": "job-1", "status": "pending"}, is_duplicate=False)
    assert book.take_repeats(100) == []  # its end is waited for
    book.all_again(100)
    ((_, again),) = book.take_repeats(100)
    assert "force" not in json.loads(book.payload(again))


def test_who_asks_one_by_one_gets_the_oldest_undecided_once() -> None:
    book = ledger()
    add(book, 1, 2)
    book.take_fresh(0)
    add(book, 3)
    taken = [book.take_undecided() for _ in range(4)]

    assert [entry.tag if entry else None for entry in taken] == [1, 2, 3, None]
    assert book.send_at(is_fed=True) == math.inf
    assert book.take_repeats(99) == []
    assert book.overdue(999) == []
