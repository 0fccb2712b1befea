"""The jobs of many pictures at a time, and a request that replaces one certain job."""

import sqlite3
from collections.abc import Iterator
from pathlib import Path

import pytest

from daemon.jobs import Job, JobState, TaskType
from daemon.queue import job_ledger
from daemon.queue.admission import Accepted
from daemon.queue.job_ledger import JobLedger, KnownJob
from daemon.queue.migration import released_migrations
from tests.queue_bench import IMAGE, Bench, submission

FACES = TaskType.FACE_EMBEDDING
RESULT = {"point_id": 1}
ID = "00000000-0000-4000-8000-00000000000"


async def complete(
    bench: Bench, media_store_id: int, task_type: TaskType = IMAGE, *, faces: int = 0
) -> Job:
    await bench.accept(media_store_id, task_type)
    lease = await bench.lease_one(task_type)
    result = {"faces": [{"face_index": n} for n in range(faces)]} if task_type is FACES else RESULT
    return await bench.queue.complete(lease, result)


async def fail(bench: Bench, media_store_id: int) -> None:
    await bench.accept(media_store_id)
    await bench.queue.bury(await bench.lease_one(), code="decode_error", message="broken")


async def test_completed_jobs_come_by_picture_page_by_page(bench: Bench) -> None:
    for media_store_id in (30, 10, 2**63 - 1, 20, 0):
        await complete(bench, media_store_id)
    await complete(bench, 15, FACES, faces=2)
    await fail(bench, 16)
    await bench.accept(17)
    ledger = JobLedger(bench.database)

    first = await ledger.completed(IMAGE, after=-1, limit=3)
    second = await ledger.completed(IMAGE, after=20, limit=3)

    assert [job.media_store_id for job in first] == [0, 10, 20]
    assert [job.media_store_id for job in second] == [30, 2**63 - 1]
    assert await ledger.completed(IMAGE, after=2**63 - 1, limit=3) == []
    assert {job.vectors for job in first} == {1}
    (faces,) = await ledger.completed(FACES, after=-1, limit=9)
    assert (faces.media_store_id, faces.vectors) == (15, 2)


async def test_jobs_come_by_their_completion_page_by_page(bench: Bench) -> None:
    ledger = JobLedger(bench.database)
    assert await ledger.newest() is None
    for media_store_id in (5, 4, 3, 2, 1):
        if media_store_id > 1:
            # The last two in one millisecond.
            bench.clock.advance(seconds=1)
        await complete(bench, media_store_id)
    await complete(bench, 9, FACES, faces=1)
    await fail(bench, 8)
    newest = await ledger.newest()
    assert newest is not None

    first = await ledger.since(IMAGE, (newest - 1500, 0), limit=2)
    second = await ledger.since(IMAGE, first[-1][0], limit=2)

    assert [job.media_store_id for _, job in [*first, *second]] == [3, 2, 1]
    assert await ledger.since(IMAGE, second[-1][0], limit=2) == []


async def test_all_jobs_of_many_pictures_come_whatever_their_state(bench: Bench) -> None:
    for media_store_id in range(1, 6):
        await complete(bench, media_store_id)
    await fail(bench, 6)
    await fail(bench, 6)
    waiting = await bench.accept(6, request_id="again")
    await complete(bench, 1, FACES, faces=0)
    ledger = JobLedger(bench.database)

    found = await ledger.of_pictures(IMAGE, [1, 2, 6, 7, *range(1000, 2200)])

    assert set(found) == {1, 2, 6}
    assert [job.status for job in found[1]] == [JobState.COMPLETED]
    assert sorted(job.status for job in found[6]) == ["error", "error", "pending"]
    assert waiting.job_id in {job.job_id for job in found[6]}
    assert {job.request_id for job in found[6]} == {None, "again"}
    assert await ledger.of_pictures(IMAGE, []) == {}
    assert (await ledger.of_pictures(FACES, [1]))[1] == [
        KnownJob(
            job_id=(await ledger.completed(FACES, after=0, limit=1))[0].job_id,
            media_store_id=1,
            status=JobState.COMPLETED,
            request_id=None,
            vectors=0,
        )
    ]


# -- one job in the place of another ----------------------------------------------------------


async def instead(bench: Bench, media_store_id: int, old: str) -> bool:
    made = submission(bench.clock(), media_store_id, force=True, body=None)
    outcome = await bench.queue.enqueue(
        type(made)(job=made.job, force=True, body=None, instead_of=old)
    )
    return isinstance(outcome, Accepted)


async def test_a_job_takes_the_place_of_the_one_that_is_named(bench: Bench) -> None:
    old = await complete(bench, 1)

    assert await instead(bench, 1, old.job_id)

    (job,) = (await JobLedger(bench.database).of_pictures(IMAGE, [1]))[1]
    assert job.status is JobState.PENDING
    assert job.job_id != old.job_id


async def test_nothing_takes_the_place_of_a_job_that_stands_no_longer(bench: Bench) -> None:
    old = await complete(bench, 1)
    gone = await complete(bench, 2)
    await bench.queue.forget(gone.job_id)
    newer = await bench.accept(1, force=True)

    assert not await instead(bench, 1, old.job_id)
    assert not await instead(bench, 2, gone.job_id)
    assert not await instead(bench, 3, f"{ID}1")

    found = await JobLedger(bench.database).of_pictures(IMAGE, [1, 2, 3])
    assert [job.job_id for job in found.pop(1)] == [newer.job_id]
    assert found == {}


# -- plans ------------------------------------------------------------------------------------


@pytest.fixture
def file(tmp_path: Path) -> Iterator[sqlite3.Connection]:
    connection = sqlite3.connect(tmp_path / "plans.db")
    for step in released_migrations():
        connection.executescript(step.sql)
    yield connection
    connection.close()


def plan(file: sqlite3.Connection, statement: str) -> list[str]:
    parameters = [1] * statement.count("?")
    rows = file.execute(f"EXPLAIN QUERY PLAN {statement}", parameters)
    return [row[3] for row in rows if "jobs" in row[3]]


def test_both_statements_go_by_an_index(file: sqlite3.Connection) -> None:
    assert plan(file, job_ledger.COMPLETED) == [
        "SEARCH jobs USING INDEX jobs_pair (media_store_id>?)"
    ]
    assert plan(file, job_ledger.of_pictures(500)) == [
        "SEARCH jobs USING INDEX jobs_pair (media_store_id=? AND task_type=?)",
        "SEARCH jobs USING INDEX jobs_failed_media (media_store_id=?)",
    ]
