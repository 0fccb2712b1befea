"""The demo media store keeps what it is given and speaks as the real one does."""

import asyncio
import hashlib
import sys
from collections.abc import AsyncIterator
from io import BytesIO
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from aiohttp.test_utils import TestClient, TestServer
from PIL import Image

from daemon.errors import PermanentError
from daemon.settings import MediaStoreSettings
from demos.client import upload as client_upload
from demos.media_store import create_app
from handlers.media.images import Limits, decode
from handlers.media.media_store import MediaStoreClient

Client = TestClient[Any, Any]
ROOT = Path(__file__).parents[2]


def picture(kind: str = "PNG") -> bytes:
    file = BytesIO()
    Image.new("RGB", (5, 4), (1, 2, 3)).save(file, kind)
    return file.getvalue()


def form(data: bytes, field: str = "file", **options: Any) -> aiohttp.FormData:
    body = aiohttp.FormData()
    body.add_field("is_collection", "false")
    body.add_field("label", "my_image")
    body.add_field(field, data, **({"filename": "photo.jpg"} | options))
    return body


@pytest.fixture
async def client(tmp_path: Path) -> AsyncIterator[Client]:
    app = create_app(tmp_path / "media", max_upload_bytes=200_000)
    async with TestClient(TestServer(app)) as ready:
        yield ready


async def upload(client: Client, data: bytes, field: str = "file", **options: Any) -> Any:
    async with client.post("/entity/", data=form(data, field, **options)) as response:
        assert response.status == 201
        return await response.json()


def everything_under(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*")}


async def detail(client: Client, status: int, **request: Any) -> str:
    async with client.post("/entity/", **request) as response:
        assert response.status == status
        return str((await response.json())["detail"])


@pytest.mark.parametrize("field", ["file", "image", "media_file"])
async def test_an_upload_is_described_and_given_back_byte_by_byte(
    client: Client, field: str
) -> None:
    data = picture()

    entity = await upload(client, data, field)

    assert entity["id"] == 1
    assert entity["label"] == "my_image"
    assert entity["mime_type"] == "image/png"
    assert entity["file_size"] == len(data)
    assert entity["md5"] == hashlib.md5(data).hexdigest()
    async with client.get("/entity/1") as response:
        assert await response.json() == entity
    async with client.get("/entity/1/file") as response:
        assert await response.read() == data
        assert response.content_type == "image/png"
        assert response.headers["X-Content-Type-Options"] == "nosniff"


@pytest.mark.parametrize(
    ("kind", "mime_type"),
    [
        ("JPEG", "image/jpeg"),
        ("GIF", "image/gif"),
        ("WEBP", "image/webp"),
        ("BMP", "image/bmp"),
        ("TIFF", "image/tiff"),
        ("AVIF", "image/avif"),
        ("JPEG2000", "image/jp2"),
    ],
)
async def test_the_type_is_what_the_bytes_show(client: Client, kind: str, mime_type: str) -> None:
    entity = await upload(client, picture(kind), content_type="text/html")

    assert entity["mime_type"] == mime_type


async def test_the_clients_type_stands_where_the_bytes_show_none(client: Client) -> None:
    page = await upload(client, b"<html>", content_type="text/html; charset=utf-8")
    nothing = await upload(client, b"??", content_type="no type")

    assert page["mime_type"] == "text/html"
    assert nothing["mime_type"] == "application/octet-stream"


async def test_what_is_no_upload_is_refused_with_the_reason(client: Client) -> None:
    no_file = aiohttp.FormData({"label": "x"}, default_to_multipart=True)
    broken = {"Content-Type": "multipart/form-data"}

    assert "'file'" in await detail(client, 400, data=no_file)
    assert "multipart" in await detail(client, 400, json={"file": "x"})
    assert "multipart" in await detail(client, 400, data=b"x", headers=broken)
    head = b'Content-Disposition: form-data; name="file"; filename="\x1b.png"'
    bound = {"Content-Type": "multipart/form-data; boundary=b"}
    part = b"--b\r\n" + head + b"\r\n\r\nx\r\n--b--\r\n"
    assert "multipart" in await detail(client, 400, data=part, headers=bound)
    assert "empty" in await detail(client, 400, data=form(b""))


async def test_a_client_may_upload_a_file_of_any_name(client: Client) -> None:
    name = 'a"b\r\n\x1b[31m\t\x7fü.png'

    found = await asyncio.to_thread(client_upload, str(client.make_url("/")), picture(), name)

    async with client.get(f"/entity/{found}") as response:
        assert (await response.json())["label"] == name


async def test_an_upload_above_the_limit_is_refused_and_leaves_nothing(
    client: Client, tmp_path: Path
) -> None:
    assert "200000" in await detail(client, 413, data=form(bytes(200_001)))

    assert list((tmp_path / "media").iterdir()) == []
    assert (await upload(client, bytes(200_000)))["id"] == 1


async def test_client_file_names_never_become_paths(client: Client, tmp_path: Path) -> None:
    await upload(client, picture(), filename="../../../evil.png")

    assert everything_under(tmp_path) == {"media", "media/1.bin", "media/1.json"}


@pytest.mark.parametrize(
    "path", ["/entity/7", "/entity/7/file", "/entity/x", "/entity/-1", "/nothing"]
)
async def test_unknown_things_are_404_with_a_detail(client: Client, path: str) -> None:
    async with client.get(path) as response:
        assert response.status == 404
        assert "detail" in await response.json()


async def test_face_results_are_accepted_for_known_entities_only(client: Client) -> None:
    await upload(client, picture())

    async with client.post("/entity/1/face-detection-results", json={"faces": []}) as response:
        assert response.status == 200
        assert await response.json() == {
            "status": "accepted",
            "entity_id": 1,
            "message": "Face detection results accepted",
        }
    async with client.post("/entity/2/face-detection-results", json={}) as response:
        assert response.status == 404
    async with client.post("/entity/1/face-detection-results", data=b"{") as response:
        assert response.status == 400


async def test_the_root_says_that_it_runs(client: Client) -> None:
    async with client.get("/") as response:
        assert response.status == 200
        assert "running" in await response.text()


async def test_pictures_and_rising_ids_survive_a_restart(tmp_path: Path) -> None:
    data = picture()
    for expected_id in (1, 2, 3):
        async with TestClient(TestServer(create_app(tmp_path))) as client:
            entity = await upload(client, data)

            assert entity["id"] == expected_id
            async with client.get("/entity/1/file") as response:
                assert await response.read() == data


async def test_uploads_at_once_get_ids_of_their_own(client: Client) -> None:
    files = [bytes([n]) * 1000 for n in range(20)]

    entities = await asyncio.gather(*(upload(client, data) for data in files))

    assert sorted(entity["id"] for entity in entities) == list(range(1, 21))
    for data, entity in zip(files, entities, strict=True):
        async with client.get(f"/entity/{entity['id']}/file") as response:
            assert await response.read() == data


async def test_the_daemons_client_speaks_to_it(client: Client) -> None:
    await upload(client, picture("JPEG"))
    settings = MediaStoreSettings.model_validate({"url": str(client.make_url("/"))})
    async with MediaStoreClient(settings) as store:
        await store.check()
        media = await store.fetch(1)
        await store.post_face_results(1, "job-1", {"faces": []})

        with pytest.raises(PermanentError) as caught:
            await store.fetch(2)

    assert caught.value.code == "media_not_found"
    assert media.content_type == "image/jpeg"
    assert decode(media.data, Limits(20, (0, 0, 0))).width == 5


async def test_it_runs_as_a_module(tmp_path: Path) -> None:
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-u", "-m", "demos.media_store"),
        *("--port", "0", "--folder", str(tmp_path / "new" / "folder")),
        cwd=ROOT,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    try:
        assert process.stdout is not None
        async with asyncio.timeout(60):
            line = await process.stdout.readline()
        assert b"Running on http://127.0.0.1:" in line
        assert (tmp_path / "new" / "folder").is_dir()
    finally:
        process.terminate()
        await asyncio.wait_for(process.communicate(), 60)
