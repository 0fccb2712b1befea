"""The fan-out to watchers: bounded, in order, and nobody waits for it."""

import asyncio
import json
import uuid

import pytest

from daemon.events import Message
from daemon.live import (
    ENDS_ONLY,
    MOST_A_SECOND,
    MOST_EVENT_BYTES,
    MOST_WAITING_BYTES,
    MOST_WATCHERS,
    Live,
    TooManyWatchersError,
)
from daemon.topics import event_of, job_event

JOB = str(uuid.UUID(int=7))
TICK = 0.01


def message(event: str, text: str = "{}") -> Message:
    return Message(job_event(JOB, event), text)


def told(stream: bytes) -> list[tuple[str, object]]:
    """Return names and values of server-sent events."""
    found = []
    for event in stream.decode().split("\n\n")[:-1]:
        name, data = event.split("\n")
        found.append((name.removeprefix("event: "), json.loads(data.removeprefix("data: "))))
    return found


def test_the_event_of_a_topic_is_found_again() -> None:
    assert event_of(job_event(JOB, "completed")) == "completed"
    assert event_of("inference/reply/alice/1") is None
    assert event_of("inference/rejected/image_embedding") is None


async def test_each_watcher_hears_everything_in_order_and_copies_for_clients_are_not_told() -> None:
    live = Live()
    with live.watch() as first, live.watch() as second:
        live.hear([message("accepted", '{"n": 1}'), Message("inference/reply/a", "{}")])
        live.tell("queue", {"pending": 1})
        for watcher in (first, second):
            events = told(await watcher.take(TICK))
            assert events == [("job", {"n": 1}), ("queue", {"pending": 1})]
            assert await watcher.take(TICK) == b""


async def test_without_watchers_nothing_is_kept() -> None:
    live = Live()
    live.hear([message("completed")])
    live.tell("queue", {})
    with live.watch() as watcher:
        assert live.is_watched
        assert await watcher.take(TICK) == b""


async def test_a_slow_watcher_is_dropped_and_the_others_go_on() -> None:
    live = Live()
    half = "x" * 32_768
    with live.watch() as slow, live.watch() as quick:
        for _ in range(2 * MOST_WAITING_BYTES // len(half)):
            live.tell("queue", {"half": half})
            assert told(await quick.take(TICK))
        assert slow.is_over
        assert await slow.take(TICK) == b""
        assert not quick.is_over


async def test_what_is_too_large_is_not_told() -> None:
    live = Live()
    with live.watch() as watcher:
        live.hear([message("completed", json.dumps("x" * MOST_EVENT_BYTES)), message("started")])
        assert told(await watcher.take(TICK)) == [("job", {})]


async def test_in_a_second_of_many_events_ends_go_first_and_the_next_second_is_free() -> None:
    now = 1.0
    live = Live(monotonic=lambda: now)
    with live.watch() as watcher:
        live.hear([message("started")] * (ENDS_ONLY + 50))
        assert len(told(await watcher.take(TICK))) == ENDS_ONLY
        live.hear([message("completed")] * MOST_A_SECOND)
        assert len(told(await watcher.take(TICK))) == MOST_A_SECOND - ENDS_ONLY
        live.tell("queue", {})
        assert len(told(await watcher.take(TICK))) == 1
        now = 2.0
        live.hear([message("started")])
        assert len(told(await watcher.take(TICK))) == 1


async def test_there_is_a_most_of_watchers() -> None:
    live = Live()
    watching = [live.watch() for _ in range(MOST_WATCHERS)]
    for each in watching:
        each.__enter__()
    with pytest.raises(TooManyWatchersError), live.watch():
        pass
    watching[0].__exit__(None, None, None)
    with live.watch():
        pass


async def test_closing_wakes_who_waits_and_who_comes_later() -> None:
    live = Live()
    with live.watch() as watcher:
        waiting = asyncio.create_task(watcher.take(60))
        await asyncio.sleep(0)
        live.close()
        assert await asyncio.wait_for(waiting, 5) == b""
        assert watcher.is_over
    with live.watch() as late:
        assert late.is_over
