"""The worker over a real queue; handlers are written by hand, the clock is turned by hand."""

import asyncio
import logging
import threading
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

from daemon.errors import (
    DependencyDownError,
    HandlerError,
    PermanentError,
    RetryableError,
    StorageError,
)
from daemon.handler import Report
from daemon.jobs import Job, JobState, JsonObject, TaskType
from daemon.queue.backend import Connection
from daemon.settings import QueueSettings, WorkerSettings
from daemon.stage import StageClosedError
from daemon.worker import running_jobs
from daemon.worker import worker as worker_module
from daemon.worker.worker import Worker
from tests.queue_bench import DEADLINE, FACES, IMAGE, NOON, Bench, open_bench, until

ID = "550e8400-e29b-41d4-a716-446655440000"
LONG = 1000.0
"""Seconds of the test's clock after which whatever waits for its moment has it."""
NO_DISK = (
    "CREATE TRIGGER full BEFORE INSERT ON outbox"
    " WHEN new.payload LIKE '%job_completed%' BEGIN SELECT RAISE(ABORT, 'disk full'); END"
)

Script = Callable[[Job], Awaitable[JsonObject]]


class Handler:
    """Does what the test wrote for each job, and remembers what it was given."""

    def __init__(
        self, script: Script | None = None, task_type: TaskType = IMAGE, *, delivers: bool = False
    ) -> None:
        self.task_type = task_type
        self.delivers = delivers
        self.handled: list[Job] = []
        self.delivered: list[JsonObject] = []
        self.refusals: list[Exception] = []
        """What `deliver` raises, one after the other; then it works."""
        self._script = script or well

    async def handle(self, job: Job, report: Report) -> JsonObject:
        self.handled.append(job)
        report("infer")
        return await self._script(job)

    async def deliver(self, job: Job, result: JsonObject) -> None:
        if self.refusals:
            raise self.refusals.pop(0)
        self.delivered.append(result)


class Gate:
    """A script that waits until the test opens it."""

    def __init__(self) -> None:
        self.began = asyncio.Event()
        self.cancelled = asyncio.Event()
        self._go = asyncio.Event()

    def open(self) -> None:
        self._go.set()

    async def __call__(self, job: Job) -> JsonObject:
        self.began.set()
        try:
            await self._go.wait()
        except asyncio.CancelledError:
            self.cancelled.set()
            raise
        return {"by": "gate"}


class HeldDoor:
    """Keeps every write of a queue waiting, as a slow disk does."""

    def __init__(self, bench: Bench) -> None:
        self._bench = bench
        self._begun, self._release = asyncio.Event(), threading.Event()

    async def close(self) -> None:
        loop = asyncio.get_running_loop()

        async def hold(_connection: Connection) -> None:
            loop.call_soon_threadsafe(self._begun.set)
            assert self._release.wait(DEADLINE)

        self._task = asyncio.create_task(self._bench.database.write(hold))
        await self._begun.wait()

    async def open(self) -> None:
        self._release.set()
        await self._task


async def well(job: Job) -> JsonObject:
    return {"picture": job.media_store_id}


def raising(*errors: Exception) -> Script:
    """Return a script that raises these, one after the other, and the last for ever."""
    left = list(errors)

    async def script(_job: Job) -> JsonObject:
        raise left.pop(0) if len(left) > 1 else left[0]

    return script


@pytest.fixture
async def bench(tmp_path: Path) -> AsyncIterator[Bench]:
    async with open_bench(tmp_path / "queue.db") as opened:
        yield opened


@asynccontextmanager
async def working(
    bench: Bench, *handlers: Handler, queue: dict[str, Any] | None = None, **settings: Any
) -> AsyncIterator[Worker]:
    """Run a worker for as long as the block lasts; it must not have ended by itself."""
    worker = Worker(
        bench.queue,
        handlers,
        settings=WorkerSettings(**{"poll_seconds": 0.02, "shutdown_grace_seconds": 0} | settings),
        queue_settings=QueueSettings(**queue or {}),
        clock=bench.clock,
    )
    running = asyncio.create_task(worker.run())
    try:
        yield worker
        assert not running.done() or worker._stop.rings, running
    finally:
        await worker.drain()
        running.cancel()
        with suppress(asyncio.CancelledError):
            await running


async def reaches(bench: Bench, job_id: str, status: str, **fields: Any) -> dict[str, Any]:
    """Wait until a job's row says so, and return it."""
    wanted = {"status": status} | fields

    async def has() -> bool:
        row = await bench.row(job_id)
        return all(row[name] == value for name, value in wanted.items())

    await until(has, f"job {job_id}: {wanted}, but {await bench.row(job_id)}")
    return await bench.row(job_id)


async def turns(count: int = 50) -> None:
    """Let everything that can run do so."""
    for _ in range(count):
        await asyncio.sleep(0)


# -- ends --------------------------------------------------------------------------------------


async def test_a_job_completes_with_its_result(bench: Bench) -> None:
    await bench.accept(7, job_id=ID)

    async with working(bench, Handler()):
        await reaches(bench, ID, "completed")

    assert (await bench.queue.get(ID)).result == {"picture": 7}


async def test_a_job_that_comes_while_we_wait_is_run(bench: Bench) -> None:
    async with working(bench, Handler()):
        await turns()
        await bench.accept(job_id=ID)
        await reaches(bench, ID, "completed")


async def test_a_picture_that_can_never_work_is_buried_at_once(bench: Bench) -> None:
    await bench.accept(job_id=ID)
    handler = Handler(raising(PermanentError("it is torn", code="decode_error")))

    async with working(bench, handler):
        row = await reaches(bench, ID, "error")

    assert (row["error_code"], row["error_message"], row["attempt"]) == (
        "decode_error",
        "decode_error: it is torn",
        1,
    )


async def test_one_bad_picture_harms_no_other(bench: Bench) -> None:
    jobs = [await bench.accept(number) for number in range(20)]

    async def script(job: Job) -> JsonObject:
        if job.media_store_id == 7:
            raise PermanentError("it is torn", code="decode_error")
        return {}

    async with working(bench, Handler(script)):
        for job in jobs:
            wanted = "error" if job.media_store_id == 7 else "completed"
            await reaches(bench, job.job_id, wanted)


async def test_a_passing_error_is_tried_four_times_with_growing_waits(bench: Bench) -> None:
    await bench.accept(job_id=ID)
    handler = Handler(raising(RetryableError("busy", code="media_store_error")))
    waits = []

    async with working(bench, handler):
        for attempt in (1, 2, 3):
            row = await reaches(bench, ID, "pending", attempt=attempt)
            waits.append(row["run_at"] - bench.clock())
            bench.clock.advance(seconds=LONG)
        row = await reaches(bench, ID, "error")

    assert len(handler.handled) == 4
    assert waits[0] < waits[1] < waits[2]
    assert row["error_message"] == "media_store_error: busy (after 4 attempts)"


async def test_a_daemon_that_ends_by_a_fault_of_its_own_charges_no_job_an_attempt(
    bench: Bench,
) -> None:
    """The race: its parts were closed while jobs still ran, and each was charged an attempt."""
    await bench.accept(job_id=ID)

    async def closed_at_first(job: Job) -> JsonObject:
        if len(handler.handled) == 1:
            raise StageClosedError("infer-clip")
        return await well(job)

    handler = Handler(closed_at_first)

    async with working(bench, handler):
        row = await reaches(bench, ID, "completed")

    assert [job.attempt for job in handler.handled] == [1, 1]
    assert (row["attempt"], row["error_code"]) == (1, None)


async def test_a_job_that_waits_for_its_retry_is_left_alone(bench: Bench) -> None:
    await bench.accept(job_id=ID)
    handler = Handler(raising(RetryableError("busy")))

    async with working(bench, handler):
        await reaches(bench, ID, "pending", attempt=1)
        await bench.accept(2, job_id=ID[:-1] + "1")
        await reaches(bench, ID[:-1] + "1", "pending", attempt=1)

    assert [job.job_id for job in handler.handled].count(ID) == 1


async def test_a_bug_in_a_handler_is_retried_and_logged_with_its_traceback(
    bench: Bench, caplog: pytest.LogCaptureFixture
) -> None:
    await bench.accept(job_id=ID)

    async with working(bench, Handler(raising(ZeroDivisionError("1/0")))):
        row = await reaches(bench, ID, "pending", attempt=1)

    assert row["error_code"] == "internal"
    assert "1/0" not in row["error_message"]
    (record,) = [record for record in caplog.records if record.exc_info]
    assert record.levelno == logging.ERROR
    assert record.exc_info is not None
    assert isinstance(record.exc_info[1], ZeroDivisionError)


@pytest.mark.parametrize("wrong", [{"a": float("nan")}, {"a": "\ud800"}, {"a": object()}, None, 7])
async def test_a_result_that_cannot_be_stored_is_a_bug_of_the_handler(
    bench: Bench, wrong: Any
) -> None:
    # It failed the commit of everyone who settled at that moment, and nobody settled its job.
    await bench.accept(1, job_id=ID)
    other = await bench.accept(2)

    async def script(job: Job) -> JsonObject:
        return wrong if job.job_id == ID else {}

    async with working(bench, Handler(script)):
        row = await reaches(bench, ID, "pending", attempt=1)
        await reaches(bench, other.job_id, "completed")

    assert row["error_code"] == "internal"


async def test_a_job_that_takes_too_long_is_stopped_and_retried(bench: Bench) -> None:
    await bench.accept(job_id=ID)
    gate = Gate()

    async with working(bench, Handler(gate), job_timeout_seconds=0.05):
        row = await reaches(bench, ID, "pending", attempt=1)

    assert gate.cancelled.is_set()
    assert row["error_message"] == "timeout: the job took longer than 0.05 s"


async def test_an_expired_job_is_not_run(bench: Bench) -> None:
    await bench.accept(job_id=ID, expires_at=NOON + 1000)
    bench.clock.advance(seconds=1)
    handler = Handler()

    async with working(bench, handler):
        row = await reaches(bench, ID, "error")

    assert row["error_code"] == "expired"
    assert handler.handled == []


# -- dependencies ------------------------------------------------------------------------------


async def test_a_dependency_that_is_away_costs_no_attempt(bench: Bench) -> None:
    await bench.accept(job_id=ID)
    handler = Handler(raising(DependencyDownError("away", code="media_store_unreachable")))

    async with working(bench, handler):
        row = await reaches(bench, ID, "pending", error_code="media_store_unreachable")

    assert (row["attempt"], row["waiting_since"]) == (0, NOON)


async def test_waiting_for_a_dependency_ends_in_error(bench: Bench) -> None:
    await bench.accept(job_id=ID)
    handler = Handler(raising(DependencyDownError("away", code="media_store_unreachable")))

    async with working(bench, handler, queue={"dependency_wait_seconds": 60}):
        await reaches(bench, ID, "pending", waiting_since=NOON)
        bench.clock.advance(seconds=60)
        row = await reaches(bench, ID, "error")

    assert row["error_message"] == "media_store_unreachable: away (waited 60 s)"


async def test_while_a_dependency_is_away_the_others_keep_their_place(bench: Bench) -> None:
    for number in range(30):
        await bench.accept(number)
    handler = Handler(raising(DependencyDownError("away")))

    async with working(bench, handler, max_in_flight=4):
        await until(lambda: has_handled(handler, 4), "the first jobs were tried")
        await turns(500)

    assert len(handler.handled) <= 8


async def test_one_job_at_a_time_tries_whether_the_dependency_is_back(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(worker_module, "HOLD_SECONDS", 0.0001)
    for number in range(12):
        await bench.accept(number)
    gate, left = Gate(), 4

    async def script(job: Job) -> JsonObject:
        nonlocal left
        if left:
            left -= 1
            raise DependencyDownError("away")
        return await gate(job)

    handler = Handler(script)
    async with working(bench, handler, max_in_flight=4) as worker:
        await until(lambda: has_handled(handler, 5), "one tries")
        for _ in range(50):
            await bench.rows("SELECT 1")  # as long as some leases take
        assert (len(handler.handled), worker.in_flight) == (5, 1)

        gate.open()
        await until(lambda: has_handled(handler, 12), "the others follow")
        assert worker._attempts.away == set()


async def test_only_a_dependency_that_is_away_holds_back_the_others(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(worker_module, "HOLD_SECONDS", 0.01)
    for number in range(2):
        await bench.accept(number)
    handler = Handler(raising(DependencyDownError("away"), PermanentError("bad")))

    async with working(bench, handler, max_in_flight=1) as worker:
        await until(lambda: has_handled(handler, 1), "the first was tried")
        await reaches(bench, (await bench.accept(9, job_id=ID)).job_id, "error")
        assert worker._attempts.away == set()


async def test_jobs_run_again_once_the_dependency_is_back(bench: Bench) -> None:
    jobs = [await bench.accept(number) for number in range(3)]
    is_away = True

    async def script(_job: Job) -> JsonObject:
        if is_away:
            raise DependencyDownError("away")
        return {}

    async with working(bench, handler := Handler(script)):
        await until(lambda: has_handled(handler, 3), "all were tried")
        is_away = False
        bench.clock.advance(seconds=LONG)
        for job in jobs:
            await reaches(bench, job.job_id, "completed")


# -- side by side ------------------------------------------------------------------------------


async def test_task_types_run_side_by_side(bench: Bench) -> None:
    await bench.accept(1, IMAGE, job_id=ID)
    await bench.accept(1, FACES)
    image, faces = Gate(), Gate()

    async with working(bench, Handler(image, IMAGE), Handler(faces, FACES)):
        await asyncio.wait_for(image.began.wait(), DEADLINE)
        await asyncio.wait_for(faces.began.wait(), DEADLINE)
        image.open()
        await reaches(bench, ID, "completed")


async def test_no_more_jobs_are_in_flight_than_allowed(bench: Bench) -> None:
    jobs = [await bench.accept(number) for number in range(12)]
    in_flight, most = 0, 0

    async def script(_job: Job) -> JsonObject:
        nonlocal in_flight, most
        in_flight += 1
        most = max(most, in_flight)
        await turns(5)
        in_flight -= 1
        return {}

    async with working(bench, Handler(script), max_in_flight=3):
        for job in jobs:
            await reaches(bench, job.job_id, "completed")

    assert most == 3


async def test_a_job_that_lost_its_lease_runs_with_nothing_else_in_flight(bench: Bench) -> None:
    suspects = set()
    jobs = []
    for number in range(40):
        job = await bench.accept(number, (IMAGE, FACES)[number % 2])
        jobs.append(job.job_id)
        if number % 13 == 5:
            suspects.add(job.job_id)
            await bench.execute("UPDATE jobs SET lost = 1 WHERE job_id = ?", job.job_id)
    in_flight: set[str] = set()
    company: dict[str, set[str]] = {}

    async def script(job: Job) -> JsonObject:
        in_flight.add(job.job_id)
        seen = company.setdefault(job.job_id, set())
        for _ in range(20):
            seen |= in_flight
            await asyncio.sleep(0)
        in_flight.discard(job.job_id)
        return {}

    async with working(bench, Handler(script, IMAGE), Handler(script, FACES), max_in_flight=4):
        for job_id in jobs:
            await reaches(bench, job_id, "completed")

    assert len(suspects) == 3
    assert [company[job_id] for job_id in suspects] == [{job_id} for job_id in suspects]
    assert any(len(seen) > 1 for seen in company.values()), "nothing ever ran side by side"


# -- stopping ----------------------------------------------------------------------------------


async def test_draining_waits_for_what_runs(bench: Bench) -> None:
    await bench.accept(job_id=ID)
    gate = Gate()

    async with working(bench, Handler(gate), shutdown_grace_seconds=60) as worker:
        await gate.began.wait()
        draining = asyncio.create_task(worker.drain())
        await turns()
        assert not draining.done()
        gate.open()
        await asyncio.wait_for(draining, DEADLINE)

    assert (await bench.queue.get(ID)).status is JobState.COMPLETED


async def test_draining_gives_back_what_does_not_finish_in_time(bench: Bench) -> None:
    await bench.accept(job_id=ID)
    gate = Gate()

    async with working(bench, Handler(gate), shutdown_grace_seconds=0.02) as worker:
        await gate.began.wait()
        await worker.drain()

        row = await bench.row(ID)

    assert (row["status"], row["attempt"], row["lost"]) == ("pending", 0, 0)


async def test_draining_does_not_wait_for_a_write_that_does_not_end(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    # A backup held the writes of embedded vectors: the stop took until the watchdog ended it, and
    # the jobs counted as lost.
    monkeypatch.setattr(running_jobs, "STAY_SECONDS", 0.02)
    await bench.accept(job_id=ID)
    began = asyncio.Event()

    async def stays(_job: Job) -> JsonObject:
        began.set()
        with suppress(asyncio.CancelledError):
            await asyncio.Event().wait()
        await asyncio.Event().wait()
        return {}

    async with working(bench, Handler(stays)) as worker:
        await began.wait()
        await asyncio.wait_for(worker.drain(), DEADLINE)

        row = await bench.row(ID)

    assert (row["status"], row["attempt"], row["lost"]) == ("pending", 0, 0)


async def test_a_draining_worker_leases_nothing_more(bench: Bench) -> None:
    handler = Handler()

    async with working(bench, handler) as worker:
        await worker.drain()
        await bench.accept()
        await turns(500)

    assert handler.handled == []


async def test_a_lease_that_was_under_way_at_the_drain_is_given_back(bench: Bench) -> None:
    # The drain saw nothing running and returned; then the lease was committed, and its job was
    # started with nobody left to finish it: it came back as one that had killed its process.
    await bench.accept(job_id=ID)
    door = HeldDoor(bench)
    await door.close()

    async with working(bench, Handler(Gate())) as worker:
        await turns()
        draining = asyncio.create_task(worker.drain())
        await turns()
        await door.open()
        await asyncio.wait_for(draining, DEADLINE)
        await bench.execute("SELECT 1")  # through the same door, after the lease

        row = await bench.row(ID)
        assert (row["status"], row["attempt"], row["fence"]) == ("pending", 0, 1)
        assert worker.in_flight == 0


async def test_a_completion_on_its_way_is_not_undone_by_a_cancellation(bench: Bench) -> None:
    # The first completion holds the commit; the second waits behind it when both are cancelled,
    # and its release shares its batch.
    jobs = [await bench.accept(number) for number in range(2)]
    gates = [Gate(), Gate()]

    async def script(job: Job) -> JsonObject:
        return await gates[job.media_store_id](job)

    door = HeldDoor(bench)
    async with working(bench, Handler(script)) as worker:
        await asyncio.gather(*(gate.began.wait() for gate in gates))
        await door.close()
        for gate in gates:
            gate.open()
            await turns()
        draining = asyncio.create_task(worker.drain())
        await turns()
        await door.open()
        await asyncio.wait_for(draining, DEADLINE)

        for job in jobs:
            assert (await bench.queue.get(job.job_id)).status is JobState.COMPLETED


async def test_draining_twice_is_safe(bench: Bench) -> None:
    async with working(bench, Handler()) as worker:
        await worker.drain()
        await worker.drain()


# -- leases ------------------------------------------------------------------------------------


async def test_a_long_job_keeps_its_lease(bench: Bench) -> None:
    await bench.accept(job_id=ID)
    gate = Gate()

    async with working(bench, Handler(gate), queue={"lease_seconds": 1}):
        await gate.began.wait()
        bench.clock.advance(seconds=10)
        await reaches(bench, ID, "processing", lease_until=bench.clock() + 1000)
        gate.open()
        row = await reaches(bench, ID, "completed")

    assert (row["lost"], row["attempt"]) == (0, 1)


async def test_a_lost_lease_stops_the_handler(bench: Bench) -> None:
    await bench.accept(job_id=ID)
    gate = Gate()

    async with working(bench, Handler(gate), queue={"lease_seconds": 1}) as worker:
        await gate.began.wait()
        await somebody_else_takes(bench, ID)
        await asyncio.wait_for(gate.cancelled.wait(), DEADLINE)
        await until(lambda: is_idle(worker), "the job is no longer in flight")

        row = await bench.row(ID)

    assert (row["status"], row["worker"]) == ("processing", "somebody else")


async def test_the_result_of_a_lost_lease_is_dropped(
    bench: Bench, caplog: pytest.LogCaptureFixture
) -> None:
    await bench.accept(job_id=ID)
    gate = Gate()

    async with working(bench, Handler(gate)) as worker:
        await gate.began.wait()
        await somebody_else_takes(bench, ID)
        gate.open()
        await until(lambda: is_idle(worker), "the job is no longer in flight")

        row = await bench.row(ID)

    assert (row["worker"], row["result"]) == ("somebody else", None)
    assert "completed" not in [told.name for told in await bench.told()]
    assert "its result is dropped" in caplog.text


async def test_jobs_that_others_let_run_out_are_taken_back_and_run(bench: Bench) -> None:
    await bench.accept(job_id=ID)
    await bench.lease()
    bench.clock.advance(seconds=LONG)

    async with working(bench, Handler(), queue={"lease_seconds": 1}):
        row = await reaches(bench, ID, "completed")

    assert (row["lost"], row["attempt"]) == (1, 2)


# -- storage -----------------------------------------------------------------------------------


async def test_a_job_that_could_not_be_settled_comes_back_when_the_disk_does(
    bench: Bench, caplog: pytest.LogCaptureFixture
) -> None:
    await bench.accept(job_id=ID)
    await bench.execute(NO_DISK)
    handler = Handler()

    async with working(bench, handler, queue={"lease_seconds": 1}) as worker:
        await until(lambda: has_handled(handler, 1), "the job was tried")
        await until(lambda: is_idle(worker), "the job is no longer in flight")
        assert (await bench.row(ID))["status"] == "processing"
        await bench.execute("DROP TRIGGER full")
        bench.clock.advance(seconds=LONG)
        await reaches(bench, ID, "completed")

    assert "cannot settle" in caplog.text


async def test_a_full_disk_does_not_hold_up_the_end(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    tries = 0

    async def full(*_: object) -> Job:
        nonlocal tries
        tries += 1
        raise StorageError("the disk is full", may_pass=True)

    await bench.accept(job_id=ID)
    monkeypatch.setattr(bench.queue, "complete", full)
    async with working(bench, Handler()) as worker:
        await until(lambda: has_tried(lambda: tries), "its outcome was to be stored")
        async with asyncio.timeout(DEADLINE):
            await worker.drain(grace_seconds=3600)

    # Whoever starts next takes it back once its lease has run out.
    assert (await bench.row(ID))["status"] == "processing"


async def has_tried(tries: Callable[[], int]) -> bool:
    return tries() > 0


async def test_a_lease_that_could_not_be_stored_is_tried_again(bench: Bench) -> None:
    await bench.accept(job_id=ID)
    await bench.execute(
        "CREATE TRIGGER full BEFORE UPDATE ON jobs BEGIN SELECT RAISE(ABORT, 'disk full'); END"
    )

    async with working(bench, handler := Handler()):
        await turns(200)
        assert handler.handled == []
        await bench.execute("DROP TRIGGER full")
        await reaches(bench, ID, "completed")


async def test_old_finished_jobs_are_pruned(bench: Bench) -> None:
    await bench.accept(1)
    await bench.queue.complete(await bench.lease_one(), {})
    bench.clock.advance(seconds=2 * 86_400)
    await bench.accept(2)
    await bench.queue.complete(await bench.lease_one(), {})

    async def is_pruned() -> bool:
        return [job.media_store_id for job in (await bench.queue.list_jobs()).jobs] == [2]

    async with working(bench, Handler(), queue={"prune_after_days": 1}):
        await until(is_pruned, "the older job went")


# -- face results ------------------------------------------------------------------------------


async def test_a_result_is_delivered_before_its_job_is_complete(bench: Bench) -> None:
    await bench.accept(7, FACES, job_id=ID)
    handler = Handler(task_type=FACES, delivers=True)

    async with working(bench, handler):
        await reaches(bench, ID, "completed")

    assert handler.delivered == [{"picture": 7}]


async def test_an_undelivered_result_is_kept_and_not_inferred_again(bench: Bench) -> None:
    await bench.accept(7, FACES, job_id=ID)
    handler = Handler(task_type=FACES, delivers=True)
    handler.refusals = [RetryableError("busy", code="media_store_error")] * 3

    async with working(bench, handler):
        for tries in (1, 2, 3):
            row = await reaches(bench, ID, "pending", sync_attempt=tries)
            assert row["attempt"] == 0
            bench.clock.advance(seconds=LONG)
        await reaches(bench, ID, "completed")

    assert len(handler.handled) == 1
    assert handler.delivered == [{"picture": 7}]


async def test_a_kept_result_is_delivered_by_the_next_process(bench: Bench) -> None:
    await bench.accept(7, FACES, job_id=ID)
    first = Handler(task_type=FACES, delivers=True)
    first.refusals = [RetryableError("busy")]
    async with working(bench, first):
        await reaches(bench, ID, "pending", sync_attempt=1)
    bench.clock.advance(seconds=LONG)
    second = Handler(task_type=FACES, delivers=True)

    async with working(bench, second):
        await reaches(bench, ID, "completed")

    assert (second.handled, second.delivered) == ([], [{"picture": 7}])


async def test_a_result_nobody_takes_ends_in_sync_failed_and_heals_later(bench: Bench) -> None:
    await bench.accept(7, FACES, job_id=ID)
    handler = Handler(task_type=FACES, delivers=True)
    handler.refusals = [RetryableError("busy", code="media_store_error")] * 6

    async with working(bench, handler):
        for tries in (1, 2, 3):
            await reaches(bench, ID, "pending", sync_attempt=tries)
            bench.clock.advance(seconds=LONG)
        for tries in (4, 5, 6):
            await reaches(bench, ID, "sync_failed", sync_attempt=tries)
            bench.clock.advance(seconds=LONG)
        await reaches(bench, ID, "completed")

    assert len(handler.handled) == 1
    told = [(each.name, each.event["status"]) for each in await bench.told(ID)]
    assert told[-3:] == [
        ("completed", "sync_failed"),
        ("failed", "sync_failed"),
        ("completed", "completed"),
    ]


async def test_two_daemons_give_a_late_result_to_the_media_store_once(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The store is slow, which is why results are late: the other daemon found it due meanwhile.
    await bench.accept(7, FACES, job_id=ID)
    lease = await bench.lease_one(FACES)
    await bench.queue.give_up_sync(lease, {"a": 1}, run_at=NOON, code="c", message="m")
    began, go = asyncio.Event(), asyncio.Event()
    looks, look = 0, bench.queue.due_syncs

    async def counted(*asked: Any) -> list[Job]:
        nonlocal looks
        looks += 1
        return await look(*asked)

    async def has_dealt_with_it() -> bool:
        # What the first of two looks found is dealt with before the second.
        return looks >= before + 2 or len(one.delivered + other.delivered) > 1

    monkeypatch.setattr(bench.queue, "due_syncs", counted)

    class Slow(Handler):
        async def deliver(self, job: Job, result: JsonObject) -> None:
            await super().deliver(job, result)
            began.set()
            await go.wait()

    one, other = (Slow(task_type=FACES, delivers=True) for _ in range(2))
    async with working(bench, one), working(bench, other):
        await began.wait()
        before = looks
        await until(has_dealt_with_it, "the other daemon looks")
        go.set()
        await reaches(bench, ID, "completed")

    assert one.delivered + other.delivered == [{"a": 1}]


async def test_a_result_that_is_refused_for_good_is_offered_no_more(bench: Bench) -> None:
    await bench.accept(7, FACES, job_id=ID)
    handler = Handler(task_type=FACES, delivers=True)
    handler.refusals = [PermanentError("unknown picture", code="media_store_refused")]

    async with working(bench, handler):
        row = await reaches(bench, ID, "sync_failed")
        bench.clock.advance(seconds=LONG)
        await turns(500)

    assert row["run_at"] is None
    assert handler.delivered == []


async def test_a_bug_in_delivery_keeps_the_result(
    bench: Bench, caplog: pytest.LogCaptureFixture
) -> None:
    # Only HandlerError was expected: the job's task died unseen, its lease ran out, and a sound
    # picture became one that kills processes.
    await bench.accept(7, FACES, job_id=ID)
    handler = Handler(task_type=FACES, delivers=True)
    handler.refusals = [ZeroDivisionError("1/0")]

    async with working(bench, handler):
        row = await reaches(bench, ID, "pending", sync_attempt=1)
        bench.clock.advance(seconds=LONG)
        await reaches(bench, ID, "completed")

    assert row["error_code"] == "internal"
    assert len(handler.handled) == 1
    assert "ZeroDivisionError" in caplog.text


async def test_a_bug_in_a_later_delivery_does_not_end_the_worker(bench: Bench) -> None:
    # Nothing caught it in the background loop: its task group, and the daemon, went down.
    await bench.accept(7, FACES, job_id=ID)
    handler = Handler(task_type=FACES, delivers=True)
    handler.refusals = [HandlerError("busy"), ZeroDivisionError("1/0")]

    async with working(bench, handler, queue={"max_attempts": 1}):
        await reaches(bench, ID, "sync_failed", sync_attempt=1)
        bench.clock.advance(seconds=LONG)
        await reaches(bench, ID, "sync_failed", sync_attempt=2)
        bench.clock.advance(seconds=LONG)
        await reaches(bench, ID, "completed")


async def test_a_delivery_that_never_ends_is_given_up(bench: Bench) -> None:
    await bench.accept(7, FACES, job_id=ID)

    class Silent(Handler):
        async def deliver(self, job: Job, result: JsonObject) -> None:
            await asyncio.Event().wait()

    async with working(bench, Silent(task_type=FACES, delivers=True), job_timeout_seconds=0.05):
        row = await reaches(bench, ID, "pending", sync_attempt=1)

    assert row["error_code"] == "timeout"


async def somebody_else_takes(bench: Bench, job_id: str) -> None:
    """What a reclaim and a lease by another daemon leave behind."""
    await bench.execute(
        "UPDATE jobs SET fence = fence + 1, worker = 'somebody else', lease_until = ?"
        " WHERE job_id = ?",
        NOON + 10**9,
        job_id,
    )


async def has_handled(handler: Handler, count: int) -> bool:
    return len(handler.handled) >= count


async def is_idle(worker: Worker) -> bool:
    return worker.in_flight == 0
