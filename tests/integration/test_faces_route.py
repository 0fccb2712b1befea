"""The faces of a picture over HTTP and by command: whose result is shown, and what is stored."""

import asyncio
import time
import uuid
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from daemon.cli.faces import main
from daemon.errors import DependencyDownError
from daemon.jobs import JsonObject, TaskType
from daemon.settings import AuthSettings
from http_shim import face_routes
from tests.integration.rest_rig import RAN, Rig, rest
from tests.integration.test_search_routes import Scripted

AGAIN = {"media_store_id": 1, "force": True}


@pytest.fixture
async def searcher() -> Scripted:
    return Scripted()


@pytest.fixture
async def rig(tmp_path: Path, searcher: Scripted) -> AsyncIterator[Rig]:
    async with rest(tmp_path / "queue.db", search=searcher) as rig:
        yield rig


def box(x: float) -> JsonObject:
    return {"x": x, "y": 20.0, "width": 30.0, "height": 40.0}


def face(index: int, x: float = 10.0) -> JsonObject:
    return {
        "face_index": index,
        "bbox": box(x),
        "landmarks": [[1.0, 2.0]] * 5,
        "confidence": 0.9,
    }


def vector(index: int, **more: Any) -> JsonObject:
    point_id = str(uuid.UUID(int=index))
    return {"point_id": point_id, "face_index": index, "job_id": None, **more}


async def complete(rig: Rig, task_type: TaskType, *faces: JsonObject) -> str:
    """Do a job for picture 1, a moment after the one before."""
    asked = await rig.ask("POST", f"/job/{task_type.value}", json=AGAIN)
    rig.clock.now += 1000
    result = {"faces": list(faces), "face_count": len(faces), **RAN}
    if task_type is TaskType.FACE_EMBEDDING:
        result |= {
            "faces": [each | {"point_id": str(uuid.uuid4())} for each in faces],
            "embedding_dimension": 512,
            "stored_in_vector_db": True,
            "collection": "face_embeddings",
        }
    await rig.queue.complete(await rig.lease(task_type), result)
    return str(asked.body["job_id"])


async def shown(rig: Rig) -> Any:
    answer = await rig.ask("GET", "/faces/1")
    assert answer.status == 200, answer.body
    return answer.body


async def test_a_result_with_vectors_is_shown_before_a_newer_one_without(rig: Rig) -> None:
    first = await complete(rig, TaskType.FACE_DETECTION, face(0, 1.0))
    assert (await shown(rig))["job_id"] == first

    embedded = await complete(rig, TaskType.FACE_EMBEDDING, face(0, 2.0))
    await complete(rig, TaskType.FACE_DETECTION, face(0, 3.0))

    told = await shown(rig)
    assert (told["job_id"], told["task_type"]) == (embedded, "face_embedding")
    assert told["faces"] == [face(0, 2.0) | {"stored": False}]
    assert told["image"] == RAN["image"]


async def test_a_result_that_waits_for_the_media_store_is_shown_before_an_older_one(
    rig: Rig,
) -> None:
    left = {"code": "media_store_error", "message": "it is away"}
    later = rig.clock.now + 60_000
    for x in (1.0, 2.0):
        asked = await rig.ask("POST", "/job/face_detection", json=AGAIN)
        lease, result = await rig.lease(TaskType.FACE_DETECTION), {"faces": [face(0, x)], **RAN}
        if x == 1.0:
            await rig.queue.give_up_sync(lease, result, run_at=None, **left)
        else:
            await rig.queue.keep(lease, result, run_at=later, **left)

    told = await shown(rig)
    assert told["job_id"] == asked.body["job_id"]
    assert told["faces"] == [face(0, 2.0) | {"stored": False}]


async def test_a_face_is_stored_where_its_number_and_its_box_are(
    rig: Rig, searcher: Scripted
) -> None:
    await complete(rig, TaskType.FACE_EMBEDDING, *(face(index) for index in range(4)))
    searcher.faces = [
        vector(0, bbox=box(10.0)),
        # Another model's face of that number.
        vector(1, bbox=box(11.0)),
        # An older version's, which says nothing of where it is.
        vector(2),
    ]

    told = await shown(rig)

    assert [each["stored"] for each in told["faces"]] == [True, False, True, False]
    assert told["vectors"] == [vector(0), vector(1), vector(2)]


async def test_without_a_collection_of_faces_nobody_can_tell_what_is_stored(
    rig: Rig, searcher: Scripted, tmp_path: Path
) -> None:
    await complete(rig, TaskType.FACE_DETECTION, face(0))
    searcher.faces = None

    told = await shown(rig)
    assert ([each["stored"] for each in told["faces"]], told["vectors"]) == ([None], None)
    async with rest(tmp_path / "other.db") as without:
        await complete(without, TaskType.FACE_DETECTION, face(0))
        told = await shown(without)
        assert ([each["stored"] for each in told["faces"]], told["vectors"]) == ([None], None)
        assert (await without.ask("GET", "/faces/2")).body["code"] == "not_found"


async def test_vectors_that_outlast_their_result_are_shown(
    rig: Rig,
    searcher: Scripted,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("INFERD_CLIENT__INFERENCE_URL", f"http://127.0.0.1:{rig.port}")
    searcher.faces = [vector(0, bbox=box(10.0)), vector(1)]
    await complete(rig, TaskType.FACE_EMBEDDING, face(0), face(1))
    # It takes the place of the one that stored them, and may wait for long, or fail.
    assert (await rig.ask("POST", "/job/face_embedding", json=AGAIN)).status == 201

    told = await shown(rig)
    assert (told["job_id"], told["faces"]) == (None, [])
    assert told["vectors"] == [vector(0), vector(1)]
    searcher.faces = [vector(0, bbox=box(10.0)), vector(1)]
    assert await asyncio.to_thread(main, ["1"], prog="faces") == 0
    assert capsys.readouterr().out.splitlines() == [
        "face 0  box ?  confidence ?  stored",
        "face 1  box ?  confidence ?  stored",
    ]

    searcher.faces = []
    await complete(rig, TaskType.FACE_EMBEDDING)
    assert await asyncio.to_thread(main, ["1"], prog="faces") == 0
    assert capsys.readouterr().out == "no faces\n"


async def test_where_the_vectors_cannot_be_looked_at_it_says_why(
    rig: Rig, searcher: Scripted, monkeypatch: pytest.MonkeyPatch
) -> None:
    await complete(rig, TaskType.FACE_EMBEDDING, face(0))
    searcher.error = DependencyDownError("gone", code="vector_store_unreachable")
    away = await rig.ask("GET", "/faces/1")
    monkeypatch.setattr("http_shim.search_door.MAX_SEARCHES", 0)
    busy = await rig.ask("GET", "/faces/1")
    monkeypatch.undo()

    async def never(_media_store_id: int) -> None:
        await asyncio.Event().wait()

    monkeypatch.setattr(searcher, "faces_of", never)
    monkeypatch.setattr(face_routes, "LOOK_SECONDS", 0.05)
    late = await rig.ask("GET", "/faces/1")

    answers = away, busy, late
    assert {answer.status for answer in answers} == {503}
    codes = [answer.body["code"] for answer in answers]
    assert codes == ["vector_store_unreachable", "busy", "timeout"]


async def test_faces_need_a_token_as_a_search_does(tmp_path: Path, searcher: Scripted) -> None:
    key = ec.generate_private_key(ec.SECP256R1())
    pem = tmp_path / "key.pem"
    pem.write_bytes(key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo))
    token = jwt.encode({"sub": "42", "exp": int(time.time()) + 60}, key, algorithm="ES256")
    auth = AuthSettings(public_key_path=pem)
    async with rest(tmp_path / "closed.db", auth=auth, search=searcher) as rig:
        assert (await rig.ask("GET", "/faces/1")).status == 401
        assert searcher.asked == []
        bearer = {"Authorization": f"Bearer {token}"}
        assert (await rig.ask("GET", "/faces/1", headers=bearer)).status == 404
