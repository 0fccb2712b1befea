"""Who sees what: with a token and without, while the daemon is away, and switched off."""

import re
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from playwright.sync_api import Browser, Route, expect

from tests.acceptance.rig import CASCADE_ONLY
from tests.console.conftest import Opener
from tests.console.pages import Watched
from tests.console.rig import Stack, stack
from tests.ports import free_port

Tokens = Callable[..., str]


@pytest.fixture(scope="module")
def key() -> ec.EllipticCurvePrivateKey:
    return ec.generate_private_key(ec.SECP256R1())


@pytest.fixture(scope="module")
def guarded(
    tmp_path_factory: pytest.TempPathFactory, key: ec.EllipticCurvePrivateKey, browser: Browser
) -> Iterator[Stack]:
    folder = tmp_path_factory.mktemp("guarded")
    pem = folder / "issuer.pem"
    pem.write_bytes(key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo))
    environ = {**CASCADE_ONLY, "AUTH_DISABLED": "false", "PUBLIC_KEY_PATH": str(pem)}
    with stack(folder, **environ) as running:
        yield running


@pytest.fixture
def token(key: ec.EllipticCurvePrivateKey) -> Tokens:
    def make(*permissions: str, seconds: float = 600) -> str:
        claims = {"sub": "me", "permissions": permissions, "exp": int(time.time() + seconds)}
        return jwt.encode(claims, key, algorithm="ES256")

    return make


def sign_in(page: Watched, given: str) -> None:
    page.by("#token").fill(given)
    page.page.keyboard.press("Enter")


def without_401(page: Watched) -> None:
    """Pass over the browser's own note of a refusal that was meant."""
    page.errors = [each for each in page.errors if "401" not in each]


def test_a_token_opens_the_page_and_signing_out_forgets_it(
    guarded: Stack, token: Tokens, open_page: Opener
) -> None:
    page = open_page(guarded)
    expect(page.by("#login")).to_be_visible()
    expect(page.by("#main")).to_be_hidden()
    expect(page.by("#token")).to_be_focused()
    assert page.violations() == []
    page.shoot("login")

    sign_in(page, "nonsense")
    expect(page.by("#login-error")).to_have_text("This token is not good, or no longer.")
    without_401(page)
    sign_in(page, token("ai_inference_support"))
    expect(page.by("#link")).to_have_text("All well")
    expect(page.by("#add")).to_be_visible()
    expect(page.by("#tasks .menu > button")).to_have_count(1)
    assert page.page.evaluate("localStorage.length") == 0

    page.page.reload()
    expect(page.by("#main")).to_be_visible()
    page.by("#leave").click()
    expect(page.by("#login")).to_be_visible()
    assert page.page.evaluate("sessionStorage.length") == 0


def test_a_refusal_of_before_the_sign_in_does_not_sign_out(
    guarded: Stack, token: Tokens, open_page: Opener
) -> None:
    page = open_page(guarded)
    expect(page.by("#login")).to_be_visible()
    held: list[Route] = []

    def hold(route: Route) -> None:
        held.append(route)

    page.page.route("**/job?limit=1", hold)
    with page.page.expect_request("**/job?limit=1"):
        page.page.evaluate(
            """() => { window.late = import("./console/api.js")
                .then((api) => api.ask("job?limit=1")).catch((error) => error.status); }"""
        )
    sign_in(page, token())
    expect(page.by("#link")).to_have_text("All well")

    held[0].continue_()
    assert page.page.evaluate("window.late") == 401

    expect(page.by("#main")).to_be_visible()
    expect(page.by("#link")).to_have_text("All well")
    without_401(page)


def test_what_a_token_may_not_do_is_not_offered(
    guarded: Stack, token: Tokens, open_page: Opener
) -> None:
    page = open_page(guarded)
    sign_in(page, token())
    expect(page.by("#link")).to_have_text("All well")
    expect(page.by("#tasks > li")).to_have_count(1)

    expect(page.by("#add")).to_be_hidden()
    expect(page.by("#tasks button")).to_have_count(0)
    expect(page.by("#latest-hint")).to_have_text("Results appear here as they come.")
    with pytest.raises(Exception, match="not offered"):
        page.drop(b"x", "x.png", "add")
    # Neither runs here what searches need.
    expect(page.by("#search")).to_be_hidden()


def test_nothing_is_told_without_a_token(guarded: Stack, token: Tokens) -> None:
    for path in ("console/events", "console/picture/1"):
        assert guarded.get(path)[0] == 401
    status, _, body = guarded.get("", Accept="text/html,*/*;q=0.8")
    assert status == 200
    assert b"inferd" in body
    reader = {"Authorization": f"Bearer {token()}"}
    assert guarded.get("console/picture/999999", **reader)[0] == 404


def test_it_comes_back_by_itself_with_what_happened_meanwhile(
    tmp_path: Path, portrait: bytes, open_page: Opener
) -> None:
    # None that the system may give to somebody while the daemon is away.
    port = str(free_port())
    with stack(tmp_path, **CASCADE_ONLY, INFERD_HTTP__PORT=port) as running:
        page = open_page(running)
        expect(page.by("#link")).to_have_text("All well")
        expect(page.by("#latest-empty")).to_be_visible()
        page.shoot("empty")
        running.daemon.kill()
        expect(page.by("#link")).to_have_text("Reconnecting…")
        running.daemon.start()
        media_store_id = running.add(portrait)
        running.daemon.request("POST", "/job/face_detection", {"media_store_id": media_store_id})
        expect(page.by("#link")).to_have_text("All well")
        expect(page.tile(media_store_id)).to_contain_text("1 face")
        # Its stream is open: the daemon must not wait for the browser.
        assert running.daemon.terminate() == 0
        expect(page.by("#link")).to_have_text("Reconnecting…")
        page.errors = [each for each in page.errors if not re.search("ERR_|Failed to load", each)]


def test_it_can_be_switched_off(tmp_path: Path) -> None:
    with stack(tmp_path, **CASCADE_ONLY, INFERD_HTTP__CONSOLE="false") as running:
        status, headers, _ = running.get("", Accept="text/html")
        assert (status, headers["Content-Type"]) == (200, "application/json; charset=utf-8")
        for path in ("console/events", "console/main.js", "console/picture/1"):
            assert running.get(path)[0] == 404
