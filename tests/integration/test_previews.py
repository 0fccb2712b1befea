"""Small pictures to look at, by real decoders from a store over real HTTP; and uploads to it."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from io import BytesIO

import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer
from PIL import Image

from daemon.errors import DependencyDownError, PermanentError, RetryableError
from daemon.settings import ImageSettings, MediaStoreSettings
from handlers.media import previews as previews_module
from handlers.media.decoders import Decoders
from handlers.media.media_store import MediaStoreClient
from handlers.media.previews import FIRST_SIDE, Previews
from tests.unit.face_rig import astronaut

ORIENTATION = 0x0112
TURNED = 6


def file_of(image: Image.Image, kind: str, **options: object) -> bytes:
    file = BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def photo(width: int = 1200, height: int = 900, kind: str = "JPEG", **options: object) -> bytes:
    return file_of(Image.fromarray(astronaut()).resize((width, height)), kind, **options)


@dataclass
class Store:
    """A media store whose answers the test chooses."""

    files: dict[int, bytes] = field(default_factory=dict)
    fetched: list[int] = field(default_factory=list)
    field_name: str = "file"
    uploaded: list[tuple[str, str | None, bytes]] = field(default_factory=list)
    status: int = 201
    answer: str = '{"id": 7}'

    async def give(self, request: web.Request) -> web.Response:
        media_store_id = int(request.match_info["id"])
        self.fetched.append(media_store_id)
        if media_store_id not in self.files:
            raise web.HTTPNotFound
        return web.Response(body=self.files[media_store_id], content_type="image/jpeg")

    async def take(self, request: web.Request) -> web.Response:
        form = await request.post()
        if self.field_name not in form:
            raise web.HTTPUnprocessableEntity
        found = form[self.field_name]
        assert isinstance(found, web.FileField)
        self.uploaded.append((found.filename, found.content_type, found.file.read()))
        assert form["label"] == found.filename.replace("%22", '"')
        return web.Response(status=self.status, text=self.answer)


@asynccontextmanager
async def opened(store: Store) -> AsyncIterator[Previews]:
    app = web.Application(client_max_size=1 << 24)
    app.router.add_get("/entity/{id}/file", store.give)
    app.router.add_post("/entity/", store.take)
    async with TestServer(app) as server:
        settings = MediaStoreSettings(url=str(server.make_url("/")).rstrip("/"))
        async with (
            MediaStoreClient(settings) as client,
            Decoders(ImageSettings(decoders=1)) as decoders,
        ):
            yield Previews(client, decoders)


async def test_a_preview_is_small_upright_and_free_of_what_the_file_brought() -> None:
    exif = Image.Exif()
    exif[ORIENTATION] = TURNED
    exif[0x010E] = "where I live"
    store = Store({1: photo(exif=exif), 2: photo(100, 50, "PNG"), 3: photo(4000, 1)})
    async with opened(store) as previews:
        shown = await previews.show(1, 480)
        image = Image.open(BytesIO(shown.data))
        assert (image.format, image.size, image.mode) == ("JPEG", (360, 480), "RGB")
        assert (shown.width, shown.height) == (900, 1200)
        assert not image.getexif()
        assert b"where I live" not in shown.data
        small = Image.open(BytesIO((await previews.show(2, 480)).data))
        assert small.size == (100, 50), "never enlarged"
        assert Image.open(BytesIO((await previews.show(3, 480)).data)).size == (480, 1)


async def test_a_preview_is_kept_and_made_once_for_all_who_ask_at_the_same_time() -> None:
    store = Store({1: photo()})
    async with opened(store) as previews:
        await asyncio.gather(*(previews.show(1, 480) for _ in range(5)))
        assert store.fetched == [1]
        await previews.show(1, 1280)
        assert store.fetched == [1, 1]


async def test_what_is_kept_is_bounded_and_grows_old(monkeypatch: pytest.MonkeyPatch) -> None:
    store = Store({number: photo() for number in range(4)})
    now = 0.0
    async with opened(store) as previews:
        previews._monotonic = lambda: now
        size = len((await previews.show(0, 480)).data)
        monkeypatch.setattr(previews_module, "KEPT_BYTES", 2 * size)
        for number in (1, 2, 0):
            await previews.show(number, 480)
        assert store.fetched == [0, 1, 2, 0], "the oldest went first"
        assert previews._bytes <= 2 * size
        now = previews_module.KEPT_SECONDS + 1
        await previews.show(0, 480)
        assert store.fetched[-1] == 0
        assert len(store.fetched) == 5


async def test_what_is_kept_anew_is_counted_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Else all that is kept would go in time, and each look cost a decoding."""
    monkeypatch.setattr(previews_module, "MOST_WAITING", 1)
    store = Store()
    async with opened(store) as previews:
        for _ in range(3):
            assert await previews.add(photo(), "a.jpg", "image/jpeg") == 7
        size = len((await previews.show(7, FIRST_SIDE)).data)
        assert previews._bytes == size


async def test_what_is_no_picture_says_so_and_nothing_of_it_gets_out() -> None:
    store = Store({1: b"<html><script>alert(1)</script></html>"})
    async with opened(store) as previews:
        with pytest.raises(PermanentError) as refused:
            await previews.show(1, 480)
        assert refused.value.code == "unsupported_format"
        with pytest.raises(PermanentError) as absent:
            await previews.show(2, 480)
        assert absent.value.code == "media_not_found"


async def test_too_many_who_wait_are_told_to_come_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(previews_module, "MOST_WAITING", 1)
    store = Store({1: photo(), 2: photo()})
    async with opened(store) as previews:
        first = asyncio.create_task(previews.show(1, 480))
        await asyncio.sleep(0)
        with pytest.raises(RetryableError) as busy:
            await previews.show(2, 480)
        assert busy.value.code == "busy"
        await first
        await previews.show(2, 480)


async def test_a_picture_is_put_into_the_store_as_it_is_and_can_be_looked_at_at_once() -> None:
    store = Store()
    data = photo()
    async with opened(store) as previews:
        assert await previews.add(data, 'a "b"\r\nX: y.jpg', "image/jpeg") == 7
        assert store.uploaded == [("a %22b%22X: y.jpg", "image/jpeg", data)]
        assert (await previews.show(7, FIRST_SIDE)).width == 1200
        assert store.fetched == [], "it was made of the upload"


@pytest.mark.parametrize("field_name", ["image", "media_file"])
async def test_the_form_field_that_the_store_wants_is_found(field_name: str) -> None:
    store = Store(field_name=field_name)
    async with opened(store) as previews:
        assert await previews.add(photo(), "a.jpg", "image/jpeg") == 7
    assert len(store.uploaded) == 1


async def test_what_is_no_picture_never_reaches_the_store() -> None:
    store = Store()
    async with opened(store) as previews:
        with pytest.raises(PermanentError):
            await previews.add(b"only words", "a.jpg", "image/jpeg")
    assert store.uploaded == []


@pytest.mark.parametrize(
    ("status", "answer", "code"),
    [
        (201, '{"id": "x"}', "media_store_refused"),
        (201, "[]", "media_store_refused"),
        (201, '{"id": -1}', "media_store_refused"),
        (201, '{"id": true}', "media_store_refused"),
        (413, "", "media_store_refused"),
        (503, "", "media_store_error"),
    ],
)
async def test_a_store_that_does_not_take_it_is_told_of(
    status: int, answer: str, code: str
) -> None:
    store = Store(status=status, answer=answer)
    async with opened(store) as previews:
        with pytest.raises((PermanentError, DependencyDownError)) as refused:
            await previews.add(photo(), "a.jpg", "image/jpeg")
    assert refused.value.code == code


async def test_a_store_that_has_it_already_is_as_good() -> None:
    store = Store(status=409, answer='{"id": "41"}')
    async with opened(store) as previews:
        assert await previews.add(photo(), "a.jpg", "image/jpeg") == 41
