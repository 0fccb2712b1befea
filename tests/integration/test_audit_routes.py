"""The routes of what is stored, and of its audit: over HTTP, a real queue and embedded vectors."""

import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import jwt
import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from daemon.errors import ConfigError, DependencyDownError
from daemon.jobs import TaskType
from daemon.settings import AuthSettings
from handlers.face_store import QdrantFaceStore
from handlers.image_store import QdrantImageStore
from handlers.qdrant.qdrant_edge import EdgeEngine
from handlers.qdrant.vector_engine import Point, SharedEngine
from handlers.qdrant.vector_points import face_point_id
from handlers.search.stored_vectors import StoredVectors
from tests.integration.rest_rig import RESULT, Rig, rest

IMAGES = TaskType.IMAGE_EMBEDDING
NAMED = "d04685bb-69e6-47f4-a78d-d08c2888cff6"


@pytest.fixture
async def engine(tmp_path: Path) -> SharedEngine:
    return SharedEngine(lambda: EdgeEngine(tmp_path / "vectors"))


@pytest.fixture
async def images(engine: SharedEngine) -> AsyncIterator[QdrantImageStore]:
    async with QdrantImageStore(engine=engine) as store:
        yield store


@pytest.fixture
async def faces(engine: SharedEngine) -> AsyncIterator[QdrantFaceStore]:
    async with QdrantFaceStore(engine=engine) as store:
        yield store


@pytest.fixture
async def stored(images: QdrantImageStore, faces: QdrantFaceStore) -> StoredVectors:
    return StoredVectors({IMAGES: images, TaskType.FACE_EMBEDDING: faces})


@pytest.fixture
async def rig(tmp_path: Path, stored: StoredVectors) -> AsyncIterator[Rig]:
    async with rest(tmp_path / "queue.db", audited=stored, stored=stored) as rig:
        yield rig


def point(point_id: int | str, **payload: Any) -> Point:
    return Point(point_id, np.ones(512, np.float32), payload)


async def complete(rig: Rig, media_store_id: int) -> str:
    created = await rig.post(media_store_id)
    await rig.queue.complete(await rig.lease(), RESULT)
    return str(created["job_id"])


# -- what is stored -------------------------------------------------------------------------


async def test_pages_of_what_is_stored_are_everything_once(
    rig: Rig, images: QdrantImageStore
) -> None:
    most = 2**63 - 1
    await images.upsert([point(each, media_store_id=each) for each in (3, 1, most, 7)])
    await images.upsert([point(NAMED), point("by-name", media_store_id=9)])

    found = list[dict[str, Any]]()
    after: str | None = ""
    while after is not None:
        answer = await rig.ask("GET", f"/stored/image_embeddings?limit=2&after={after}")
        assert answer.status == 200, answer.body
        assert len(answer.body["points"]) <= 2
        found += answer.body["points"]
        after = answer.body["next"]

    ids = [each["point_id"] for each in found]
    assert ids[:4] == [1, 3, 7, most]
    assert sorted(map(str, ids[4:])) == ["by-name", NAMED]
    assert found[0] == {
        "point_id": 1,
        "media_store_id": 1,
        "job_id": None,
        "payload": {"media_store_id": 1},
    }


async def test_a_list_goes_on_after_what_was_deleted(rig: Rig, images: QdrantImageStore) -> None:
    await images.upsert([point(each) for each in (1, 2, 3)])
    first = await rig.ask("GET", "/stored/image_embeddings?limit=2")
    await images.remove([2])
    await images.upsert([point(0)])

    second = await rig.ask("GET", f"/stored/image_embeddings?after={first.body['next']}")

    assert [each["point_id"] for each in second.body["points"]] == [3]
    assert second.body["next"] is None
    past = await rig.ask("GET", f"/stored/image_embeddings?after={'f' * 8}-{NAMED[9:]}")
    assert (past.body["points"], past.body["next"]) == ([], None)


async def test_a_list_is_narrowed_as_a_search_is(rig: Rig, faces: QdrantFaceStore) -> None:
    for media_store_id in (1, 2):
        await faces.upsert(
            [
                point(
                    face_point_id(media_store_id, index),
                    media_store_id=media_store_id,
                    face_index=index,
                )
                for index in range(3)
            ]
        )

    query = urlencode({"media_store_ids": "2", "payload": '{"face_index": [0, 2]}'})
    answer = await rig.ask("GET", f"/stored/face_embeddings?{query}")

    assert sorted(each["point_id"] for each in answer.body["points"]) == sorted(
        face_point_id(2, index) for index in (0, 2)
    )


@pytest.mark.parametrize(
    ("path", "status", "code"),
    [
        ("/stored/inferd_models", 404, "not_found"),
        ("/stored/nothing", 404, "not_found"),
        ("/stored/image_embeddings?limit=1001", 422, "invalid_request"),
        ("/stored/image_embeddings?offset=1", 422, "invalid_request"),
        (f"/stored/image_embeddings?after={'9' * 65}", 422, "invalid_request"),
        ("/stored/image_embeddings?min_media_store_id=x", 422, "invalid_request"),
        ("/audit?after=x", 422, "invalid_request"),
        ("/audit?after=face_detection.jobs.1", 422, "invalid_request"),
        ("/audit?deep=perhaps", 422, "invalid_request"),
        ("/audit?limit=5", 422, "invalid_request"),
    ],
)
async def test_what_means_nothing_is_refused(rig: Rig, path: str, status: int, code: str) -> None:
    answer = await rig.ask("GET", path)

    assert (answer.status, answer.body["code"]) == (status, code)


async def test_without_vectors_there_is_nothing_to_list_or_audit(tmp_path: Path) -> None:
    async with rest(tmp_path / "other.db") as rig:
        listing = await rig.ask("GET", "/stored/image_embeddings")
        step = await rig.ask("GET", "/audit")
        mend = await rig.ask("POST", "/audit/mend", json={"findings": []})

    assert {answer.status for answer in (listing, step, mend)} == {404}


# -- the audit ------------------------------------------------------------------------------


async def whole(rig: Rig) -> list[dict[str, Any]]:
    found = list[dict[str, Any]]()
    after: str | None = ""
    while after is not None:
        answer = await rig.ask("GET", f"/audit?after={after}")
        assert answer.status == 200, answer.body
        found += answer.body["findings"]
        after = answer.body["next"]
    return found


async def test_steps_find_and_mends_mend(rig: Rig, images: QdrantImageStore) -> None:
    missing = await complete(rig, 1)
    await images.upsert([point(2, media_store_id=2, job_id=missing), point(NAMED)])

    found = await whole(rig)
    mended = await rig.ask("POST", "/audit/mend", json={"findings": found})

    assert sorted(each["kind"] for each in found) == [
        "foreign_vector",
        "missing_vector",
        "orphan_vector",
    ]
    assert mended.status == 200, mended.body
    outcomes = {
        each["kind"]: done for each, done in zip(found, mended.body["results"], strict=True)
    }
    assert outcomes["orphan_vector"] == {"outcome": "deleted", "job_id": None}
    assert outcomes["foreign_vector"] == {"outcome": "unmendable", "job_id": None}
    assert outcomes["missing_vector"]["outcome"] == "requeued"
    job = await rig.ask("GET", f"/job/{outcomes['missing_vector']['job_id']}")
    assert (job.body["status"], job.body["priority"]) == ("pending", 0)
    assert [each["kind"] for each in await whole(rig)] == ["foreign_vector"]


@pytest.mark.parametrize(
    "body",
    [
        {},
        {"findings": []},
        {"findings": [{}]},
        {"findings": [{"kind": "lost", "task_type": "image_embedding", "media_store_id": 1}]},
        {"findings": [{"kind": "missing_vector", "task_type": "x", "media_store_id": 1}]},
        {"findings": [{"kind": "missing_vector", "task_type": IMAGES, "media_store_id": "1"}]},
        {"findings": [{"kind": "missing_vector", "task_type": IMAGES, "media_store_id": -1}]},
        {"findings": [{"kind": "missing_vector", "task_type": IMAGES, "media_store_id": 1}] * 201},
        {"findings": "all"},
    ],
)
async def test_a_mend_of_nothing_known_is_refused(rig: Rig, body: dict[str, Any]) -> None:
    answer = await rig.ask("POST", "/audit/mend", json=body)

    assert (answer.status, answer.body["code"]) == (422, "invalid_request")


async def test_a_mend_of_a_task_that_does_not_run_here_is_refused(rig: Rig) -> None:
    finding = {"kind": "missing_vector", "task_type": "face_detection", "media_store_id": 1}

    answer = await rig.ask("POST", "/audit/mend", json={"findings": [finding]})

    assert (answer.status, answer.body["code"]) == (422, "invalid_request")


async def test_a_vector_database_that_is_away_is_503(
    rig: Rig, images: QdrantImageStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    await complete(rig, 1)
    for error, code in (
        (DependencyDownError("gone", code="vector_store_unreachable"), "vector_store_unreachable"),
        (ConfigError("other", code="collection_mismatch"), "collection_mismatch"),
    ):

        async def away(*_: Any, error: Exception = error, **__: Any) -> Any:
            raise error

        monkeypatch.setattr(images, "page", away)
        monkeypatch.setattr(images, "payloads", away)
        for path in ("/stored/image_embeddings", "/audit?after=image_embedding.jobs.-1"):
            answer = await rig.ask("GET", path)
            assert (answer.status, answer.body["code"]) == (503, code)


async def test_only_so_many_look_at_a_time(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("http_shim.search_door.MAX_SEARCHES", 0)

    for path in ("/stored/image_embeddings", "/audit"):
        answer = await rig.ask("GET", path)
        assert (answer.status, answer.body["code"]) == (503, "busy")


async def test_a_list_needs_a_token_and_an_audit_one_that_may_write(
    tmp_path: Path, stored: StoredVectors
) -> None:
    key = ec.generate_private_key(ec.SECP256R1())
    pem = tmp_path / "key.pem"
    pem.write_bytes(key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo))

    def bearer(**claims: Any) -> dict[str, str]:
        said = {"sub": "42", "exp": int(time.time()) + 60, **claims}
        return {"Authorization": f"Bearer {jwt.encode(said, key, algorithm='ES256')}"}

    auth = AuthSettings(public_key_path=pem)
    async with rest(tmp_path / "closed.db", auth=auth, audited=stored, stored=stored) as rig:
        for method, path, reader in (
            ("GET", "/stored/image_embeddings", 200),
            ("GET", "/audit", 403),
            ("POST", "/audit/mend", 403),
        ):
            writer = bearer(permissions=["ai_inference_support"])
            statuses = [
                (await rig.ask(method, path, headers=headers)).status
                for headers in ({}, bearer(), writer)
            ]
            # The body of a mend is looked at last.
            assert statuses == [401, reader, 422 if method == "POST" else 200], path
