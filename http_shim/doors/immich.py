"""The API of immich-machine-learning, POST /predict and GET /ping, so that inferd can replace it.

Immich sends no token, so this API has a port of its own and is off by default. Of an error Immich's
log shows only the status line, so the reason is put there.
"""

import asyncio
import math
import re
from collections.abc import Sequence

from aiohttp import web
from aiohttp.typedefs import Handler

from daemon.errors import InvalidRequestError, PermanentError
from daemon.health import Health
from daemon.jobs import JsonObject, dump_json
from http_shim.deadlines import within
from http_shim.doors.counting import counted
from http_shim.doors.embedder import Clip, Embedder, FaceFinder, Faces, Vector
from http_shim.doors.immich_requests import Asked, Entry, invalid, read_form
from http_shim.doors.model_names import ModelNames
from http_shim.doors.waiting_room import WaitingRoom
from http_shim.errors import DrainingError, answer_errors, error_response

CLIP, FACES = "clip", "facial-recognition"
VISUAL, TEXTUAL, DETECTION, RECOGNITION = "visual", "textual", "detection", "recognition"
KNOWN = {CLIP: {VISUAL, TEXTUAL}, FACES: {DETECTION, RECOGNITION}}
"""The tasks of Immich that are done here, and their types; ocr is not."""
PING = "/ping"
PLACES = 8
"""Requests answered at a time: each holds a picture's file in memory."""
MOST_WAITING = 256
"""Immich's jobs run side by side, and one that is refused fails: so that many may wait."""
WAIT_SECONDS = 60.0
PREDICT_SECONDS = 120.0
"""How long an answer may take once the form is there; the first one waits for its model."""
MAX_REASON = 200


class ImmichDoor:
    """The routes of Immich's API."""

    def __init__(
        self, embedder: Embedder, names: ModelNames, health: Health, *, max_picture_bytes: int
    ) -> None:
        """Take what embeds, the names it answers to, and the largest file that is read."""
        self._embedder = embedder
        self._names = names
        self._health = health
        self._max_picture_bytes = max_picture_bytes
        self._room = WaitingRoom(places=PLACES, waiting=MOST_WAITING, seconds=WAIT_SECONDS)

    def create_app(self) -> web.Application:
        """Return the application of the door's own port."""
        app = web.Application(
            middlewares=[_say_why, answer_errors], client_max_size=self._max_picture_bytes
        )
        app.router.add_get("/", self.tell_name)
        app.router.add_get(PING, self.ping)
        app.router.add_post("/predict", self.predict)
        return app

    async def tell_name(self, _request: web.Request) -> web.Response:
        """Answer as Immich's does."""
        return web.json_response({"message": "Immich ML"})

    async def ping(self, _request: web.Request) -> web.Response:
        """Answer `pong`, or 503 while the daemon stops, so that Immich asks another server."""
        self._refuse_draining()
        return web.Response(text="pong")

    async def predict(self, request: web.Request) -> web.Response:
        """Answer the vectors and faces that a form asks for."""
        self._refuse_draining()
        try:
            async with self._room.enter():
                asked = await read_form(request, self._max_picture_bytes)
                answer = await within(self._answer(asked), PREDICT_SECONDS)
        except _BadRequestError as error:
            return error_response(error, 400)
        except PermanentError as error:
            # The text or the picture is at fault, as it would be in a job.
            return error_response(error, 422)
        return web.Response(text=answer, content_type="application/json")

    def _refuse_draining(self) -> None:
        if self._health.is_draining:
            raise DrainingError("the daemon is stopping")

    async def _answer(self, asked: Asked) -> str:
        for task, types in asked.entries.items():
            _check_known(task, types)
        if asked.image is None and asked.text is None:
            raise _BadRequestError("Either image or text must be provided")
        _check_inputs(asked)
        # Nothing is embedded for a request of which a part must be refused.
        clip = await self._embedder.clip() if CLIP in asked.entries else None
        faces = await self._embedder.faces() if FACES in asked.entries else None
        self._check_models(asked, clip, faces)
        answer: JsonObject = {}
        for task, types in asked.entries.items():
            if task == CLIP and clip is not None:
                answer |= await _embed(clip, asked)
            elif faces is not None:
                answer |= await _find(faces, types, asked)
        # Numbers as text: of many faces that is a moment's work.
        return await asyncio.to_thread(dump_json, answer)

    def _check_models(self, asked: Asked, clip: Clip | None, faces: FaceFinder | None) -> None:
        running: dict[str, str] = {}
        if clip is not None:
            running |= dict.fromkeys(KNOWN[CLIP], clip.name)
        if faces is not None:
            running |= {DETECTION: faces.detector_name, RECOGNITION: faces.recogniser_name}
        for types in asked.entries.values():
            for kind, entry in types.items():
                self._names.require(entry.model_name, running[kind], field="modelName")


class _BadRequestError(InvalidRequestError):
    """What Immich's own answers 400."""

    default_code = "bad_request"


def as_text(vector: Vector) -> str:
    """Return a vector as Immich wants it: the text of a JSON array, every float32 to its last bit.

    Immich passes it on to PostgreSQL as it is.
    """
    return f"[{','.join(format(value, '.9g') for value in vector.tolist())}]"


def _check_inputs(asked: Asked) -> None:
    has_image = asked.image is not None
    for kind in asked.entries.get(CLIP, {}):
        if (kind == VISUAL) != has_image:
            given = "an image" if has_image else "a text"
            raise _BadRequestError(f"Task clip of type {kind} cannot be done of {given}")
    faces = asked.entries.get(FACES, {})
    for kind in faces:
        if not has_image:
            raise _BadRequestError(f"Task {FACES} of type {kind} cannot be done of a text")
    if RECOGNITION in faces and DETECTION not in faces:
        raise _BadRequestError(
            f"Task {FACES} of type {RECOGNITION} depends on output of type {DETECTION}"
        )


async def _embed(clip: Clip, asked: Asked) -> JsonObject:
    if asked.image is None:
        text = await clip.embed_text(asked.text or "")
        return {CLIP: await asyncio.to_thread(as_text, text.vector)}
    found = await clip.embed_picture(asked.image)
    vector = await asyncio.to_thread(as_text, found.vector)
    return {CLIP: vector, "imageHeight": found.height, "imageWidth": found.width}


async def _find(faces: FaceFinder, types: dict[str, Entry], asked: Asked) -> JsonObject:
    with_vectors = RECOGNITION in types
    found = await faces.find_faces(
        asked.image or b"",
        min_score=types[DETECTION].options.min_score,
        with_vectors=with_vectors,
    )
    described = await asyncio.to_thread(_recognised if with_vectors else _detected, found)
    return {FACES: described, "imageHeight": found.height, "imageWidth": found.width}


def _check_known(task: str, types: dict[str, Entry]) -> None:
    if task not in KNOWN:
        raise InvalidRequestError(
            f"inferd does not do the task {task[:50]!r}, only {' and '.join(KNOWN)}:"
            " turn it off in Immich, or list a server that does it as well",
            code="unknown_task",
        )
    if unknown := types.keys() - KNOWN[task]:
        raise invalid(f"task {task} has no type {min(unknown)[:50]!r}")


def _recognised(found: Faces) -> list[JsonObject]:
    return [
        {
            "boundingBox": dict(zip(("x1", "y1", "x2", "y2"), _corners(face.bbox), strict=True)),
            "embedding": as_text(vector),
            "score": round(float(face.confidence), 6),
        }
        for face, vector in zip(found.faces, found.vectors, strict=True)
    ]


def _detected(found: Faces) -> JsonObject:
    return {
        "boxes": [_corners(face.bbox) for face in found.faces],
        "scores": [round(float(face.confidence), 6) for face in found.faces],
        "landmarks": [face.landmarks.tolist() for face in found.faces],
    }


def _corners(bbox: Sequence[float]) -> list[int]:
    """Return x1, y1, x2, y2 in whole pixels: Immich's columns are integers."""
    x, y, width, height = bbox
    return [math.floor(value + 0.5) for value in (x, y, x + width, y + height)]


@web.middleware
async def _say_why(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Put what is wrong into the status line, which is all that Immich's log shows."""
    if request.path == PING:
        # Asked every few seconds: it would hide how long answers take.
        return await handler(request)
    response, error = await counted("immich", request, handler)
    if error is not None:
        plain = re.sub(r"[^\x20-\x7e]+", " ", error.detail)[:MAX_REASON]
        error.set_status(error.status, plain.strip() or None)
    return response
