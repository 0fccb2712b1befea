"""What others quote of our credentials goes no further, and decoders are given none."""

import base64
import contextlib
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from aiohttp import web
from pydantic import SecretStr

from daemon.errors import HandlerError, RetryableError
from handlers.media.decoder_pool import DecoderProcess, memory_limit
from handlers.media.images import Limits
from handlers.media.media_store import MediaStoreClient
from handlers.qdrant.qdrant_server import ServerEngine
from handlers.qdrant.vector_engine import Point
from tests.integration.test_media_store_client import raw, settings, store

TOKEN = "Zq7-t0ken-of-ours"
BASIC = base64.b64encode(b"u:st0re-p4ssword").decode()
ROOT = Path(__file__).parents[2]


def _shown(request: web.Request) -> str:
    return json.dumps(dict(request.headers))


async def _refusal(url: str, *, is_posted: bool = False) -> str:
    """Return what is told of a store that refuses: with a token, or with the URL's user."""
    said = []
    where = url.partition("://")[2]
    for changes in ({"token": SecretStr(TOKEN)}, {"url": f"http://u:st0re-p4ssword@{where}"}):
        options: dict[str, Any] = {"url": url, **changes}
        async with MediaStoreClient(settings(**options)) as client:
            with pytest.raises(HandlerError) as caught:
                await (client.post_face_results(7, "j", {}) if is_posted else client.fetch(7))
            said.append(f"{caught.value.message} {caught.value!r}")
    return "\n".join(said)


def _is_clean(told: str) -> bool:
    return not any(secret in told for secret in (TOKEN, BASIC, "st0re-p4ssword"))


@pytest.mark.parametrize("is_posted", [False, True])
async def test_a_store_that_quotes_our_headers_is_not_quoted(*, is_posted: bool) -> None:
    async def respond(request: web.Request) -> web.Response:
        return web.Response(status=400, text=f"I got {_shown(request)}")

    async with store(respond) as url:
        told = await _refusal(url, is_posted=is_posted)

    assert _is_clean(told), told
    assert told.count("I got") == 4
    assert "Bearer ***" in told
    assert "Basic ***" in told


async def test_half_a_secret_at_the_end_of_an_excerpt_is_not_told() -> None:
    async def respond(request: web.Request) -> web.Response:
        return web.Response(status=400, text="x" * 290 + request.headers["Authorization"])

    async with store(respond) as url:
        told = await _refusal(url)

    assert "x" * 290 in told
    assert not any(part in told for part in (TOKEN[:3], BASIC[:3]))


async def test_a_redirect_that_holds_our_token_is_told_without_it() -> None:
    async def respond(request: web.Request) -> web.Response:
        target = f"http://elsewhere.example/?was={request.headers['Authorization']}"
        return web.Response(status=302, headers={"Location": target})

    async with store(respond) as url:
        told = await _refusal(url)

    assert "elsewhere.example" in told
    assert _is_clean(told), told


async def test_broken_http_that_holds_our_token_is_told_without_it() -> None:
    async def serve(_reader: object, writer: object) -> None:
        writer.write(f"HTTP/1.1 {TOKEN}\r\n\r\n".encode())  # type: ignore[attr-defined]

    async with (
        raw(serve) as url,
        MediaStoreClient(settings(url, token=SecretStr(TOKEN))) as client,
    ):
        with pytest.raises(RetryableError) as caught:
            await client.fetch(7)

    assert "broke HTTP" in caught.value.message
    assert TOKEN not in caught.value.message


@pytest.mark.parametrize("status", [200, 400, 401, 429, 500, 503])
async def test_a_qdrant_that_quotes_our_key_is_not_quoted(status: int) -> None:
    async def respond(request: web.Request) -> web.Response:
        assert request.headers["api-key"] == "qdrant-k3y"
        text = json.dumps({"status": {"error": _shown(request)}})
        return web.Response(status=status, text=text, content_type="application/json")

    async with store(respond) as url:
        engine = ServerEngine(url, api_key="qdrant-k3y")
        await engine.open()
        with pytest.raises(RetryableError) as caught:
            await engine.upsert("c", [Point(1, np.ones(4, np.float32), {})])
        await engine.close()

    assert "qdrant-k3y" not in caught.value.message


def opened_by(proc: Path) -> Iterator[str]:
    for each in (proc / "fd").iterdir():
        # It tidies up after the picture, and looks at its own memory: what it opens for that goes.
        with contextlib.suppress(FileNotFoundError):
            yield str(each.readlink())


def test_a_decoder_gets_no_secret_of_ours(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("INFERD_MQTT__URL", "mqtt://u:mqtt-p4ss@h")
    monkeypatch.setenv("SOME_CLOUDS_KEY", "cl0ud-k3y")
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    limits = Limits(1_000_000, (255, 255, 255))
    process = DecoderProcess(memory_bytes=memory_limit(limits), seconds=30)
    try:
        with pytest.raises(HandlerError):
            process.decode("upright", b"no picture", limits, content_type=None)
        child = process._child
        assert child is not None
        proc = Path(f"/proc/{child.process.pid}")
        given = (proc / "environ").read_bytes() + (proc / "cmdline").read_bytes()
        opened = list(opened_by(proc))
    finally:
        process.release()

    assert b"PYTHONPATH" in given
    assert b"mqtt-p4ss" not in given
    assert b"cl0ud-k3y" not in given
    # Neither the queue, nor a socket, nor whatever else the daemon holds.
    harmless = ("pipe:", "/memfd:", f"{tempfile.gettempdir()}/", os.devnull, f"{proc}/")
    assert opened
    assert [name for name in opened if not name.startswith(harmless)] == []


def test_checking_the_configuration_shows_no_secret(tmp_path: Path) -> None:
    secrets = {
        "INFERD_MQTT__URL": "mqtt://u:mqtt-p4ss@h",
        "INFERD_MEDIA_STORE__URL": "http://u:st0re-p4ss@h",
        "INFERD_QDRANT__API_KEY": "qdrant-k3y",
        "INFERD_CLIENT__TOKEN": "cl1ent-t0ken",
        "INFERD_DATA_DIR": str(tmp_path),
        "AUTH_DISABLED": "true",
    }
    kept = {name: text for name, text in os.environ.items() if not name.startswith("INFERD_")}
    said = ""
    for arguments in (["serve", "--check"], ["doctor", "--quick", "--json"], ["doctor", "--quick"]):
        done = subprocess.run(
            [sys.executable, "-m", "daemon", *arguments],
            cwd=ROOT,
            env={**kept, **secrets},
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        assert done.stdout
        said += done.stdout + done.stderr

    assert "http://u:***@h" in said
    for secret in ("mqtt-p4ss", "st0re-p4ss", "qdrant-k3y", "cl1ent-t0ken"):
        assert secret not in said
