"""Whatever a media store does, the client ends in bytes or in one of our errors, in time."""

import asyncio
import socket
import ssl
import subprocess
import zlib
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer

from daemon.errors import (
    ConfigError,
    DependencyDownError,
    HandlerError,
    PermanentError,
    RetryableError,
)
from daemon.settings import MediaStoreSettings
from handlers.media.media_store import Media, MediaStoreClient

Respond = Callable[[web.Request], Awaitable[web.StreamResponse]]
Serve = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]
TLS_PARTS = ("-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=localhost")


def settings(url: str, **options: Any) -> MediaStoreSettings:
    patient = {
        "connect_timeout_seconds": 30,
        "read_timeout_seconds": 30,
        "total_timeout_seconds": 60,
        "max_bytes": 100_000,
    }
    return MediaStoreSettings.model_validate({"url": url} | patient | options)


@asynccontextmanager
async def store(respond: Respond) -> AsyncIterator[str]:
    """Serve every path by one function; give the base URL."""
    app = web.Application()
    app.router.add_route("*", "/{path:.*}", respond)
    async with TestServer(app) as server:
        yield str(server.make_url("")).rstrip("/")


@asynccontextmanager
async def raw(serve: Serve) -> AsyncIterator[str]:
    """Serve bytes that no HTTP library would send; the request's head has been read."""
    ended = asyncio.Event()

    async def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await reader.readuntil(b"\r\n\r\n")
            await serve(reader, writer)
            await writer.drain()
        except (OSError, asyncio.IncompleteReadError):
            pass
        finally:
            writer.close()
            ended.set()

    server = await asyncio.start_server(accept, "127.0.0.1", 0)
    async with server:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        async with asyncio.timeout(30):
            await ended.wait()


def says(head: str, body: bytes = b"") -> Serve:
    async def serve(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(head.replace("\n", "\r\n").encode() + b"\r\n\r\n" + body)

    return serve


def answers(status: int, body: bytes = b"", **headers: str) -> Respond:
    async def respond(_: web.Request) -> web.Response:
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        return web.Response(status=status, body=body, headers=named)

    return respond


async def fetched(url: str, media_store_id: int = 7, **options: Any) -> Media:
    async with MediaStoreClient(settings(url, **options)) as client:
        return await client.fetch(media_store_id)


async def failure(url: str, **options: Any) -> HandlerError:
    with pytest.raises(HandlerError) as caught:
        await fetched(url, **options)
    return caught.value


async def post_failure(url: str, **options: Any) -> HandlerError:
    async with MediaStoreClient(settings(url, **options)) as client:
        with pytest.raises(HandlerError) as caught:
            await client.post_face_results(7, "job-1", {})
    return caught.value


# ---- what goes over the wire


async def test_fetch_asks_for_the_id_and_nothing_else() -> None:
    seen: list[web.Request] = []

    async def respond(request: web.Request) -> web.Response:
        seen.append(request)
        return web.Response(body=b"bytes", content_type="image/JPEG", charset="utf-8")

    async with store(respond) as url:
        media = await fetched(url + "/base/", 2**63 - 1, token="s3cret")

    assert media == Media(b"bytes", "image/jpeg")
    assert seen[0].path_qs == f"/base/entity/{2**63 - 1}/file"
    assert seen[0].headers["Authorization"] == "Bearer s3cret"
    assert seen[0].headers["Accept-Encoding"] == "identity"
    assert "Cookie" not in seen[0].headers


async def test_the_paths_are_configurable() -> None:
    async def respond(request: web.Request) -> web.Response:
        return web.Response(text=request.path_qs)

    async with store(respond) as url:
        media = await fetched(url, file_path="/entities/{id}/media?original=1")

    assert media.data == b"/entities/7/media?original=1"


async def test_only_a_number_goes_into_the_url() -> None:
    async with MediaStoreClient(settings("http://localhost:1")) as client:
        with pytest.raises(ValueError, match="format code"):
            await client.fetch("7/../../admin")  # type: ignore[arg-type]  # what must not pass


async def test_an_answer_without_a_type_has_none() -> None:
    async with raw(says("HTTP/1.1 200 OK\nContent-Length: 2", b"ab")) as url:
        assert await fetched(url) == Media(b"ab", None)


async def test_a_body_without_a_length_is_read_to_its_end() -> None:
    chunked = b"3\r\nabc\r\n2\r\nde\r\n0\r\n\r\n"
    async with raw(says("HTTP/1.1 200 OK\nTransfer-Encoding: chunked", chunked)) as url:
        assert (await fetched(url)).data == b"abcde"
    async with raw(says("HTTP/1.0 200 OK", b"abcde")) as url:
        assert (await fetched(url)).data == b"abcde"


async def test_face_results_are_posted_with_an_idempotency_key() -> None:
    seen: list[Any] = []

    async def respond(request: web.Request) -> web.Response:
        seen.append((request.method, request.path, dict(request.headers), await request.json()))
        return web.json_response({"status": "accepted"})

    async with (
        store(respond) as url,
        MediaStoreClient(settings(url, token="s3cret")) as client,
    ):
        await client.post_face_results(7, "job-1", {"faces": [{"x": 1.5}], "face_count": 1})

    method, path, headers, body = seen[0]
    assert (method, path) == ("POST", "/entity/7/face-detection-results")
    assert headers["Idempotency-Key"] == "job-1"
    assert headers["Authorization"] == "Bearer s3cret"
    assert headers["Content-Type"] == "application/json"
    assert body == {"job_id": "job-1", "faces": [{"x": 1.5}], "face_count": 1}


async def test_cookies_are_not_kept() -> None:
    seen: list[str | None] = []

    async def respond(request: web.Request) -> web.Response:
        seen.append(request.headers.get("Cookie"))
        return web.Response(body=b"x", headers={"Set-Cookie": "a=b"})

    async with store(respond) as url, MediaStoreClient(settings(url)) as client:
        await client.fetch(1)
        await client.fetch(1)

    assert seen == [None, None]


async def test_a_proxy_of_the_environment_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:1")

    async with store(answers(200, b"x")) as url:
        assert (await fetched(url)).data == b"x"


async def test_at_most_as_many_transfers_as_configured_run_at_once() -> None:
    running = peak = 0
    full = asyncio.Event()

    async def respond(_: web.Request) -> web.Response:
        nonlocal running, peak
        running += 1
        peak = max(peak, running)
        if running == 3:
            full.set()
        async with asyncio.timeout(30):
            await full.wait()
        running -= 1
        return web.Response(body=b"x")

    async with store(respond) as url, MediaStoreClient(settings(url, concurrency=3)) as client:
        await asyncio.gather(*(client.fetch(n) for n in range(12)))

    assert peak == 3


async def test_two_credentials_are_a_configuration_error() -> None:
    with pytest.raises(ConfigError, match="INFERD_MEDIA_STORE__TOKEN"):
        MediaStoreClient(settings("http://user:pw@localhost", token="x"))


async def test_a_closed_client_says_so() -> None:
    client = MediaStoreClient(settings("http://localhost:1"))
    await client.close()
    with pytest.raises(RuntimeError, match="not open"):
        await client.fetch(1)


# ---- redirects


async def test_redirects_within_the_store_are_followed() -> None:
    async def respond(request: web.Request) -> web.Response:
        step = int(request.query.get("step", "0"))
        if step < 3:
            raise web.HTTPFound(f"/moved?step={step + 1}")
        return web.Response(text=request.headers["Authorization"])

    async with store(respond) as url:
        assert (await fetched(url, token="s3cret")).data == b"Bearer s3cret"


async def test_redirects_without_end_are_refused() -> None:
    async with store(answers(302, Location="/again")) as url:
        error = await failure(url)

    assert isinstance(error, PermanentError)
    assert error.code == "media_store_redirected"


@pytest.mark.parametrize(
    "location",
    [
        "http://169.254.169.254/latest/meta-data",
        "//169.254.169.254/",
        "http://localhost.evil.example/",
        "https://127.0.0.1/",
        "file:///etc/passwd",
        "http://[",
        "",
    ],
)
async def test_a_redirect_off_the_store_is_refused(location: str) -> None:
    async with store(answers(307, Location=location)) as url:
        error = await failure(url)

    assert isinstance(error, PermanentError)
    assert error.code == "media_store_redirected"
    assert "INFERD_MEDIA_STORE__URL" in error.message


async def test_a_redirect_to_another_port_of_the_host_never_arrives() -> None:
    visited: list[str] = []

    async def elsewhere(request: web.Request) -> web.Response:
        visited.append(request.path)
        return web.Response(body=b"secret")

    async with (
        store(elsewhere) as other,
        store(answers(302, Location=f"{other}/entity/7/file")) as url,
    ):
        error = await failure(url, token="s3cret")

    assert error.code == "media_store_redirected"
    assert visited == []


async def test_results_follow_only_redirects_that_keep_the_post() -> None:
    bodies: list[Any] = []

    async def respond(request: web.Request) -> web.Response:
        if request.path.endswith("/"):
            bodies.append((request.method, await request.json()))
            return web.Response()
        raise web.HTTPTemporaryRedirect(request.path + "/")

    async with store(respond) as url, MediaStoreClient(settings(url)) as client:
        await client.post_face_results(7, "job-1", {"face_count": 0})
    async with store(answers(302, Location="/elsewhere")) as url:
        error = await post_failure(url)

    assert bodies == [("POST", {"job_id": "job-1", "face_count": 0})]
    assert isinstance(error, PermanentError)
    assert error.code == "media_store_redirected"
    assert "RESULTS_PATH" in error.message


# ---- what the store says


@pytest.mark.parametrize("ask", [failure, post_failure])
@pytest.mark.parametrize(
    ("status", "kind", "code"),
    [
        (404, PermanentError, "media_not_found"),
        (410, PermanentError, "media_not_found"),
        (401, DependencyDownError, "media_store_refused"),
        (403, PermanentError, "media_store_refused"),
        (400, PermanentError, "media_store_refused"),
        (422, PermanentError, "media_store_refused"),
        (408, RetryableError, "media_store_error"),
        (425, RetryableError, "media_store_error"),
        (429, DependencyDownError, "media_store_error"),
        (500, RetryableError, "media_store_error"),
        (502, DependencyDownError, "media_store_error"),
        (503, DependencyDownError, "media_store_error"),
        (504, DependencyDownError, "media_store_error"),
        (599, RetryableError, "media_store_error"),
        (304, RetryableError, "media_store_error"),
    ],
)
async def test_every_status_has_its_meaning(
    ask: Callable[[str], Awaitable[HandlerError]],
    status: int,
    kind: type[HandlerError],
    code: str,
) -> None:
    async with store(answers(status)) as url:
        error = await ask(url)

    assert isinstance(error, kind)
    assert isinstance(error, DependencyDownError) is (kind is DependencyDownError)
    assert error.code == code
    assert str(status) in error.message


async def test_a_refusal_names_the_setting_or_the_reason() -> None:
    async with store(answers(401)) as url:
        assert "INFERD_MEDIA_STORE__TOKEN" in (await failure(url)).message
    async with store(answers(403, b"ask somebody")) as url:
        message = (await failure(url)).message
        assert message.endswith("(403); check INFERD_MEDIA_STORE__TOKEN")
    async with store(answers(422, b'{"detail": "no\n such \x07 field"}')) as url:
        message = (await post_failure(url)).message
    assert message.endswith('(422): {"detail": "no  such   field"}')


@pytest.mark.parametrize("status", [200, 204])
async def test_a_picture_without_bytes_is_empty(status: int) -> None:
    async with store(answers(status)) as url:
        error = await failure(url)

    assert isinstance(error, PermanentError)
    assert error.code == "empty"


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        ("7", 7.0),
        ("0", 0.0),
        ("999999", 300.0),
        ("9" * 5000, None),
        ("soon", None),
        ("-5", None),
        ("Wed, 99 Foo 2020 00:00:00 GMT", None),
        ("Wed, 21 Oct 2015 07:28:00 GMT", 0.0),
        ("Fri, 31 Dec 9999 23:59:59 GMT", 300.0),
    ],
)
async def test_retry_after_is_honoured_up_to_300_seconds(value: str, seconds: float | None) -> None:
    async with store(answers(503, Retry_After=value)) as url:
        error = await failure(url)

    assert isinstance(error, RetryableError)
    assert error.retry_after_seconds == seconds


async def test_retry_after_may_be_a_date() -> None:
    date = format_datetime(datetime.now(UTC) + timedelta(seconds=100), usegmt=True)
    async with store(answers(429, Retry_After=date)) as url:
        error = await failure(url)

    assert isinstance(error, RetryableError)
    assert error.retry_after_seconds is not None
    assert 80 < error.retry_after_seconds <= 100


# ---- who is at fault: a picture, or a store that serves none


Answers = dict[int, Callable[[], web.Response]]


@asynccontextmanager
async def serving(pictures: Answers) -> AsyncIterator[MediaStoreClient]:
    """Answer each picture its own way; everything else exists."""

    async def respond(request: web.Request) -> web.Response:
        media_id = int(request.path.split("/")[2]) if request.path.count("/") > 1 else -1
        return pictures.get(media_id, lambda: web.Response(body=b"fine"))()

    async with store(respond) as url, MediaStoreClient(settings(url)) as client:
        yield client


async def ended(client: MediaStoreClient, media_store_id: int) -> HandlerError:
    with pytest.raises(HandlerError) as caught:
        await client.fetch(media_store_id)
    return caught.value


def sick() -> web.Response:
    return web.Response(status=500)


def login_page() -> web.Response:
    return web.Response(body=b"\n<!doctype html><title>Log in</title>", content_type="text/html")


@pytest.mark.parametrize("wrong", [sick, login_page])
async def test_a_store_that_fails_every_picture_is_at_fault(
    wrong: Callable[[], web.Response],
) -> None:
    async with serving(dict.fromkeys(range(1, 6), wrong)) as client:
        errors = [await ended(client, media_id) for media_id in (1, 2, 3, 4, 1)]

    assert [isinstance(error, DependencyDownError) for error in errors] == [
        False,
        False,
        True,
        True,
        True,
    ]
    assert {error.code for error in errors} == {"media_store_error"}
    assert "every other picture" in errors[-1].message


async def test_a_picture_that_fails_again_and_again_is_at_fault_itself() -> None:
    async with serving({1: sick, 2: sick}) as client:
        for _ in range(5):
            assert not isinstance(await ended(client, 1), DependencyDownError)
        await client.fetch(3)
        for _ in range(5):
            assert not isinstance(await ended(client, 2), DependencyDownError)
            assert not isinstance(await ended(client, 1), DependencyDownError)


async def test_a_picture_that_was_in_transit_when_the_store_went_is_not_at_fault() -> None:
    gone: list[asyncio.Server] = []

    async def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nab")
        gone[0].close()
        writer.close()

    gone.append(await asyncio.start_server(accept, "127.0.0.1", 0))
    url = f"http://127.0.0.1:{gone[0].sockets[0].getsockname()[1]}"
    async with MediaStoreClient(settings(url)) as client:
        error = await ended(client, 1)

    assert isinstance(error, DependencyDownError)
    assert error.code == "media_store_unreachable"


async def test_a_picture_that_is_called_a_web_page_is_a_picture_all_the_same() -> None:
    mislabelled = lambda: web.Response(body=b"\x89PNG", content_type="text/html")  # noqa: E731
    async with serving({1: mislabelled}) as client:
        assert (await client.fetch(1)).data == b"\x89PNG"


# ---- what the store does to the body


async def test_a_file_of_just_the_limit_passes() -> None:
    async with store(answers(200, bytes(100_000))) as url:
        assert len((await fetched(url)).data) == 100_000


async def test_a_stated_length_above_the_limit_is_refused_unread() -> None:
    async with raw(says("HTTP/1.1 200 OK\nContent-Length: 100001")) as url:
        error = await failure(url)

    assert isinstance(error, PermanentError)
    assert error.code == "too_large"
    assert "INFERD_MEDIA_STORE__MAX_BYTES" in error.message


async def test_a_body_that_never_ends_is_cut_at_the_limit() -> None:
    async def serve(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
        while True:
            writer.write(b"4000\r\n" + bytes(0x4000) + b"\r\n")
            await writer.drain()

    async with raw(serve) as url:
        error = await failure(url)

    assert error.code == "too_large"


async def test_a_compressed_bomb_is_not_unpacked() -> None:
    bomb = zlib.compress(bytes(50_000_000))
    head = f"HTTP/1.1 200 OK\nContent-Encoding: deflate\nContent-Length: {len(bomb)}"
    async with raw(says(head, bomb)) as url:
        error = await failure(url)

    assert isinstance(error, RetryableError)
    assert error.code == "media_store_error"
    assert "deflate" in error.message


@pytest.mark.parametrize(
    ("head", "body"),
    [
        ("HTTP/1.1 200 OK\nContent-Length: 100", b"too short"),
        ("HTTP/1.1 200 OK\nTransfer-Encoding: chunked", b"5\r\nab"),
        ("HTTP/1.1 200 OK\nTransfer-Encoding: chunked", b"not a length\r\nab"),
        ("HTTP/1.1 200 OK\nContent-Length: -5", b"x"),
        ("HTTP/1.1 200 OK\nContent-Length: 1\nContent-Length: 2", b"xy"),
        ("HTTP/1.1 200 OK\nX: " + "x" * 100_000, b""),
        ("HTTP/1.1 twohundred OK", b""),
        ("220 smtp.example ESMTP", b""),
        ("\x16\x03\x01\x02", b""),
        ("HTTP/1.1 200 OK\nContent-Len", b""),
    ],
)
async def test_broken_http_may_be_tried_again(head: str, body: bytes) -> None:
    async with raw(says(head, body)) as url:
        error = await failure(url)

    assert isinstance(error, RetryableError)
    assert error.code == "media_store_error"


async def test_a_connection_that_closes_without_an_answer_may_be_tried_again() -> None:
    async def serve(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.close()

    async with raw(serve) as url:
        error = await failure(url)

    assert isinstance(error, RetryableError)
    assert error.code == "media_store_error"


# ---- time


async def until_gone(reader: asyncio.StreamReader) -> None:
    while await reader.read(1024):
        pass


@pytest.mark.parametrize("head", [b"", b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nab"])
async def test_silence_ends_in_a_timeout(head: bytes) -> None:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(head)
        await until_gone(reader)

    async with raw(serve) as url:
        # The store is asked once more, whether it is there at all, for twice the connect timeout.
        error = await failure(url, read_timeout_seconds=0.2, connect_timeout_seconds=1)

    assert isinstance(error, RetryableError)
    assert error.code == "media_store_timeout"


async def test_a_body_that_drips_is_ended_by_the_total_time() -> None:
    async def serve(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 99999\r\n\r\n")
        while not writer.is_closing():
            writer.write(b"x")
            await writer.drain()
            await asyncio.sleep(0.02)

    async with raw(serve) as url:
        error = await failure(url, total_timeout_seconds=0.4)

    assert type(error) is RetryableError
    assert error.code == "media_store_timeout"


async def test_the_total_time_covers_redirects_too() -> None:
    async def respond(_: web.Request) -> web.Response:
        await asyncio.sleep(0.15)
        raise web.HTTPFound("/next")

    async with store(respond) as url:
        error = await failure(url, total_timeout_seconds=0.4)

    assert error.code == "media_store_timeout"


async def test_results_that_are_not_answered_end_in_a_timeout() -> None:
    async def serve(reader: asyncio.StreamReader, _: asyncio.StreamWriter) -> None:
        await until_gone(reader)

    async with raw(serve) as url:
        error = await post_failure(url, read_timeout_seconds=0.2)

    assert type(error) is RetryableError
    assert error.code == "media_store_timeout"


async def test_a_cancelled_fetch_is_cancelled() -> None:
    asked = asyncio.Event()

    async def serve(reader: asyncio.StreamReader, _: asyncio.StreamWriter) -> None:
        asked.set()
        await until_gone(reader)

    async with raw(serve) as url, MediaStoreClient(settings(url)) as client:
        task = asyncio.create_task(client.fetch(1))
        async with asyncio.timeout(30):
            await asked.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task


# ---- a store that is away


def assert_unreachable(error: HandlerError) -> None:
    assert type(error) is DependencyDownError
    assert error.code == "media_store_unreachable"
    assert "INFERD_MEDIA_STORE__URL" in error.message


async def test_a_refused_connection_is_a_dependency_that_is_down() -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{unused.getsockname()[1]}"

        assert_unreachable(await failure(url))
        assert_unreachable(await post_failure(url))
        async with MediaStoreClient(settings(url)) as client:
            with pytest.raises(DependencyDownError):
                await client.check()


async def test_an_unknown_host_is_a_dependency_that_is_down() -> None:
    assert_unreachable(await failure("http://no-such-host.invalid", connect_timeout_seconds=2))


async def test_a_tls_handshake_that_is_never_answered_is_a_dependency_that_is_down() -> None:
    async with raw(says("never sent, since no request arrives")) as url:
        error = await failure(url.replace("http:", "https:"), connect_timeout_seconds=0.3)

    assert_unreachable(error)


async def test_a_certificate_that_is_not_trusted_is_named(tmp_path: Path) -> None:
    key, certificate = tmp_path / "key.pem", tmp_path / "certificate.pem"
    command = ["openssl", "req", *TLS_PARTS, "-keyout", str(key), "-out", str(certificate)]
    await asyncio.to_thread(subprocess.run, command, check=True, capture_output=True)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)

    async def serve(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0, ssl=context)
    async with server:
        error = await failure(f"https://127.0.0.1:{server.sockets[0].getsockname()[1]}")

    assert_unreachable(error)
    assert "certificate" in error.message


# ---- health


@pytest.mark.parametrize("status", [200, 302, 401, 404, 500])
async def test_any_answer_counts_as_reachable(status: int) -> None:
    async with (
        store(answers(status, Location="http://elsewhere.invalid")) as url,
        MediaStoreClient(settings(url)) as client,
    ):
        await client.check()


async def test_a_check_of_a_silent_store_ends() -> None:
    async def serve(reader: asyncio.StreamReader, _: asyncio.StreamWriter) -> None:
        await until_gone(reader)

    async with (
        raw(serve) as url,
        MediaStoreClient(settings(url, connect_timeout_seconds=0.5)) as client,
    ):
        with pytest.raises(RetryableError) as caught:
            await client.check()

    assert caught.value.code == "media_store_timeout"
