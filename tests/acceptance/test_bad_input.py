"""Every kind of bad input, sent through the running daemon: a named end, and good jobs unharmed."""

import io
import json
import socket
import struct
import zlib
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from tests.acceptance.conftest import PICTURE
from tests.acceptance.rig import (
    Asked,
    Behaviour,
    Daemon,
    Held,
    MediaStore,
    answer,
    ask,
    event_of,
    events,
    finished,
)
from tests.broker import Broker, Client
from tests.ports import free_port

JOB_ID = "6f1c1c7e-8f3a-4a4e-9d58-0d1e6a1f0c55"


@pytest.fixture(scope="module")
def world(
    tmp_path_factory: pytest.TempPathFactory, portrait: bytes
) -> Iterator[tuple[Client, Daemon, MediaStore]]:
    """One daemon for all of these: what one case breaks, the others would show."""
    folder = tmp_path_factory.mktemp("bad-input")
    with (
        Broker(folder) as broker,
        Client(broker.port) as client,
        MediaStore() as media_store,
        Daemon(
            folder,
            broker,
            media_store,
            INFERD_MEDIA_STORE__MAX_BYTES="2000000",
            INFERD_MQTT__MAX_REQUEST_BYTES="1048576",
        ) as daemon,
    ):
        client.subscribe("inference/job/+/+")
        client.subscribe("inference/rejected/+")
        media_store.put(PICTURE, portrait, "image/png")
        yield client, daemon, media_store


def _request(**fields: Any) -> bytes:
    return json.dumps({"media_store_id": 1, "job_id": JOB_ID, **fields}).encode()


REJECTED_TO_THE_JOB = {
    "priority 11": (_request(priority=11), "invalid_request", "priority"),
    "priority as text": (_request(priority="7"), "invalid_request", "priority"),
    "priority as float": (_request(priority=5.5), "invalid_request", "priority"),
    "priority as bool": (_request(priority=True), "invalid_request", "priority"),
    "no media_store_id": (
        json.dumps({"job_id": JOB_ID}).encode(),
        "invalid_request",
        "media_store_id",
    ),
    "huge integer": (_request(media_store_id=10**30), "invalid_request", "media_store_id"),
    "negative id": (_request(media_store_id=-1), "invalid_request", "media_store_id"),
    "a path as id": (_request(media_store_id="../1"), "invalid_request", "media_store_id"),
    "unknown field": (_request(priorty=9), "invalid_request", "priorty"),
    "foreign reply topic": (_request(reply_to="inference/job/x"), "invalid_request", "reply_to"),
    "expired": (_request(expires_at=1), "expired", "expires_at"),
}

DEAD_LETTERS = {
    "a list": (b"[1, 2]", "invalid_request"),
    "a number": (b"7", "invalid_request"),
    "empty": (b"", "invalid_json"),
    "broken UTF-8": (b'{"media_store_id": 1, "x": "\xff"}', "invalid_json"),
    "NaN": (b'{"media_store_id": NaN}', "invalid_json"),
    "thousands of digits": (b'{"media_store_id": ' + b"9" * 5000 + b"}", "invalid_json"),
    "deep nesting": (b"[" * 100_000, "invalid_json"),
    "job_id with wildcard": (_request(job_id="+"), "invalid_request"),
    "job_id with slash": (_request(job_id="a/b"), "invalid_request"),
    "2 MB": (b'{"media_store_id": "' + b"1" * 2_000_000 + b'"}', "too_large"),
}


@pytest.mark.parametrize("case", REJECTED_TO_THE_JOB)
def test_a_bad_request_is_rejected_on_its_jobs_topic(
    world: tuple[Client, Daemon, MediaStore], case: str
) -> None:
    client, daemon, _ = world
    body, code, field = REJECTED_TO_THE_JOB[case]

    client.publish("inference/request/face_detection", body)

    event = client.wait_for(lambda message: message.topic == f"inference/job/{JOB_ID}/rejected")
    assert event.json()["data"]["code"] == code
    assert event.json()["data"]["field"] == field
    assert event.json()["status"] == "rejected"
    assert daemon.request("GET", f"/job/{JOB_ID}")[0] == 404


@pytest.mark.parametrize("case", DEAD_LETTERS)
def test_a_request_nobody_can_be_told_of_becomes_a_dead_letter(
    world: tuple[Client, Daemon, MediaStore], case: str
) -> None:
    client, _, _ = world
    body, code = DEAD_LETTERS[case]

    client.publish("inference/request/face_detection", body)

    letter = client.wait_for(lambda message: message.topic == "inference/rejected/face_detection")
    data = letter.json()["data"]
    assert data["code"] == code
    assert len(data["sha256"]) == 64
    assert len(data["body"]) <= 200


def test_an_unknown_task_is_rejected(world: tuple[Client, Daemon, MediaStore]) -> None:
    client, _, _ = world

    client.publish("inference/request/bake_cake", _request())

    event = client.wait_for(lambda message: message.topic == f"inference/job/{JOB_ID}/rejected")
    assert event.json()["data"]["code"] == "unknown_task"


def test_a_retained_request_is_rejected(world: tuple[Client, Daemon, MediaStore]) -> None:
    client, _, _ = world
    topic = "inference/request/face_detection"
    try:
        client.publish(topic, _request(), retain=True)

        event = client.wait_for(lambda message: message.topic == f"inference/job/{JOB_ID}/rejected")
        assert event.json()["data"]["code"] == "retained_request"
    finally:
        client.publish(topic, b"", retain=True)
        # The empty message that clears it is no request either.
        client.wait_for(lambda message: message.topic == "inference/rejected/face_detection")


def _redirect(url: str) -> Behaviour:
    return answer(302, b"", Location=url)


def _short(handler: BaseHTTPRequestHandler) -> None:
    handler.send_response(200)
    handler.send_header("Content-Length", "100000")
    handler.end_headers()
    handler.wfile.write(b"\xff\xd8\xff" + b"x" * 100)
    handler.wfile.flush()
    handler.connection.shutdown(socket.SHUT_RDWR)
    handler.close_connection = True


def _endless(handler: BaseHTTPRequestHandler) -> None:
    handler.send_response(200)
    handler.end_headers()
    for _ in range(100):
        handler.wfile.write(b"\xff" * 100_000)
    handler.close_connection = True


def _garbage(handler: BaseHTTPRequestHandler) -> None:
    handler.wfile.write(b"\x00\x01 this is not HTTP\r\n\r\n")
    handler.close_connection = True


def _truncated_jpeg() -> bytes:
    out = io.BytesIO()
    Image.linear_gradient("L").resize((600, 400)).convert("RGB").save(out, "JPEG")
    return out.getvalue()[: len(out.getvalue()) // 2]


def _png_bomb() -> bytes:
    """Return the header of a PNG of 100,000 by 100,000 pixels, with hardly any data."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        crc = zlib.crc32(kind + data)
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", crc)

    header = struct.pack(">IIBBBBB", 100_000, 100_000, 8, 2, 0, 0, 0)
    data = zlib.compress(bytes(300_000))
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", data) + chunk(b"IEND", b"")
    )


ENDS_IN_ERROR: dict[str, tuple[Callable[[], Behaviour], str]] = {
    "unknown id": (lambda: answer(404, b"{}"), "media_not_found"),
    "refused": (lambda: answer(403, b"{}"), "media_store_refused"),
    "broken store": (lambda: answer(500, b"oops"), "media_store_error"),
    "redirect to another host": (
        lambda: _redirect("http://127.0.0.2:9/secret"),
        "media_store_redirected",
    ),
    "length that lies": (lambda: _short, "media_store_error"),
    "no HTTP at all": (lambda: _garbage, "media_store_error"),
    "more than allowed": (lambda: _endless, "too_large"),
    "nothing": (lambda: answer(200, b""), "empty"),
    "HTML": (
        lambda: answer(200, b"<!doctype html><title>Log in</title>", "text/html"),
        "media_store_error",
    ),
    "truncated JPEG": (lambda: answer(200, _truncated_jpeg()), "decode_error"),
    "decompression bomb": (lambda: answer(200, _png_bomb(), "image/png"), "too_many_pixels"),
}


@pytest.mark.parametrize("case", ENDS_IN_ERROR)
def test_a_bad_picture_or_media_store_ends_in_a_named_error(
    world: tuple[Client, Daemon, MediaStore], case: str
) -> None:
    client, daemon, media_store = world
    make, code = ENDS_IN_ERROR[case]
    media_id = 1000 + list(ENDS_IN_ERROR).index(case)
    media_store.behaviours[media_id] = make()

    ends_in(client, daemon, ask(client, media_id), code)


def test_a_media_store_that_falls_silent_ends_in_a_named_error(
    tmp_path: Path, broker: Broker, client: Client, media_store: MediaStore
) -> None:
    # A daemon of its own: a slow machine is silent for so long, too.
    silence = {"INFERD_MEDIA_STORE__READ_TIMEOUT_SECONDS": "0.2"}
    media_store.behaviours[2] = held = Held(answer(200, b"late"))
    with Daemon(tmp_path, broker, media_store, **silence) as daemon:
        ends_in(client, daemon, ask(client, 2), "media_store_timeout")
        held.release()


def ends_in(client: Client, daemon: Daemon, asked: Asked, code: str) -> None:
    event = finished(client, asked)
    failed = event_of(client, asked, "failed").json()

    assert event["status"] == "error"
    assert event["data"]["error_message"].startswith(f"{code}: ")
    assert event["data"]["result"] is None
    assert failed["data"] == event["data"] == daemon.job(asked.job_id)
    assert "Traceback" not in json.dumps(event)


def test_good_pictures_among_bad_ones_are_all_right(
    world: tuple[Client, Daemon, MediaStore], portrait: bytes
) -> None:
    client, _, media_store = world
    good, bad = [], []
    for number in range(12):
        media_store.put(2000 + number, portrait, "image/png")
        media_store.put(3000 + number, _truncated_jpeg())
        good.append(ask(client, 2000 + number))
        bad.append(ask(client, 3000 + number))

    counts = {finished(client, asked)["data"]["result"]["face_count"] for asked in good}
    ends = {finished(client, asked)["status"] for asked in bad}

    assert len(counts) == 1
    assert ends == {"error"}


def test_a_media_store_that_is_down_is_waited_for_and_then_named(
    tmp_path: Path, broker: Broker, client: Client, media_store: MediaStore
) -> None:
    away = {
        "INFERD_MEDIA_STORE__URL": f"http://127.0.0.1:{free_port()}",
        "INFERD_QUEUE__DEPENDENCY_WAIT_SECONDS": "1",
    }
    with Daemon(tmp_path, broker, media_store, **away) as daemon:
        asked = ask(client, PICTURE)

        event = finished(client, asked)

        assert event["data"]["error_message"].startswith("media_store_unreachable: ")
        # Asked often, and never at the price of an attempt.
        assert events(client, asked).count("started") >= 2
        status, health = daemon.request("GET", "/health")
        assert status == 200
        assert health["checks"]["media_store"]["code"] == "media_store_unreachable"
