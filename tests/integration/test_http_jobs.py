"""Jobs over REST: the documented bodies and codes, and what hostile clients get."""

import asyncio
import gzip
import io
import json
import re
import sqlite3
import uuid
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from daemon.errors import ConfigError, DependencyDownError
from daemon.jobs import Job, TaskType
from http_shim import bodies
from http_shim.app import serve
from tests.integration.rest_rig import DEADLINE, NOW, RAN, RESULT, Rig, errors, rest
from tests.waiting import until

JOB_ID = "550e8400-e29b-41d4-a716-446655440000"
CREATED = {
    "job_id": JOB_ID,
    "task_type": "image_embedding",
    "media_store_id": 12345,
    "status": "pending",
    "priority": 7,
    "created_at": NOW,
    "started_at": None,
    "completed_at": None,
    "error_message": None,
    "result": None,
}
"""The documented answer to POST, key for key."""
POST_HEAD = b"POST /job/image_embedding HTTP/1.1\r\nHost: x\r\nConnection: close\r\n"


@pytest.fixture
async def rig(tmp_path: Path) -> AsyncIterator[Rig]:
    async with rest(tmp_path / "queue.db") as served:
        yield served


async def finish(rig: Rig, **body: Any) -> dict[str, Any]:
    job = await rig.post(**body)
    await rig.queue.complete(await rig.lease(), RESULT)
    return job


async def fail(rig: Rig, **body: Any) -> dict[str, Any]:
    job = await rig.post(**body)
    await rig.queue.bury(await rig.lease(), code="media_not_found", message="there is no 12345")
    return job


# -- the documented bodies -----------------------------------------------------------------------


async def test_creating_a_job_answers_the_documented_body(rig: Rig) -> None:
    answer = await rig.ask(
        "POST",
        "/job/image_embedding",
        json={"media_store_id": 12345, "priority": 7, "job_id": JOB_ID},
    )

    assert (answer.status, answer.body) == (201, CREATED)
    assert list(answer.body) == list(CREATED)
    assert answer.headers["Location"] == f"/job/{JOB_ID}"


async def test_created_jobs_get_a_uuid_and_the_default_priority(rig: Rig) -> None:
    job = await rig.post()

    assert str(uuid.UUID(job["job_id"])) == job["job_id"]
    assert job["priority"] == 5


@pytest.mark.parametrize("task_type", list(TaskType))
async def test_every_task_type_is_taken(rig: Rig, task_type: TaskType) -> None:
    answer = await rig.ask("POST", f"/job/{task_type}", json={"media_store_id": 1})

    assert answer.status == 201
    assert answer.body["task_type"] == task_type


async def test_a_decimal_string_is_answered_as_a_number(rig: Rig) -> None:
    answer = await rig.ask("POST", "/job/image_embedding", json={"media_store_id": "123"})

    assert answer.body["media_store_id"] == 123


async def test_a_job_is_shown_in_each_of_its_states(rig: Rig) -> None:
    await rig.post(priority=7, job_id=JOB_ID)
    assert (await rig.ask("GET", f"/job/{JOB_ID}")).body == CREATED

    rig.clock.now = NOW + 5_000
    lease = await rig.lease()
    processing = {**CREATED, "status": "processing", "started_at": NOW + 5_000}
    assert (await rig.ask("GET", f"/job/{JOB_ID}")).body == processing

    rig.clock.now = NOW + 15_000
    await rig.queue.complete(lease, RESULT)
    answer = await rig.ask("GET", f"/job/{JOB_ID}")
    completed = {
        **processing,
        "status": "completed",
        "completed_at": NOW + 15_000,
        "result": RESULT,
    }
    assert (answer.status, answer.body) == (200, completed)


async def test_face_results_are_shown_as_documented(rig: Rig) -> None:
    faces = {
        "faces": [
            {
                "face_index": 0,
                "bbox": {"x": 100.5, "y": 200.3, "width": 150.0, "height": 200.0},
                "landmarks": [
                    [120.0, 220.0],
                    [140.0, 220.0],
                    [130.0, 240.0],
                    [110.0, 250.0],
                    [150.0, 250.0],
                ],
                "confidence": 0.95,
            }
        ],
        "face_count": 1,
        **RAN,
    }
    created = await rig.ask("POST", "/job/face_detection", json={"media_store_id": 456})
    await rig.queue.complete(await rig.lease(TaskType.FACE_DETECTION), faces)

    answer = await rig.ask("GET", f"/job/{created.body['job_id']}")

    assert answer.body["result"] == faces


async def test_a_failed_job_says_why(rig: Rig) -> None:
    job = await fail(rig)

    shown = (await rig.ask("GET", f"/job/{job['job_id']}")).body

    assert shown["status"] == "error"
    assert shown["error_message"] == "media_not_found: there is no 12345"
    assert shown["result"] is None


async def test_head_answers_without_a_body(rig: Rig) -> None:
    job = await rig.post()

    answer = await rig.ask("HEAD", f"/job/{job['job_id']}")

    assert (answer.status, answer.body) == (200, None)


async def test_any_content_type_is_taken(rig: Rig) -> None:
    for number, content_type in enumerate(("text/plain", "application/x-www-form-urlencoded", "")):
        answer = await rig.ask(
            "POST",
            "/job/image_embedding",
            data=json.dumps({"media_store_id": number}).encode(),
            headers={"Content-Type": content_type},
        )
        assert answer.status == 201


# -- 409 and repeats -----------------------------------------------------------------------------


async def test_a_repeated_job_id_gives_the_same_job(rig: Rig) -> None:
    first = await rig.post(job_id=JOB_ID)
    rig.clock.now += 1_000

    assert await rig.post(job_id=JOB_ID) == first


async def test_a_second_job_for_the_same_picture_and_task_is_a_conflict(rig: Rig) -> None:
    first = await rig.post()

    answer = await rig.ask("POST", "/job/image_embedding", json={"media_store_id": 12345})

    assert answer.status == 409
    assert set(answer.body) == {"detail", "code", "existing_job_id"}
    assert answer.body["code"] == "conflict"
    assert answer.body["existing_job_id"] == first["job_id"]


async def test_a_job_id_of_another_picture_is_a_conflict(rig: Rig) -> None:
    await rig.post(1, job_id=JOB_ID)

    answer = await rig.ask(
        "POST", "/job/image_embedding", json={"media_store_id": 2, "job_id": JOB_ID}
    )

    assert (answer.status, answer.body["existing_job_id"]) == (409, JOB_ID)


async def test_force_takes_the_place_of_a_finished_job(rig: Rig) -> None:
    old = await finish(rig)

    new = await rig.post(force=True)

    assert new["job_id"] != old["job_id"]
    assert (await rig.ask("GET", f"/job/{old['job_id']}")).status == 404


async def test_a_failed_pair_may_be_asked_again(rig: Rig) -> None:
    old = await fail(rig)

    assert (await rig.post())["job_id"] != old["job_id"]


async def test_equal_requests_at_once_make_one_job(rig: Rig) -> None:
    asked = [
        rig.ask("POST", "/job/image_embedding", json={"media_store_id": 12345}) for _ in range(20)
    ]

    statuses = sorted([answer.status for answer in await asyncio.gather(*asked)])

    assert statuses == [201] + 19 * [409]


# -- 400 and 422 ---------------------------------------------------------------------------------


async def test_an_unknown_task_type_is_a_400(rig: Rig) -> None:
    answer = await rig.ask("POST", "/job/mind_reading", json={"media_store_id": 1})

    assert answer.status == 400
    assert answer.body == {
        "detail": "task_type must be one of image_embedding, face_detection, face_embedding",
        "code": "unknown_task",
        "field": "task_type",
    }


@pytest.mark.parametrize("priority", [11, -1, 10**30])
async def test_a_priority_out_of_range_is_a_400(rig: Rig, priority: int) -> None:
    answer = await rig.ask(
        "POST", "/job/image_embedding", json={"media_store_id": 1, "priority": priority}
    )

    assert answer.status == 400
    assert answer.body["code"] == "invalid_request"
    assert answer.body["field"] == "priority"


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({}, "media_store_id"),
        ({"priority": 7}, "media_store_id"),
        ({"media_store_id": None}, "media_store_id"),
        ({"media_store_id": "abc"}, "media_store_id"),
        ({"media_store_id": "-1"}, "media_store_id"),
        ({"media_store_id": -1}, "media_store_id"),
        ({"media_store_id": 1.5}, "media_store_id"),
        ({"media_store_id": True}, "media_store_id"),
        ({"media_store_id": [1]}, "media_store_id"),
        ({"media_store_id": 2**63}, "media_store_id"),
        ({"media_store_id": 10**400}, "media_store_id"),
        ({"media_store_id": "9" * 19}, "media_store_id"),
        ({"media_store_id": "../../etc/passwd"}, "media_store_id"),
        ({"media_store_id": 1, "priority": "7"}, "priority"),
        ({"media_store_id": 1, "priority": 7.0}, "priority"),
        ({"media_store_id": 1, "priority": True}, "priority"),
        ({"media_store_id": 1, "priority": None}, "priority"),
        ({"media_store_id": 1, "prioritty": 7}, "prioritty"),
        ({"media_store_id": 1, "job_id": "not-a-uuid"}, "job_id"),
        ({"media_store_id": 1, "job_id": f"{JOB_ID}/+"}, "job_id"),
        ({"media_store_id": 1, "job_id": "\ud800" * 36}, "job_id"),
        ({"media_store_id": 1, "request_id": "a\nb"}, "request_id"),
        ({"media_store_id": 1, "request_id": "\ud800"}, "request_id"),
        ({"media_store_id": 1, "request_id": "x" * 257}, "request_id"),
        ({"media_store_id": 1, "expires_at": "soon"}, "expires_at"),
        ({"media_store_id": 1, "force": "yes"}, "force"),
        ({"media_store_id": 1, "v": 2}, "v"),
        ({"media_store_id": 1, "reply_to": "inference/reply/me/1"}, "reply_to"),
        ({"media_store_id": 1, "reply_to": "inference/job/1/completed"}, "reply_to"),
    ],
)
async def test_a_missing_or_mistyped_field_is_a_422(
    rig: Rig, body: dict[str, Any], field: str
) -> None:
    answer = await rig.ask("POST", "/job/image_embedding", json=body)

    assert answer.status == 422
    assert set(answer.body) == {"detail", "code", "field"}
    assert answer.body["field"] == field
    assert field in answer.body["detail"]
    assert (await rig.queue.depth())["pending"] == 0


async def test_an_expired_request_is_a_422(rig: Rig) -> None:
    answer = await rig.ask(
        "POST", "/job/image_embedding", json={"media_store_id": 1, "expires_at": NOW}
    )

    assert (answer.status, answer.body["code"]) == (422, "expired")


@pytest.mark.parametrize(
    ("body", "code"),
    [
        (b"", "invalid_json"),
        (b"{", "invalid_json"),
        (b"\xff\xfe\x00", "invalid_json"),
        (b'{"media_store_id": "\xc3\x28"}', "invalid_json"),
        (b'\xef\xbb\xbf{"media_store_id": 1}', "invalid_json"),
        (b'{"media_store_id": NaN}', "invalid_json"),
        (b'{"media_store_id": -Infinity}', "invalid_json"),
        (b'{"media_store_id": 1e999}', "invalid_request"),
        (b'{"media_store_id": ' + b"9" * 10_000 + b"}", "invalid_json"),
        (b'{"media_store_id": 1} trailing', "invalid_json"),
        (b"media_store_id=1&priority=7", "invalid_json"),
        (b'[{"media_store_id": 1}]', "invalid_request"),
        (b'"media_store_id"', "invalid_request"),
        (b"null", "invalid_request"),
        (b"7", "invalid_request"),
        (b'{"media_store_id": 1, "media_store_id": 2}', "invalid_json"),
        (b"[" * 500_000, "invalid_json"),
        (b'{"a":' * 150_000, "invalid_json"),
        (b'{"\\ud800": 1, "media_store_id": 1}', "invalid_request"),
    ],
    ids=range(19),
)
async def test_a_hostile_body_is_a_422(
    rig: Rig, caplog: pytest.LogCaptureFixture, body: bytes, code: str
) -> None:
    answer = await rig.ask("POST", "/job/image_embedding", data=body)

    assert (answer.status, answer.body["code"]) == (422, code)
    assert len(answer.body["detail"]) < 400
    assert errors(caplog.records) == []
    assert (await rig.ask("GET", "/health/live")).status == 200


# -- 413 and bad framing -------------------------------------------------------------------------


async def test_a_body_of_two_megabytes_is_a_413(rig: Rig) -> None:
    answer = await rig.ask("POST", "/job/image_embedding", data=io.BytesIO(b" " * 2_000_000))

    assert (answer.status, answer.body["code"]) == (413, "too_large")


async def test_a_packed_body_is_not_unpacked(rig: Rig) -> None:
    answer = await rig.ask(
        "POST",
        "/job/image_embedding",
        data=gzip.compress(b" " * 100_000_000, compresslevel=1),
        headers={"Content-Encoding": "gzip"},
    )

    assert (answer.status, answer.body["code"]) == (415, "unsupported_media_type")


async def test_broken_chunks_are_a_400(rig: Rig, caplog: pytest.LogCaptureFixture) -> None:
    answer = await rig.raw(
        POST_HEAD + b"Transfer-Encoding: chunked\r\n\r\nnothex\r\n{}\r\n0\r\n\r\n"
    )

    assert answer.split()[1] == b"400"
    assert b"Traceback" not in answer
    assert errors(caplog.records) == []


async def test_a_client_that_hangs_up_is_no_error(
    rig: Rig, caplog: pytest.LogCaptureFixture
) -> None:
    await rig.raw(POST_HEAD + b"Content-Length: 1000\r\n\r\n{", hang_up=True)

    assert (await rig.ask("GET", "/health/live")).status == 200
    assert errors(caplog.records) == []


async def test_a_body_that_never_ends_is_a_408(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bodies, "BODY_SECONDS", 0.01)
    reader, writer = await asyncio.open_connection("127.0.0.1", rig.port)
    writer.write(POST_HEAD + b"Content-Length: 1000\r\n\r\n{")

    async with asyncio.timeout(DEADLINE):
        head = await reader.readuntil(b"\r\n\r\n")
    writer.close()
    await writer.wait_closed()

    assert head.startswith(b"HTTP/1.1 408 ")


async def test_huge_headers_are_refused(rig: Rig, caplog: pytest.LogCaptureFixture) -> None:
    answer = await rig.raw(
        b"GET /job HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer " + b"a" * 100_000 + b"\r\n\r\n"
    )

    assert answer.split()[1] == b"400"
    assert errors(caplog.records) == []


# -- 404 and 405 ---------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["GET", "DELETE"])
@pytest.mark.parametrize(
    "job_id",
    [
        JOB_ID,
        "1",
        "+",
        "%23",
        "%00",
        "%ff%fe",
        "%ED%A0%80",
        "..%2f..%2fetc%2fpasswd",
        f"{JOB_ID}%0a",
        "'%20OR%201=1--",
        "x" * 4000,
    ],
)
async def test_a_job_that_is_not_there_is_a_404(rig: Rig, method: str, job_id: str) -> None:
    answer = await rig.raw(
        f"{method} /job/{job_id} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n".encode()
    )

    head, _, body = answer.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 404 ")
    assert json.loads(body) == {"detail": "Job not found", "code": "job_not_found"}


async def test_a_retry_of_no_job_is_a_404(rig: Rig) -> None:
    for job_id in (JOB_ID, "1"):
        answer = await rig.ask("POST", f"/job/{job_id}/retry")
        assert (answer.status, answer.body["code"]) == (404, "job_not_found")


@pytest.mark.parametrize("path", ["/jobs", "/job/", "/job/a/b", "/favicon.ico", "/%0d%0aX: y"])
async def test_an_unknown_route_is_a_404_in_json(rig: Rig, path: str) -> None:
    answer = await rig.ask("GET", path)

    assert answer.status == 404
    assert answer.body == {"detail": "Not Found", "code": "not_found"}


async def test_a_wrong_method_is_a_405_in_json(rig: Rig) -> None:
    answer = await rig.ask("PUT", f"/job/{JOB_ID}")

    assert answer.status == 405
    assert answer.body == {"detail": "Method Not Allowed", "code": "method_not_allowed"}
    assert set(answer.headers["Allow"].split(",")) == {"DELETE", "GET", "HEAD", "POST"}


# -- the list ------------------------------------------------------------------------------------


async def test_the_list_is_paged_newest_first(rig: Rig) -> None:
    jobs = [await rig.post(number) for number in range(5)]

    first = (await rig.ask("GET", "/job?limit=3")).body
    second = (await rig.ask("GET", f"/job?limit=3&after={first['next']}")).body

    assert set(first) == {"jobs", "next"}
    assert first["jobs"] == [jobs[4], jobs[3], jobs[2]]
    assert second == {"jobs": [jobs[1], jobs[0]], "next": None}


async def test_the_list_goes_on_behind_a_job_that_was_deleted(rig: Rig) -> None:
    jobs = [await rig.post(number) for number in range(4)]
    first = (await rig.ask("GET", "/job?limit=2")).body
    last = jobs[2]["job_id"]
    for _ in range(2):
        assert (await rig.ask("DELETE", f"/job/{last}")).status == 204

    assert (await rig.ask("GET", f"/job/{last}")).status == 404
    second = (await rig.ask("GET", f"/job?limit=2&after={first['next']}")).body
    refused = await rig.ask("GET", f"/job?limit=2&after={last}")

    assert second == {"jobs": [jobs[1], jobs[0]], "next": None}
    assert (refused.status, refused.body["code"], refused.body["field"]) == (
        422,
        "invalid_request",
        "after",
    )
    assert "next" in refused.body["detail"]


async def test_a_page_that_ends_with_the_last_job_has_no_next(rig: Rig) -> None:
    await rig.post(1)
    await rig.post(2)

    assert (await rig.ask("GET", "/job?limit=2")).body["next"] is None


async def test_the_list_is_filtered(rig: Rig) -> None:
    failed = await fail(rig, media_store_id=1)
    waiting = await rig.post(2)
    await rig.ask("POST", "/job/face_detection", json={"media_store_id": 3})

    async def listed(query: str) -> list[str]:
        return [job["job_id"] for job in (await rig.ask("GET", f"/job?{query}")).body["jobs"]]

    assert await listed("status=error") == [failed["job_id"]]
    assert await listed("task_type=image_embedding") == [waiting["job_id"], failed["job_id"]]
    assert await listed("status=pending&task_type=image_embedding") == [waiting["job_id"]]
    assert await listed("status=completed") == []
    assert len(await listed("status=&task_type=&limit=&after=")) == 3


async def test_the_list_has_a_hundred_jobs_unless_told_otherwise(rig: Rig) -> None:
    await asyncio.gather(*(rig.post(number) for number in range(101)))

    assert len((await rig.ask("GET", "/job")).body["jobs"]) == 100
    assert len((await rig.ask("GET", "/job?limit=1000")).body["jobs"]) == 101


@pytest.mark.parametrize(
    ("query", "field"),
    [
        ("limit=0", "limit"),
        ("limit=1001", "limit"),
        ("limit=-1", "limit"),
        ("limit=ten", "limit"),
        ("limit=" + "9" * 5000, "limit"),
        ("limit=1&limit=2", "limit"),
        ("status=done", "status"),
        ("status=pending&status=error", "status"),
        ("task_type=mind_reading", "task_type"),
        ("after=1", "after"),
        ("after=row.", "after"),
        ("after=row.0", "after"),
        ("after=row.-1", "after"),
        ("after=row.1.5", "after"),
        ("after=row.%D9%A1", "after"),
        ("after=row.9223372036854775808", "after"),
        ("after=row." + "9" * 5000, "after"),
        ("after=%00", "after"),
        ("after=" + JOB_ID, "after"),
        ("state=pending", None),
        ("%ED%A0%80=1", None),
    ],
)
async def test_a_wrong_filter_is_a_422(rig: Rig, query: str, field: str | None) -> None:
    answer = await rig.raw(
        f"GET /job?{query} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n".encode()
    )

    head, _, body = answer.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 422 ")
    assert json.loads(body).get("field") == field


# -- DELETE and retry ----------------------------------------------------------------------------


async def test_deleting_a_pending_job_cancels_it(rig: Rig) -> None:
    job = await rig.post()

    answer = await rig.ask("DELETE", f"/job/{job['job_id']}")

    assert (answer.status, answer.body) == (204, None)
    shown = (await rig.ask("GET", f"/job/{job['job_id']}")).body
    assert shown["status"] == "error"
    assert shown["error_message"].startswith("cancelled: ")
    assert rig.vectors.forgotten == []


async def test_deleting_a_completed_job_forgets_it_with_its_vectors(rig: Rig) -> None:
    job = await finish(rig)

    answer = await rig.ask("DELETE", f"/job/{job['job_id']}")

    assert answer.status == 204
    assert [forgotten.job_id for forgotten in rig.vectors.forgotten] == [job["job_id"]]
    assert (await rig.ask("GET", f"/job/{job['job_id']}")).status == 404
    assert (await rig.ask("DELETE", f"/job/{job['job_id']}")).status == 404


async def test_deleting_a_failed_job_leaves_the_vectors_alone(rig: Rig) -> None:
    job = await fail(rig)

    assert (await rig.ask("DELETE", f"/job/{job['job_id']}")).status == 204
    assert rig.vectors.forgotten == []
    assert (await rig.ask("GET", f"/job/{job['job_id']}")).status == 404


async def test_deleting_a_job_that_is_processed_is_a_conflict(rig: Rig) -> None:
    job = await rig.post()
    await rig.lease()

    answer = await rig.ask("DELETE", f"/job/{job['job_id']}")

    assert (answer.status, answer.body["code"]) == (409, "conflict")
    assert answer.body["detail"] == "the job is processing"


async def test_a_job_that_completes_while_it_is_deleted_stays_with_its_vectors(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Its row went, and its vectors stayed, which nobody could find by a job any more.
    job = await rig.post()
    lease = await rig.lease()
    look = rig.queue.get

    async def just_before_its_end(job_id: str) -> Job:
        found = await look(job_id)
        await rig.queue.complete(lease, RESULT)
        return found

    with monkeypatch.context() as patched:
        patched.setattr(rig.queue, "get", just_before_its_end)
        answer = await rig.ask("DELETE", f"/job/{job['job_id']}")

    assert (answer.status, answer.body["code"]) == (409, "conflict")
    assert (await rig.ask("GET", f"/job/{job['job_id']}")).body["status"] == "completed"


async def test_a_job_whose_vectors_cannot_be_forgotten_stays(
    rig: Rig, caplog: pytest.LogCaptureFixture
) -> None:
    job = await finish(rig)
    rig.vectors.error = DependencyDownError("away", code="vector_store_unreachable")

    answer = await rig.ask("DELETE", f"/job/{job['job_id']}")

    assert (answer.status, answer.body["code"]) == (503, "vector_store_unreachable")
    assert int(answer.headers["Retry-After"]) >= 1
    assert (await rig.ask("GET", f"/job/{job['job_id']}")).body["status"] == "completed"


async def test_a_retry_starts_a_failed_job_again(rig: Rig) -> None:
    job = await fail(rig)

    answer = await rig.ask("POST", f"/job/{job['job_id']}/retry")

    assert answer.status == 200
    assert answer.body["job_id"] == job["job_id"]
    assert answer.body["status"] == "pending"
    assert answer.body["error_message"] is None
    assert (await rig.lease()).job.job_id == job["job_id"]


async def test_a_retry_of_a_job_that_did_not_fail_is_a_conflict(rig: Rig) -> None:
    job = await rig.post()

    answer = await rig.ask("POST", f"/job/{job['job_id']}/retry")

    assert (answer.status, answer.body["existing_job_id"]) == (409, job["job_id"])


async def test_a_retry_beside_a_newer_job_names_the_newer(rig: Rig) -> None:
    old = await fail(rig)
    new = await rig.post()

    answer = await rig.ask("POST", f"/job/{old['job_id']}/retry")

    assert (answer.status, answer.body["existing_job_id"]) == (409, new["job_id"])


# -- 500 and 503 ---------------------------------------------------------------------------------


async def test_a_bug_of_ours_is_logged_and_not_shown(
    rig: Rig, caplog: pytest.LogCaptureFixture
) -> None:
    job = await finish(rig)
    rig.vectors.error = RuntimeError("a secret")

    answer = await rig.ask("DELETE", f"/job/{job['job_id']}")

    assert answer.status == 500
    assert answer.body == {"detail": "Internal Server Error", "code": "internal"}
    assert "a secret" in caplog.text
    assert len(errors(caplog.records)) == 1


async def test_draining_takes_no_more_jobs_but_shows_them(rig: Rig) -> None:
    failed = await fail(rig)
    rig.health.is_draining = True

    for path in ("/job/image_embedding", f"/job/{failed['job_id']}/retry", "/job/retry"):
        body = {"code": "model_error"} if path == "/job/retry" else {"media_store_id": 1}
        answer = await rig.ask("POST", path, json=body)
        assert (answer.status, answer.body["code"]) == (503, "draining")
        assert int(answer.headers["Retry-After"]) >= 1
    assert (await rig.ask("GET", f"/job/{failed['job_id']}")).status == 200


async def test_a_full_queue_says_when_to_come_back(tmp_path: Path) -> None:
    async with rest(tmp_path / "queue.db", max_pending=2) as rig:
        await rig.post(1)
        await rig.post(2)

        answer = await rig.ask("POST", "/job/image_embedding", json={"media_store_id": 3})

    assert (answer.status, answer.body["code"]) == (503, "queue_full")
    assert answer.headers["Retry-After"] == "10"


async def test_a_queue_that_cannot_be_reached_is_a_503(rig: Rig) -> None:
    await rig.database.close()

    for method, path in (
        ("POST", "/job/image_embedding"),
        ("GET", f"/job/{JOB_ID}"),
        ("GET", "/job"),
        ("DELETE", f"/job/{JOB_ID}"),
        ("POST", f"/job/{JOB_ID}/retry"),
    ):
        answer = await rig.ask(method, path, json={"media_store_id": 1})
        assert (answer.status, answer.body["code"]) == (503, "storage")
        assert int(answer.headers["Retry-After"]) >= 1


async def test_stopping_answers_the_request_that_is_under_way(tmp_path: Path) -> None:
    blocker = sqlite3.connect(tmp_path / "queue.db", isolation_level=None)
    async with rest(tmp_path / "queue.db") as rig:
        blocker.execute("BEGIN IMMEDIATE")
        asking = asyncio.create_task(rig.post())
        door = rig.database._door
        await until(lambda: door is not None and door.is_busy)
        app_stopping = asyncio.create_task(_release(rig, blocker))
    await app_stopping

    assert (await asking)["status"] == "pending"


async def _release(rig: Rig, blocker: sqlite3.Connection) -> None:
    async with asyncio.timeout(DEADLINE):
        while True:
            try:
                _, writer = await asyncio.open_connection("127.0.0.1", rig.port)
            except ConnectionRefusedError:
                break
            writer.close()
            await writer.wait_closed()
    blocker.execute("ROLLBACK")
    blocker.close()


async def test_a_taken_port_is_a_configuration_error(rig: Rig) -> None:
    from aiohttp import web  # noqa: PLC0415 - the only server here that is not the rig's

    with pytest.raises(ConfigError, match=re.escape(f"port {rig.port}")):
        async with serve(web.Application(), "127.0.0.1", rig.port):
            pass
