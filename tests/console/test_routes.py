"""The console's routes over real HTTP: each described answer, and a stream that ends in time."""

import asyncio
import json
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from daemon.errors import PermanentError, RetryableError
from daemon.jobs import TaskType
from daemon.live import MOST_WAITING_BYTES, MOST_WATCHERS, Live
from handlers.media.previews import Preview
from http_shim import bodies
from http_shim.console import picture_routes
from http_shim.console.parts import Console
from http_shim.console.picture_routes import MOST_UPLOADS
from tests.documents import Rest
from tests.integration import rest_rig
from tests.integration.rest_rig import DEADLINE, Rig, rest

JPEG = {"Content-Type": "image/jpeg"}
MOST = 65_536


class Pictures:
    """Gives one picture, or fails, as the test wants."""

    def __init__(self) -> None:
        self.error: Exception | None = None
        self.go = asyncio.Event()
        self.go.set()
        self.added: list[tuple[bytes, str, str]] = []

    async def show(self, media_store_id: int, side: int) -> Preview:
        await self.go.wait()
        if self.error is not None:
            raise self.error
        return Preview(b"\xff\xd8\xff", 640, 480)

    async def add(self, data: bytes, filename: str, content_type: str) -> int:
        await self.go.wait()
        if self.error is not None:
            raise self.error
        self.added.append((data, filename, content_type))
        return 7


def console(live: Live, pictures: Pictures) -> Console:
    return Console(live=live, pictures=pictures, task_types=list(TaskType), max_picture_bytes=MOST)


async def read_until(response: aiohttp.ClientResponse, name: str) -> list[tuple[str, Any]]:
    """Return the events of a stream up to the first of a name."""
    found: list[tuple[str, Any]] = []
    async with asyncio.timeout(DEADLINE):
        while not found or found[-1][0] != name:
            event = (await response.content.readuntil(b"\n\n")).decode()
            if event.startswith("event: "):
                head, _, data = event.strip().partition("\ndata: ")
                found.append((head.removeprefix("event: "), json.loads(data)))
    return found


async def test_every_described_status_is_answered_as_described(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    contract = Rest()
    monkeypatch.setattr(rest_rig, "CONTRACT", contract)
    live, pictures = Live(), Pictures()
    async with rest(tmp_path / "q.db", console=console(live, pictures)) as rig:
        answer = await rig.ask("GET", "/console/main.js")
        lower = {name.lower(): value for name, value in answer.headers.items()}
        tag = {"If-None-Match": lower["etag"]}
        assert (await rig.ask("GET", "/console/main.js", headers=tag)).status == 304
        assert (await rig.ask("GET", "/console/nothing.js")).status == 404
        assert (await rig.ask("GET", "/console/index.html%3Fguarded")).status == 404
        assert (await rig.ask("HEAD", "/console/events")).status == 200
        assert (await rig.ask("GET", "/console/picture/1")).headers["X-Picture-Width"] == "640"
        added = await rig.ask("POST", "/console/upload?name=a.jpg", data=b"x", headers=JPEG)
        assert (added.status, added.body) == (201, {"media_store_id": 7})
        assert pictures.added == [(b"x", "a.jpg", "image/jpeg")]
        for wrong in ("x", 2**63, f"{'0' * 20}{'9' * 30}", "0" * 5000):
            assert (await rig.ask("GET", f"/console/picture/{wrong}")).status == 404
        assert (await rig.ask("GET", "/console/picture/1?side=9000")).status == 422
        long = f"/console/upload?name={'x' * 201}"
        assert (await rig.ask("POST", long, data=b"x", headers=JPEG)).status == 422
        for error, shown, uploaded in (
            (PermanentError("none", code="media_not_found"), 404, None),
            (PermanentError("no picture", code="unsupported_format"), 422, 422),
            (RetryableError("away", code="media_store_unreachable"), 503, 503),
        ):
            pictures.error = error
            assert (await rig.ask("GET", "/console/picture/1")).status == shown
            if uploaded:
                answer = await rig.ask("POST", "/console/upload", data=b"x", headers=JPEG)
                assert (answer.status, answer.body["code"]) == (uploaded, error.code)
        pictures.error = None
        await strange_uploads(rig, monkeypatch)
        await too_many(rig, live, pictures)
        rig.health.is_draining = True
        drained = await rig.ask("POST", "/console/upload", data=b"x", headers=JPEG)
        assert (drained.status, drained.body["code"]) == (503, "draining")

    promised = {
        (name, int(status))
        for name, operation in contract.operations.items()
        for status in operation["responses"]
        if operation["tags"] == ["console"]
    }
    # Who has no token is test_access's; what is no HTTP is aiohttp's; the stream is below.
    unseen = {each for each in promised - contract.seen if each[1] not in (401, 403, 500)}
    assert unseen == {("streamEvents", 404), ("addPicture", 400), ("addPicture", 404)}


async def strange_uploads(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    large = await rig.ask("POST", "/console/upload", data=b" " * (MOST + 1), headers=JPEG)
    assert large.status == 413
    assert (await rig.ask("POST", "/console/upload", data=b"x")).status == 415

    async def slowly() -> Any:
        yield b"x"
        await asyncio.sleep(DEADLINE)

    with monkeypatch.context() as patched:
        patched.setattr(bodies, "BODY_SECONDS", 0.05)
        late = await rig.ask("POST", "/console/upload", data=slowly(), headers=JPEG)
    assert late.status == 408


async def too_many(rig: Rig, live: Live, pictures: Pictures) -> None:
    """Have as much under way as may be: the next is told to come again."""
    pictures.go.clear()
    upload = ("POST", "/console/upload")
    under_way = [
        asyncio.create_task(rig.ask(*upload, data=b"x", headers=JPEG)) for _ in range(MOST_UPLOADS)
    ]
    busy = None
    async with asyncio.timeout(DEADLINE):
        while busy is None or busy.status != 503:
            # Those that came before them wait until the others are let go.
            asked = asyncio.create_task(rig.ask(*upload, data=b"x", headers=JPEG))
            done, _ = await asyncio.wait([asked], timeout=0.2)
            under_way.append(asked)
            busy = asked.result() if done else None
    assert busy.body["code"] == "busy"
    assert int(busy.headers["Retry-After"]) >= 1
    pictures.go.set()
    await asyncio.gather(*under_way)

    watching = [live.watch() for _ in range(MOST_WATCHERS)]
    for each in watching:
        each.__enter__()
    refused = await rig.ask("GET", "/console/events")
    assert (refused.status, refused.body["code"]) == (503, "busy")
    for each in watching:
        each.__exit__(None, None, None)


async def test_a_preview_that_takes_too_long_ends(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(picture_routes, "WORK_SECONDS", 0.01)
    pictures = Pictures()
    pictures.go.clear()
    async with rest(tmp_path / "q.db", console=console(Live(), pictures)) as rig:
        answer = await rig.ask("GET", "/console/picture/1")
    assert (answer.status, answer.body["code"]) == (503, "timeout")


async def test_a_stream_begins_with_everything_and_goes_on_with_what_happens(
    tmp_path: Path,
) -> None:
    live = Live()
    async with rest(tmp_path / "q.db", console=console(live, Pictures())) as rig:
        lease = None
        job = await rig.post(1)
        lease = await rig.lease()
        await rig.queue.bury(lease, code="media_not_found", message="it is gone")
        url = f"http://127.0.0.1:{rig.port}/console/events"
        async with rig.session.get(url) as response:
            assert response.headers["Content-Type"].startswith("text/event-stream")
            assert response.headers["Cache-Control"] == "no-store"
            told = dict(await read_until(response, "latest"))
            assert list(told) == ["hello", "queue", "daemon", "failures", "workers", "latest"]
            assert told["hello"]["may_write"]
            assert [each["job_id"] for each in told["latest"]["jobs"]] == [job["job_id"]]
            (group,) = told["failures"]["groups"]
            assert (group["code"], group["number"], group["media_store_id"]) == (
                "media_not_found",
                1,
                1,
            )
            assert told["queue"]["task_types"]["image_embedding"]["failed"] == 1
            live.tell("trouble", {"message": "x"})
            assert (await read_until(response, "trouble"))[-1][1] == {"message": "x"}
            # One who waits with more than may wait is cut off, and nobody else waits for it.
            live.tell("trouble", {"message": "x" * MOST_WAITING_BYTES})
            async with asyncio.timeout(DEADLINE):
                await response.content.read()
            assert not live.is_watched
            rest_of_all = await rig.ask("GET", "/queue")
            assert rest_of_all.status == 200


async def test_the_server_does_not_wait_for_who_watches(tmp_path: Path) -> None:
    live = Live()
    async with aiohttp.ClientSession() as session, asyncio.timeout(DEADLINE):
        async with rest(tmp_path / "q.db", console=console(live, Pictures())) as rig:
            url = f"http://127.0.0.1:{rig.port}/console/events"
            response = await session.get(url)
            await read_until(response, "latest")
            began = asyncio.get_running_loop().time()
        assert asyncio.get_running_loop().time() - began < rest_rig.DEADLINE / 2
        response.close()
