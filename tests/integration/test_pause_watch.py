"""What the watch notices and tells; the queue is real, time is turned by hand."""

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Mapping
from pathlib import Path

import pytest

from daemon.errors import PublishError
from daemon.jobs import TaskType
from daemon.pause_watch import PauseWatch
from tests.queue_bench import FACES, IMAGE, NOON, Bench, open_bench
from tests.waiting import until

DEADLINE = 10.0
FOR_EVER = 1000.0
MINUTE = 60_000


class Link:
    """Remembers what it was told; may be told to fail."""

    def __init__(self) -> None:
        self.told: list[tuple[dict[str, int | None], bool]] = []
        self.failures = 0

    async def tell_paused(self, until: Mapping[str, int | None], *, is_all: bool) -> None:
        if self.failures:
            self.failures -= 1
            raise PublishError("the connection was lost")
        self.told.append((dict(until), is_all))


@pytest.fixture
async def bench(tmp_path: Path) -> AsyncIterator[Bench]:
    async with open_bench(tmp_path / "queue.db") as opened:
        yield opened


def watch_of(
    bench: Bench, link: Link, *task_types: TaskType, poll_seconds: float = FOR_EVER
) -> PauseWatch:
    return PauseWatch(
        bench.queue.pauses,
        link,
        task_types=task_types or (IMAGE, FACES),
        clock=bench.clock,
        poll_seconds=poll_seconds,
    )


@contextlib.asynccontextmanager
async def running(watch: PauseWatch) -> AsyncIterator[None]:
    task = asyncio.create_task(watch.run())
    try:
        yield
        assert not task.done()
    finally:
        task.cancel()
        await asyncio.wait([task])


async def test_each_change_is_told_once(bench: Bench) -> None:
    link = Link()
    watch = watch_of(bench, link)
    pauses = bench.queue.pauses

    for change in (
        pauses.active(),
        pauses.pause(IMAGE),
        pauses.active(),
        pauses.pause(FACES, seconds=60),
        pauses.pause(FACES, seconds=90),
        pauses.resume(IMAGE),
        pauses.resume(IMAGE),
        pauses.resume(FACES),
    ):
        await change
        await watch.look()

    assert link.told == [
        ({"image_embedding": None}, False),
        ({"image_embedding": None, "face_detection": NOON + MINUTE}, True),
        ({"image_embedding": None, "face_detection": NOON + 90_000}, True),
        ({"face_detection": NOON + 90_000}, False),
        ({}, False),
    ]


async def test_only_the_task_types_of_this_daemon_count(bench: Bench) -> None:
    link = Link()
    watch = watch_of(bench, link, FACES)

    await bench.queue.pauses.pause(IMAGE)
    await watch.look()
    assert link.told == []

    await bench.queue.pauses.pause(FACES)
    await watch.look()
    assert link.told == [({"face_detection": None}, True)]


async def test_our_own_pause_is_told_at_once(bench: Bench) -> None:
    link = Link()
    async with running(watch_of(bench, link)):
        await bench.queue.pauses.pause(IMAGE)
        await until(lambda: len(link.told) == 1)
        await bench.queue.pauses.resume(IMAGE)
        await until(lambda: len(link.told) == 2)


async def test_another_daemons_pause_is_found_by_looking(bench: Bench, tmp_path: Path) -> None:
    link = Link()
    async with (
        open_bench(tmp_path / "queue.db", clock=bench.clock, worker="other") as other,
        running(watch_of(bench, link, poll_seconds=0.02)),
    ):
        await other.queue.pauses.pause(IMAGE)
        await until(lambda: link.told == [({"image_embedding": None}, False)])
        await other.queue.pauses.resume(IMAGE)
        await until(lambda: link.told[-1] == ({}, False))


async def test_the_end_of_a_pause_is_waited_for_and_not_polled(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    waits: list[float] = []
    wait = bench.queue.pauses.changed.wait

    async def note(heard: int, *, timeout_seconds: float) -> None:
        waits.append(timeout_seconds)
        await wait(heard, timeout_seconds=FOR_EVER)

    monkeypatch.setattr(bench.queue.pauses.changed, "wait", note)
    async with running(watch_of(bench, Link(), poll_seconds=30)):
        await until(lambda: len(waits) == 1)
        for number, end in enumerate((10, 100, 0.001)):
            await bench.queue.pauses.pause(IMAGE, seconds=end)
            await until(lambda number=number: len(waits) == number + 2)  # type: ignore[misc]

    assert waits == [30, 10, 30, 0.05]


async def test_the_end_of_a_pause_is_told(bench: Bench) -> None:
    link = Link()
    await bench.queue.pauses.pause(IMAGE, seconds=0.1)
    async with running(watch_of(bench, link)):
        await until(lambda: len(link.told) == 1)
        bench.clock.advance(seconds=1)
        await until(lambda: link.told[1:] == [({}, False)])


async def test_what_nobody_heard_is_told_again(bench: Bench) -> None:
    link = Link()
    link.failures = 2
    async with running(watch_of(bench, link, poll_seconds=0.02)):
        await bench.queue.pauses.pause(IMAGE)
        await until(lambda: link.told == [({"image_embedding": None}, False)])


async def test_a_file_that_cannot_be_read_does_not_end_the_watch(
    bench: Bench, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG, "daemon.pause_watch")
    link = Link()
    await bench.execute("ALTER TABLE pauses RENAME TO away")
    async with running(watch_of(bench, link, poll_seconds=0.02)):
        await until(lambda: "could not be told" in caplog.text)
        await bench.execute("ALTER TABLE away RENAME TO pauses")
        await bench.queue.pauses.pause(IMAGE)
        await until(lambda: len(link.told) == 1)


async def test_pauses_and_resumes_are_logged(
    bench: Bench, caplog: pytest.LogCaptureFixture
) -> None:
    # Of another daemon's task types too: the operator's hand shows in every log.
    watch = watch_of(bench, Link(), FACES)
    with caplog.at_level(logging.INFO, "daemon.pause_watch"):
        await bench.queue.pauses.pause(IMAGE)
        await watch.look()
        await watch.look()
        await bench.queue.pauses.pause(IMAGE, seconds=60)
        await watch.look()
        bench.clock.advance(seconds=60)
        await watch.look()
        await bench.queue.pauses.pause(IMAGE, until=2**53)
        await watch.look()

    assert [record.getMessage() for record in caplog.records] == [
        "image_embedding is paused until somebody resumes it",
        "image_embedding is paused until 2026-01-01T12:01:00+00:00",
        "image_embedding is resumed",
        f"image_embedding is paused until {2**53} ms",
    ]
    assert {record.__dict__["task_type"] for record in caplog.records} == {"image_embedding"}
