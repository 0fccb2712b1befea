"""The queue over REST: how much waits by task type, and who may pause and resume what."""

import json
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from daemon.jobs import JsonObject, TaskType
from daemon.settings import AuthSettings
from tests.integration.rest_rig import NOW, Answer, Rig, rest

MINUTE = 60_000
IMAGE, FACES = "image_embedding", "face_detection"


@pytest.fixture
async def rig(tmp_path: Path) -> AsyncIterator[Rig]:
    async with rest(tmp_path / "queue.db") as served:
        yield served


async def pause(rig: Rig, body: JsonObject | None = None, task: str = IMAGE) -> Answer:
    return await rig.ask("POST", f"/queue/{task}/pause", json=body)


async def shown(rig: Rig) -> JsonObject:
    answer = await rig.ask("GET", "/queue")
    assert answer.status == 200
    return dict(answer.body)


def nothing() -> JsonObject:
    return {"pending": 0, "processing": 0, "paused": False, "paused_until": None}


# -- looking -------------------------------------------------------------------------------------


async def test_an_empty_queue(rig: Rig) -> None:
    assert await shown(rig) == {
        "pending": 0,
        "delayed": 0,
        "processing": 0,
        "oldest_pending_ms": 0,
        "outbox": 0,
        "task_types": {task.value: nothing() for task in TaskType},
    }


async def test_what_waits_and_runs_is_counted_in_all_and_by_task_type(rig: Rig) -> None:
    for number in range(4):
        await rig.post(number)
    await rig.ask("POST", f"/job/{FACES}", json={"media_store_id": 1})
    await rig.lease()
    await rig.queue.retry(await rig.lease(), run_at=NOW + MINUTE, code="c", message="m")
    rig.clock.now += 1500

    found = await shown(rig)

    assert {name: found[name] for name in ("pending", "delayed", "processing")} == {
        "pending": 4,
        "delayed": 1,
        "processing": 1,
    }
    assert found["oldest_pending_ms"] == 1500
    assert found["outbox"] == 7  # five accepted, two started
    assert found["task_types"] == {
        IMAGE: {**nothing(), "pending": 3, "processing": 1},
        FACES: {**nothing(), "pending": 1},
        "face_embedding": nothing(),
    }


async def test_a_queue_that_cannot_be_read_is_a_503(rig: Rig) -> None:
    await rig.database.close()

    answer = await rig.ask("GET", "/queue")

    assert (answer.status, answer.body["code"]) == (503, "storage")


# -- pausing and resuming ------------------------------------------------------------------------


@pytest.mark.parametrize("body", [None, {}, {"until": None}, {"seconds": None}])
async def test_a_pause_without_an_end(rig: Rig, body: JsonObject | None) -> None:
    answer = await pause(rig, body)

    assert (answer.status, answer.body) == (
        200,
        {"task_type": IMAGE, "paused": True, "paused_until": None},
    )
    assert (await shown(rig))["task_types"][IMAGE] == {**nothing(), "paused": True}


@pytest.mark.parametrize("data", [b"", b" \n"])
async def test_the_body_may_be_empty(rig: Rig, data: bytes) -> None:
    assert (await rig.ask("POST", f"/queue/{IMAGE}/pause", data=data)).status == 200


@pytest.mark.parametrize(
    ("body", "end"),
    [
        ({"until": NOW + MINUTE}, NOW + MINUTE),
        ({"seconds": 60}, NOW + MINUTE),
        ({"seconds": 0.5}, NOW + 500),
        ({"seconds": 0.0001}, NOW + 1),
        ({"seconds": 1_000_000_000}, NOW + 1_000_000_000_000),
        ({"until": 2**53}, 2**53),
    ],
)
async def test_a_pause_with_an_end(rig: Rig, body: JsonObject, end: int) -> None:
    answer = await pause(rig, body)

    assert (answer.status, answer.body["paused_until"]) == (200, end)
    assert (await shown(rig))["task_types"][IMAGE]["paused_until"] == end
    rig.clock.now = end
    assert (await shown(rig))["task_types"][IMAGE] == nothing()


async def test_pausing_again_replaces_the_end(rig: Rig) -> None:
    await pause(rig, {"seconds": 60})
    await pause(rig)
    answer = await pause(rig, {"seconds": 1})

    assert (answer.status, answer.body["paused_until"]) == (200, NOW + 1000)


async def test_jobs_are_taken_while_their_task_type_is_paused(rig: Rig) -> None:
    await pause(rig)

    created = await rig.post(1)

    assert created["status"] == "pending"
    assert await rig.queue.lease(TaskType.IMAGE_EMBEDDING, 1, seconds=30) == []
    assert (await shown(rig))["task_types"][IMAGE]["pending"] == 1


@pytest.mark.parametrize(
    ("body", "seen", "others"),
    [
        (None, "open", ("running", str(NOW + 1000))),
        ({"seconds": 1}, str(NOW + 1000), ("running", "open", str(NOW + 1001))),
    ],
)
async def test_a_pause_that_is_not_the_one_that_was_seen_is_left_as_it_is(
    rig: Rig, body: JsonObject | None, seen: str, others: tuple[str, ...]
) -> None:
    await pause(rig, body)
    before = await shown(rig)

    for verb in ("pause", "resume"):
        for other in others:
            answer = await rig.ask("POST", f"/queue/{IMAGE}/{verb}?seen={other}")
            assert (answer.status, answer.body["code"]) == (409, "changed_meanwhile")
        for value in ("paused", ""):
            wrong = await rig.ask("POST", f"/queue/{IMAGE}/{verb}?seen={value}")
            assert (wrong.status, wrong.body["field"]) == (422, "seen")
    assert await shown(rig) == before

    assert (await rig.ask("POST", f"/queue/{IMAGE}/resume?seen={seen}")).status == 200
    assert (await rig.ask("POST", f"/queue/{IMAGE}/pause?seen=running")).status == 200


async def test_resuming_is_idempotent(rig: Rig) -> None:
    await pause(rig)
    await pause(rig, task=FACES)

    for _ in range(2):
        answer = await rig.ask("POST", f"/queue/{IMAGE}/resume")
        assert (answer.status, answer.body) == (
            200,
            {"task_type": IMAGE, "paused": False, "paused_until": None},
        )

    found = (await shown(rig))["task_types"]
    assert (found[IMAGE]["paused"], found[FACES]["paused"]) == (False, True)


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({"until": NOW + 1, "seconds": 1}, None),
        ({"until": NOW}, "until"),
        ({"until": NOW - 1}, "until"),
        ({"until": -1}, "until"),
        ({"until": 2**53 + 1}, "until"),
        ({"until": NOW + 0.5}, "until"),
        ({"until": str(NOW + 1)}, "until"),
        ({"until": True}, "until"),
        ({"until": [NOW + 1]}, "until"),
        ({"seconds": 0}, "seconds"),
        ({"seconds": -1}, "seconds"),
        ({"seconds": "60"}, "seconds"),
        ({"seconds": True}, "seconds"),
        ({"seconds": 10**10}, "seconds"),
        ({"minutes": 1}, None),
        ([], None),
        ("60", None),
        (60, None),
    ],
    ids=str,
)
async def test_a_wrong_body_is_a_422_and_pauses_nothing(
    rig: Rig, body: Any, field: str | None
) -> None:
    answer = await pause(rig, body)

    assert (answer.status, answer.body["code"]) == (422, "invalid_request")
    assert answer.body.get("field") == field
    assert (await shown(rig))["task_types"][IMAGE] == nothing()


@pytest.mark.parametrize("data", [b"{", b"{'until': 1}", b'{"seconds": NaN}', b"\xff", b"nothing"])
async def test_a_body_that_is_not_json_is_a_422(rig: Rig, data: bytes) -> None:
    answer = await rig.ask("POST", f"/queue/{IMAGE}/pause", data=data)

    assert (answer.status, answer.body["code"]) == (422, "invalid_json")


async def test_the_sentence_names_what_is_wrong(rig: Rig) -> None:
    both = (await pause(rig, {"until": NOW + 1, "seconds": 1})).body["detail"]
    past = (await pause(rig, {"until": NOW})).body["detail"]
    unknown = (await pause(rig, {"x\n": 1})).body["detail"]

    assert both == "until and seconds are two words for one thing: give one"
    assert past == "until: must be in the future"
    assert unknown == "the body may hold until or seconds and nothing else"


@pytest.mark.parametrize("verb", ["pause", "resume"])
async def test_an_unknown_task_type_is_a_400(rig: Rig, verb: str) -> None:
    answer = await rig.ask("POST", f"/queue/mind_reading/{verb}")

    assert (answer.status, answer.body["code"]) == (400, "unknown_task")
    assert answer.body["field"] == "task_type"


@pytest.mark.parametrize(
    ("method", "path"),
    [("POST", "/queue"), ("GET", f"/queue/{IMAGE}/pause"), ("DELETE", f"/queue/{IMAGE}/resume")],
)
async def test_other_methods_are_a_405(rig: Rig, method: str, path: str) -> None:
    assert (await rig.ask(method, path)).status == 405


# -- who may -------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def key() -> ec.EllipticCurvePrivateKey:
    return ec.generate_private_key(ec.SECP256R1())


@pytest.fixture
async def guarded(tmp_path: Path, key: ec.EllipticCurvePrivateKey) -> AsyncIterator[Rig]:
    path = tmp_path / "issuer.pem"
    pem = key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    path.write_bytes(pem)
    async with rest(tmp_path / "queue.db", auth=AuthSettings(public_key_path=path)) as served:
        yield served


def bearer(key: ec.EllipticCurvePrivateKey, **claims: Any) -> dict[str, str]:
    body = {"sub": "42", "exp": int(time.time()) + 600, **claims}
    return {"Authorization": f"Bearer {jwt.encode(body, key, algorithm='ES256')}"}


ROUTES = [("GET", "/queue"), ("POST", f"/queue/{IMAGE}/pause"), ("POST", f"/queue/{IMAGE}/resume")]


@pytest.mark.parametrize(("method", "path"), [*ROUTES, ("POST", "/queue/mind_reading/pause")])
async def test_without_a_token_nobody_sees_or_changes_anything(
    guarded: Rig, method: str, path: str
) -> None:
    answer = await guarded.ask(method, path)

    assert (answer.status, answer.body["code"]) == (401, "unauthorized")
    assert await guarded.queue.pauses.active() == {}


async def test_any_good_token_may_look_but_not_pause(
    guarded: Rig, key: ec.EllipticCurvePrivateKey
) -> None:
    headers = bearer(key, permissions=["media_store_read"])

    statuses = [(await guarded.ask(*route, headers=headers)).status for route in ROUTES]

    assert statuses == [200, 403, 403]
    assert await guarded.queue.pauses.active() == {}


@pytest.mark.parametrize(
    "claims", [{"permissions": ["ai_inference_support"]}, {"is_admin": True}], ids=json.dumps
)
async def test_the_permission_or_an_admin_may_pause(
    guarded: Rig, key: ec.EllipticCurvePrivateKey, claims: JsonObject
) -> None:
    headers = bearer(key, **claims)

    statuses = [(await guarded.ask(*route, headers=headers)).status for route in ROUTES]

    assert statuses == [200, 200, 200]
