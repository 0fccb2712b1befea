"""Tokens checked with the issuer's key set: it rotates, lies, stalls and goes away."""

import asyncio
import contextlib
import json
import logging
import ssl
import subprocess
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import jwt
import pytest
from aiohttp import web
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from pydantic import ValidationError

from daemon.errors import ConfigError
from daemon.jobs import JsonObject
from daemon.settings import AuthSettings, Settings
from http_shim import jwks
from http_shim.auth import Authenticator, ForbiddenError, KeysUnavailableError, UnauthorizedError
from http_shim.jwks import IssuerError
from tests.integration.rest_rig import Rig, errors, rest
from tests.integration.test_http_auth import BODY, FORGERIES, UNAUTHORIZED, Issuer, claims
from tests.ports import claim_port, free_port
from tests.waiting import until

SETUP = Path(__file__).parents[2] / "mosquitto" / "setup.sh"
MAY_WRITE = "ai_inference_support"


def new_key() -> ec.EllipticCurvePrivateKey:
    return ec.generate_private_key(ec.SECP256R1())


A, B = new_key(), new_key()


def jwk(key: Any, kid: Any = "a", **changes: Any) -> dict[str, Any]:
    """Return the public half as a JWK; None removes a member."""
    algorithm = (
        jwt.algorithms.RSAAlgorithm if hasattr(key, "decrypt") else jwt.algorithms.ECAlgorithm
    )
    entry = {**json.loads(algorithm.to_jwk(key.public_key())), "kid": kid, **changes}
    return {name: value for name, value in entry.items() if value is not None}


def token(key: ec.EllipticCurvePrivateKey, kid: str | None = "a", **changes: Any) -> str:
    headers = {} if kid is None else {"kid": kid}
    return jwt.encode(claims(**changes), key, algorithm="ES256", headers=headers)


def header(key: ec.EllipticCurvePrivateKey, kid: str | None = "a", **changes: Any) -> str:
    return f"Bearer {token(key, kid, **changes)}"


STOPPING = web.AppKey("stopping", asyncio.Event)
"""Set when the server stops, so that a handler which stalls ends."""


class KeyServer:
    """An issuer's /jwks with faults at will."""

    def __init__(self) -> None:
        self.keys: Any = [jwk(A)]
        self.answer: Callable[[web.Request], Any] | None = None
        self.asked = 0
        self.port = 0
        self.scheme = "http"
        self._runner: web.AppRunner | None = None
        self._stopping = asyncio.Event()

    @property
    def url(self) -> str:
        return f"{self.scheme}://127.0.0.1:{self.port}/jwks"

    async def start(self, tls: ssl.SSLContext | None = None) -> None:
        app = web.Application()
        app[STOPPING] = self._stopping = asyncio.Event()
        app.router.add_get("/jwks", self._serve)
        app.router.add_get("/elsewhere", self._serve)
        self._runner = web.AppRunner(app, shutdown_timeout=0)
        await self._runner.setup()
        await web.TCPSite(self._runner, "127.0.0.1", self.port, ssl_context=tls).start()
        self.port = self._runner.addresses[0][1]
        self.scheme = "https" if tls else "http"

    async def stop(self) -> None:
        runner, self._runner = self._runner, None
        self._stopping.set()
        if runner is not None:
            await runner.cleanup()

    async def _serve(self, request: web.Request) -> web.StreamResponse:
        self.asked += 1
        if self.answer is not None:
            response: web.StreamResponse = await self.answer(request)
            return response
        return web.json_response({"keys": self.keys})


@pytest.fixture
async def server() -> AsyncIterator[KeyServer]:
    server = KeyServer()
    # Nobody else's while it is away.
    lock, server.port = claim_port()
    with lock:
        await server.start()
        try:
            yield server
        finally:
            await server.stop()


@pytest.fixture
def hurried(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fetch as often as a test can wait for."""
    for name in ("REFRESH_SECONDS", "FIRST_RETRY_SECONDS", "LONGEST_RETRY_SECONDS"):
        monkeypatch.setattr(jwks, name, 0.02)


@contextlib.asynccontextmanager
async def authenticator(url: str) -> AsyncIterator[Authenticator]:
    made = Authenticator(AuthSettings(jwks_url=url))
    try:
        yield made
    finally:
        await made.close()


async def has_keys(made: Authenticator) -> None:
    await until(lambda: made._issuer is not None and len(made._issuer) > 0)


async def has_failed(made: Authenticator, reason: str) -> None:
    """Return once the keys could not be fetched for that reason."""
    issuer = made._issuer
    assert issuer is not None
    await until(lambda: reason in (issuer.last_error or ""))


def lets_in(made: Authenticator, authorization: str) -> bool:
    try:
        made.authorize(authorization, MAY_WRITE)
    except UnauthorizedError:
        return False
    return True


# -- over REST -----------------------------------------------------------------------------------


@contextlib.asynccontextmanager
async def served(path: Path, url: str) -> AsyncIterator[Rig]:
    async with rest(path / "queue.db", auth=AuthSettings(jwks_url=url)) as rig:
        yield rig


async def post_until(rig: Rig, status: int, authorization: str) -> None:
    """Ask until the answer is that one."""
    async with asyncio.timeout(60):
        headers = {"Authorization": authorization}
        while (
            await rig.ask("POST", "/job/image_embedding", json=BODY, headers=headers)
        ).status != status:
            pass


async def test_a_token_of_the_key_set_may_write(server: KeyServer, tmp_path: Path) -> None:
    async with served(tmp_path, server.url) as rig:
        await post_until(rig, 201, header(A))
        refused = await rig.ask(
            "DELETE", "/job/1", headers={"Authorization": header(A, permissions=[])}
        )
        nobody = await rig.ask("POST", "/job/image_embedding", json=BODY)
    assert (refused.status, nobody.status, nobody.body) == (403, 401, UNAUTHORIZED)


async def test_until_there_are_keys_it_is_a_503(
    tmp_path: Path, hurried: None, caplog: pytest.LogCaptureFixture
) -> None:
    server = KeyServer()
    server.port = free_port()
    async with served(tmp_path, server.url) as rig:
        answer = await rig.ask(
            "POST", "/job/image_embedding", json=BODY, headers={"Authorization": header(A)}
        )
        nobody = await rig.ask("POST", "/job/image_embedding", json=BODY)
        shown = await rig.ask("GET", "/health/live")
        assert (answer.status, answer.body["code"]) == (503, "auth_unavailable")
        assert int(answer.headers["Retry-After"]) > 0
        assert (nobody.status, shown.status) == (401, 200)
        await until(lambda: "cannot be fetched" in caplog.text)

        await server.start()
        try:
            await post_until(rig, 201, header(A))
        finally:
            await server.stop()
    assert errors(caplog.records) == []


async def test_the_first_fetch_does_not_hold_up_the_start(
    server: KeyServer, tmp_path: Path
) -> None:
    stalled = asyncio.Event()

    async def stall(request: web.Request) -> web.Response:
        stalled.set()
        await request.app[STOPPING].wait()
        return web.Response(status=500)

    server.answer = stall
    async with served(tmp_path, server.url) as rig:
        await stalled.wait()
        assert (await rig.ask("GET", "/health/live")).status == 200


@pytest.mark.parametrize("forge", FORGERIES.values(), ids=FORGERIES.keys())
async def test_a_forged_token_is_refused(
    server: KeyServer, forge: Callable[[Issuer], str], caplog: pytest.LogCaptureFixture
) -> None:
    # One key, so that tokens without an id are checked too.
    async with authenticator(server.url) as made:
        await has_keys(made)
        assert lets_in(made, header(A))
        assert lets_in(made, header(A, None))
        assert not lets_in(made, f"Bearer {forge(Issuer(A))}")
    assert errors(caplog.records) == []


# -- which key -----------------------------------------------------------------------------------


async def test_a_token_is_checked_with_the_key_it_names(server: KeyServer) -> None:
    server.keys = [jwk(A), jwk(B, "b")]
    async with authenticator(server.url) as made:
        await has_keys(made)

        assert lets_in(made, header(A))
        assert lets_in(made, header(B, "b"))
        for refused in (header(A, "b"), header(B, "a"), header(A, "c"), header(A, None)):
            assert not lets_in(made, refused)
        for odd in ("", 7, ["a"], {"a": 1}, None):
            forged = jwt.api_jws.PyJWS().encode(
                json.dumps(claims()).encode(), A, algorithm="ES256", headers={"typ": "JWT"}
            )
            head = jwt.utils.base64url_encode(
                json.dumps({"alg": "ES256", "kid": odd}).encode()
            ).decode()
            assert not lets_in(made, f"Bearer {head}.{forged.partition('.')[2]}")
        with pytest.raises(ForbiddenError):
            made.authorize(header(A, permissions=[]), MAY_WRITE)


def longer(coordinate: str) -> str:
    """Return the same number in one byte more."""
    raw = b"\0" + jwt.utils.base64url_decode(coordinate)
    return jwt.utils.base64url_encode(raw).decode()


UNUSABLE: dict[str, Any] = {
    "RSA": jwk(rsa.generate_private_key(65537, 2048), "x"),
    "P-384": jwk(ec.generate_private_key(ec.SECP384R1()), "x"),
    "secp256k1": jwk(ec.generate_private_key(ec.SECP256K1()), "x"),
    "for encryption": jwk(B, "x", use="enc"),
    "ES384": jwk(B, "x", alg="ES384"),
    "only signs": jwk(B, "x", key_ops=["sign"]),
    "key_ops a word": jwk(B, "x", key_ops="verify"),
    "a secret": {"kty": "oct", "k": "c2VjcmV0", "kid": "x"},
    "private": {**jwk(B, "x"), "d": "c2VjcmV0"},
    "off the curve": jwk(B, "x", y=jwk(A)["y"]),
    "short": jwk(B, "x", x="AAAA"),
    "longer than a coordinate is": jwk(B, "x", x=longer(jwk(B)["x"])),
    "no base64": jwk(B, "x", x="é" * 43),
    "a number": jwk(B, "x", x=1),
    "without y": jwk(B, "x", y=None),
    "id a number": jwk(B, 7),
    "id a list": jwk(B, ["x"]),
    "second of an id": jwk(B, "a"),
    "a word": "x",
    "null": None,
}


@pytest.mark.parametrize("entry", UNUSABLE.values(), ids=UNUSABLE.keys())
async def test_other_keys_of_the_set_are_passed_over(server: KeyServer, entry: Any) -> None:
    server.keys = [jwk(A), entry]
    async with authenticator(server.url) as made:
        await has_keys(made)

        assert lets_in(made, header(A))
        assert not any(lets_in(made, header(B, kid)) for kid in ("a", "x", None))
        assert (await made.check())["keys"] == 1


# -- rotation ------------------------------------------------------------------------------------


async def test_a_new_key_is_fetched_when_it_is_shown(
    server: KeyServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(jwks, "LEAST_GAP_SECONDS", 0.01)
    async with authenticator(server.url) as made:
        await has_keys(made)
        server.keys = [jwk(B, "b")]

        assert not lets_in(made, header(B, "b"))
        await until(lambda: server.asked == 2)
        await until(lambda: lets_in(made, header(B, "b")))
        # What the issuer took out counts no more.
        assert not lets_in(made, header(A))


async def test_made_up_key_ids_do_not_make_us_ask_often(
    server: KeyServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    naps: list[float] = []
    began = asyncio.Event()

    async def nap(seconds: float) -> None:
        naps.append(seconds)
        began.set()
        await asyncio.Event().wait()

    async with authenticator(server.url) as made:
        await has_keys(made)
        await made.close()
        monkeypatch.setattr("asyncio.sleep", nap)
        assert made._issuer is not None
        made._issuer.start()
        async with asyncio.timeout(60):
            await began.wait()
        asked = server.asked
        for number in range(1_000):
            assert not lets_in(made, header(A, f"made-up-{number}"))
        assert server.asked == asked
        assert naps == [jwks.LEAST_GAP_SECONDS]
    assert jwks.LEAST_GAP_SECONDS >= 5


async def test_a_key_that_was_taken_back_is_refused_after_the_next_refresh(
    server: KeyServer, hurried: None
) -> None:
    server.keys = [jwk(A), jwk(B, "b")]
    async with authenticator(server.url) as made:
        await has_keys(made)
        assert lets_in(made, header(B, "b"))
        server.keys = [jwk(A)]

        await until(lambda: not lets_in(made, header(B, "b")))
        assert lets_in(made, header(A))


# -- an issuer that fails ------------------------------------------------------------------------


async def test_keys_outlive_their_issuer_and_health_says_so(
    server: KeyServer, hurried: None, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    async with authenticator(server.url) as made:
        await has_keys(made)
        assert (await made.check())["keys"] == 1
        await server.stop()
        await has_failed(made, "Cannot connect")

        assert lets_in(made, header(A))
        with pytest.raises(IssuerError, match="stay in use") as told:
            await made.check()
        assert told.value.code == "issuer_unreachable"
        assert "stay in use" in caplog.text

        server.keys = [jwk(B)]
        await server.start()
        await until(lambda: lets_in(made, header(B)))
        assert (await made.check())["keys"] == 1


async def answer_status(_request: web.Request) -> web.Response:
    return web.Response(status=500)


async def answer_redirect(_request: web.Request) -> web.Response:
    return web.Response(status=302, headers={"Location": "/elsewhere"})


async def answer_huge(request: web.Request) -> web.StreamResponse:
    response = web.StreamResponse()
    await response.prepare(request)
    with contextlib.suppress(ConnectionError):
        while True:
            await response.write(b" " * 65_536)
    return response


async def answer_drip(request: web.Request) -> web.StreamResponse:
    response = web.StreamResponse()
    await response.prepare(request)
    await response.write(b'{"keys": ')
    await request.app[STOPPING].wait()
    return response


async def answer_packed(_request: web.Request) -> web.Response:
    response = web.json_response({"keys": [jwk(B)]})
    response.enable_compression(web.ContentCoding.gzip, strategy=0)
    response._compression_force = web.ContentCoding.gzip
    return response


def answers(body: bytes) -> Callable[[web.Request], Any]:
    async def answer(_request: web.Request) -> web.Response:
        return web.Response(body=body)

    return answer


FAULTS: dict[str, tuple[Callable[[web.Request], Any], str]] = {
    "500": (answer_status, "answers 500"),
    "redirect": (answer_redirect, "answers 302"),
    "huge": (answer_huge, "more than"),
    "drip": (answer_drip, "did not answer within"),
    "packed": (answer_packed, "not JSON"),
    "empty": (answers(b""), "not JSON"),
    "HTML": (answers(b"<html>"), "not JSON"),
    "no UTF-8": (answers(b"\xff\xfe\xff"), "not JSON"),
    "nested": (answers(b"[" * 100_000), "not JSON"),
    "a list": (answers(b"[]"), "not a JWK set"),
    "no list": (answers(b'{"keys": {"a": 1}}'), "not a JWK set"),
    "no key": (answers(b'{"keys": []}'), "no EC key"),
    "too many": (answers(json.dumps({"keys": [jwk(B)] * 100}).encode()), "more than 64 keys"),
}


@pytest.mark.parametrize(("answer", "reason"), FAULTS.values(), ids=FAULTS.keys())
async def test_a_faulty_answer_changes_no_key(
    server: KeyServer,
    hurried: None,
    monkeypatch: pytest.MonkeyPatch,
    answer: Callable[[web.Request], Any],
    reason: str,
) -> None:
    async with authenticator(server.url) as made:
        await has_keys(made)
        if answer is answer_drip:
            monkeypatch.setattr(jwks, "FETCH_SECONDS", 0.2)
        await made.close()
        server.answer = answer
        assert made._issuer is not None
        made._issuer.start()

        await has_failed(made, reason)
        assert lets_in(made, header(A))
        assert not lets_in(made, header(B))


async def test_a_closed_authenticator_asks_the_issuer_no_more(server: KeyServer) -> None:
    before = asyncio.all_tasks()
    made = Authenticator(AuthSettings(jwks_url=server.url))
    (fetching,) = asyncio.all_tasks() - before
    await has_keys(made)

    await made.close()
    await made.close()

    assert fetching.done()
    assert lets_in(made, header(A))


async def test_a_bug_does_not_end_the_refreshing(
    server: KeyServer, hurried: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    parse = jwks._parse
    bugs = [RuntimeError("a bug")]

    def parse_with_bug(body: bytes) -> Any:
        if bugs:
            raise bugs.pop()
        return parse(body)

    monkeypatch.setattr(jwks, "_parse", parse_with_bug)
    async with authenticator(server.url) as made:
        with pytest.raises(KeysUnavailableError):
            made.authorize(header(A))
        await until(lambda: not bugs and made._issuer is not None and len(made._issuer) == 1)


@pytest.fixture
def authorities(tmp_path: Path) -> Path:
    """Return a folder with two CAs, each with a server certificate."""
    for name in ("issuer", "other"):
        subprocess.run(
            [SETUP, "--tls", "127.0.0.1", tmp_path / name],
            check=True,
            capture_output=True,
            timeout=60,
        )
    return tmp_path


async def test_https_is_checked(
    authorities: Path, hurried: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    issuer = authorities / "issuer" / "certs"
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(issuer / "server.crt", issuer / "server.key")
    server = KeyServer()
    await server.start(context)
    try:
        monkeypatch.setenv("SSL_CERT_FILE", str(authorities / "other" / "certs" / "ca.crt"))
        async with authenticator(server.url) as made:
            await has_failed(made, "certificate verify failed")
        assert server.asked == 0

        monkeypatch.setenv("SSL_CERT_FILE", str(issuer / "ca.crt"))
        async with authenticator(server.url) as made:
            await has_keys(made)
            assert lets_in(made, header(A))
    finally:
        await server.stop()


# -- configuration -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "url",
    [
        "http://issuer.example/jwks",
        "http://10.0.0.1/jwks",
        "http://localhost.example/jwks",
        "https://user:word@issuer.example/jwks",
        "https://issuer.example/jwks#a",
        "https://",
        "ftp://issuer.example/jwks",
        "file:///etc/passwd",
        "jwks",
    ],
)
def test_a_url_that_others_could_change_is_refused(url: str) -> None:
    with pytest.raises(ConfigError, match="INFERD_AUTH__JWKS_URL") as refused:
        Settings.from_env({"INFERD_AUTH__JWKS_URL": url})
    assert "word" not in refused.value.message


@pytest.mark.parametrize(
    "url",
    [
        "https://issuer.example/.well-known/jwks.json?v=1",
        "http://localhost:8010/jwks",
        "http://127.0.0.2/jwks",
        "http://[::1]:8010/jwks",
        "",
    ],
)
def test_a_url_that_others_cannot_change_is_taken(url: str) -> None:
    assert Settings.from_env({"INFERD_AUTH__JWKS_URL": url}).auth.jwks_url == url


def test_a_key_file_and_a_key_set_at_once_are_refused() -> None:
    both = {"PUBLIC_KEY_PATH": "issuer.pem", "INFERD_AUTH__JWKS_URL": "https://issuer.example/j"}
    with pytest.raises(ConfigError, match="both set"):
        Settings.from_env(both)
    with pytest.raises(ValidationError, match="both set"):
        AuthSettings(public_key_path=Path("issuer.pem"), jwks_url="https://issuer.example/j")


def test_the_switch_beats_the_key_set_and_says_so(caplog: pytest.LogCaptureFixture) -> None:
    made = Authenticator(AuthSettings(jwks_url="https://issuer.example/j", disabled=True))

    assert made.is_disabled
    assert "https://issuer.example/j is NOT used" in caplog.text


def test_the_refusal_names_the_key_set() -> None:
    with pytest.raises(ConfigError, match="INFERD_AUTH__JWKS_URL"):
        Authenticator(AuthSettings())


async def test_health_tells_of_the_issuer(server: KeyServer, tmp_path: Path, hurried: None) -> None:
    async with authenticator(server.url) as made, served(tmp_path, server.url) as rig:
        rig.health.add("auth", made.check, is_required=False)

        async def is_told(status: str) -> JsonObject:
            """Return the report once it says so; what it says of a moment before is no fault."""
            async with asyncio.timeout(60):
                while True:
                    report = (await rig.ask("GET", "/health")).body
                    if report["status"] == status:
                        return dict(report)

        assert (await is_told("ok"))["checks"]["auth"]["keys"] > 0
        await server.stop()
        report = await is_told("degraded")
        assert report["checks"]["auth"]["code"] == "issuer_unreachable"
