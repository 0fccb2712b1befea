"""An HTTP proxy that stands before something and fails it in whatever way a test asks for."""

import asyncio
import contextlib
import threading
from collections.abc import Awaitable, Callable, Coroutine
from types import TracebackType
from typing import Any, Self

import aiohttp
from aiohttp import web
from yarl import URL

SECONDS = 20.0

Forward = Callable[[], Awaitable[web.Response]]
"""Asks what stands behind, and returns its answer."""
Fault = Callable[[web.Request, Forward], Awaitable[web.StreamResponse]]
"""Answers one request its own way."""


class Interposer:
    """Passes requests on until `fault` is set; a context manager with a loop and thread of its own.

    Args:
        target: URL of what stands behind.
    """

    def __init__(self, target: str) -> None:
        self._target = URL(target)
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="interposer")
        self.fault: Fault | None = None
        self.asked: list[str] = []
        """Method and path of each request that came."""
        self._port = 0

    def __enter__(self) -> Self:
        self._thread.start()
        self._run(self._open())
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._run(self._close())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(SECONDS)
        self._loop.close()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._port}"

    def away(self) -> None:
        """Close the port and cut every connection, as a process that dies does."""
        self._run(self._away())

    def back(self) -> None:
        """Listen again, where it was."""
        self._run(self._listen())

    def _run(self, work: Coroutine[Any, Any, None]) -> None:
        asyncio.run_coroutine_threadsafe(work, self._loop).result(SECONDS)

    async def _open(self) -> None:
        app = web.Application(client_max_size=2**26)
        app.router.add_route("*", "/{path:.*}", self._answer)
        self._session = aiohttp.ClientSession(auto_decompress=False)
        self._runner = web.AppRunner(app, shutdown_timeout=0)
        await self._runner.setup()
        await self._listen()

    async def _listen(self) -> None:
        self._site = web.TCPSite(self._runner, "127.0.0.1", self._port, reuse_address=True)
        await self._site.start()
        self._port = self._runner.addresses[0][1]

    async def _away(self) -> None:
        await self._site.stop()
        server = self._runner.server
        assert server is not None
        for connection in list(server.connections):
            if connection.transport is not None:
                connection.transport.abort()

    async def _close(self) -> None:
        await self._runner.cleanup()
        await self._session.close()

    async def _answer(self, request: web.Request) -> web.StreamResponse:
        self.asked.append(f"{request.method} {request.path}")
        body = await request.read()

        async def forward() -> web.Response:
            url = self._target.join(request.rel_url)
            headers = {k: v for k, v in request.headers.items() if k != "Host"}
            asked = self._session.request(request.method, url, data=body, headers=headers)
            async with asked as answer:
                kind = answer.headers.get("Content-Type", "application/octet-stream")
                return web.Response(
                    status=answer.status,
                    body=await answer.read(),
                    headers={"Content-Type": kind},
                )

        if self.fault is None:
            return await forward()
        return await self.fault(request, forward)


def says(status: int, body: str = "{}", **headers: str) -> Fault:
    """Answer so, whatever is asked."""

    async def fault(_request: web.Request, _forward: Forward) -> web.Response:
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        kind = named.pop("Content-Type", "application/json")
        return web.Response(status=status, text=body, content_type=kind, headers=named)

    return fault


def silent() -> Fault:
    """Take the request and never answer."""

    async def fault(request: web.Request, _forward: Forward) -> web.Response:
        while request.transport is not None and not request.transport.is_closing():  # noqa: ASYNC110 - aiohttp tells nobody
            await asyncio.sleep(0.05)
        return web.Response()

    return fault


def cut_short() -> Fault:
    """Cut the connection in the middle of the answer."""

    async def fault(request: web.Request, forward: Forward) -> web.StreamResponse:
        whole = await forward()
        assert isinstance(whole.body, bytes)
        return await _broken(request, whole.body[: len(whole.body) // 2], len(whole.body))

    return fault


def answer_lost() -> Fault:
    """Do what is asked, and cut the connection before a word of it is told."""

    async def fault(request: web.Request, forward: Forward) -> web.StreamResponse:
        await forward()
        return await _broken(request, b"", 0)

    return fault


def trickling(seconds: float = 0.05) -> Fault:
    """Answer a byte at a time, for ever."""

    async def fault(request: web.Request, _forward: Forward) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Length": "50000"})
        await response.prepare(request)
        with contextlib.suppress(ConnectionError):
            while True:
                await response.write(b"x")
                await asyncio.sleep(seconds)
        return response

    return fault


def only(chosen: Callable[[web.Request], bool], fault: Fault) -> Fault:
    """Fail some requests, and pass the others on."""

    async def choose(request: web.Request, forward: Forward) -> web.StreamResponse:
        return await (fault(request, forward) if chosen(request) else forward())

    return choose


async def _broken(request: web.Request, begun: bytes, length: int) -> web.StreamResponse:
    response = web.StreamResponse(headers={"Content-Length": str(length)})
    if begun:
        await response.prepare(request)
        await response.write(begun)
        await asyncio.sleep(0.01)
    if request.transport is not None:
        request.transport.abort()
    return response
