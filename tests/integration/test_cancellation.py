"""Cancels: of jobs that wait, run, ended, run elsewhere or never were; real queue and worker."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

from daemon.errors import RetryableError, StorageError
from daemon.jobs import Job, JobState, JsonObject
from daemon.requests import MqttRequest
from daemon.settings import QueueSettings, WorkerSettings
from daemon.worker.cancellation import Cancellation
from daemon.worker.worker import Worker
from tests.integration.test_worker import Gate, Handler, HeldDoor, raising
from tests.queue_bench import Bench, open_bench, until

ID = "550e8400-e29b-41d4-a716-446655440000"


@pytest.fixture
async def bench(tmp_path: Path) -> AsyncIterator[Bench]:
    async with open_bench(tmp_path / "queue.db") as bench:
        yield bench


@asynccontextmanager
async def working(bench: Bench, handler: Handler) -> AsyncIterator[Worker]:
    worker = Worker(
        bench.queue,
        [handler],
        settings=WorkerSettings(poll_seconds=0.01),
        queue_settings=QueueSettings(),
        clock=bench.clock,
    )
    task = asyncio.create_task(worker.run())
    yield worker
    await worker.drain()
    task.cancel()
    with suppress(asyncio.CancelledError):
        await task


async def runs_nothing(_job_id: str) -> bool:
    return False


def cancellation(bench: Bench, worker: Worker | None = None) -> Cancellation:
    return Cancellation(
        bench.queue,
        stop_running=worker.cancel if worker else runs_nothing,
        clock=bench.clock,
        worker_id="inferd-test",
    )


def cancel_of(job_id: str, **fields: Any) -> MqttRequest:
    return MqttRequest(topic=f"inference/cancel/{job_id}", payload=b"", **fields)


async def names(bench: Bench, job: Job) -> list[str]:
    return [each.name for each in await bench.told(job.job_id)]


async def test_a_waiting_job_ends_in_error_with_its_events(bench: Bench) -> None:
    job = await bench.accept()

    await cancellation(bench).on_cancel(cancel_of(job.job_id))

    ended = await bench.queue.get(job.job_id)
    assert (ended.status, ended.error_code) == (JobState.ERROR, "cancelled")
    assert await names(bench, job) == ["accepted", "completed", "failed"]


async def test_a_second_cancel_says_the_same_again(bench: Bench) -> None:
    job = await bench.accept()
    await cancellation(bench).on_cancel(cancel_of(job.job_id))
    bench.clock.advance(seconds=60)

    await cancellation(bench).on_cancel(cancel_of(job.job_id))

    told = [each.event for each in await bench.told(job.job_id)][1:]
    assert told[:2] == told[2:]


async def test_a_running_job_is_stopped_and_ends_in_error(bench: Bench) -> None:
    gate = Gate()
    async with working(bench, Handler(gate)) as worker:
        job = await bench.accept()
        await gate.began.wait()

        await cancellation(bench, worker).on_cancel(cancel_of(job.job_id))

        assert gate.cancelled.is_set()
        ended = await bench.queue.get(job.job_id)
        assert (ended.status, ended.error_code) == (JobState.ERROR, "cancelled")
        assert ended.error_message == "cancelled: the job was cancelled while it ran"
        assert await names(bench, job) == ["accepted", "started", "completed", "failed"]
        # Nothing of it stays behind: the pair may be asked again, and runs.
        gate.open()
        again = await bench.accept()
        await until(lambda: is_completed(bench, again), "the next job is completed")


async def is_completed(bench: Bench, job: Job) -> bool:
    return (await bench.queue.get(job.job_id)).status is JobState.COMPLETED


async def test_many_cancels_of_a_running_job_are_one(bench: Bench) -> None:
    gate = Gate()
    async with working(bench, Handler(gate)) as worker:
        job = await bench.accept()
        await gate.began.wait()
        door = cancellation(bench, worker)

        await asyncio.gather(*(door.on_cancel(cancel_of(job.job_id)) for _ in range(5)))

        told = await bench.told(job.job_id)
    assert [each.name for each in told][:4] == ["accepted", "started", "completed", "failed"]
    # Whoever came late may have heard it again; nobody was refused, and no event is another.
    assert {each.name for each in told} == {"accepted", "started", "completed", "failed"}
    assert len({each.event["event_id"] for each in told}) == 4


async def test_a_job_whose_next_try_began_as_it_was_stopped_is_stopped_again(bench: Bench) -> None:
    job = await bench.accept()
    leases = [await bench.lease_one()]

    async def stop(_job_id: str) -> bool:
        if len(leases) == 1:
            await bench.queue.release(leases[0])
            leases.append(await bench.lease_one())
        else:
            await bench.queue.complete(leases[1], {"by": "itself"})
            leases.clear()
        return True

    ended = await Cancellation(
        bench.queue, stop_running=stop, clock=bench.clock, worker_id="inferd-test"
    ).end(job.job_id)

    assert (ended.status, leases) == (JobState.COMPLETED, [])


async def test_a_success_that_is_being_written_wins(bench: Bench) -> None:
    door = HeldDoor(bench)
    done = asyncio.Event()

    async def finish(_job: Job) -> JsonObject:
        await door.close()
        done.set()
        return {"by": "itself"}

    async with working(bench, Handler(finish)) as worker:
        job = await bench.accept()
        await done.wait()
        # The outcome waits for the disk by now, or will before the cancel is heard.
        await asyncio.sleep(0)
        cancelling = asyncio.create_task(
            cancellation(bench, worker).on_cancel(cancel_of(job.job_id))
        )
        await asyncio.sleep(0)
        await door.open()
        await cancelling

        ended = await bench.queue.get(job.job_id)
        assert (ended.status, ended.result) == (JobState.COMPLETED, {"by": "itself"})
        assert (await names(bench, job)).count("completed") <= 2
        assert "failed" not in await names(bench, job)


async def test_a_job_that_waits_for_its_next_try_is_cancelled(bench: Bench) -> None:
    handler = Handler(raising(RetryableError("later")))
    async with working(bench, handler) as worker:
        job = await bench.accept()
        await until(lambda: is_delayed(bench, job), "the job waits for its next try")

        await cancellation(bench, worker).on_cancel(cancel_of(job.job_id))

        assert (await bench.queue.get(job.job_id)).error_code == "cancelled"
    assert len(handler.handled) == 1


async def is_delayed(bench: Bench, job: Job) -> bool:
    return (await bench.row(job.job_id))["run_at"] is not None


async def test_a_job_that_had_ended_says_again_how(bench: Bench) -> None:
    job = await bench.accept()
    await bench.queue.complete(await bench.lease_one(), {"faces": []})
    before = [each.event for each in await bench.told(job.job_id)]

    await cancellation(bench).on_cancel(cancel_of(job.job_id))

    after = [each.event for each in await bench.told(job.job_id)]
    assert after == [*before, before[-1]]
    assert after[-1]["status"] == "completed"


async def test_a_job_that_runs_elsewhere_is_a_conflict(bench: Bench) -> None:
    job = await bench.accept()
    await bench.lease_one()

    await cancellation(bench).on_cancel(
        cancel_of(job.job_id, response_topic="inference/reply/me", correlation_data="YWJj")
    )

    *_, told, copy = await bench.told(job.job_id)
    assert told.topic == f"inference/job/{job.job_id}/rejected"
    assert told.event["data"]["code"] == "conflict"
    assert told.event["data"]["existing_job_id"] == job.job_id
    assert (copy.topic, copy.event, copy.correlation_data) == (
        "inference/reply/me",
        told.event,
        "YWJj",
    )
    assert (await bench.queue.get(job.job_id)).status is JobState.PROCESSING


@pytest.mark.parametrize(
    ("message", "code", "field"),
    [
        (cancel_of(ID), "job_not_found", None),
        (cancel_of("no-uuid"), "invalid_request", "job_id"),
        (cancel_of(ID, is_retained=True), "retained_request", None),
        (cancel_of(ID, response_topic="inference/job/x/completed"), "job_not_found", None),
    ],
    ids=["unknown", "no_uuid", "retained", "reply"],
)
async def test_what_cannot_be_cancelled_is_a_dead_letter(
    bench: Bench, message: MqttRequest, code: str, field: str | None
) -> None:
    await cancellation(bench).on_cancel(message)
    await cancellation(bench).on_cancel(message)

    told = await bench.told()
    assert [each.topic for each in told] == ["inference/rejected/cancel"] * 2
    assert {each.event["data"]["code"] for each in told} == {code}
    assert {each.event["data"].get("field") for each in told} == {field}
    assert len({each.event["event_id"] for each in told}) == 1


async def test_dead_letters_of_two_ids_are_two_events(bench: Bench) -> None:
    for job_id in (ID, ID[:-1] + "1"):
        await cancellation(bench).on_cancel(cancel_of(job_id))

    told = await bench.told()
    assert len({each.event["event_id"] for each in told}) == 2
    assert told[0].event["data"]["body"] == ID


async def test_a_retained_cancel_ends_nothing(bench: Bench) -> None:
    job = await bench.accept()

    await cancellation(bench).on_cancel(cancel_of(job.job_id, is_retained=True))

    assert (await bench.queue.get(job.job_id)).status is JobState.PENDING


async def test_a_cancel_that_cannot_be_stored_is_not_acknowledged(bench: Bench) -> None:
    job = await bench.accept()
    await bench.execute(
        "CREATE TRIGGER full BEFORE INSERT ON outbox BEGIN SELECT RAISE(ABORT, 'disk'); END"
    )

    for job_id in (job.job_id, ID):
        with pytest.raises(StorageError):
            await cancellation(bench).on_cancel(cancel_of(job_id))

    assert (await bench.queue.get(job.job_id)).status is JobState.PENDING
