"""What is counted: by whom, under which names, and never by a client's words."""

import asyncio
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import ClassVar

import pytest

from daemon.errors import PublishError, RetryableError
from daemon.events import Message
from daemon.jobs import Job, JobState, JsonObject, TaskType
from daemon.metrics import MOST_CODES, Metrics, Reading
from daemon.outbox import Outbox
from daemon.worker.metered_handler import MeteredHandler
from tests.exposition import Exposition
from tests.queue_bench import Bench, open_bench

FACES = TaskType.FACE_DETECTION
JOB = Job(
    job_id="550e8400-e29b-41d4-a716-446655440000",
    task_type=FACES,
    media_store_id=1,
    priority=5,
    status=JobState.ERROR,
    created_at=1_000,
    completed_at=3_500,
    error_code="decode_error",
)


class Handler:
    """Runs its stages on a clock that it turns itself."""

    task_type = FACES
    delivers = True

    def __init__(self, *, failure: BaseException | None = None) -> None:
        self.now = 0.0
        self.failure = failure

    def clock(self) -> float:
        return self.now

    async def handle(self, job: Job, report: Callable[[str], None]) -> JsonObject:
        report("fetch")
        self.now += 2
        report("decode")
        self.now += 0.5
        if self.failure is not None:
            raise self.failure
        return {"inference": {"timings_ms": {"fetch": 2000.0, "decode": 250.0}}}

    async def deliver(self, job: Job, result: JsonObject) -> None:
        self.now += 7
        if self.failure is not None:
            raise self.failure


async def scrape(metrics: Metrics) -> Exposition:
    return Exposition((await metrics.render()).decode())


def counted(bench: Bench) -> Metrics:
    return bench.queue._metrics


# -- names and labels --------------------------------------------------------------------------


async def test_everything_is_ours_or_the_process_and_says_what_it_is() -> None:
    found = await scrape(Metrics())

    assert {name.partition("_")[0] for name in found.families} == {"inferd", "process"}
    assert all(family.documentation for family in found.families.values())
    assert all(
        sample.name.endswith("_total")
        for family in found.families.values()
        if family.type == "counter"
        for sample in family.samples
    )


async def test_series_of_jobs_are_there_before_the_first_job() -> None:
    found = await scrape(Metrics())

    assert found.value("inferd_jobs_total", task_type="face_detection", status="error") == 0
    assert found.labels("inferd_jobs_total", "task_type") == set(TaskType)


async def test_two_daemons_in_a_process_share_nothing() -> None:
    one, two = Metrics(), Metrics()

    one.job_ended(JOB)

    name, labels = "inferd_jobs_total", {"task_type": "face_detection", "status": "error"}
    assert (await scrape(one)).value(name, **labels) == 1
    assert (await scrape(two)).value(name, **labels) == 0


@pytest.mark.parametrize(
    "code", ['x"} 1\ninferd_jobs_total 99', "Not Ours", "", "a" * 41, "1abc", "é", None]
)
async def test_what_is_no_word_of_ours_is_no_label(code: str | None) -> None:
    metrics = Metrics()

    metrics.job_ended(replace(JOB, error_code=code))

    assert (await scrape(metrics)).labels("inferd_job_errors_total", "code") == {"other"}


async def test_codes_without_end_do_not_become_series_without_end() -> None:
    metrics = Metrics()

    for number in range(1000):
        metrics.request_rejected("mqtt", f"code_{number}")
    metrics.request_rejected("mqtt", "code_0")

    found = await scrape(metrics)
    assert len(found.labels("inferd_requests_rejected_total", "code")) == MOST_CODES + 1
    assert found.value("inferd_requests_rejected_total", door="mqtt", code="code_0") == 2
    assert (
        found.value("inferd_requests_rejected_total", door="mqtt", code="other")
        == 1000 - MOST_CODES
    )


# -- readings ----------------------------------------------------------------------------------


async def test_readings_are_asked_for_at_each_scrape() -> None:
    metrics, values = Metrics(), [3.0, 4.0]

    async def depth() -> Iterable[Reading]:
        return [Reading("inferd_depth", "How deep.", values.pop(0), {"where": 'a"b\nc\\'})]

    metrics.add_source("depth", depth)

    assert (await scrape(metrics)).value("inferd_depth", where='a"b\nc\\') == 3
    assert (await scrape(metrics)).value("inferd_depth", where='a"b\nc\\') == 4


async def test_a_source_that_fails_is_left_out_and_counted_and_never_shown_stale() -> None:
    metrics, errors = Metrics(), list[Exception]()

    async def shaky() -> Iterable[Reading]:
        if errors:
            raise errors.pop()
        return [Reading("inferd_shaky", "Sometimes.", 1)]

    async def steady() -> Iterable[Reading]:
        return [Reading("inferd_connects", "Only rises.", 5, is_total=True)]

    metrics.add_source("shaky", shaky)
    metrics.add_source("steady", steady)

    first = await scrape(metrics)
    errors.append(RuntimeError("gone"))
    second = await scrape(metrics)

    assert first.value("inferd_shaky") == 1
    assert first.value("inferd_scrape_errors_total", source="shaky") == 0
    assert "inferd_shaky" not in second.families
    assert second.value("inferd_scrape_errors_total", source="shaky") == 1
    assert second.value("inferd_connects_total") == 5


async def test_a_source_that_hangs_holds_up_no_scrape(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("daemon.metrics.READ_SECONDS", 0.01)
    metrics = Metrics()

    async def stuck() -> Iterable[Reading]:
        await asyncio.Event().wait()
        return []

    metrics.add_source("stuck", stuck)

    found = await scrape(metrics)
    assert found.value("inferd_scrape_errors_total", source="stuck") == 1


# -- stages ------------------------------------------------------------------------------------


async def test_a_job_that_went_well_says_how_long_its_stages_took() -> None:
    metrics, handler = Metrics(), Handler()
    reported: list[str] = []

    metered = MeteredHandler(handler, metrics, handler.clock)
    result = await metered.handle(JOB, reported.append)
    await metered.deliver(JOB, result)

    found = await scrape(metrics)
    assert (metered.task_type, metered.delivers) == (FACES, True)
    assert reported == ["fetch", "decode"]
    sums = {
        stage: found.value("inferd_stage_seconds_sum", task_type="face_detection", stage=stage)
        for stage in ("fetch", "decode", "deliver")
    }
    # Its own word, and not the time between reports, which holds waits of another kind.
    assert sums == {"fetch": 2.0, "decode": 0.25, "deliver": 7.0}


@pytest.mark.parametrize("failure", [RetryableError("no"), asyncio.CancelledError()])
async def test_the_stage_that_failed_is_measured_too(failure: BaseException) -> None:
    metrics, handler = Metrics(), Handler(failure=failure)
    metered = MeteredHandler(handler, metrics, handler.clock)

    with pytest.raises(type(failure)):
        await metered.handle(JOB, lambda _stage: None)
    with pytest.raises(type(failure)):
        await metered.deliver(JOB, {})

    found = await scrape(metrics)
    assert found.labels("inferd_stage_seconds_count", "stage") == {"fetch", "decode", "deliver"}
    took = found.value("inferd_stage_seconds_sum", task_type="face_detection", stage="decode")
    assert took == 0.5


async def test_a_result_without_timings_is_no_failure() -> None:
    class Bare(Handler):
        async def handle(self, job: Job, report: Callable[[str], None]) -> JsonObject:
            return {"inference": None}

    metrics = Metrics()

    assert await MeteredHandler(Bare(), metrics).handle(JOB, lambda _: None) == {"inference": None}
    assert (await scrape(metrics)).labels("inferd_stage_seconds_count", "stage") == set()


async def test_an_ended_job_is_measured_from_its_acceptance() -> None:
    metrics = Metrics()

    metrics.job_ended(JOB)

    found = await scrape(metrics)
    took = found.value("inferd_job_seconds_sum", task_type="face_detection", status="error")
    assert took == 2.5


# -- the queue counts --------------------------------------------------------------------------


async def test_the_queue_counts_a_job_from_its_request_to_its_end(tmp_path: Path) -> None:
    async with open_bench(tmp_path / "queue.db") as bench:
        job = await bench.accept()
        await bench.ask(job_id=job.job_id)
        await bench.refuse()
        lease = await bench.lease_one()
        await bench.queue.retry(lease, run_at=0, code="model_error", message="m")
        lease = await bench.lease_one()
        await bench.queue.retry(
            lease, run_at=0, code="dependency_down", message="m", gives_back=True
        )
        lease = await bench.lease_one()
        await bench.queue.release(lease)
        lease = await bench.lease_one()
        await bench.queue.complete(lease, {"fine": True})
        found = await scrape(counted(bench))

    image = {"task_type": "image_embedding"}
    assert found.value("inferd_requests_accepted_total", **image, duplicate="false") == 1
    assert found.value("inferd_requests_accepted_total", **image, duplicate="true") == 1
    assert found.value("inferd_requests_rejected_total", door="mqtt", code="conflict") == 1
    assert found.value("inferd_job_attempts_total", **image) == 4
    assert found.value("inferd_job_retries_total", **image, code="model_error") == 1
    assert found.value("inferd_job_waits_total", **image, code="dependency_down") == 1
    assert found.labels("inferd_job_retries_total", "code") == {"model_error"}
    assert found.value("inferd_jobs_total", **image, status="completed") == 1
    assert found.labels("inferd_job_errors_total", "code") == set()


async def test_ends_by_hand_by_force_and_by_a_lost_lease_are_counted(tmp_path: Path) -> None:
    async with open_bench(tmp_path / "queue.db", max_attempts=1) as bench:
        await bench.queue.cancel((await bench.accept(1)).job_id)
        await bench.accept(2)
        await bench.accept(2, force=True)
        await bench.lease_one()
        bench.clock.advance(seconds=60)
        await bench.queue.reclaim()
        found = await scrape(counted(bench))

    image = {"task_type": "image_embedding"}
    assert found.value("inferd_jobs_total", **image, status="error") == 3
    assert found.value("inferd_leases_reclaimed_total", **image) == 1
    codes = {"cancelled", "superseded", "worker_lost"}
    assert found.labels("inferd_job_errors_total", "code") == codes


async def test_a_result_delivered_at_last_counts_as_completed_too(tmp_path: Path) -> None:
    async with open_bench(tmp_path / "queue.db") as bench:
        await bench.accept(1, FACES)
        lease = await bench.lease_one(FACES)
        job = await bench.queue.give_up_sync(
            lease, {}, run_at=0, code="media_store_error", message="m"
        )
        assert (await bench.queue.snapshot()).undelivered == 1
        await bench.queue.heal(job)
        found = await scrape(counted(bench))

    faces = {"task_type": "face_detection"}
    assert found.value("inferd_jobs_total", **faces, status="sync_failed") == 1
    assert found.value("inferd_jobs_total", **faces, status="completed") == 1


async def test_what_was_not_committed_is_not_counted(tmp_path: Path) -> None:
    async with open_bench(tmp_path / "queue.db") as bench:
        lease = (await bench.accept(), await bench.lease_one())[1]
        await bench.execute(
            "CREATE TRIGGER full BEFORE INSERT ON outbox BEGIN SELECT RAISE(ABORT, 'full'); END"
        )
        with pytest.raises(Exception, match="full"):
            await bench.queue.complete(lease, {})
        with pytest.raises(Exception, match="full"):
            await bench.ask(2)
        found = await scrape(counted(bench))

    image = {"task_type": "image_embedding"}
    assert found.value("inferd_jobs_total", **image, status="completed") == 0
    assert found.value("inferd_requests_accepted_total", **image, duplicate="false") == 1


async def test_the_snapshot_knows_the_oldest_of_all_that_waits(tmp_path: Path) -> None:
    async with open_bench(tmp_path / "queue.db") as bench:
        nothing = await bench.queue.snapshot()
        await bench.accept(1)
        lease = await bench.lease_one()
        bench.clock.advance(seconds=10)
        await bench.accept(2, priority=10)
        bench.clock.advance(seconds=5)
        waiting = await bench.queue.snapshot()
        await bench.queue.retry(lease, run_at=bench.clock() + 1000, code="timeout", message="m")
        delayed = await bench.queue.snapshot()

    assert (nothing.pending, nothing.oldest_pending_seconds, nothing.oldest_event_seconds) == (
        0,
        0,
        0,
    )
    assert (waiting.pending, waiting.processing, waiting.oldest_pending_seconds) == (1, 1, 5)
    assert waiting.outbox == 3
    assert waiting.oldest_event_seconds == 15
    assert (delayed.pending, delayed.delayed, delayed.oldest_pending_seconds) == (2, 1, 15)


async def test_the_relay_counts_what_became_of_events(tmp_path: Path) -> None:
    class Link:
        is_up = True
        answers: ClassVar[dict[str, PublishError]] = {
            "b": PublishError("no", reason_code=0x97),
            "c": PublishError("lost"),
        }

        async def wait_up(self) -> None: ...

        async def publish_all(self, messages: Sequence[Message]) -> list[int | PublishError]:
            return [self.answers.get(each.topic, 0) for each in messages]

    metrics = Metrics()
    async with open_bench(tmp_path / "queue.db") as bench:
        for topic in "aaabbc":
            await bench.queue.enqueue_all([Message(topic, "{}", None)])
        outbox = Outbox(
            bench.database,
            Link(),
            bench.queue.message_ready,
            owner="host/boot/ns/1/1",
            clock=bench.clock,
            metrics=metrics,
        )
        await outbox.relay()

    found = await scrape(metrics)
    fates = {
        fate: found.value("inferd_events_total", fate=fate)
        for fate in ("published", "refused", "unconfirmed")
    }
    assert fates == {"published": 3, "refused": 2, "unconfirmed": 1}
