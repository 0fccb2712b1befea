"""What Immich's server sends to POST /predict: a form with `entries`, and `image` or `text`."""

import asyncio
import json
from dataclasses import dataclass
from typing import Any, TypeAlias

from aiohttp import BodyPartReader, web
from aiohttp.http_exceptions import BadHttpMessage
from pydantic import BaseModel, Field, ValidationError

from daemon.errors import InvalidRequestError
from http_shim import bodies

MAX_ENTRIES_BYTES = 65_536
MAX_TEXT_BYTES = 400_000
"""CLIP reads at most 100,000 characters, of at most four bytes each."""
ROOM_BYTES = 65_536
"""Of a form beside its fields: boundaries, headers, fields that are passed over."""
DEFAULT_MIN_SCORE = 0.7
"""Immich's own, where a request names none."""


class Options(BaseModel):
    """What a task is told; names that mean nothing here are passed over, as Immich's does."""

    min_score: float = Field(DEFAULT_MIN_SCORE, ge=0, le=1, alias="minScore", allow_inf_nan=False)


class Entry(BaseModel):
    """One model of one task."""

    model_name: str = Field(alias="modelName", min_length=1, max_length=200)
    options: Options = Options(minScore=DEFAULT_MIN_SCORE)


Entries: TypeAlias = dict[str, dict[str, Entry]]
"""By task (clip, facial-recognition) and type (visual, textual, detection, recognition)."""


@dataclass(frozen=True, slots=True)
class Asked:
    """One request of a client."""

    entries: Entries
    image: bytes | None
    text: str | None


async def read_form(request: web.Request, max_image_bytes: int) -> Asked:
    """Return what a client asks; a file that is too large is refused before it was read.

    Raises:
        InvalidRequestError: the form is none, or lacks something.
        web.HTTPException: it is packed, late, too large or not framed as HTTP demands.
    """
    if request.headers.get("Content-Encoding", "identity").lower() != "identity":
        # As for other bodies: a small one cannot become a large one.
        raise web.HTTPUnsupportedMediaType(reason="Send the form without Content-Encoding")
    if request.content_type != "multipart/form-data":
        raise invalid("send multipart/form-data with entries, and image or text")
    most = max_image_bytes + MAX_ENTRIES_BYTES + MAX_TEXT_BYTES + ROOM_BYTES
    if (request.content_length or 0) > most:
        raise _too_large(most, request.content_length or 0)
    try:
        async with asyncio.timeout(bodies.BODY_SECONDS):
            fields = await _read_fields(request, most, max_image_bytes)
    except TimeoutError:
        raise web.HTTPRequestTimeout(reason="The form did not come in time") from None
    except (web.RequestPayloadError, BadHttpMessage):
        raise web.HTTPBadRequest(reason="The form is not framed as HTTP demands") from None
    except (ValueError, AssertionError, RuntimeError) as error:
        # What aiohttp says to a form without boundary, with broken headers or an early end.
        raise invalid(f"the form cannot be read: {type(error).__name__}") from None
    if "entries" not in fields:
        raise invalid("the form has no field named entries")
    return Asked(
        entries=_entries(_text(fields["entries"], "entries")),
        image=fields.get("image"),
        text=_text(fields["text"], "text") if "text" in fields else None,
    )


def invalid(why: str) -> InvalidRequestError:
    """Return the refusal of a request, which begins as Immich's own does."""
    return InvalidRequestError(f"Invalid request format. {why}")


async def _read_fields(request: web.Request, most: int, max_image: int) -> dict[str, bytes]:
    limits = {"entries": MAX_ENTRIES_BYTES, "text": MAX_TEXT_BYTES, "image": max_image}
    fields: dict[str, bytes] = {}
    form = await request.multipart()
    while (part := await form.next()) is not None:
        if not isinstance(part, BodyPartReader):
            raise invalid("a field of the form is a form itself")
        body, limit = bytearray(), limits.get(part.name or "", 0)
        while chunk := await part.read_chunk():
            if request.content.total_bytes > most + ROOM_BYTES:
                raise _too_large(most, request.content.total_bytes)
            if limit and len(body) + len(chunk) > limit:
                raise _too_large(limit, len(body) + len(chunk))
            if limit:
                body += chunk
        if part.name in fields:
            raise invalid(f"the form has two fields named {part.name}")
        if limit and part.name is not None:
            fields[part.name] = bytes(body)
    return fields


def _entries(text: str) -> Entries:
    try:
        given = json.loads(text)
    except (ValueError, RecursionError):
        raise invalid("entries is no JSON") from None
    if not isinstance(given, dict) or not given:
        raise invalid("entries must be an object with at least one task")
    found: dict[str, dict[str, Entry]] = {}
    for task, types in given.items():
        if not isinstance(types, dict) or not types:
            raise invalid(f"the task {task[:50]!r} must be an object with at least one type")
        found[task] = {
            name: _entry(f"{task[:50]}.{name[:50]}", each) for name, each in types.items()
        }
    return found


def _entry(where: str, given: Any) -> Entry:
    try:
        return Entry.model_validate(given)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        place = ".".join([where, *(str(part) for part in first["loc"])])
        raise invalid(f"{place}: {first['msg']}") from None


def _text(value: bytes, name: str) -> str:
    try:
        return value.decode()
    except UnicodeDecodeError:
        raise invalid(f"{name} is not UTF-8") from None


def _too_large(most: int, actual: int) -> web.HTTPRequestEntityTooLarge:
    return web.HTTPRequestEntityTooLarge(max_size=most, actual_size=actual)
