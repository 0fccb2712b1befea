"""Jobs by filter, retried by code, cancelled; pictures deleted: over real HTTP and a real queue."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from daemon.errors import RetryableError
from daemon.jobs import JobState, TaskType
from tests.integration.rest_rig import NOW, RESULT, Rig, rest

TIMED_OUT = "media_store_timeout"


@pytest.fixture
async def rig(tmp_path: Path) -> AsyncIterator[Rig]:
    async with rest(tmp_path / "queue.db") as rig:
        yield rig


async def fail(rig: Rig, media_store_id: int, code: str = TIMED_OUT) -> str:
    job = await rig.post(media_store_id)
    await rig.queue.bury(await rig.lease(), code=code, message="it broke")
    return str(job["job_id"])


async def listed(rig: Rig, query: str) -> list[int]:
    answer = await rig.ask("GET", f"/job?{query}")
    assert answer.status == 200, answer.body
    return [job["media_store_id"] for job in answer.body["jobs"]]


async def test_jobs_are_listed_by_code_picture_and_time(rig: Rig) -> None:
    await fail(rig, 1)
    await fail(rig, 2, "decode_error")
    rig.clock.now = NOW + 1000
    await fail(rig, 1)
    await rig.post(1)

    assert await listed(rig, f"code={TIMED_OUT}") == [1, 1]
    assert await listed(rig, "code=decode_error") == [2]
    assert await listed(rig, "code=decode_error&status=pending") == []
    assert await listed(rig, "media_store_id=1") == [1, 1, 1]
    assert await listed(rig, f"media_store_id=1&until={NOW + 1}") == [1]
    assert await listed(rig, f"since={NOW + 1}") == [1, 1]
    assert await listed(rig, f"since={NOW}&until={NOW}") == []
    first = await rig.ask("GET", f"/job?code={TIMED_OUT}&limit=1")
    assert await listed(rig, f"code={TIMED_OUT}&after={first.body['next']}") == [1]
    for wrong in ("code=No", "media_store_id=-1", "since=soon", "until=-1"):
        assert (await rig.ask("GET", f"/job?{wrong}")).status == 422


async def test_jobs_of_one_code_are_retried_the_oldest_first_within_the_limit(rig: Rig) -> None:
    for media_store_id in range(5):
        rig.clock.now += 1
        await fail(rig, media_store_id)
    other = await fail(rig, 10, "decode_error")
    rig.clock.now += 1

    first = await rig.ask("POST", "/job/retry", json={"code": TIMED_OUT, "limit": 3})
    before = rig.clock.now
    assert first.body == {"retried": 3, "left_out": 0, "more": True, "before": before}
    assert sorted(await listed(rig, "status=pending")) == [0, 1, 2]
    rig.clock.now += 1
    lease = await rig.lease()
    assert lease.job.attempt == 1
    assert lease.job.error_code is None
    await rig.queue.bury(lease, code=TIMED_OUT, message="it broke again")
    body = {"code": TIMED_OUT, "before": before}
    second = await rig.ask("POST", "/job/retry", json=body | {"limit": 3})
    assert (second.body["retried"], second.body["more"]) == (2, False)
    assert (await rig.ask("POST", "/job/retry", json=body)).body["retried"] == 0
    third = await rig.ask("POST", "/job/retry", json={"code": TIMED_OUT})
    assert third.body["retried"] == 1
    assert (await rig.queue.get(other)).status is JobState.ERROR


async def test_more_than_one_transaction_of_jobs_is_retried(rig: Rig) -> None:
    jobs = [await rig.post(number) for number in range(600)]
    while leases := await rig.queue.lease(TaskType.IMAGE_EMBEDDING, 64, seconds=30):
        await asyncio.gather(
            *(rig.queue.bury(lease, code=TIMED_OUT, message="late") for lease in leases)
        )
    body = {"code": TIMED_OUT, "task_type": "image_embedding"}
    wrong = await rig.ask("POST", "/job/retry", json={**body, "task_type": "face_detection"})
    assert wrong.body["retried"] == 0

    assert (await rig.ask("POST", "/job/retry", json=body)).body["retried"] == len(jobs)
    assert (await rig.queue.snapshot()).pending == len(jobs)


async def test_a_job_with_a_newer_one_is_left_out(rig: Rig) -> None:
    for media_store_id in (1, 1, 2, 2):
        await fail(rig, media_store_id)
    await rig.post(1)

    answer = await rig.ask("POST", "/job/retry", json={"code": TIMED_OUT})

    # Of two failures of one picture one may stand.
    assert (answer.body["retried"], answer.body["left_out"]) == (1, 3)
    assert sorted(await listed(rig, "status=pending")) == [1, 2]


@pytest.mark.parametrize(
    "body",
    [{}, {"code": ""}, {"code": 7}, {"code": "a", "limit": 0}, {"code": "a", "colour": 1}],
)
async def test_what_makes_no_sense_is_a_422(rig: Rig, body: dict[str, object]) -> None:
    answer = await rig.ask("POST", "/job/retry", json=body)

    assert answer.status == 422
    assert answer.body["code"] == "invalid_request"


async def test_a_cancel_answers_how_the_job_ended(rig: Rig) -> None:
    waiting = await rig.post(1)
    done = await rig.post(2)
    path = f"/job/{waiting['job_id']}/cancel"

    assert (await rig.ask("POST", path)).body["error_message"].startswith("cancelled: ")
    assert (await rig.ask("POST", path)).body["status"] == "error"
    await rig.queue.complete(await rig.lease(), RESULT)
    answer = await rig.ask("POST", f"/job/{done['job_id']}/cancel")
    assert answer.body["status"] == "completed"


async def test_a_picture_goes_with_its_jobs_and_vectors_and_leaves_the_others(rig: Rig) -> None:
    rig.vectors.by_media = {1: 1, 2: 1}
    await fail(rig, 1)
    for media_store_id in (1, 2):
        await rig.post(media_store_id)
        await rig.queue.complete(await rig.lease(), RESULT)
    other_task = await rig.ask("POST", "/job/face_detection", json={"media_store_id": 1})

    removed = await rig.ask("DELETE", "/media/1")

    assert removed.status == 200
    vectors = {"image_embeddings": 1, "face_embeddings": 0}
    told = {"media_store_id": 1, "jobs": 3, "cancelled": 1, "vectors": vectors, "left": []}
    assert removed.body == told
    assert await listed(rig, "") == [2]
    assert (await rig.ask("GET", f"/job/{other_task.body['job_id']}")).status == 404
    assert rig.vectors.by_media == {2: 1}
    rows = await rig.database.read("SELECT topic FROM outbox ORDER BY id DESC LIMIT 1")
    assert rows[0][0] == "inference/media/1/deleted"

    again = await rig.ask("DELETE", "/media/1")
    nothing = {"jobs": 0, "cancelled": 0, "vectors": dict.fromkeys(vectors, 0)}
    assert again.body == told | nothing
    await rig.post(1)  # it may be asked for anew


async def test_where_the_vectors_stay_the_jobs_stay_too(rig: Rig) -> None:
    await rig.post(1)
    await rig.queue.complete(await rig.lease(), RESULT)
    rig.vectors.error = RetryableError("away", code="vector_store_unreachable")

    assert (await rig.ask("DELETE", "/media/1")).status == 503
    assert await listed(rig, "") == [1]
    rig.vectors.error = None
    assert (await rig.ask("DELETE", "/media/1")).body["jobs"] == 1


async def test_a_job_that_runs_in_another_daemon_is_told_and_the_rest_is_removed(rig: Rig) -> None:
    held = await rig.post(1)
    lease = await rig.lease()
    await rig.ask("POST", "/job/face_detection", json={"media_store_id": 1})

    answer = await rig.ask("DELETE", "/media/1")

    assert answer.status == 409
    assert answer.body["existing_job_id"] == held["job_id"]
    assert "inference/delete/1" in answer.body["detail"]
    assert await listed(rig, "status=processing") == [1]
    assert len(await listed(rig, "")) == 1
    await rig.queue.complete(lease, RESULT)
    assert (await rig.ask("DELETE", "/media/1")).body["jobs"] == 1


@pytest.mark.parametrize("word", ["x", "-1", "1.5", str(2**63), "9" * 5000])
async def test_what_is_no_id_is_a_422(rig: Rig, word: str) -> None:
    answer = await rig.ask("DELETE", f"/media/{word}")

    assert answer.status == 422
    assert answer.body["field"] == "media_store_id"
