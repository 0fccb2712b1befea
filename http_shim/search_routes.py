"""GET and POST of searches: by a text, by something stored, by a picture's bytes."""

from collections.abc import Awaitable
from typing import Annotated

from aiohttp import web
from pydantic import BeforeValidator, Field

from daemon.errors import InvalidRequestError, NotFoundError, PermanentError
from daemon.jobs import MAX_MEDIA_STORE_ID, JsonObject, dump_json
from http_shim.bodies import read_body
from http_shim.callers import authorize
from http_shim.deadlines import within
from http_shim.errors import DrainingError, error_response
from http_shim.filters import FilterQuery, decimal
from http_shim.keys import HEALTH, SEARCH
from http_shim.media_routes import media_store_id_of
from http_shim.queries import parse_query
from http_shim.search_door import Searcher

IMAGES = "image_embeddings"
FACES = "face_embeddings"
FILLED_BY = {IMAGES: "image_embedding", FACES: "face_embedding"}
"""The collections, and the task type that puts vectors there."""
PATH = "/search/{collection}"
DUPLICATES_PATH = "/search/image_embeddings/{media_store_id}/duplicates"
LOOSEST_LINK = 0.5
"""Least cosine of a link; lower ones would link nearly everything."""
MAX_RESULTS = 1000
MAX_OFFSET = 10_000
"""Each page costs as much as all before it together."""
MAX_FACE_INDEX = 1_000_000
SEARCH_SECONDS = 60.0
"""How long a search may take once its body is there; the first text waits for its model."""


class PictureQuery(FilterQuery):
    """The query of POST /search/{collection}; unknown names are refused."""

    limit: int = Field(10, ge=1, le=MAX_RESULTS)
    offset: int = Field(0, ge=0, le=MAX_OFFSET)
    min_score: float | None = Field(None, ge=-1, le=1, allow_inf_nan=False)
    face_index: int | None = Field(None, ge=0, le=MAX_FACE_INDEX)


class NamedQuery(PictureQuery):
    """The query of GET /search/{collection}."""

    text: str | None = None
    like: Annotated[int, BeforeValidator(decimal), Field(ge=0, le=MAX_MEDIA_STORE_ID)] | None = None


class DuplicatesQuery(FilterQuery):
    """The query of GET /search/image_embeddings/{media_store_id}/duplicates."""

    min_score: float = Field(0.95, ge=LOOSEST_LINK, le=1, allow_inf_nan=False)
    limit: int = Field(100, ge=1, le=MAX_RESULTS)


def add_search_routes(app: web.Application) -> None:
    """Add the routes of searches."""
    app.router.add_get(PATH, search_by_name)
    app.router.add_post(PATH, search_by_picture)
    app.router.add_get(DUPLICATES_PATH, find_duplicates)


def kind_of(request: web.Request) -> str:
    """Return what is searched with, for the metrics; also of a search that is refused."""
    if request.method == "POST":
        return "face" if request.match_info["collection"] == FACES else "picture"
    return "like" if request.query.get("like") else "text"


async def search_by_name(request: web.Request) -> web.Response:
    """Answer what a text describes, or what is like something stored; needs a token."""
    collection, searcher = _admit(request)
    asked = parse_query(request, NamedQuery)
    _check_names(collection, asked)
    where = asked.to_filter()
    search: Awaitable[JsonObject]
    with request.app[SEARCH].enter(with_picture=False):
        if asked.like is not None:
            search = searcher.by_likeness(
                collection,
                asked.like,
                face_index=asked.face_index or 0,
                limit=asked.limit,
                offset=asked.offset,
                min_score=asked.min_score,
                where=where,
            )
        else:
            search = searcher.by_text(
                asked.text or "",
                limit=asked.limit,
                offset=asked.offset,
                min_score=asked.min_score,
                where=where,
            )
        return await _answer(search)


async def search_by_picture(request: web.Request) -> web.Response:
    """Answer what is like the picture, or the face in it, in the body; needs a token."""
    collection, searcher = _admit(request)
    asked = parse_query(request, PictureQuery)
    _check_face_index(collection, asked)
    where = asked.to_filter()
    content_type = request.content_type
    if not content_type.startswith("image/") and content_type != "application/octet-stream":
        raise web.HTTPUnsupportedMediaType(
            reason="Send the picture's bytes as image/... or application/octet-stream"
        )
    door = request.app[SEARCH]
    with door.enter(with_picture=True):
        data = await read_body(request, door.max_picture_bytes)
        return await _answer(
            searcher.by_picture(
                collection,
                data,
                content_type,
                face_index=asked.face_index,
                limit=asked.limit,
                offset=asked.offset,
                min_score=asked.min_score,
                where=where,
            )
        )


async def find_duplicates(request: web.Request) -> web.Response:
    """Answer the cluster of near-duplicates of a stored picture; needs a token."""
    searcher = _admit_to(request, IMAGES)
    media_store_id = media_store_id_of(request)
    asked = parse_query(request, DuplicatesQuery)
    where = asked.to_filter()
    with request.app[SEARCH].enter(with_picture=False):
        return await _answer(
            searcher.duplicates(
                media_store_id, min_score=asked.min_score, limit=asked.limit, where=where
            )
        )


def _admit(request: web.Request) -> tuple[str, Searcher]:
    collection = request.match_info["collection"]
    return collection, _admit_to(request, collection)


def _admit_to(request: web.Request, collection: str) -> Searcher:
    authorize(request)
    if request.app[HEALTH].is_draining:
        raise DrainingError("the daemon is stopping and begins no more searches")
    if collection not in FILLED_BY:
        raise NotFoundError(f"there is no such collection; there are {', '.join(FILLED_BY)}")
    searcher = request.app[SEARCH].searcher
    if searcher is None or collection not in searcher.collections:
        raise NotFoundError(
            f"{FILLED_BY[collection]} does not run here (INFERD_WORKER__TASK_TYPES),"
            f" so {collection} cannot be searched",
            code="not_configured",
        )
    return searcher


def _check_names(collection: str, asked: NamedQuery) -> None:
    _check_face_index(collection, asked)
    if collection == FACES:
        if asked.text is not None:
            raise InvalidRequestError("a text finds pictures, not faces", field="text")
        if asked.like is None:
            raise InvalidRequestError("like says which picture's face is meant", field="like")
    elif asked.text is not None and asked.like is not None:
        raise InvalidRequestError("give text or like, not both", field="like")
    elif asked.like is None and not (asked.text or "").strip():
        raise InvalidRequestError("give a text, or like with a media_store_id", field="text")


def _check_face_index(collection: str, asked: PictureQuery) -> None:
    if collection != FACES and asked.face_index is not None:
        raise InvalidRequestError("only faces have a face_index", field="face_index")


async def _answer(search: Awaitable[JsonObject]) -> web.Response:
    try:
        found = await within(search, SEARCH_SECONDS)
    except PermanentError as error:
        # The text or the picture is at fault, as it would be in a job.
        return error_response(error, 422)
    return web.json_response(found, dumps=dump_json)
