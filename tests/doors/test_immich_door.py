"""Immich's door over HTTP: what it takes, what it refuses, how much it lets in.

Recorded facts of Immich (server/src/repositories/machine-learning.repository.ts and
machine-learning/immich_ml/main.py of immich-app/immich, read in 2026): `entries` is JSON of task,
type, modelName and options; the picture is a file part named `image` without a type of its own;
the text a field named `text`; faces are asked for as detection and recognition together; vectors
come as JSON *text*, which goes to PostgreSQL as it is; boxes go to integer columns; 422 for a
request that cannot be read, 400 without image and text; any answer but 2xx marks the server as
unhealthy, and only its status line is logged; GET /ping decides whether it is healthy.
"""

import asyncio
import io
import json
import logging
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

import aiohttp
import numpy as np
import pytest

from daemon.errors import PermanentError, RetryableError
from daemon.health import Health
from daemon.metrics import Metrics
from daemon.settings import DoorsSettings
from daemon.stage import StageClosedError
from daemon.urgency import SOONEST
from http_shim import bodies
from http_shim.app import create_immich_app, serve
from http_shim.doors import immich
from tests.doors.stand_in import StandIn, float32, vector
from tests.exposition import Exposition
from tests.waiting import until

MAX_PICTURE = 200_000
VISUAL = {"clip": {"visual": {"modelName": "ViT-B-32__openai"}}}
TEXTUAL = {"clip": {"textual": {"modelName": "ViT-B-32__openai", "options": {"language": "en"}}}}
FACES = {
    "facial-recognition": {
        "detection": {"modelName": "buffalo_l", "options": {"minScore": 0.7}},
        "recognition": {"modelName": "buffalo_l"},
    }
}


@dataclass
class Answer:
    status: int
    reason: str
    body: Any
    headers: Any


@dataclass
class Door:
    """A door that listens, and what stands behind it."""

    port: int
    behind: StandIn
    health: Health
    session: aiohttp.ClientSession

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    async def send(self, data: Any, **kwargs: Any) -> Answer:
        async with self.session.post(f"{self.url}/predict", data=data, **kwargs) as response:
            body = await response.json()
            return Answer(response.status, response.reason or "", body, response.headers)

    async def predict(self, entries: Any, **fields: Any) -> Answer:
        """Ask as Immich does."""
        form = aiohttp.FormData(default_to_multipart=True)
        text = entries if isinstance(entries, str | bytes) else json.dumps(entries)
        form.add_field("entries", io.BytesIO(text) if isinstance(text, bytes) else text)
        for name, value in fields.items():
            if isinstance(value, bytes):
                form.add_field(
                    name,
                    io.BytesIO(value),
                    filename="blob",
                    content_type="application/octet-stream",
                )
            else:
                form.add_field(name, value)
        return await self.send(form)


@pytest.fixture
async def door() -> AsyncIterator[Door]:
    behind, health = StandIn(), Health(version="test", worker_id="door")
    app = create_immich_app(behind, DoorsSettings(), health, max_picture_bytes=MAX_PICTURE)
    async with aiohttp.ClientSession() as session, serve(app, "127.0.0.1", 0) as port:
        yield Door(port, behind, health, session)


def numbers(text: str) -> list[float]:
    assert isinstance(text, str)
    return list(json.loads(text))


async def test_a_picture_is_answered_as_immich_reads_it(door: Door) -> None:
    answer = await door.predict(VISUAL, image=b"bytes of a picture")

    assert answer.status == 200
    assert set(answer.body) == {"clip", "imageHeight", "imageWidth"}
    assert (answer.body["imageHeight"], answer.body["imageWidth"]) == (480, 640)
    # To the last bit: text must not cost what arithmetic kept.
    assert np.array_equal(float32(numbers(answer.body["clip"])), vector(18))
    assert door.behind.asked == [("picture", b"bytes of a picture")]


async def test_answers_are_counted_by_outcome_and_pings_are_not() -> None:
    metrics, health = Metrics(), Health(version="test", worker_id="door")
    app = create_immich_app(
        StandIn(), DoorsSettings(), health, max_picture_bytes=MAX_PICTURE, metrics=metrics
    )
    async with aiohttp.ClientSession() as session, serve(app, "127.0.0.1", 0) as port:
        door = Door(port, StandIn(), health, session)
        await door.predict(TEXTUAL, text="a dog")
        assert (
            await door.predict({"ocr": {"detection": {"modelName": "x"}}}, text="x")
        ).status == 400
        async with session.get(f"http://127.0.0.1:{port}/ping") as pong:
            assert pong.status == 200

    shown = Exposition((await metrics.render()).decode())
    count = "inferd_door_requests_total"
    assert shown.value(count, door="immich", outcome="ok") == 1
    assert shown.value(count, door="immich", outcome="unknown_task") == 1
    assert shown.value("inferd_door_seconds_count", door="immich") == 2


async def test_a_text_is_answered_without_a_size(door: Door) -> None:
    answer = await door.predict(TEXTUAL, text="ein Hund am Strand 🐕")

    assert answer.status == 200
    assert set(answer.body) == {"clip"}
    assert len(numbers(answer.body["clip"])) == 512
    assert door.behind.asked == [("text", "ein Hund am Strand 🐕")]


async def test_faces_have_whole_numbers_for_corners_and_text_for_vectors(door: Door) -> None:
    answer = await door.predict(FACES, image=b"group")

    assert answer.status == 200
    assert set(answer.body) == {"facial-recognition", "imageHeight", "imageWidth"}
    first, second = answer.body["facial-recognition"]
    assert first["boundingBox"] == {"x1": -4, "y1": 11, "x2": 17, "y2": 41}
    assert all(isinstance(each, int) for each in first["boundingBox"].values())
    assert (first["score"], second["score"]) == (0.91, 0.72)
    assert np.array_equal(float32(numbers(second["embedding"])), vector(1))
    assert door.behind.asked == [("faces", b"group", 0.7, True)]


async def test_the_least_score_is_the_clients_and_immichs_own_where_it_names_none(
    door: Door,
) -> None:
    entries = json.loads(json.dumps(FACES))
    entries["facial-recognition"]["detection"]["options"]["minScore"] = 0.8
    answer = await door.predict(entries, image=b"x")
    assert [face["score"] for face in answer.body["facial-recognition"]] == [0.91]

    del entries["facial-recognition"]["detection"]["options"]
    await door.predict(entries, image=b"x")
    assert door.behind.asked[-1] == ("faces", b"x", 0.7, True)

    entries["facial-recognition"]["detection"]["options"] = {"minScore": 0.3}
    refused = await door.predict(entries, image=b"x")
    assert (refused.status, refused.body["code"]) == (422, "invalid_request")
    assert "INFERD_FACES__THRESHOLD" in refused.reason


async def test_detection_alone_gives_boxes_scores_and_landmarks(door: Door) -> None:
    entries = {"facial-recognition": {"detection": {"modelName": "buffalo_l"}}}

    answer = await door.predict(entries, image=b"x")

    found = answer.body["facial-recognition"]
    assert found["boxes"] == [[-4, 11, 17, 41]] * 2
    assert found["scores"] == [0.91, 0.72]
    assert found["landmarks"][0] == [[0, 1], [2, 3], [4, 5], [6, 7], [8, 9]]
    assert door.behind.asked == [("faces", b"x", 0.7, False)]


async def test_who_waits_at_the_door_goes_before_every_job(door: Door) -> None:
    await door.predict({**VISUAL, **FACES}, image=b"x")
    await door.predict(TEXTUAL, text="x")

    assert door.behind.urgencies == {SOONEST}


async def test_two_tasks_of_one_picture_are_answered_together(door: Door) -> None:
    answer = await door.predict({**VISUAL, **FACES}, image=b"x")

    assert set(answer.body) == {"clip", "facial-recognition", "imageHeight", "imageWidth"}


@pytest.mark.parametrize(
    ("entries", "fields", "status_and_code", "says"),
    [
        (VISUAL, {}, (400, "bad_request"), "Either image or text must be provided"),
        (VISUAL, {"text": "x"}, (400, "bad_request"), "visual"),
        (TEXTUAL, {"image": b"x"}, (400, "bad_request"), "textual"),
        (FACES, {"text": "x"}, (400, "bad_request"), "facial-recognition"),
        (
            {"facial-recognition": {"recognition": {"modelName": "buffalo_l"}}},
            {"image": b"x"},
            (400, "bad_request"),
            "depends on output of type detection",
        ),
        (
            {"ocr": {"detection": {"modelName": "PP-OCRv5_mobile"}}},
            {"image": b"x"},
            (400, "unknown_task"),
            "ocr",
        ),
        (
            {"clip": {"audio": {"modelName": "x"}}},
            {"image": b"x"},
            (422, "invalid_request"),
            "audio",
        ),
        ("{", {"image": b"x"}, (422, "invalid_request"), "Invalid request format."),
        (b"\xff", {"image": b"x"}, (422, "invalid_request"), "UTF-8"),
        ([], {"image": b"x"}, (422, "invalid_request"), "Invalid request format."),
        ({}, {"image": b"x"}, (422, "invalid_request"), "Invalid request format."),
        ({"clip": "visual"}, {"image": b"x"}, (422, "invalid_request"), "clip"),
        ({"clip": {"visual": {}}}, {"image": b"x"}, (422, "invalid_request"), "modelName"),
        (
            {"clip": {"visual": {"modelName": 7}}},
            {"image": b"x"},
            (422, "invalid_request"),
            "string",
        ),
        ("[" * 50_000, {"image": b"x"}, (422, "invalid_request"), "JSON"),
    ],
)
async def test_what_cannot_be_answered_says_why_in_the_status_line(
    door: Door, entries: Any, fields: dict[str, Any], status_and_code: tuple[int, str], says: str
) -> None:
    answer = await door.predict(entries, **fields)

    assert (answer.status, answer.body["code"]) == status_and_code
    assert says in answer.body["detail"]
    assert says in answer.reason
    assert door.behind.asked == []


@pytest.mark.parametrize(
    ("name", "is_ours"),
    [
        ("ViT-B-32-quickgelu__openai", True),
        ("ViT-B-32__openai", True),
        ("immich-app/ViT-B-32__openai", True),
        ("ViT-B-32__laion2b_e16", False),
        ("ViT-L-14__openai", False),
        ("openai", False),
    ],
)
async def test_another_models_name_is_refused_unless_it_means_what_runs(
    door: Door, name: str, is_ours: bool
) -> None:
    answer = await door.predict({"clip": {"visual": {"modelName": name}}}, image=b"x")

    if is_ours:
        assert answer.status == 200
    else:
        assert (answer.status, answer.body["code"]) == (422, "model_not_found")
        assert "INFERD_DOORS__ALIASES" in answer.body["detail"]
        assert door.behind.asked == []


async def test_an_alias_means_nothing_where_another_model_runs(door: Door) -> None:
    door.behind.name = "ViT-L-14__openai"

    answer = await door.predict(VISUAL, image=b"x")

    assert (answer.status, answer.body["code"]) == (422, "model_not_found")


async def test_faces_of_two_packs_do_not_mix(door: Door) -> None:
    entries = json.loads(json.dumps(FACES).replace("buffalo_l", "antelopev2"))

    answer = await door.predict(entries, image=b"x")

    assert (answer.status, answer.body["code"]) == (422, "model_not_found")


@pytest.mark.parametrize(
    ("error", "status", "code"),
    [
        (PermanentError("no picture\r\nX-Forged: 1", code="decode_error"), 422, "decode_error"),
        (PermanentError("кот", code="bad_text"), 422, "bad_text"),
        (RetryableError("no", code="model_error"), 503, "model_error"),
        (StageClosedError("infer"), 503, "draining"),
        (RuntimeError("a bug"), 500, "internal"),
    ],
)
async def test_what_fails_behind_the_door_has_a_code_and_one_status_line(
    door: Door, error: Exception, status: int, code: str
) -> None:
    door.behind.error = error

    answer = await door.predict(VISUAL, image=b"x")

    assert (answer.status, answer.body["code"]) == (status, code)
    assert "X-Forged" not in answer.headers


async def test_ping_and_the_name_are_as_immich_expects(door: Door) -> None:
    async with door.session.get(f"{door.url}/ping") as response:
        assert (response.status, await response.text()) == (200, "pong")
    async with door.session.get(f"{door.url}/") as response:
        assert await response.json() == {"message": "Immich ML"}
    async with door.session.get(f"{door.url}/job") as response:
        assert response.status == 404


async def test_while_the_daemon_stops_immich_is_sent_to_another_server(door: Door) -> None:
    door.health.is_draining = True

    async with door.session.get(f"{door.url}/ping") as response:
        assert response.status == 503
    assert (await door.predict(VISUAL, image=b"x")).body["code"] == "draining"


async def test_a_picture_that_is_too_large_is_refused_while_it_comes(door: Door) -> None:
    largest = await door.predict(VISUAL, image=bytes(MAX_PICTURE))
    assert largest.status == 200

    for size in (MAX_PICTURE + 1, 20 * MAX_PICTURE):
        answer = await door.predict(VISUAL, image=bytes(size))
        assert (answer.status, answer.body["code"]) == (413, "too_large")
    for fields in ({"text": "x" * 500_000}, {"other": b"x" * 2_000_000, "image": b"x"}):
        assert (await door.predict(VISUAL, **fields)).status == 413


async def chunks(*parts: bytes) -> AsyncIterator[bytes]:
    for part in parts:
        yield part


HEAD = b'--b\r\nContent-Disposition: form-data; name="entries"\r\n\r\n'


@pytest.mark.parametrize(
    ("body", "content_type"),
    [
        (b"", "multipart/form-data; boundary=b"),
        (b"{}", "application/json"),
        (b"hello", "multipart/form-data"),
        (b"hello", "multipart/form-data; boundary=b"),
        (b"--b--\r\n", "multipart/form-data; boundary=b"),
        (HEAD, "multipart/form-data; boundary=b"),
        (HEAD + b'{"clip":', "multipart/form-data; boundary=b"),
        (b"--b\r\nno colon\r\n\r\nx\r\n--b--\r\n", "multipart/form-data; boundary=b"),
        (HEAD + b"{}\r\n" + HEAD + b"{}\r\n--b--\r\n", "multipart/form-data; boundary=b"),
        (
            b"--b\r\nContent-Type: multipart/mixed; boundary=c\r\n\r\n--c--\r\n--b--\r\n",
            "multipart/form-data; boundary=b",
        ),
        (HEAD.replace(b"entries", b"\xff\xfe") + b"{}\r\n--b--", "multipart/form-data; boundary=b"),
        (b"--b\r\n" + b"A: b\r\n" * 5000 + b"\r\n", "multipart/form-data; boundary=b"),
        (b"--b\r\nA: " + b"b" * 50_000 + b"\r\n\r\n", "multipart/form-data; boundary=b"),
    ],
)
async def test_a_form_that_is_none_is_refused_with_a_code(
    door: Door, body: bytes, content_type: str, caplog: pytest.LogCaptureFixture
) -> None:
    headers = {"Content-Type": content_type}
    for data in (body, chunks(body)):
        async with asyncio.timeout(20):
            answer = await door.send(data, headers=headers)
        assert answer.status in (400, 422), answer
        assert answer.body["code"] in ("invalid_request", "bad_request")
    assert not [each for each in caplog.records if each.levelno >= logging.ERROR]


async def test_a_form_that_is_packed_or_never_ends_is_refused(
    door: Door, monkeypatch: pytest.MonkeyPatch
) -> None:
    packed = {"Content-Type": "multipart/form-data; boundary=b", "Content-Encoding": "gzip"}
    assert (await door.send(b"--b--", headers=packed)).status == 415

    monkeypatch.setattr(bodies, "BODY_SECONDS", 0.05)
    stay = asyncio.Event()

    async def slowly() -> AsyncIterator[bytes]:
        yield HEAD
        await stay.wait()

    headers = {"Content-Type": "multipart/form-data; boundary=b"}
    asked = asyncio.create_task(door.send(slowly(), headers=headers))
    answer = await asyncio.wait_for(asked, 20)
    stay.set()
    assert (answer.status, answer.body["code"]) == (408, "timeout")


async def test_an_endless_stream_before_the_first_field_is_cut_off(
    door: Door, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def endless() -> AsyncIterator[bytes]:
        while True:
            yield b"no boundary\r\n" * 100
            await asyncio.sleep(0.001)

    headers = {"Content-Type": "multipart/form-data; boundary=b"}
    with monkeypatch.context() as patched:
        patched.setattr(bodies, "BODY_SECONDS", 0.2)
        try:
            answer = await asyncio.wait_for(door.send(endless(), headers=headers), 20)
            assert answer.status == 408
        except aiohttp.ClientConnectionError:
            pass  # the door closed while the client still wrote

    assert (await door.predict(VISUAL, image=b"x")).status == 200


async def test_more_than_fit_wait_and_are_all_answered(
    door: Door, monkeypatch: pytest.MonkeyPatch
) -> None:
    door.behind.go.clear()
    count = immich.PLACES + 12
    asked = [asyncio.create_task(door.predict(VISUAL, image=b"x")) for _ in range(count)]
    await until(lambda: door.behind.under_way == immich.PLACES)
    door.behind.go.set()

    answers = await asyncio.wait_for(asyncio.gather(*asked), 60)

    assert [each.status for each in answers] == [200] * count
    assert door.behind.most == immich.PLACES


async def test_whoever_finds_the_waiting_room_full_or_waits_too_long_is_told_when_to_come_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(immich, "PLACES", 1)
    monkeypatch.setattr(immich, "MOST_WAITING", 1)
    monkeypatch.setattr(immich, "WAIT_SECONDS", 0.2)
    behind = StandIn()
    behind.go.clear()
    health = Health(version="test", worker_id="door")
    app = create_immich_app(behind, DoorsSettings(), health, max_picture_bytes=MAX_PICTURE)
    async with aiohttp.ClientSession() as session, serve(app, "127.0.0.1", 0) as port:
        door = Door(port, behind, health, session)
        first = asyncio.create_task(door.predict(VISUAL, image=b"x"))
        await until(lambda: behind.under_way == 1)
        others = [asyncio.create_task(door.predict(VISUAL, image=b"x")) for _ in range(3)]
        for answer in await asyncio.wait_for(asyncio.gather(*others), 20):
            assert (answer.status, answer.body["code"]) == (503, "busy")
            assert answer.headers["Retry-After"] == "1"
        behind.go.set()
        assert (await first).status == 200
        assert (await door.predict(VISUAL, image=b"x")).status == 200


async def test_an_answer_that_never_comes_is_given_up(
    door: Door, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(immich, "PREDICT_SECONDS", 0.05)
    door.behind.go.clear()

    answer = await asyncio.wait_for(door.predict(VISUAL, image=b"x"), 20)

    assert (answer.status, answer.body["code"]) == (503, "timeout")
    assert door.behind.under_way == 0
