"""/metrics over REST: what it shows, to whom, and that nothing which is away takes it down."""

from collections.abc import AsyncIterator, Iterable
from pathlib import Path

import aiohttp
import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from daemon.metrics import Reading
from daemon.settings import AuthSettings
from tests.exposition import Exposition
from tests.integration.rest_rig import Rig, rest


@pytest.fixture
async def rig(tmp_path: Path) -> AsyncIterator[Rig]:
    async with rest(tmp_path / "queue.db", max_pending=2) as served:
        yield served


@pytest.fixture
def es256_key(tmp_path: Path) -> Path:
    key = ec.generate_private_key(ec.SECP256R1()).public_key()
    path = tmp_path / "key.pem"
    path.write_bytes(
        key.public_bytes(
            serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
        )
    )
    return path


async def fetch(rig: Rig) -> tuple[aiohttp.ClientResponse, Exposition]:
    async with rig.session.get(f"http://127.0.0.1:{rig.port}/metrics") as response:
        text = await response.text()
    return response, Exposition(text)


async def test_it_is_prometheus_text(rig: Rig) -> None:
    response, found = await fetch(rig)

    assert response.status == 200
    assert response.headers["Content-Type"] == "text/plain; version=0.0.4; charset=utf-8"
    assert response.headers["X-Content-Type-Options"] == "nosniff"
    assert response.headers["Cache-Control"] == "no-store"
    assert found.value("inferd_jobs_total", task_type="face_detection", status="completed") == 0


async def test_head_and_other_methods(rig: Rig) -> None:
    url = f"http://127.0.0.1:{rig.port}/metrics"
    async with rig.session.head(url) as head:
        assert head.status == 200
    assert (await rig.ask("POST", "/metrics", json={})).status == 405


async def test_it_is_open_as_health_is(tmp_path: Path, es256_key: Path) -> None:
    async with rest(tmp_path / "queue.db", auth=AuthSettings(public_key_path=es256_key)) as rig:
        refused = await rig.ask("POST", "/job/image_embedding", json={"media_store_id": 1})
        response, found = await fetch(rig)

    assert (refused.status, response.status) == (401, 200)
    assert found.value("inferd_requests_rejected_total", door="rest", code="unauthorized") == 1


async def test_requests_are_counted_by_what_they_were_told(rig: Rig) -> None:
    created = await rig.post(1)
    await rig.post(1, job_id=created["job_id"])
    for body in ({"media_store_id": 1}, {}, {"media_store_id": 1, "priority": 11}):
        assert (await rig.ask("POST", "/job/image_embedding", json=body)).status in (400, 409, 422)
    assert (await rig.ask("POST", "/job/no_such_task", json={"media_store_id": 3})).status == 400
    await rig.post(2)
    assert (await rig.ask("POST", "/job/image_embedding", json={"media_store_id": 4})).status == 503
    rig.health.is_draining = True
    assert (await rig.ask("POST", "/job/image_embedding", json={"media_store_id": 5})).status == 503

    _, found = await fetch(rig)

    image = {"task_type": "image_embedding"}
    assert found.value("inferd_requests_accepted_total", **image, duplicate="false") == 2
    assert found.value("inferd_requests_accepted_total", **image, duplicate="true") == 1
    rejected = {
        code: found.value("inferd_requests_rejected_total", door="rest", code=code)
        for code in found.labels("inferd_requests_rejected_total", "code")
    }
    assert rejected == {
        "conflict": 1,
        "invalid_request": 2,
        "unknown_task": 1,
        "queue_full": 1,
        "draining": 1,
    }
    # A task type that a client made up is no label.
    assert found.labels("inferd_requests_accepted_total", "task_type") == {"image_embedding"}


async def test_what_is_not_a_request_for_a_job_is_not_counted_as_one(rig: Rig) -> None:
    await rig.ask("GET", "/job/nothing")
    await rig.ask("POST", "/job/nothing/retry")
    await rig.ask("GET", "/nowhere")

    _, found = await fetch(rig)

    assert found.labels("inferd_requests_rejected_total", "code") == set()


async def test_a_database_that_cannot_be_read_takes_nothing_else_away(rig: Rig) -> None:
    async def queue() -> Iterable[Reading]:
        return [Reading("inferd_jobs_pending", "Waiting.", (await rig.queue.snapshot()).pending)]

    rig.metrics.add_source("queue", queue)
    await rig.post(1)
    _, before = await fetch(rig)
    await rig.database.close()

    response, after = await fetch(rig)

    assert before.value("inferd_jobs_pending") == 1
    assert response.status == 200
    assert "inferd_jobs_pending" not in after.families
    assert after.value("inferd_scrape_errors_total", source="queue") == 1
    assert (
        after.value(
            "inferd_requests_accepted_total", task_type="image_embedding", duplicate="false"
        )
        == 1
    )
