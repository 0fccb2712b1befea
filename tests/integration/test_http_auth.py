"""Tokens over REST: who gets in, and every forgery that does not."""

import base64
import json
import logging
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jwt
import pytest
from cryptography.hazmat.primitives import hashes, hmac
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
)

from daemon.errors import ConfigError
from daemon.settings import AuthSettings, Settings
from http_shim.auth import Authenticator
from tests.integration.rest_rig import Rig, errors, rest

JOB_ID = "550e8400-e29b-41d4-a716-446655440000"
BODY = {"media_store_id": 12345}
UNAUTHORIZED = {"detail": "Invalid authentication credentials", "code": "unauthorized"}
FORBIDDEN = {
    "detail": "Missing required permission: ai_inference_support",
    "code": "forbidden",
}


def public_pem(key: ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey) -> bytes:
    return key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)


def private_pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())


def claims(**changes: Any) -> dict[str, Any]:
    """Return the claims of a writer, as the issuer makes them; None removes one."""
    full = {
        "sub": "42",
        "permissions": ["ai_inference_support"],
        "is_admin": False,
        "exp": int(time.time()) + 600,
        **changes,
    }
    return {name: value for name, value in full.items() if value is not None}


def encode(part: Any) -> str:
    raw = part if isinstance(part, bytes) else json.dumps(part).encode()
    return base64.urlsafe_b64encode(raw).rstrip(b"=").decode()


@dataclass
class Issuer:
    """Signs tokens, good and bad."""

    key: ec.EllipticCurvePrivateKey

    def token(self, **changes: Any) -> str:
        return jwt.encode(claims(**changes), self.key, algorithm="ES256")


@pytest.fixture(scope="module")
def issuer() -> Issuer:
    return Issuer(ec.generate_private_key(ec.SECP256R1()))


@pytest.fixture
async def rig(tmp_path: Path, issuer: Issuer) -> AsyncIterator[Rig]:
    path = tmp_path / "issuer.pem"
    path.write_bytes(public_pem(issuer.key))
    async with rest(tmp_path / "queue.db", auth=AuthSettings(public_key_path=path)) as served:
        yield served


def bearer(token: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {token}"}


# -- who may do what -----------------------------------------------------------------------------


async def test_a_writer_may_create_retry_and_delete(rig: Rig, issuer: Issuer) -> None:
    headers = bearer(issuer.token())

    created = await rig.ask("POST", "/job/image_embedding", json=BODY, headers=headers)
    await rig.queue.bury(await rig.lease(), code="internal", message="it broke")
    path = f"/job/{created.body['job_id']}"
    retried = await rig.ask("POST", f"{path}/retry", headers=headers)
    cancelled = await rig.ask("DELETE", path, headers=headers)

    assert (created.status, retried.status, cancelled.status) == (201, 200, 204)


async def test_an_admin_needs_no_permission(rig: Rig, issuer: Issuer) -> None:
    token = issuer.token(permissions=[], is_admin=True)

    answer = await rig.ask("POST", "/job/image_embedding", json=BODY, headers=bearer(token))

    assert answer.status == 201


@pytest.mark.parametrize("permissions", [[], ["media_store_read"], ["AI_INFERENCE_SUPPORT"], None])
@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("POST", "/job/image_embedding"),
        ("POST", "/job/retry"),
        ("POST", f"/job/{JOB_ID}/retry"),
        ("POST", f"/job/{JOB_ID}/cancel"),
        ("DELETE", f"/job/{JOB_ID}"),
        ("DELETE", "/media/1"),
        ("POST", "/queue/image_embedding/pause"),
        ("POST", "/queue/image_embedding/resume"),
    ],
)
async def test_writing_without_the_permission_is_a_403(
    rig: Rig, issuer: Issuer, method: str, path: str, permissions: list[str] | None
) -> None:
    token = issuer.token(permissions=permissions)

    answer = await rig.ask(method, path, json=BODY, headers=bearer(token))

    assert (answer.status, answer.body) == (403, FORBIDDEN)
    assert (await rig.queue.depth())["pending"] == 0


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("POST", "/job/image_embedding"),
        ("POST", "/job/mind_reading"),
        ("POST", "/job/retry"),
        ("POST", f"/job/{JOB_ID}/retry"),
        ("POST", f"/job/{JOB_ID}/cancel"),
        ("DELETE", f"/job/{JOB_ID}"),
        ("DELETE", "/job/1"),
        ("DELETE", "/media/1"),
        ("POST", "/queue/image_embedding/pause"),
        ("POST", "/queue/image_embedding/resume"),
        ("GET", "/job"),
        ("GET", "/job?limit=0"),
    ],
)
async def test_without_a_token_it_is_a_401(rig: Rig, method: str, path: str) -> None:
    answer = await rig.ask(method, path, json=BODY)

    assert (answer.status, answer.body) == (401, UNAUTHORIZED)
    assert answer.headers["WWW-Authenticate"] == "Bearer"


async def test_a_job_is_shown_to_whoever_knows_its_id(rig: Rig, issuer: Issuer) -> None:
    created = await rig.ask(
        "POST", "/job/image_embedding", json=BODY, headers=bearer(issuer.token())
    )

    for headers in ({}, bearer("nonsense")):
        shown = await rig.ask("GET", f"/job/{created.body['job_id']}", headers=headers)
        assert (shown.status, shown.body) == (200, created.body)


async def test_the_list_needs_any_good_token(rig: Rig, issuer: Issuer) -> None:
    token = issuer.token(permissions=[])

    assert (await rig.ask("GET", "/job", headers=bearer(token))).status == 200


@pytest.mark.parametrize("path", ["/", "/health", "/health/live", "/health/ready"])
async def test_health_is_open_to_everybody(rig: Rig, path: str) -> None:
    assert (await rig.ask("GET", path)).status == 200


@pytest.mark.parametrize("scheme", ["Bearer", "bearer", "BEARER"])
async def test_the_scheme_is_read_in_any_case(rig: Rig, issuer: Issuer, scheme: str) -> None:
    headers = {"Authorization": f"{scheme} {issuer.token()}"}

    assert (await rig.ask("GET", "/job", headers=headers)).status == 200


async def test_clocks_may_differ_by_half_a_minute(rig: Rig, issuer: Issuer) -> None:
    now = int(time.time())
    late, early = issuer.token(exp=now - 15), issuer.token(nbf=now + 15, iat=now + 15)

    for token in (late, early):
        assert (await rig.ask("GET", "/job", headers=bearer(token))).status == 200


# -- forgeries -----------------------------------------------------------------------------------


def unsigned(_issuer: Issuer) -> str:
    return f"{encode({'alg': 'none', 'typ': 'JWT'})}.{encode(claims())}."


def unsigned_in_capitals(_issuer: Issuer) -> str:
    return f"{encode({'alg': 'NONE'})}.{encode(claims())}."


def signed_with_the_public_key_as_secret(issuer: Issuer) -> str:
    text = f"{encode({'alg': 'HS256', 'typ': 'JWT'})}.{encode(claims())}"
    # By hand: PyJWT refuses to make such a token.
    mac = hmac.HMAC(public_pem(issuer.key), hashes.SHA256())
    mac.update(text.encode())
    return f"{text}.{encode(mac.finalize())}"


def signed_by_somebody_else(_issuer: Issuer) -> str:
    return jwt.encode(claims(), ec.generate_private_key(ec.SECP256R1()), algorithm="ES256")


def signed_with_es384(_issuer: Issuer) -> str:
    return jwt.encode(claims(), ec.generate_private_key(ec.SECP384R1()), algorithm="ES384")


def signed_with_rsa(_issuer: Issuer) -> str:
    return jwt.encode(claims(), rsa.generate_private_key(65537, 2048), algorithm="RS256")


def signature_of_zeros(issuer: Issuer) -> str:
    """The forgery of Java's "psychic signatures"."""
    return f"{issuer.token().rpartition('.')[0]}.{encode(bytes(64))}"


def claims_exchanged(issuer: Issuer) -> str:
    head, _, signature = issuer.token(permissions=[]).split(".")
    return f"{head}.{encode(claims())}.{signature}"


def own_key_in_the_header(_issuer: Issuer) -> str:
    key = ec.generate_private_key(ec.SECP256R1())
    own = json.loads(jwt.algorithms.ECAlgorithm.to_jwk(key.public_key()))
    return jwt.encode(claims(), key, algorithm="ES256", headers={"jwk": own})


def key_by_url(_issuer: Issuer) -> str:
    """Point to the forger's key set and certificate, which must not even be asked for."""
    key = ec.generate_private_key(ec.SECP256R1())
    where = {"jku": "http://127.0.0.1:9/jwks", "x5u": "http://127.0.0.1:9/chain.pem"}
    return jwt.encode(claims(), key, algorithm="ES256", headers=where)


def own_certificate_in_the_header(_issuer: Issuer) -> str:
    key = ec.generate_private_key(ec.SECP256R1())
    return jwt.encode(claims(), key, algorithm="ES256", headers={"x5c": ["MIIB"]})


def critical_header(issuer: Issuer) -> str:
    """Sign rightly, and demand that an extension is understood (RFC 7515, 4.1.11)."""
    return jwt.encode(
        claims(), issuer.key, algorithm="ES256", headers={"crit": ["exp2"], "exp2": 1}
    )


def der_signature(issuer: Issuer) -> str:
    """Sign rightly, in the other encoding of the same signature, which JWS does not know."""
    text = issuer.token().rpartition(".")[0]
    return f"{text}.{encode(issuer.key.sign(text.encode(), ec.ECDSA(hashes.SHA256())))}"


def nested_header(_issuer: Issuer) -> str:
    return f"{encode(b'[' * 5_000)}.{encode(claims())}.{encode(bytes(64))}"


def list_as_header(_issuer: Issuer) -> str:
    return f"{encode(['ES256'])}.{encode(claims())}.{encode(bytes(64))}"


def list_as_algorithm(_issuer: Issuer) -> str:
    return f"{encode({'alg': ['ES256']})}.{encode(claims())}.{encode(bytes(64))}"


def signed(**changes: Any) -> Callable[[Issuer], str]:
    """Return a maker of rightly signed tokens with wrong claims."""
    return lambda issuer: issuer.token(**changes)


def signed_text(payload: bytes) -> Callable[[Issuer], str]:
    return lambda issuer: jwt.PyJWS().encode(payload, issuer.key, algorithm="ES256")


FORGERIES: dict[str, Callable[[Issuer], str]] = {
    "alg none": unsigned,
    "alg NONE": unsigned_in_capitals,
    "HS256 with the public key": signed_with_the_public_key_as_secret,
    "another key": signed_by_somebody_else,
    "ES384": signed_with_es384,
    "RS256": signed_with_rsa,
    "zeros": signature_of_zeros,
    "claims exchanged": claims_exchanged,
    "jwk in the header": own_key_in_the_header,
    "jku and x5u": key_by_url,
    "x5c in the header": own_certificate_in_the_header,
    "an unknown critical header": critical_header,
    "DER signature": der_signature,
    "zip": lambda issuer: jwt.encode(
        claims(), ec.generate_private_key(ec.SECP256R1()), "ES256", headers={"zip": "DEF"}
    ),
    "huge": lambda issuer: issuer.token(filler="x" * 5_000)[:-4],
    "header no JSON": lambda issuer: f"{encode(b'junk')}.{issuer.token().partition('.')[2]}",
    "header no base64": lambda issuer: f"!!!.{issuer.token().partition('.')[2]}",
    "kid a path": lambda issuer: jwt.encode(
        claims(),
        ec.generate_private_key(ec.SECP256R1()),
        "ES256",
        headers={"kid": "../../../dev/null"},
    ),
    "kid of SQL": lambda issuer: jwt.encode(
        claims(),
        ec.generate_private_key(ec.SECP256R1()),
        "ES256",
        headers={"kid": "x' UNION SELECT 'key"},
    ),
    # The moment it is used counts, not that of the collection.
    "not yet by a minute": lambda issuer: issuer.token(nbf=int(time.time()) + 60),
    "nested header": nested_header,
    "list as header": list_as_header,
    "list as algorithm": list_as_algorithm,
    "no signature": lambda issuer: issuer.token().rpartition(".")[0] + ".",
    "cut": lambda issuer: issuer.token()[:-10],
    "two parts": lambda issuer: issuer.token().rpartition(".")[0],
    "five parts": lambda issuer: f"{issuer.token()}.a.b",
    "empty": lambda _issuer: "",
    "dots": lambda _issuer: "..",
    "twice": lambda issuer: f"{issuer.token()} {issuer.token()}",
    "not ASCII": lambda issuer: f"{issuer.token()}é",
    "expired": signed(exp=int(time.time()) - 60),
    "without exp": signed(exp=None),
    "exp a word": signed_text(json.dumps(claims(exp="never")).encode()),
    "exp infinite": signed_text(json.dumps(claims()).encode()[:-1] + b', "exp": 1e999}'),
    "exp a list": signed_text(json.dumps(claims(exp=[1])).encode()),
    "not yet": signed(nbf=4_102_444_800),  # the year 2100
    "without sub": signed(sub=None),
    "sub a number": signed_text(json.dumps(claims(sub=42)).encode()),
    "for somebody else": signed(aud="another service"),
    "permissions a string": signed(permissions="ai_inference_support"),
    "permissions an object": signed(permissions={"ai_inference_support": True}),
    "permissions of numbers": signed(permissions=["ai_inference_support", 1]),
    "is_admin a word": signed(permissions=[], is_admin="true"),
    "is_admin a number": signed(permissions=[], is_admin=1),
    "claims a list": signed_text(b'["ai_inference_support"]'),
    "claims no JSON": signed_text(b"\xff\xfe"),
}


@pytest.mark.parametrize("forge", FORGERIES.values(), ids=FORGERIES.keys())
async def test_a_forged_token_is_a_401(
    rig: Rig, issuer: Issuer, caplog: pytest.LogCaptureFixture, forge: Callable[[Issuer], str]
) -> None:
    headers = bearer(forge(issuer))

    for method, path in (("POST", "/job/image_embedding"), ("GET", "/job")):
        answer = await rig.ask(method, path, json=BODY, headers=headers)
        assert (answer.status, answer.body) == (401, UNAUTHORIZED)
        assert answer.headers["WWW-Authenticate"] == "Bearer"
    assert (await rig.queue.depth())["pending"] == 0
    assert errors(caplog.records) == []


@pytest.mark.parametrize("scheme", ["Basic", "Token", "", "Bearer,"])
async def test_another_scheme_is_a_401(rig: Rig, issuer: Issuer, scheme: str) -> None:
    headers = {"Authorization": f"{scheme} {issuer.token()}"}

    assert (await rig.ask("GET", "/job", headers=headers)).status == 401


async def test_a_token_larger_than_a_header_may_be_is_refused(rig: Rig, issuer: Issuer) -> None:
    token = issuer.token(filler="x" * 100_000)
    said = await rig.raw(
        f"GET /job HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {token}\r\n\r\n".encode()
    )

    assert said.startswith((b"HTTP/1.1 400 ", b"HTTP/1.0 400 "))


@pytest.mark.parametrize("order", [1, -1])
async def test_two_tokens_are_none(rig: Rig, issuer: Issuer, order: int) -> None:
    # A proxy may have checked the one; which of them counts must be nobody's to choose.
    tokens = [issuer.token(), "a.b.c"][::order]
    headers = [("Authorization", f"Bearer {token}") for token in tokens]

    for path in ("/job", "/queue", "/search/image_embeddings?text=x"):
        assert (await rig.ask("GET", path, headers=headers)).status == 401
    answer = await rig.ask("POST", "/job/image_embedding", json=BODY, headers=headers)
    assert (answer.status, answer.body) == (401, UNAUTHORIZED)


async def test_a_token_in_the_query_does_not_count(rig: Rig, issuer: Issuer) -> None:
    assert (await rig.ask("GET", f"/job?access_token={issuer.token()}")).status == 401


async def test_no_token_is_ever_logged(
    rig: Rig, issuer: Issuer, caplog: pytest.LogCaptureFixture
) -> None:
    token = issuer.token(exp=1)
    with caplog.at_level(logging.DEBUG):
        await rig.ask("GET", "/job", headers=bearer(token))

    assert "a token was refused" in caplog.text
    assert token not in caplog.text


# -- configuration -------------------------------------------------------------------------------


def test_neither_key_nor_switch_refuses_to_start() -> None:
    with pytest.raises(ConfigError) as refused:
        Authenticator(AuthSettings())

    for name in ("PUBLIC_KEY_PATH", "AUTH_DISABLED=true", "TEST_MODE=true"):
        assert name in refused.value.message


@pytest.mark.parametrize("switch", ["AUTH_DISABLED", "TEST_MODE", "INFERD_AUTH__DISABLED"])
async def test_switched_off_no_header_is_demanded(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, switch: str
) -> None:
    settings = Settings.from_env({switch: "true"})
    async with rest(tmp_path / "queue.db", auth=settings.auth) as rig:
        job = await rig.post()
        listed = await rig.ask("GET", "/job", headers={"Authorization": "Basic nonsense"})
        deleted = await rig.ask("DELETE", f"/job/{job['job_id']}")

    assert (listed.status, deleted.status) == (200, 204)
    warnings = [record for record in caplog.records if record.levelno == logging.WARNING]
    assert [record.getMessage()[:21] for record in warnings] == ["AUTHENTICATION IS OFF"]


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({}, 200),
        ({"Sec-Fetch-Site": "same-origin", "Origin": "http://photos.example"}, 200),
        ({"Sec-Fetch-Site": "cross-site"}, 403),
        ({"Sec-Fetch-Site": "same-site"}, 403),
        ({"Origin": "http://photos.example", "Host": "photos.example"}, 200),
        ({"Origin": "https://evil.example"}, 403),
        ({"Origin": "null"}, 403),
        ({"Origin": "http://[evil"}, 403),
    ],
)
async def test_switched_off_another_sites_page_changes_nothing(
    tmp_path: Path, headers: dict[str, str], status: int
) -> None:
    async with rest(tmp_path / "q.db") as rig:
        answer = await rig.ask("POST", "/queue/image_embedding/pause", headers=headers)
        assert answer.status == status
        assert ("image_embedding" in await rig.queue.pauses.active()) is (status == 200)
        assert (await rig.ask("GET", "/queue", headers=headers)).status == 200


async def test_with_tokens_the_token_counts_and_not_the_page(rig: Rig, issuer: Issuer) -> None:
    headers = {"Authorization": f"Bearer {issuer.token()}", "Origin": "https://photos.example"}
    answer = await rig.ask("POST", "/queue/image_embedding/pause", headers=headers)
    assert answer.status == 200


def test_the_switch_beats_the_key_and_says_so(caplog: pytest.LogCaptureFixture) -> None:
    authenticator = Authenticator(AuthSettings(public_key_path=Path("issuer.pem"), disabled=True))

    assert authenticator.is_disabled
    assert "issuer.pem is NOT used" in caplog.text


def test_a_key_that_is_not_there_refuses_to_start(tmp_path: Path) -> None:
    for path in (tmp_path / "absent.pem", tmp_path):
        with pytest.raises(ConfigError, match="PUBLIC_KEY_PATH"):
            Authenticator(AuthSettings(public_key_path=path))


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "no public key"),
        (b"a secret", "no public key"),
        (b"-----BEGIN PUBLIC KEY-----\nAAAA\n-----END PUBLIC KEY-----\n", "no public key"),
        (private_pem(ec.generate_private_key(ec.SECP256R1())), "private key"),
        (public_pem(ec.generate_private_key(ec.SECP384R1())), "P-256"),
        (public_pem(ec.generate_private_key(ec.SECP256K1())), "P-256"),
        (public_pem(rsa.generate_private_key(65537, 2048)), "P-256"),
    ],
    ids=["empty", "text", "garbage", "private", "P-384", "secp256k1", "RSA"],
)
def test_a_wrong_key_refuses_to_start(tmp_path: Path, content: bytes, reason: str) -> None:
    path = tmp_path / "issuer.pem"
    path.write_bytes(content)

    with pytest.raises(ConfigError, match=reason):
        Authenticator(AuthSettings(public_key_path=path))
