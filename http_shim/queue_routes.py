"""Shows what the queue holds by task type, and pauses and resumes task types."""

import asyncio
from typing import Annotated

from aiohttp import web
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from daemon.errors import InvalidRequestError
from daemon.jobs import JsonObject, TaskType, dump_json
from daemon.queue.pauses import Seen
from daemon.requests import MAX_TIME_MS, parse_json, parse_task_type
from http_shim.auth import WRITE_PERMISSION
from http_shim.bodies import read_body
from http_shim.callers import authorize
from http_shim.keys import QUEUE
from http_shim.queries import parse_query

MAX_SECONDS = 1_000_000_000
"""The longest pause with an end, about 31 years; longer ones have none."""


class PauseRequest(BaseModel):
    """The body of POST /queue/{task_type}/pause, which may be empty as well."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    until: Annotated[int, Field(ge=0, le=MAX_TIME_MS)] | None = None
    """When it ends by itself, in epoch milliseconds."""
    seconds: Annotated[float, Field(gt=0, le=MAX_SECONDS, allow_inf_nan=False)] | None = None
    """The same, counted from now."""

    @model_validator(mode="after")
    def _has_one_end(self) -> "PauseRequest":
        if self.until is not None and self.seconds is not None:
            raise ValueError("until and seconds are two words for one thing: give one")
        return self


class SeenQuery(BaseModel):
    """The query of POST /queue/{task_type}/pause and /resume."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    seen: Annotated[str, Field(pattern=r"^(running|open|[0-9]{1,16})$")] | None = None
    """What GET /queue said: `running` of what is not paused, `open` of a pause without an end, or
    `paused_until`. Where it is another by now nothing is changed."""

    def to_seen(self) -> Seen | None:
        """Return what the asker saw; None where they do not say."""
        if self.seen is None:
            return None
        until = int(self.seen) if self.seen.isdigit() else None
        return Seen(is_paused=self.seen != "running", until=until)


def add_queue_routes(app: web.Application) -> None:
    """Add the routes of the queue."""
    app.router.add_get("/queue", show_queue)
    app.router.add_post("/queue/{task_type}/pause", pause_task_type)
    app.router.add_post("/queue/{task_type}/resume", resume_task_type)


async def show_queue(request: web.Request) -> web.Response:
    """Answer how many jobs wait and run, by task type; needs a token, as the list does."""
    authorize(request)
    queue = request.app[QUEUE]
    found, tasks = await asyncio.gather(queue.snapshot(), queue.depth_by_task())
    body: JsonObject = {
        "pending": found.pending,
        "delayed": found.delayed,
        "processing": found.processing,
        "oldest_pending_ms": round(found.oldest_pending_seconds * 1000),
        "outbox": found.outbox,
        "task_types": {
            task_type.value: {
                "pending": each.pending,
                "processing": each.processing,
                "paused": each.is_paused,
                "paused_until": each.paused_until,
            }
            for task_type, each in tasks.items()
        },
    }
    return web.json_response(body, dumps=dump_json)


async def pause_task_type(request: web.Request) -> web.Response:
    """Lease no more jobs of a task type, in any daemon on the queue; answer when that ends."""
    authorize(request, WRITE_PERMISSION)
    task_type = parse_task_type(request.match_info["task_type"])
    seen = parse_query(request, SeenQuery).to_seen()
    asked = _parse_pause(await read_body(request))
    pauses = request.app[QUEUE].pauses
    until = await pauses.pause(task_type, until=asked.until, seconds=asked.seconds, seen=seen)
    return _answer(task_type, is_paused=True, until=until)


async def resume_task_type(request: web.Request) -> web.Response:
    """Lease the jobs of a task type again; without `seen`, whether or not it was paused."""
    authorize(request, WRITE_PERMISSION)
    task_type = parse_task_type(request.match_info["task_type"])
    seen = parse_query(request, SeenQuery).to_seen()
    await request.app[QUEUE].pauses.resume(task_type, seen=seen)
    return _answer(task_type, is_paused=False, until=None)


def _parse_pause(body: bytes) -> PauseRequest:
    if not body.strip():
        return PauseRequest()
    try:
        return PauseRequest.model_validate(parse_json(body))
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        field = str(first["loc"][0]) if first["loc"] else None
        if field not in {None, *PauseRequest.model_fields}:
            raise InvalidRequestError(
                "the body may hold until or seconds and nothing else"
            ) from None
        reason = first["msg"].removeprefix("Value error, ")
        raise InvalidRequestError(
            reason if field is None else f"{field}: {reason}", field=field
        ) from None


def _answer(task_type: TaskType, *, is_paused: bool, until: int | None) -> web.Response:
    body = {"task_type": task_type.value, "paused": is_paused, "paused_until": until}
    return web.json_response(body, dumps=dump_json)
