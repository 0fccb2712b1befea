"""A Qdrant server as far as snapshots go: collections are bytes, made, fetched, put back."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

from aiohttp import web


@dataclass
class SnapshotServer:
    """What it keeps, and what it was asked."""

    url: str = ""
    collections: dict[str, bytes] = field(default_factory=dict)
    snapshots: dict[str, bytes] = field(default_factory=dict)
    keys: set[str | None] = field(default_factory=set)
    """API keys that were shown."""
    asked: list[str] = field(default_factory=list)
    points: dict[object, object] = field(default_factory=dict)
    """Payloads of points by their ids, of whichever collection."""

    async def handle(self, request: web.Request) -> web.StreamResponse:
        """Answer as the documented interface does."""
        self.keys.add(request.headers.get("api-key"))
        self.asked.append(f"{request.method} {request.path}")
        parts = request.path.strip("/").split("/")
        match request.method, parts:
            case "GET", ["collections"]:
                return _result({"collections": [{"name": each} for each in self.collections]})
            case "POST", ["collections", name, "snapshots"] if name in self.collections:
                made = f"{name}-1.snapshot"
                self.snapshots[made] = self.collections[name]
                return _result({"name": made, "size": len(self.snapshots[made])})
            case "POST", ["collections", name, "points"] if name in self.collections:
                ids = (await request.json())["ids"]
                there = [each for each in ids if each in self.points]
                return _result([{"id": each, "payload": self.points[each]} for each in there])
            case "GET", ["collections", _, "snapshots", made] if made in self.snapshots:
                return web.Response(body=self.snapshots[made])
            case "DELETE", ["collections", _, "snapshots", made] if made in self.snapshots:
                del self.snapshots[made]
                return _result(True)
            case "POST", ["collections", name, "snapshots", "upload"]:
                assert request.query["priority"] == "snapshot"
                form = await request.post()
                part = form["snapshot"]
                assert isinstance(part, web.FileField)
                self.collections[name] = part.file.read()
                return _result(True)
        return web.json_response({"status": {"error": "Not found"}}, status=404)


def _result(result: object) -> web.Response:
    return web.json_response({"result": result, "status": "ok", "time": 0.001})


@asynccontextmanager
async def snapshot_server(**collections: bytes) -> AsyncIterator[SnapshotServer]:
    """Give a server that has these collections."""
    server = SnapshotServer(collections=dict(collections))
    app = web.Application(client_max_size=64 << 20)
    app.router.add_route("*", "/{path:.*}", server.handle)
    runner = web.AppRunner(app, shutdown_timeout=0)
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        server.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
        yield server
    finally:
        await runner.cleanup()
