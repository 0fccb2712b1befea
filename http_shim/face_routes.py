"""Shows the faces of a picture: where they are, and which of them have a stored vector."""

import asyncio
from collections.abc import Sequence

from aiohttp import web

from daemon.errors import NotFoundError, RetryableError
from daemon.jobs import Job, JsonObject, TaskType, dump_json
from http_shim.callers import authorize
from http_shim.keys import QUEUE, SEARCH
from http_shim.media_routes import media_store_id_of

LOOK_SECONDS = 30.0
"""How long looking into the vectors may take."""
_FACES = (TaskType.FACE_EMBEDDING, TaskType.FACE_DETECTION)
"""Whose results have faces; of the first one each has a vector."""


def add_face_routes(app: web.Application) -> None:
    """Add the routes of faces."""
    app.router.add_get("/faces/{media_store_id}", show_faces)


async def show_faces(request: web.Request) -> web.Response:
    """Answer the faces of a picture by its newest result; needs a token, as a search does."""
    authorize(request)
    media_store_id = media_store_id_of(request)
    job = _newest(await request.app[QUEUE].batches.of_media(media_store_id))
    vectors = await _vectors(request, media_store_id)
    if job is None and not vectors:
        raise NotFoundError(
            f"no faces are known of picture {media_store_id}: ask for face_embedding or"
            " face_detection"
        )
    result: JsonObject = (job and job.result) or {}
    # Another model may have found other faces since that result: the same number is not enough.
    stored = (
        None
        if vectors is None
        else {each["face_index"]: each.pop("bbox", None) for each in vectors}
    )
    body = {
        "media_store_id": media_store_id,
        "job_id": None if job is None else job.job_id,
        "task_type": None if job is None else job.task_type.value,
        "image": result.get("image"),
        "faces": [
            {
                **{name: face[name] for name in ("face_index", "bbox", "landmarks", "confidence")},
                "stored": None
                if stored is None
                else stored.get(face["face_index"], {}) in (None, face["bbox"]),
            }
            for face in result.get("faces", [])
        ],
        "vectors": vectors,
    }
    return web.json_response(body, dumps=dump_json)


def _newest(jobs: Sequence[Job]) -> Job | None:
    """Return the job whose result is shown; one that stored vectors before one that did not.

    Args:
        jobs: the oldest first; one whose result is not delivered yet has not ended.
    """
    for task_type in _FACES:
        for job in reversed(jobs):
            if job.task_type is task_type and job.result is not None:
                return job
    return None


async def _vectors(request: web.Request, media_store_id: int) -> list[JsonObject] | None:
    searcher = request.app[SEARCH].searcher
    if searcher is None:
        return None
    with request.app[SEARCH].enter(with_picture=False):
        try:
            async with asyncio.timeout(LOOK_SECONDS):
                return await searcher.faces_of(media_store_id)
        except TimeoutError:
            raise RetryableError("the vector database did not answer", code="timeout") from None
