"""Routes of stored vectors: their list, page by page, and the steps and mends of their audit."""

import asyncio
from collections.abc import Awaitable
from typing import Annotated, TypeVar

from aiohttp import web
from pydantic import BaseModel, ConfigDict, Field

from daemon.errors import ConfigError, DependencyDownError, NotFoundError, RetryableError
from daemon.jobs import MAX_MEDIA_STORE_ID, TaskType, dump_json
from daemon.queue.audit_findings import Finding, Kind
from daemon.upkeep.audit import Audit
from http_shim.auth import WRITE_PERMISSION
from http_shim.bodies import read_body
from http_shim.callers import authorize
from http_shim.errors import DrainingError
from http_shim.filters import FilterQuery
from http_shim.keys import AUDIT, HEALTH, SEARCH, STORED
from http_shim.queries import parse_body, parse_query

MAX_LISTED = 1000
MAX_MENDED = 200
STEP_SECONDS = 60.0
"""How long one step may take."""

T = TypeVar("T")


class ListingQuery(FilterQuery):
    """The query of GET /stored/{collection}; unknown names are refused."""

    after: Annotated[str, Field(max_length=64)] | None = None
    limit: int = Field(100, ge=1, le=MAX_LISTED)


class StepQuery(BaseModel):
    """The query of GET /audit."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    after: Annotated[str, Field(max_length=128)] | None = None
    deep: bool = False


class AskedFinding(BaseModel):
    """A finding as a step told it; what is not needed to find it again is passed over."""

    model_config = ConfigDict(extra="ignore", frozen=True, strict=True)

    kind: Annotated[Kind, Field(strict=False)]
    task_type: Annotated[TaskType, Field(strict=False)]
    media_store_id: Annotated[int, Field(ge=0, le=MAX_MEDIA_STORE_ID)] | None
    point_id: Annotated[int, Field(ge=0)] | Annotated[str, Field(max_length=64)] | None = None
    job_id: Annotated[str, Field(max_length=64)] | None = None


class MendRequest(BaseModel):
    """The body of POST /audit/mend."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    findings: Annotated[list[AskedFinding], Field(min_length=1, max_length=MAX_MENDED)]


def add_audit_routes(app: web.Application) -> None:
    """Add the routes of what is stored, and of its audit."""
    app.router.add_get("/stored/{collection}", list_stored)
    app.router.add_get("/audit", audit_step)
    app.router.add_post("/audit/mend", mend)


async def list_stored(request: web.Request) -> web.Response:
    """Answer one page of what is stored, by the points' ids; needs a token, as a search does."""
    authorize(request)
    asked = parse_query(request, ListingQuery)
    where = asked.to_filter()
    collection, stored = request.match_info["collection"], request.app[STORED]
    if stored is None or collection not in stored.collections:
        raise NotFoundError("there is no such collection here")
    with request.app[SEARCH].enter(with_picture=False):
        page = stored.listing(collection, after=asked.after, limit=asked.limit, where=where)
        return web.json_response(await _in_time(page), dumps=dump_json)


async def audit_step(request: web.Request) -> web.Response:
    """Answer what is wrong among the next few hundred jobs or vectors; changes nothing."""
    audit = _admit(request)
    asked = parse_query(request, StepQuery)
    with request.app[SEARCH].enter(with_picture=False):
        found = await _in_time(audit.step(asked.after, deep=asked.deep))
        return web.json_response(found.to_wire(), dumps=dump_json)


async def mend(request: web.Request) -> web.Response:
    """Mend findings, each looked at anew; answer what became of each."""
    audit = _admit(request)
    if request.app[HEALTH].is_draining:
        raise DrainingError("the daemon is stopping and takes no more jobs")
    asked = parse_body(await read_body(request), MendRequest)
    findings = [
        Finding(
            kind=each.kind,
            task_type=each.task_type,
            media_store_id=each.media_store_id,
            point_id=each.point_id,
            job_id=each.job_id,
            detail="",
        )
        for each in asked.findings
    ]
    with request.app[SEARCH].enter(with_picture=False):
        done = await _in_time(audit.mend(findings))
    results = [{"outcome": outcome.value, "job_id": job_id} for outcome, job_id in done]
    return web.json_response({"results": results}, dumps=dump_json)


def _admit(request: web.Request) -> Audit:
    authorize(request, WRITE_PERMISSION)
    audit = request.app[AUDIT]
    if audit is None:
        raise web.HTTPNotFound
    return audit


async def _in_time(work: Awaitable[T]) -> T:
    try:
        async with asyncio.timeout(STEP_SECONDS):
            return await work
    except ConfigError as error:
        raise DependencyDownError(error.message, code=error.code) from error
    except TimeoutError:
        raise RetryableError(f"it took longer than {STEP_SECONDS:g} s", code="timeout") from None
