"""Progress and QoS 0 over the link: real mosquitto, paho as the listener."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from daemon.jobs import Job, JobState, TaskType
from daemon.worker.progress import MOST_A_SECOND, STAGES, Progress
from tests.broker import Broker
from tests.integration.test_intake_over_mqtt import Daemon, client_of
from tests.waiting import until

ID = "550e8400-e29b-41d4-a716-446655440000"
TOPIC = f"inference/job/{ID}/progress"
JOB = Job(
    job_id=ID,
    task_type=TaskType.FACE_EMBEDDING,
    media_store_id=1,
    priority=5,
    status=JobState.PROCESSING,
    created_at=1,
    request_id="mine",
    seq=2,
)


@pytest.fixture
def broker(tmp_path: Path) -> Iterator[Broker]:
    with Broker(tmp_path) as broker:
        yield broker


def a_progress(daemon: Daemon, *, is_on: bool = True) -> Progress:
    return Progress(daemon.link, clock=lambda: 9, worker_id="w", is_on=is_on)


async def test_each_stage_is_told_once_as_an_event(broker: Broker, tmp_path: Path) -> None:
    async with Daemon(broker, tmp_path / "queue.db") as daemon, client_of(broker) as client:
        progress = a_progress(daemon)
        for stage in ("fetch", "fetch", "decode", "infer", "infer", "store"):
            progress.report(JOB, stage)
        assert daemon.link.send("inference/reply/last", b"")
        await client.wait_for(lambda message: message.topic == "inference/reply/last")
        *told, _last = client.received

    assert {(each.topic, each.qos, each.is_retained) for each in told} == {(TOPIC, 0, False)}
    events = [each.json() for each in told]
    assert [each["data"]["stage"] for each in events] == ["fetch", "decode", "infer", "store"]
    fractions = [each["data"]["fraction"] for each in events]
    assert fractions == sorted(fractions)
    assert len({each["event_id"] for each in events}) == 4
    first = events[0]
    del first["event_id"]
    assert first == {
        "v": 1,
        "event": "job_progress",
        "seq": 2,
        "timestamp": 9,
        "job_id": ID,
        "request_id": "mine",
        "worker_id": "w",
        "status": "processing",
        "data": {"stage": "fetch", "fraction": 0.0},
    }


async def test_the_reply_topic_hears_it_with_correlation_data(
    broker: Broker, tmp_path: Path
) -> None:
    job = Job(
        job_id=ID,
        task_type=TaskType.FACE_EMBEDDING,
        media_store_id=1,
        priority=5,
        status=JobState.PROCESSING,
        created_at=1,
        reply_to="inference/reply/me",
        correlation_data="YWJj",
    )
    async with Daemon(broker, tmp_path / "queue.db") as daemon, client_of(broker) as client:
        a_progress(daemon).report(job, "infer")
        original = await client.wait_for(lambda message: message.topic == TOPIC)
        copy = await client.wait_for(lambda message: message.topic == "inference/reply/me")

    assert copy.payload == original.payload
    assert (copy.correlation_data, original.correlation_data) == (b"abc", None)


async def test_so_many_are_told_in_a_second_and_no_more(broker: Broker, tmp_path: Path) -> None:
    now = 5000
    async with Daemon(broker, tmp_path / "queue.db") as daemon, client_of(broker) as client:
        progress = Progress(daemon.link, clock=lambda: now, worker_id="w")
        for number in range(300):
            progress.report(JOB, f"stage {number}")
        now += 1000
        progress.report(JOB, "infer")
        assert daemon.link.send("inference/reply/last", b"")
        await client.wait_for(lambda message: message.topic == "inference/reply/last")
        *told, _last = client.received

    assert len(told) == MOST_A_SECOND + 1
    assert told[-1].json()["data"]["stage"] == "infer"


class Counter:
    """A link that counts what it is given to send."""

    is_up = True
    sent = 0

    def send(self, *_: object, **__: object) -> bool:
        self.sent += 1
        return True


def test_a_clock_that_is_put_back_silences_no_progress() -> None:
    now = 3_600_000
    link = Counter()
    progress = Progress(link, clock=lambda: now, worker_id="w")
    for number in range(2 * MOST_A_SECOND):
        progress.report(JOB, f"stage {number}")
    assert link.sent == MOST_A_SECOND
    now = 0

    progress.report(JOB, "infer")

    assert link.sent == MOST_A_SECOND + 1


async def test_it_can_be_turned_off(broker: Broker, tmp_path: Path) -> None:
    async with Daemon(broker, tmp_path / "queue.db") as daemon, client_of(broker) as client:
        a_progress(daemon, is_on=False).report(JOB, "fetch")
        # Over the same connection: whatever was said before comes before.
        assert daemon.link.send("inference/reply/last", b"")
        await client.wait_for(lambda message: message.topic == "inference/reply/last")

        assert len(client.received) == 1


async def test_nothing_fails_while_the_broker_is_away(broker: Broker, tmp_path: Path) -> None:
    async with Daemon(broker, tmp_path / "queue.db") as daemon:
        progress = a_progress(daemon)
        broker.kill()
        # At once, before the link knows, and after.
        for stage in ("fetch", "decode"):
            progress.report(JOB, stage)
        await until(lambda: not daemon.link.is_up)
        assert daemon.link.send(TOPIC, b"x") is False
        progress.report(JOB, "infer")
        broker.start()
        await until(lambda: daemon.link.is_up)
        # Nobody could hear of `infer`: it is told when it is reported to somebody.
        async with client_of(broker) as late:
            progress.report(JOB, "infer")
            assert (await late.wait_for()).json()["data"]["stage"] == "infer"


async def test_a_broker_that_reads_nothing_does_not_fill_our_memory(
    broker: Broker, tmp_path: Path
) -> None:
    async with Daemon(broker, tmp_path / "queue.db") as daemon, client_of(broker) as client:
        connection = daemon.link._client._connection
        broker.freeze()
        try:
            sent = 0
            while daemon.link.send(TOPIC, bytes(30_000)):
                sent += 1
                assert sent < 10_000
            assert connection._transport.get_write_buffer_size() < 200_000
            assert daemon.link.send(TOPIC, b"x") is False
        finally:
            broker.thaw()
        await client.wait_until(lambda received: len(received) == sent)
        assert daemon.link.send(TOPIC, b"x") is True
        assert daemon.link.connects == 1


async def test_what_the_broker_would_not_take_is_dropped(tmp_path: Path) -> None:
    with Broker(tmp_path, max_packet_size=10_000) as broker:
        async with Daemon(broker, tmp_path / "queue.db") as daemon, client_of(broker) as client:
            assert daemon.link.send(TOPIC, bytes(20_000)) is False
            assert daemon.link.send(TOPIC, b"small", retain=True) is True
            assert (await client.wait_for()).payload == b"small"
            assert daemon.link.connects == 1


def test_every_stage_of_the_handlers_has_a_fraction() -> None:
    root = Path(__file__).parent.parent.parent
    named = {
        part.partition('"')[0]
        for path in (root / "handlers").rglob("*.py")
        for part in path.read_text(encoding="utf-8").split('timings.stage("')[1:]
    }

    assert named
    assert named <= set(STAGES)
