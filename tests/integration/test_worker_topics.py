"""Info and stats: real mosquitto and queue, paho as the listener; the clock is turned by hand."""

from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from daemon.errors import InferdError
from daemon.jobs import JsonObject
from daemon.mqtt.worker_topics import WorkerTopics
from tests.broker import AsyncClient, Broker, Message
from tests.integration.test_intake_over_mqtt import Daemon
from tests.queue_bench import FACES, NOON, Bench, open_bench
from tests.waiting import until

INFO, STATS = "inference/worker/w/info", "inference/worker/w/stats"


class Rig:
    """The topics of one daemon, what they are told, and what they said."""

    def __init__(self, daemon: Daemon, bench: Bench, client: AsyncClient) -> None:
        self.daemon, self.bench, self.client = daemon, bench, client
        self.models: JsonObject | InferdError = {"clip": {"loaded": False}}
        self.is_busy = False
        self.seconds = 100.0

    def topics(self, **options: Any) -> WorkerTopics:
        return WorkerTopics(
            self.daemon.link,
            self.bench.queue,
            worker_id="w",
            facts={"version": "1", "task_types": ["face_detection"], "limits": {"max_batch": 1000}},
            models=self._models,
            is_busy=lambda: self.is_busy,
            clock=self.bench.clock,
            monotonic=lambda: self.seconds,
            **{"stats_seconds": 10, **options},
        )

    async def _models(self) -> JsonObject:
        if isinstance(self.models, InferdError):
            raise self.models
        return self.models

    async def said(self, topic: str) -> JsonObject:
        message = await self.client.wait_for(lambda each: each.topic == topic)
        return dict(message.json())

    async def said_so_far(self) -> list[Message]:
        # Over the same connection: whatever was said before comes before.
        assert self.daemon.link.send("inference/worker/last", b"")
        await self.client.wait_for(lambda each: each.topic == "inference/worker/last")
        return [each for each in self.client.received if each.topic in (INFO, STATS)]


@pytest.fixture
def broker(tmp_path: Path) -> Iterator[Broker]:
    with Broker(tmp_path) as broker:
        yield broker


@asynccontextmanager
async def opened(broker: Broker, tmp_path: Path) -> AsyncIterator[Rig]:
    async with (
        Daemon(broker, tmp_path / "queue.db") as daemon,
        open_bench(tmp_path / "bench.db") as bench,
        AsyncClient(broker.port) as client,
    ):
        await client.subscribe("inference/worker/#")
        yield Rig(daemon, bench, client)


async def test_info_is_retained_and_told_once_a_connect(broker: Broker, tmp_path: Path) -> None:
    async with opened(broker, tmp_path) as rig:
        told = rig.topics()
        await told.look()
        await told.look()

        assert await rig.said(INFO) == {
            "v": 1,
            "worker_id": "w",
            "timestamp": NOON,
            "version": "1",
            "task_types": ["face_detection"],
            "limits": {"max_batch": 1000},
            "models": {"clip": {"loaded": False}},
        }
        assert [each.topic for each in await rig.said_so_far()] == [INFO, STATS]
        async with AsyncClient(broker.port) as late:
            await late.subscribe("inference/worker/w/+")
            for topic, qos in ((INFO, 1), (STATS, 0)):
                found = await late.wait_for(lambda each, topic=topic: each.topic == topic)  # type: ignore[misc]
                assert (found.is_retained, found.qos) == (True, qos)

        rig.daemon.link._client._connection._transport.abort()
        await until(lambda: rig.daemon.link.connects == 2 and rig.daemon.link.is_up)
        await told.look()

        assert (await rig.said(INFO))["models"] == {"clip": {"loaded": False}}
        await rig.said(STATS)
        assert (await rig.said(STATS))["reconnects"] == 1


async def test_info_is_told_again_when_a_model_is_loaded(broker: Broker, tmp_path: Path) -> None:
    async with opened(broker, tmp_path) as rig:
        told = rig.topics(stats_seconds=0)
        await told.look()
        rig.models = {"clip": {"loaded": True, "weights": "openai", "precision": "bf16"}}
        await told.look()
        rig.models = InferdError("no such file: secret/place", code="model_error")
        await told.look()

        said = await rig.said_so_far()
    assert [each.json()["models"] for each in said] == [
        {"clip": {"loaded": False}},
        {"clip": {"loaded": True, "weights": "openai", "precision": "bf16"}},
        {"error": "model_error"},
    ]


async def test_stats_count_the_queue_and_what_ended(broker: Broker, tmp_path: Path) -> None:
    async with opened(broker, tmp_path) as rig:
        told, queue = rig.topics(), rig.bench.queue
        for number in range(5):
            await rig.bench.accept(number, FACES)
        for lease in await rig.bench.lease(FACES, 3):
            if lease.job.media_store_id:
                await queue.complete(lease, {})
            else:
                await queue.bury(lease, code="empty", message="m")
        await rig.bench.lease(FACES, 1)
        rig.bench.clock.advance(seconds=7)
        rig.seconds += 20
        await told.look()

        stats = await rig.said(STATS)
    none = {"image_embedding": 0, "face_embedding": 0}
    assert {k: v for k, v in stats.items() if k != "outbox"} == {
        "v": 1,
        "worker_id": "w",
        "timestamp": NOON + 7000,
        "pending": 1,
        "delayed": 0,
        "processing": 1,
        "oldest_pending_ms": 7000,
        "done": {"face_detection": 2, **none},
        "failed": {"face_detection": 1, **none},
        "images_per_second": 0.1,
        "reconnects": 0,
    }
    assert stats["outbox"] > 0


async def test_stats_come_on_their_clock_and_when_work_begins_or_ends(
    broker: Broker, tmp_path: Path
) -> None:
    async with opened(broker, tmp_path) as rig:
        told = rig.topics()
        for seconds, is_busy in ((0, False), (5, False), (1, True), (1, True), (9, True), (1, 0)):
            rig.seconds += seconds
            rig.is_busy = bool(is_busy)
            await told.look()

        stats = [each for each in await rig.said_so_far() if each.topic == STATS]
    assert len(stats) == 4


async def test_the_rate_is_that_of_the_last_minute(broker: Broker, tmp_path: Path) -> None:
    async with opened(broker, tmp_path) as rig:
        told = rig.topics()
        rates = []
        for minute in range(3):
            if not minute:
                for number in range(30):
                    await rig.bench.accept(number)
                for lease in await rig.bench.lease():
                    await rig.bench.queue.complete(lease, {})
            rig.seconds += 60
            await told.look()
            rates.append((await rig.said(STATS))["images_per_second"])
    assert rates == [0.5, 0.0, 0.0]


async def test_nothing_is_lost_while_the_broker_is_away(broker: Broker, tmp_path: Path) -> None:
    async with opened(broker, tmp_path) as rig:
        told = rig.topics()
        broker.kill()
        await until(lambda: not rig.daemon.link.is_up)
        with pytest.raises(InferdError):
            await told.look()
        broker.start()
        await until(lambda: rig.daemon.link.is_up)
        await told.look()

        async with AsyncClient(broker.port) as late:
            await late.subscribe("inference/worker/w/+")
            await late.wait_until(lambda received: len(received) == 2)
