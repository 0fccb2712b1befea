"""OpenAI's embeddings API: POST /v1/embeddings and GET /v1/models, on REST's own port.

Any valid token will do, as for a search; OpenAI's clients send theirs (`api_key`) as bearer token.
"""

import asyncio
import base64
import json
from collections.abc import Awaitable, Callable, Sequence
from functools import wraps
from http import HTTPStatus
from typing import TypeAlias

import numpy as np
from aiohttp import web

from daemon.errors import InvalidRequestError, NotFoundError, PermanentError
from daemon.health import Health
from daemon.jobs import JsonObject, dump_json
from http_shim.auth import Authenticator, authorization_of
from http_shim.bodies import read_body
from http_shim.deadlines import within
from http_shim.doors.counting import counted
from http_shim.doors.embedder import Clip, Embedder, Vector
from http_shim.doors.model_names import ModelNames
from http_shim.doors.openai_requests import EmbeddingRequest, parse_request, read_picture
from http_shim.doors.waiting_room import WaitingRoom
from http_shim.errors import DrainingError, ErrorResponse, answer_errors

PLACES = 4
"""Requests answered at a time: each holds its body in memory."""
MOST_WAITING = 32
WAIT_SECONDS = 10.0
"""OpenAI's clients repeat a refused request by themselves."""
ANSWER_SECONDS = 120.0
"""How long an answer may take once the body is there; the first one waits for its model."""
TOGETHER = 16
"""Inputs embedded at a time, of one request."""

Routed: TypeAlias = Callable[["OpenAIDoor", web.Request], Awaitable[web.StreamResponse]]


def _as_openai(route: Routed) -> Routed:
    """Give errors OpenAI's shape and statuses; codes stay ours."""

    @wraps(route)
    async def answer(door: "OpenAIDoor", request: web.Request) -> web.StreamResponse:
        async def say_why(asked: web.Request) -> web.StreamResponse:
            return await answer_errors(asked, lambda each: route(door, each))

        response, error = await counted("openai", request, say_why)
        return response if error is None else _reshaped(error)

    return answer


class OpenAIDoor:
    """The routes of OpenAI's API."""

    def __init__(
        self,
        embedder: Embedder | None,
        names: ModelNames,
        health: Health,
        authenticate: Authenticator,
        *,
        max_body_bytes: int,
    ) -> None:
        """Take what embeds (None: nothing does), its names, and who may ask for how much."""
        self._embedder = embedder
        self._names = names
        self._health = health
        self._authenticate = authenticate
        self._max_body_bytes = max_body_bytes
        self._room = WaitingRoom(places=PLACES, waiting=MOST_WAITING, seconds=WAIT_SECONDS)

    def add_routes(self, app: web.Application) -> None:
        """Add the routes to REST's application."""
        app.router.add_post("/v1/embeddings", self.embed)
        app.router.add_get("/v1/models", self.list_models)
        app.router.add_get("/v1/models/{model}", self.show_model)

    @_as_openai
    async def embed(self, request: web.Request) -> web.Response:
        """Answer a vector for each input, in order."""
        embedder = self._admit(request)
        async with self._room.enter():
            body = await read_body(request, self._max_body_bytes)
            asked = await asyncio.to_thread(parse_request, body)
            del body
            answer = await within(self._answer(embedder, asked), ANSWER_SECONDS)
        return web.Response(text=answer, content_type="application/json")

    @_as_openai
    async def list_models(self, request: web.Request) -> web.Response:
        """Answer what runs, and the aliases that mean it."""
        names = await self._running(self._admit(request))
        models = {"object": "list", "data": [_model(name) for name in names]}
        return web.json_response(models, dumps=dump_json)

    @_as_openai
    async def show_model(self, request: web.Request) -> web.Response:
        """Answer one of them, or 404."""
        name = request.match_info["model"]
        if name not in await self._running(self._admit(request)):
            raise NotFoundError("there is no such model", code="model_not_found")
        return web.json_response(_model(name), dumps=dump_json)

    def _admit(self, request: web.Request) -> Embedder:
        self._authenticate.authorize(authorization_of(request.headers))
        if self._health.is_draining:
            raise DrainingError("the daemon is stopping")
        if self._embedder is None:
            raise NotFoundError("no model runs here", code="not_configured")
        return self._embedder

    async def _running(self, embedder: Embedder) -> list[str]:
        clip = await within(embedder.clip(), ANSWER_SECONDS)
        return self._names.of(clip.name)

    async def _answer(self, embedder: Embedder, asked: EmbeddingRequest) -> str:
        # All of an answer is of one model, also where the collection changes to another amid it.
        clip = await embedder.clip()
        try:
            self._names.require(asked.model, clip.name, field="model")
        except InvalidRequestError as error:
            raise NotFoundError(error.message, code=error.code) from None
        vectors, tokens = [], 0
        inputs = asked.inputs
        for start in range(0, len(inputs), TOGETHER):
            for vector, read in await _embed_all(clip, inputs, start):
                vectors.append(vector)
                tokens += read
                _check_dimensions(vector, asked.dimensions)
        is_base64 = asked.encoding_format == "base64"
        return await asyncio.to_thread(
            _written, vectors, is_base64=is_base64, model=clip.name, tokens=tokens
        )


async def _embed_all(clip: Clip, inputs: Sequence[str], start: int) -> list[tuple[Vector, int]]:
    """Return vectors and tokens of some inputs; where one fails, the others are given up."""
    numbers = range(start, min(start + TOGETHER, len(inputs)))
    works = [asyncio.create_task(_embed(clip, inputs[number], number)) for number in numbers]
    try:
        return await asyncio.gather(*works)
    finally:
        for work in works:
            work.cancel()


async def _embed(clip: Clip, text: str, number: int) -> tuple[Vector, int]:
    try:
        data = await asyncio.to_thread(read_picture, text)
        if data is not None:
            return (await clip.embed_picture(data)).vector, 0
        found = await clip.embed_text(text)
    except (InvalidRequestError, PermanentError) as error:
        # It is at fault, as it would be in a job.
        message = f"input[{number}]: {error.message}"
        raise InvalidRequestError(message, code=error.code, field="input") from None
    return found.vector, found.tokens


def _check_dimensions(vector: Vector, asked: int | None) -> None:
    if asked is not None and asked != vector.size:
        raise InvalidRequestError(
            f"dimensions: the model makes {vector.size} numbers, and they are not cut",
            field="dimensions",
        )


def _written(vectors: Sequence[Vector], *, is_base64: bool, model: str, tokens: int) -> str:
    data = [
        {
            "object": "embedding",
            "index": index,
            "embedding": _in_base64(vector) if is_base64 else vector.tolist(),
        }
        for index, vector in enumerate(vectors)
    ]
    usage = {"prompt_tokens": tokens, "total_tokens": tokens}
    return dump_json({"object": "list", "data": data, "model": model, "usage": usage})


def _in_base64(vector: Vector) -> str:
    return base64.b64encode(np.asarray(vector, "<f4").tobytes()).decode()


def _model(name: str) -> JsonObject:
    # When the model was made is not known.
    return {"id": name, "object": "model", "created": 0, "owned_by": "inferd"}


def _reshaped(response: ErrorResponse) -> web.Response:
    status = response.status
    kind = "server_error"
    if response.code == "busy":
        status, kind = HTTPStatus.TOO_MANY_REQUESTS, "rate_limit_error"
    elif status < HTTPStatus.INTERNAL_SERVER_ERROR:
        # OpenAI's word for any fault of the client.
        kind = "invalid_request_error"
        if status == HTTPStatus.UNPROCESSABLE_ENTITY:
            status = HTTPStatus.BAD_REQUEST
    error = {
        "message": response.detail,
        "type": kind,
        "param": json.loads(response.text or "{}").get("field"),
        "code": response.code,
    }
    kept = {
        name: response.headers[name]
        for name in ("Retry-After", "WWW-Authenticate")
        if name in response.headers
    }
    return web.json_response({"error": error}, status=int(status), headers=kept)
