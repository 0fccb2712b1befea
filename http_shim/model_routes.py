"""Routes that change the model of a collection while it is searched, and show the progress."""

from typing import Annotated

from aiohttp import web
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from daemon.errors import ConfigError, InvalidRequestError, NotFoundError
from daemon.jobs import JsonObject, dump_json
from daemon.requests import parse_json
from http_shim.auth import ForbiddenError
from http_shim.bodies import read_body
from http_shim.callers import authorize
from http_shim.keys import MODELS
from http_shim.model_changer import ModelChanger
from http_shim.queries import parse_query

MAX_TEXT = 4096
MAX_VERSION = 64


class UseRequest(BaseModel):
    """The body of POST /models/{collection}/use."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    model: Annotated[str, Field(min_length=1, max_length=MAX_TEXT)]
    """Of pictures an architecture, as INFERD_CLIP__MODEL; of faces a recogniser: the path of an
    ONNX file on the daemon's machine, a pack, or untrained."""
    weights: Annotated[str, Field(min_length=1, max_length=MAX_TEXT)] | None = None
    """Of pictures, as INFERD_CLIP__WEIGHTS; openai where nothing is said."""
    detector: Annotated[str, Field(min_length=1, max_length=MAX_TEXT)] | None = None
    """Of faces: the path of an ONNX file, a pack, cascade or yunet; that of the settings where
    nothing is said."""
    allow_failed: Annotated[int, Field(ge=0, le=2**53)] = 0
    """The change is done without so many pictures that cannot be embedded."""


class VersionQuery(BaseModel):
    """The query of POST /models/{collection}/abort and /drop."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    seen: Annotated[str, Field(max_length=MAX_VERSION)] | None = None
    """The `version` that GET answered; where it is another by now nothing is done."""


class RollbackQuery(VersionQuery):
    """The query of POST /models/{collection}/rollback."""

    now: bool = False
    """Answer searches by the former model at once."""


def add_model_routes(app: web.Application) -> None:
    """Add the routes of collections' models."""
    app.router.add_get("/models/{collection}", show_model)
    app.router.add_post("/models/{collection}/use", use_model)
    app.router.add_post("/models/{collection}/rollback", roll_back_model)
    app.router.add_post("/models/{collection}/abort", abort_model_change)
    app.router.add_post("/models/{collection}/drop", drop_former_model)


async def show_model(request: web.Request) -> web.Response:
    """Answer which model a collection is of, and how far a change is; needs a token."""
    authorize(request)
    return _answer(await _changer(request).told())


async def use_model(request: web.Request) -> web.Response:
    """Begin to change the model; answer what GET does."""
    changer = _admins(request)
    asked = _parse(await read_body(request))
    given = {"model": asked.model, "weights": asked.weights, "detector": asked.detector}
    spec = {name: value for name, value in given.items() if value is not None}
    try:
        return _answer(await changer.use(spec, allow_failed=asked.allow_failed))
    except ConfigError as error:
        raise InvalidRequestError(error.message, code="model_unusable", field="model") from error


async def roll_back_model(request: web.Request) -> web.Response:
    """Begin to change back to the model of before; answer what GET does."""
    changer = _admins(request)
    asked = parse_query(request, RollbackQuery)
    return _answer(await changer.rollback(now=asked.now, seen=asked.seen))


async def abort_model_change(request: web.Request) -> web.Response:
    """Give up a change; answer what GET does."""
    changer = _admins(request)
    return _answer(await changer.abort(seen=parse_query(request, VersionQuery).seen))


async def drop_former_model(request: web.Request) -> web.Response:
    """Remove the former model's vectors for good; answer what GET does."""
    changer = _admins(request)
    return _answer(await changer.drop(seen=parse_query(request, VersionQuery).seen))


def _admins(request: web.Request) -> ModelChanger:
    caller = authorize(request)
    if not caller.is_admin:
        raise ForbiddenError("only an admin may change what all searches answer from")
    return _changer(request)


def _changer(request: web.Request) -> ModelChanger:
    collection = request.match_info["collection"]
    changer = request.app[MODELS].get(collection)
    if changer is None:
        raise NotFoundError(f"the model of {collection!r} cannot be changed here")
    return changer


def _parse(body: bytes) -> UseRequest:
    try:
        return UseRequest.model_validate(parse_json(body))
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        field = str(first["loc"][0]) if first["loc"] else None
        if field not in UseRequest.model_fields:
            raise InvalidRequestError(
                "the body must hold model, and may hold weights or detector, and allow_failed"
            ) from None
        raise InvalidRequestError(f"{field}: {first['msg']}", field=field) from None


def _answer(body: JsonObject) -> web.Response:
    return web.json_response(body, dumps=dump_json)
