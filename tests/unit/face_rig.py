"""A media store over real HTTP, and jobs for it: what the tests of the face handlers share."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from io import BytesIO

import numpy as np
from aiohttp import web
from aiohttp.test_utils import TestServer
from PIL import Image

from daemon.jobs import Job, JobState, JsonObject, TaskType
from daemon.settings import MediaStoreSettings
from handlers.inference import Pixels
from handlers.media.media_store import MediaStoreClient


@dataclass
class Store:
    """What the media store holds and was told."""

    client: MediaStoreClient
    files: dict[int, bytes] = field(default_factory=dict)
    posted: list[tuple[int, JsonObject]] = field(default_factory=list)

    def put(self, media_store_id: int, pixels: Pixels) -> None:
        buffer = BytesIO()
        Image.fromarray(pixels).save(buffer, "PNG", compress_level=1)
        self.files[media_store_id] = buffer.getvalue()


@asynccontextmanager
async def media_store() -> AsyncIterator[Store]:
    async def give(request: web.Request) -> web.Response:
        body = store.files.get(int(request.match_info["id"]))
        return web.Response(body=body) if body else web.Response(status=404)

    async def take(request: web.Request) -> web.Response:
        store.posted.append((int(request.match_info["id"]), await request.json()))
        return web.json_response({})

    app = web.Application()
    app.router.add_get("/entity/{id}/file", give)
    app.router.add_post("/entity/{id}/face-detection-results", take)
    async with (
        TestServer(app) as server,
        MediaStoreClient(MediaStoreSettings(url=str(server.make_url("/")).rstrip("/"))) as client,
    ):
        store = Store(client)
        yield store


def job(task_type: TaskType, media_store_id: int = 7, job_id: str = "job-1") -> Job:
    return Job(
        job_id=job_id,
        task_type=task_type,
        media_store_id=media_store_id,
        priority=5,
        status=JobState.PROCESSING,
        created_at=0,
    )


def astronaut() -> Pixels:
    """Return the one picture of a face that is always at hand: scikit-image brings it."""
    from skimage import data  # noqa: PLC0415 - slow

    picture: Pixels = data.astronaut()
    return picture


def cut_out() -> Pixels:
    """Return the astronaut's head alone, where the cascade finds one face and nothing else."""
    return np.ascontiguousarray(astronaut()[:256, 100:356])


def ignore_steps(step: str) -> None:
    """Take what a handler reports of its progress."""
