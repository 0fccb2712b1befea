"""Every status that the OpenAPI document promises is answered, by real routes over real HTTP."""

import asyncio
import io
import json
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from daemon.errors import (
    ChangedError,
    ConfigError,
    InferdError,
    ModelChangeError,
    NotFoundError,
    PermanentError,
    RetryableError,
)
from daemon.jobs import TaskType
from daemon.settings import AuthSettings
from daemon.stored_filter import StoredVector
from http_shim import bodies
from http_shim.doors import openai
from tests.documents import Rest, openapi
from tests.doors.stand_in import CLIP, StandIn
from tests.integration import rest_rig
from tests.integration.rest_rig import DEADLINE, MAX_BODY, NOW, RESULT, Rig, rest
from tests.integration.test_search_routes import Scripted

UNKNOWN = f"/job/{uuid.UUID(int=0)}"
IMAGES = "/search/image_embeddings"
JPEG = {"Content-Type": "image/jpeg"}
BODY_ROUTES = (
    *("/job/image_embedding", "/job/retry", "/queue/image_embedding/pause", IMAGES),
    *("/v1/embeddings", "/audit/mend", "/models/image_embeddings/use"),
)


@pytest.fixture
def contract(monkeypatch: pytest.MonkeyPatch) -> Rest:
    """Return what notes the answers of this test alone."""
    fresh = Rest()
    monkeypatch.setattr(rest_rig, "CONTRACT", fresh)
    return fresh


async def check_late(rig: Rig, contract: Rest, path: str) -> None:
    """Send a body that never ends, and hold the answer to the contract."""
    reader, writer = await asyncio.open_connection("127.0.0.1", rig.port)
    head = ["Host: x", "Content-Type: image/jpeg", "Content-Length: 1000"]
    writer.write("\r\n".join([f"POST {path} HTTP/1.1", *head, "", "{"]).encode())
    async with asyncio.timeout(DEADLINE):
        top = await reader.readuntil(b"\r\n\r\n")
        first, *lines = top.decode().strip().split("\r\n")
        headers = dict(line.split(": ", 1) for line in lines)
        answer = await reader.readexactly(int(headers["Content-Length"]))
    writer.close()
    await writer.wait_closed()
    contract.check("POST", path, int(first.split()[1]), json.loads(answer), headers)


async def jobs(rig: Rig) -> None:
    """Do to jobs what can be done."""
    job = await rig.post()
    path = f"/job/{job['job_id']}"
    await rig.post(job_id=job["job_id"])
    await rig.ask("POST", "/job/image_embedding", json={"media_store_id": 12345})
    await rig.ask("POST", "/job/paint", json={"media_store_id": 1})
    for body in ({}, {"media_store_id": 1, "priority": 11}, {"media_store_id": 1, "expires_at": 1}):
        await rig.ask("POST", "/job/image_embedding", json=body)
    await rig.ask("POST", "/job/image_embedding", data=b"hello")
    await rig.ask("GET", path)
    await rig.ask("HEAD", path)
    lease = await rig.lease()
    for method, which in (("DELETE", path), ("POST", f"{path}/retry")):
        await rig.ask(method, which)
    await rig.queue.bury(lease, code="internal", message="it broke")
    await rig.ask("GET", path)
    await rig.ask("POST", f"{path}/retry")
    await rig.queue.complete(await rig.lease(), RESULT)
    await rig.ask("GET", "/workers")
    await rig.ask("GET", "/job?status=completed&limit=1")
    await rig.ask("GET", "/job?colour=red")
    rig.vectors.error = RetryableError("away", code="vector_store_error")
    await rig.ask("DELETE", path)
    rig.vectors.error = None
    await rig.ask("DELETE", path)
    for method, which in (
        ("GET", UNKNOWN),
        ("DELETE", UNKNOWN),
        ("POST", f"{UNKNOWN}/retry"),
        ("POST", f"{UNKNOWN}/cancel"),
    ):
        await rig.ask(method, which)
    for asked in ({"code": "internal"}, {}, {"code": "internal", "limit": "x"}):
        await rig.ask("POST", "/job/retry", json=asked)


async def media(rig: Rig) -> None:
    """Cancel a job, and delete a picture in each way."""
    await rig.post(77)
    held = (await rig.lease()).job
    for method, path in (("POST", f"/job/{held.job_id}/cancel"), ("DELETE", "/media/77")):
        assert (await rig.ask(method, path)).status == 409
    waiting = await rig.post(78)
    assert (await rig.ask("POST", f"/job/{waiting['job_id']}/cancel")).status == 200
    for path in ("/media/78", "/media/78", "/media/x"):
        await rig.ask("DELETE", path)
    rig.vectors.error = RetryableError("away", code="vector_store_error")
    await rig.ask("DELETE", "/media/78")
    rig.vectors.error = None


async def searches(rig: Rig, searcher: Scripted) -> None:
    """Search, and let what is behind it fail in each way."""
    asked: list[tuple[str, str, dict[str, Any]]] = [
        ("GET", f"{IMAGES}?text=dog", {}),
        ("POST", IMAGES, {"data": b"bytes", "headers": JPEG}),
    ]
    failures: list[Exception | None] = [
        None,
        NotFoundError("nothing", code="vector_not_found"),
        PermanentError("no text", code="bad_text"),
        PermanentError("no picture", code="decode_error"),
        RetryableError("away", code="vector_store_unreachable"),
    ]
    for error in failures:
        searcher.error = error
        for method, path, more in asked:
            code = getattr(error, "code", "")
            if (code in ("vector_not_found", "bad_text")) <= (method == "GET") and (
                code != "decode_error" or method == "POST"
            ):
                await rig.ask(method, path, **more)
            if code not in ("bad_text", "decode_error"):
                await rig.ask("GET", f"{IMAGES}/12345/duplicates")
    searcher.error = RetryableError("away", code="vector_store_unreachable")
    await rig.ask("GET", "/faces/1")
    searcher.error = None
    searcher.faces = [{"point_id": str(uuid.UUID(int=1)), "face_index": 0, "job_id": None}]
    for word in ("1", "x"):
        await rig.ask("GET", f"/faces/{word}")
    searcher.faces = []
    await rig.ask("GET", "/faces/1")
    await rig.ask("GET", f"{IMAGES}/12345/duplicates?limit=0")
    for method in ("GET", "POST"):
        await rig.ask(method, "/search/nothing")
        await rig.ask(method, f"{IMAGES}?limit=0", headers=JPEG)


async def queue(rig: Rig) -> None:
    """Look at the queue, pause and resume."""
    await rig.ask("GET", "/queue")
    for body in (b"", b'{"seconds": 60}', b'{"until": %d}' % (NOW + 1000), b'{"until": "x"}', b"{"):
        await rig.ask("POST", "/queue/image_embedding/pause", data=body)
    await rig.ask("GET", "/queue")
    await rig.ask("POST", "/queue/image_embedding/resume")
    for verb in ("pause", "resume"):
        await rig.ask("POST", f"/queue/paint/{verb}")
        for seen in ("open", "paused"):
            await rig.ask("POST", f"/queue/image_embedding/{verb}?seen={seen}")


class CopiedVectors:
    """Says that it copied vectors, or fails."""

    error: InferdError | None = None

    async def make_snapshot(self) -> dict[str, Any]:
        if self.error is not None:
            raise self.error
        made = {"snapshot_id": "1", "folder": "/x", "engine": "edge", "collections": [], "size": 1}
        return dict(made)

    async def remove_snapshot(self, snapshot_id: str) -> bool:
        return snapshot_id == "1"


async def snapshots(rig: Rig, copied: CopiedVectors) -> None:
    """Have the vectors copied, and the copy removed."""
    for path in ("/vectors/snapshots/1", "/vectors/snapshots/2"):
        assert (await rig.ask("DELETE", path)).status == 200
    for error, status in (
        (None, 201),
        (RetryableError("away", code="vector_store_error"), 503),
    ):
        copied.error = error
        assert (await rig.ask("POST", "/vectors/snapshots")).status == status


class ScriptedModels:
    """Says how far a change is, or fails."""

    error: InferdError | None = None

    async def told(self) -> dict[str, Any]:
        if self.error is not None:
            raise self.error
        example = openapi()["paths"]["/models/{collection}"]["get"]["responses"]["200"]
        return dict(example["content"]["application/json"]["example"])

    async def use(self, _spec: Mapping[str, str], *, allow_failed: int = 0) -> dict[str, Any]:
        assert allow_failed in (0, 2)
        return await self.told()

    async def rollback(self, *, now: bool = False, seen: str | None = None) -> dict[str, Any]:
        assert not now
        return await self.abort(seen=seen)

    async def abort(self, *, seen: str | None = None) -> dict[str, Any]:
        if seen is not None:
            raise ChangedError(f"it is not {seen}")
        return await self.told()

    drop = abort


async def models(rig: Rig, changer: ScriptedModels) -> None:
    """Change a collection's model in every way."""
    use, body = "/models/image_embeddings/use", {"model": "ViT-B-16", "allow_failed": 2}
    for code in (None, "model_kept", "nothing_to_roll_back", "no_model_change", "nothing_to_drop"):
        changer.error = ModelChangeError("no", code=code) if code else None
        verbs = {"model_kept": "use", "nothing_to_roll_back": "rollback"}
        verbs |= {"no_model_change": "abort", "nothing_to_drop": "drop"}
        for verb in [verbs[code]] if code else verbs.values():
            answer = await rig.ask("POST", f"/models/image_embeddings/{verb}", json=body)
            assert answer.status == (409 if code else 200)
    changer.error = None
    await rig.ask("GET", "/models/image_embeddings")
    changer.error = ConfigError("no such model")
    refused = await rig.ask("POST", use, json=body)
    assert (refused.status, refused.body["code"]) == (422, "model_unusable")
    for wrong in ({}, {"model": 1}, {"model": "a", "colour": "red"}, {**body, "allow_failed": -1}):
        assert (await rig.ask("POST", use, json=wrong)).status == 422
    changer.error = RetryableError("away", code="vector_store_unreachable")
    unclear = await rig.ask("POST", "/models/image_embeddings/rollback?now=perhaps")
    assert (unclear.status, unclear.body["code"]) == (422, "invalid_request")
    for verb in ("rollback", "abort", "drop"):
        changed = await rig.ask("POST", f"/models/image_embeddings/{verb}?seen=9b1f0c3a77de")
        assert (changed.status, changed.body["code"]) == (409, "changed_meanwhile")
        unclear = await rig.ask("POST", f"/models/image_embeddings/{verb}?colour=red")
        assert unclear.status == 422
    for verb in ("use", "rollback", "abort", "drop"):
        await rig.ask("POST", f"/models/image_embeddings/{verb}", json=body)
        await rig.ask("POST", f"/models/nothing/{verb}", json=body)
    for collection in ("image_embeddings", "nothing"):
        await rig.ask("GET", f"/models/{collection}")


class ScriptedVectors:
    """Has nothing, or fails."""

    task_types = (TaskType.IMAGE_EMBEDDING,)
    collections = ("image_embeddings",)
    error: InferdError | None = None

    async def listing(self, collection: str, **_: Any) -> dict[str, Any]:
        if self.error is not None:
            raise self.error
        return {"collection": collection, "points": [], "next": None}

    async def count(self, task_type: TaskType) -> int:
        assert task_type in self.task_types
        return 0

    async def page(
        self, task_type: TaskType, *, after: str | None, limit: int, deep: bool
    ) -> tuple[list[StoredVector], str | None]:
        assert (task_type, after, deep) == (*self.task_types, None, False)
        return [][:limit], None

    async def has(self, task_type: TaskType, wanted: Sequence[tuple[int, int]]) -> list[bool]:
        assert task_type in self.task_types
        if self.error is not None:
            raise self.error
        return [False for _ in wanted]

    async def of_pictures(self, *_: Any, **__: Any) -> list[StoredVector]:
        if self.error is not None:
            raise self.error
        return []

    async def remove(self, *_: Any) -> None:
        raise AssertionError("nothing is there")


async def audits(rig: Rig, vectors: ScriptedVectors) -> None:
    """List what is stored, and audit it; in each way."""
    finding = {"kind": "missing_vector", "task_type": "image_embedding", "media_store_id": 1}
    for error in (None, RetryableError("away", code="vector_store_unreachable")):
        vectors.error = error
        await rig.ask("GET", "/stored/image_embeddings")
        await rig.ask("GET", "/audit")
        await rig.ask("POST", "/audit/mend", json={"findings": [finding]})
    vectors.error = None
    for path in ("/stored/nothing", "/stored/image_embeddings?limit=0", "/audit?after=x"):
        await rig.ask("GET", path)
    await rig.ask("POST", "/audit/mend", json={})


async def health(rig: Rig) -> None:
    """Ask how the daemon is."""
    for path in ("/", "/health", "/health/live", "/health/ready", "/openapi.json"):
        assert (await rig.ask("GET", path)).status == 200
    assert (await rig.ask("GET", "/openapi.json")).body == openapi()
    assert (await rig.ask("GET", "/nowhere")).status == 404
    assert (await rig.ask("PUT", "/job")).headers["Allow"] == "GET,HEAD"


async def openai_clients(rig: Rig, behind: StandIn) -> None:
    """Embed, look at the models, and have each fail."""
    body = {"model": CLIP, "input": "a dog"}
    wrong = ({**body, "input": []}, {**body, "model": "other"}, {**body, "dimensions": 3})
    for asked in (body, *wrong):
        await rig.ask("POST", "/v1/embeddings", json=asked)
    for path in ("/v1/models", f"/v1/models/{CLIP}", "/v1/models/other"):
        await rig.ask("GET", path)
    behind.error = RetryableError("no", code="model_error")
    await rig.ask("POST", "/v1/embeddings", json=body)
    behind.error = None
    behind.go.clear()
    most = openai.PLACES + openai.MOST_WAITING
    waiting = [
        asyncio.create_task(rig.ask("POST", "/v1/embeddings", json=body)) for _ in range(most + 1)
    ]
    busy, _ = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
    behind.go.set()
    assert [(await each).status for each in busy] == [429]
    assert {(await each).status for each in waiting} == {200, 429}
    rig.health.is_draining = True
    for path in ("/v1/models", f"/v1/models/{CLIP}"):
        await rig.ask("GET", path)
    rig.health.is_draining = False


async def strange_bodies(rig: Rig, contract: Rest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Send bodies that are too large, packed, and late."""
    monkeypatch.setattr(bodies, "BODY_SECONDS", 0.05)
    for path in BODY_ROUTES:
        await rig.ask("POST", path, data=io.BytesIO(b" " * (MAX_BODY + 1)), headers=JPEG)
        await rig.ask("POST", path, data=b"", headers={**JPEG, "Content-Encoding": "gzip"})
        await check_late(rig, contract, path)


async def every_writer(rig: Rig, headers: dict[str, str]) -> None:
    """Ask whatever needs a token."""
    for operation_path, operations in openapi()["paths"].items():
        path = operation_path.replace("{collection}", "image_embeddings")
        path = path.replace("{media_store_id}", "1").replace("{snapshot_id}", "1")
        for name in ("{target}", "{job_id}", "{task_type}", "{model}"):
            path = path.replace(name, "image_embedding")
        for method, operation in operations.items():
            if operation["security"]:
                await rig.ask(method.upper(), path, headers=headers)


async def test_every_described_status_is_answered_as_described(
    tmp_path: Path, contract: Rest, monkeypatch: pytest.MonkeyPatch
) -> None:
    searcher, behind, copied = Scripted(), StandIn(), CopiedVectors()
    vectors, changer = ScriptedVectors(), ScriptedModels()
    async with rest(
        tmp_path / "all.db",
        search=searcher,
        embedder=behind,
        snapshots=copied,
        models={"image_embeddings": changer},
        audited=vectors,
        stored=vectors,
    ) as rig:
        await audits(rig, vectors)
        await snapshots(rig, copied)
        await models(rig, changer)
        await jobs(rig)
        await media(rig)
        await searches(rig, searcher)
        await queue(rig)
        await health(rig)
        await openai_clients(rig, behind)
        rig.health.is_draining = True
        await rig.ask("GET", "/health/ready")
        for path in ("/job/image_embedding", f"{UNKNOWN}/retry"):
            await rig.ask("POST", path, json={"media_store_id": 1})
        await rig.ask("POST", "/job/retry", json={"code": "internal"})
        rig.health.is_draining = False
        rig.health.hangs = lambda: "clip has been busy with one call (infer) for 120 s"
        assert (await rig.ask("GET", "/health/live")).status == 503
        rig.health.hangs = lambda: None
        await strange_bodies(rig, contract, monkeypatch)
        await rig.database.close()
        for method, path in (
            *(("GET", UNKNOWN), ("GET", "/job"), ("GET", "/queue"), ("DELETE", UNKNOWN)),
            *(("POST", f"/queue/image_embedding/{verb}") for verb in ("pause", "resume")),
            *(("POST", f"{UNKNOWN}/{verb}") for verb in ("retry", "cancel")),
            ("DELETE", "/media/78"),
        ):
            assert (await rig.ask(method, path)).status == 503
        assert (await rig.ask("POST", "/job/retry", json={"code": "internal"})).status == 503
    async with rest(tmp_path / "full.db", max_pending=1) as rig:
        await rig.post(1)
        await rig.ask("POST", "/job/image_embedding", json={"media_store_id": 2})
        await rig.ask("GET", f"{IMAGES}?text=dog")
        await rig.ask("GET", "/v1/models")
        await rig.ask("POST", "/vectors/snapshots")
        await rig.ask("DELETE", "/vectors/snapshots/1")
        await rig.ask("GET", "/audit")
        await rig.ask("POST", "/audit/mend", json={})
    key = ec.generate_private_key(ec.SECP256R1())
    pem = tmp_path / "issuer.pem"
    pem.write_bytes(key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo))
    stranger = {"sub": "42", "permissions": [], "exp": int(time.time()) + 600}
    token = {"Authorization": f"Bearer {jwt.encode(stranger, key, algorithm='ES256')}"}
    async with rest(tmp_path / "auth.db", auth=AuthSettings(public_key_path=pem)) as rig:
        await every_writer(rig, {})
        await every_writer(rig, token)
    # Port 1 is nobody's: the issuer of the keys is away.
    away = AuthSettings(jwks_url="http://127.0.0.1:1/keys")
    async with rest(tmp_path / "keys.db", auth=away) as rig:
        await every_writer(rig, token)

    promised = {
        (name, int(status))
        for name, operation in contract.operations.items()
        for status in operation["responses"]
        # The console's are seen by its own tests.
        if operation["tags"] != ["console"]
    }
    # A fault of ours answers 500; metrics are text, which the tests of metrics read; and aiohttp's
    # parser answers what is not framed as HTTP demands itself, as far as its versions notice it.
    unseen = {each for each in promised - contract.seen if each[1] != 500}
    assert unseen == {
        ("showMetrics", 200),
        ("searchPicture", 400),
        ("retryFailed", 400),
        ("mendFindings", 400),
        ("useModel", 400),
    }
    assert behind.under_way == 0


async def test_a_fault_of_ours_is_answered_as_described(
    tmp_path: Path, contract: Rest, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: Any) -> Callable[[], None]:
        raise RuntimeError("a bug")

    async with rest(tmp_path / "queue.db") as rig:
        monkeypatch.setattr(rig.queue, "get", broken)
        await rig.ask("GET", UNKNOWN)

    assert contract.codes == {("getJob", 500, "internal")}


async def test_what_is_not_described_is_noticed(contract: Rest) -> None:
    body = {"detail": "x", "code": "job_not_found"}
    contract.check("GET", UNKNOWN, 404, body, {})
    for status, wrong in (
        (404, {**body, "colour": "red"}),
        (404, {**body, "code": "conflict"}),
        (418, body),
        (200, {}),
    ):
        with pytest.raises(AssertionError):
            contract.check("GET", UNKNOWN, status, wrong, {})
