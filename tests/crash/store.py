"""The demo media store in a thread, with pictures that fail, hang or are refused on purpose."""

import asyncio
import io
import json
import threading
from pathlib import Path
from types import TracebackType
from typing import Self

from aiohttp import web
from aiohttp.typedefs import Handler
from PIL import Image

from demos.media_store import create_app
from tests.crash.stand_ins import colour_of

SIZE = (96, 64)
START_SECONDS = 30.0


class Store:
    """What the daemon fetches from and delivers to.

    Attributes:
        fails: how often the fetch of a picture is still answered 503.
        refuses: how often face results of a picture are still answered 503.
        hangs: pictures whose fetch is not answered before the end.
        fetches: how often each picture was asked for.
        delivered: picture and job_id of all face results that were taken, in order.
    """

    def __init__(self, folder: Path, host: str = "127.0.0.1") -> None:
        self._folder = folder
        self._host = host
        folder.mkdir(parents=True)
        self.fails: dict[int, int] = {}
        self.refuses: dict[int, int] = {}
        self.hangs: set[int] = set()
        self.fetches: dict[int, int] = {}
        self.delivered: list[tuple[int, str]] = []
        self.url = ""
        self._ready = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._serve()), name="store")

    def put(self, media_id: int, faces: int = 0) -> None:
        """Keep a picture of its own colour, which has so many faces."""
        data = io.BytesIO()
        Image.new("RGB", SIZE, colour_of(media_id, faces)).save(data, "PNG")
        self.put_bytes(media_id, data.getvalue(), "image/png")

    def put_bytes(self, media_id: int, data: bytes, mime_type: str) -> None:
        """Keep any file."""
        entity = {"id": media_id, "mime_type": mime_type, "file_size": len(data)}
        (self._folder / f"{media_id}.bin").write_bytes(data)
        (self._folder / f"{media_id}.json").write_text(json.dumps(entity), encoding="utf-8")

    def __enter__(self) -> Self:
        self._thread.start()
        assert self._ready.wait(START_SECONDS), "the media store does not start"
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.release()
        self._loop.call_soon_threadsafe(self._end.set)
        self._thread.join(START_SECONDS)

    def release(self) -> None:
        """Let go what hangs."""
        self.hangs.clear()
        self._loop.call_soon_threadsafe(self._go.set)

    async def _serve(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._go, self._end = asyncio.Event(), asyncio.Event()
        app = create_app(self._folder)
        app.middlewares.append(self._interfere)
        runner = web.AppRunner(app, access_log=None, shutdown_timeout=1)
        await runner.setup()
        site = web.TCPSite(runner, self._host, 0)
        await site.start()
        host, port = runner.addresses[0][:2]
        self.url = f"http://{host}:{port}"
        self._ready.set()
        await self._end.wait()
        await runner.cleanup()

    @web.middleware
    async def _interfere(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        media_id = int(request.match_info.get("id", 0))
        if request.method == "POST":
            body = json.loads(await request.read())
            if self._take_one(self.refuses, media_id):
                return web.json_response({}, status=503)
            answer = await handler(request)
            self.delivered.append((media_id, body["job_id"]))
            return answer
        self.fetches[media_id] = self.fetches.get(media_id, 0) + 1
        if media_id in self.hangs:
            await self._go.wait()
        if self._take_one(self.fails, media_id):
            return web.json_response({}, status=503)
        return await handler(request)

    @staticmethod
    def _take_one(left: dict[int, int], media_id: int) -> bool:
        if left.get(media_id, 0) <= 0:
            return False
        left[media_id] -= 1
        return True
