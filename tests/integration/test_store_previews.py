"""Previews in place of originals: what the client asks a store for, and the small store's own."""

import threading
from collections.abc import AsyncIterator
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from aiohttp import web
from aiohttp.test_utils import TestClient, TestServer
from PIL import Image

from daemon.errors import HandlerError
from demos.media_store import create_app
from demos.store_previews import _write
from handlers.media.images import Limits, decode
from handlers.media.media_store import Media, MediaStoreClient
from handlers.media.origin import NO_PREVIEW, Origin
from tests.integration.test_demo_media_store import upload
from tests.integration.test_media_store_client import failure, fetched, settings, store

Client = TestClient[Any, Any]
SIZE = {"X-Original-Width": "4000", "X-Original-Height": "3000"}


async def preview_of(url: str) -> Media:
    return await fetched(url, variant="preview")


# ---- the client


async def test_the_preview_comes_instead_of_the_original_and_nothing_else_is_asked_for() -> None:
    asked: list[str] = []

    async def respond(request: web.Request) -> web.Response:
        asked.append(request.path)
        return web.Response(body=b"small", content_type="image/jpeg", headers=SIZE)

    async with store(respond) as url:
        media = await preview_of(url)

    assert media == Media(b"small", "image/jpeg", Origin(is_preview=True, size=(4000, 3000)))
    assert asked == ["/entity/7/preview"]


async def test_its_path_is_configurable() -> None:
    async def respond(request: web.Request) -> web.Response:
        return web.Response(text=request.path_qs)

    async with store(respond) as url:
        media = await fetched(url, variant="preview", preview_path="/thumbs/{id}?size=640")

    assert media.data == b"/thumbs/7?size=640"


@pytest.mark.parametrize(("status", "body"), [(404, b"{}"), (410, b""), (204, b""), (200, b"")])
async def test_a_picture_without_a_preview_comes_as_its_original(
    status: int, body: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    async def respond(request: web.Request) -> web.Response:
        if request.path.endswith("/preview"):
            return web.Response(status=status, body=body)
        return web.Response(body=b"whole", headers=SIZE)

    async with store(respond) as url, MediaStoreClient(settings(url, variant="preview")) as client:
        found = [await client.fetch(7) for _ in range(2)]

    assert [(media.data, media.origin) for media in found] == [(b"whole", NO_PREVIEW)] * 2
    # Once, and not for each of a million.
    (warning,) = [each for each in caplog.records if each.levelname == "WARNING"]
    assert "INFERD_MEDIA_STORE__PREVIEW_PATH" in warning.getMessage()


async def test_a_picture_that_is_not_there_at_all_is_not_found() -> None:
    async def respond(_: web.Request) -> web.Response:
        return web.Response(status=404)

    async with store(respond) as url:
        error = await failure(url, variant="preview")

    assert error.code == "media_not_found"
    assert "/entity/7/file" in error.message


@pytest.mark.parametrize(
    ("status", "code"),
    [(500, "media_store_error"), (403, "media_store_refused"), (503, "media_store_error")],
)
async def test_a_store_that_fails_is_not_asked_for_the_original(status: int, code: str) -> None:
    asked: list[str] = []

    async def respond(request: web.Request) -> web.Response:
        asked.append(request.path)
        return web.Response(status=status)

    async with store(respond) as url:
        error = await failure(url, variant="preview")

    assert error.code == code
    assert set(asked) - {"/"} == {"/entity/7/preview"}


# ---- the small store


@pytest.fixture
async def demo(tmp_path: Path) -> AsyncIterator[Client]:
    app = create_app(tmp_path / "media", preview_side=64)
    async with TestClient(TestServer(app)) as ready:
        yield ready


def picture(width: int, height: int, orientation: int = 1) -> bytes:
    file = BytesIO()
    shades = np.linspace(0, 255, width * height * 3).astype(np.uint8).reshape(height, width, 3)
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(shades).save(file, "JPEG", quality=95, exif=exif)
    return file.getvalue()


async def test_a_preview_is_small_and_upright_and_names_the_originals_size(
    demo: Client, tmp_path: Path
) -> None:
    # Orientation 6: it lies on its side in the file.
    entity = await upload(demo, picture(200, 100, orientation=6))
    limits = Limits(10_000, (255, 255, 255))

    for _ in range(2):
        async with demo.get(f"/entity/{entity['id']}/preview") as response:
            assert response.status == 200
            assert response.headers["Content-Type"] == "image/jpeg"
            assert response.headers["X-Content-Type-Options"] == "nosniff"
            told = [response.headers[f"X-Original-{side}"] for side in ("Width", "Height")]
            small = decode(await response.read(), limits)
        assert told == ["100", "200"]
        assert (small.width, small.height) == (32, 64)
    kept = sorted(path.name for path in (tmp_path / "media").iterdir())
    assert kept == ["1.bin", "1.json", "1.preview-64.jpg", "1.preview-64.json"]


async def test_a_small_picture_is_not_enlarged(demo: Client) -> None:
    entity = await upload(demo, picture(40, 30))

    async with demo.get(f"/entity/{entity['id']}/preview") as response:
        small = decode(await response.read(), Limits(10_000, (255, 255, 255)))

    assert (small.width, small.height) == (40, 30)


@pytest.mark.parametrize(("side", "data"), [(64, b"no picture"), (0, picture(80, 80))])
async def test_what_has_no_preview_is_a_404(tmp_path: Path, side: int, data: bytes) -> None:
    app = create_app(tmp_path / "media", preview_side=side)
    async with TestClient(TestServer(app)) as client:
        entity = await upload(client, data)
        async with client.get(f"/entity/{entity['id']}/preview") as response:
            assert response.status == 404
        async with client.get("/entity/99/preview") as response:
            assert response.status == 404


async def test_ids_go_on_after_a_restart_over_a_folder_with_previews(tmp_path: Path) -> None:
    for expected in (1, 2):
        app = create_app(tmp_path / "media", preview_side=64)
        async with TestClient(TestServer(app)) as client:
            entity = await upload(client, picture(80, 80))
            assert entity["id"] == expected
            async with client.get(f"/entity/{expected}/preview") as response:
                assert response.status == 200


async def test_the_client_and_the_small_store_agree(tmp_path: Path) -> None:
    app = create_app(tmp_path / "media", preview_side=64)
    async with TestClient(TestServer(app)) as client:
        entity = await upload(client, picture(200, 100))
        nothing = await upload(client, b"no picture")
        url = str(client.make_url("")).rstrip("/")
        async with MediaStoreClient(settings(url, variant="preview")) as inferd:
            media = await inferd.fetch(entity["id"])
            other = await inferd.fetch(nothing["id"])
            with pytest.raises(HandlerError):
                await inferd.fetch(99)

    assert media.origin == Origin(is_preview=True, size=(200, 100))
    assert other == Media(b"no picture", other.content_type, NO_PREVIEW)


def test_two_that_make_one_preview_at_once_both_have_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    both, replace, failed = threading.Barrier(2), Path.replace, list[OSError]()

    def together(self: Path, target: Path) -> Path:
        both.wait(60)
        return replace(self, target)

    def make() -> None:
        try:
            _write(tmp_path / "7.preview-1440.jpg", b"whole")
        except OSError as error:
            failed.append(error)

    monkeypatch.setattr(Path, "replace", together)
    threads = [threading.Thread(target=make) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert failed == []
    assert (tmp_path / "7.preview-1440.jpg").read_bytes() == b"whole"
