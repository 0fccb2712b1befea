"""Info and stats beside what fails: a broker that refuses or is busy, a queue that cannot count."""

import asyncio
import json
from types import SimpleNamespace
from typing import Any, cast

import pytest

from daemon.errors import PublishError, StorageError
from daemon.jobs import JobState, JsonObject, TaskType
from daemon.mqtt import worker_topics
from daemon.mqtt.worker_topics import WorkerTopics
from tests.waiting import until

FACES = TaskType.FACE_DETECTION


class Rig:
    """A link and a queue that do as they are told, and the topics between them."""

    def __init__(self) -> None:
        self.connects = 1
        self.infos = 0
        self.stats: list[JsonObject] = []
        self.error: PublishError | None = None
        self.is_busy = False
        self.cannot_count = False
        self.seconds = 0.0
        self.ends = {state: 0 for state in JobState if state.is_terminal}
        both = cast("Any", self)
        self.topics = WorkerTopics(
            both,
            both,
            worker_id="w",
            facts={},
            models=self.models,
            is_busy=lambda: False,
            stats_seconds=10,
            clock=lambda: 0,
            monotonic=lambda: self.seconds,
        )

    async def models(self) -> JsonObject:
        return {}

    async def wait_up(self) -> None:
        pass

    async def publish(self, *_: object, **__: object) -> int:
        self.infos += 1
        if self.error:
            raise self.error
        return 0

    def send(self, _topic: str, payload: bytes, **_: object) -> bool:
        if not self.is_busy:
            self.stats.append(json.loads(payload))
        return not self.is_busy

    async def snapshot(self) -> SimpleNamespace:
        if self.cannot_count:
            raise StorageError("locked")
        return SimpleNamespace(
            pending=0, delayed=0, processing=0, outbox=0, oldest_pending_seconds=0
        )

    def ended(self) -> dict[str, dict[JobState, int]]:
        return {FACES.value: self.ends}


async def test_stats_are_told_where_the_broker_refuses_the_info() -> None:
    rig = Rig()
    rig.error = PublishError("not authorized", reason_code=0x87)

    await rig.topics.look()
    await rig.topics.look()

    assert (rig.infos, len(rig.stats)) == (1, 1)


async def test_stats_that_a_busy_broker_did_not_take_are_told_at_the_next_look() -> None:
    rig = Rig()
    rig.is_busy = True
    await rig.topics.look()
    rig.is_busy = False

    await rig.topics.look()
    await rig.topics.look()

    assert len(rig.stats) == 1


async def test_it_goes_on_after_a_lost_link_and_a_queue_that_cannot_be_counted(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(worker_topics, "LOOK_SECONDS", 0.001)
    rig = Rig()
    rig.error, rig.cannot_count = PublishError("the connection was lost"), True
    telling = asyncio.create_task(rig.topics.run())
    await until(lambda: rig.infos >= 2)
    rig.error = None
    infos = rig.infos
    await until(lambda: rig.infos > infos)

    rig.cannot_count = False

    await until(lambda: bool(rig.stats))
    telling.cancel()
    await asyncio.wait([telling])


async def test_what_the_media_store_did_not_take_counts_as_failed() -> None:
    rig = Rig()
    rig.ends = {JobState.COMPLETED: 4, JobState.ERROR: 2, JobState.SYNC_FAILED: 1}

    await rig.topics.look()

    (stats,) = rig.stats
    assert (stats["done"], stats["failed"]) == ({FACES.value: 4}, {FACES.value: 3})


async def test_the_rate_looks_back_a_minute_at_least() -> None:
    rig = Rig()
    rates = []
    for done in (30, 30, 30):
        rig.seconds += 50
        rig.ends[JobState.COMPLETED] = done
        await rig.topics.look()
        rates.append(rig.stats[-1]["images_per_second"])

    assert rates == [0.6, 0.3, 0.0]
