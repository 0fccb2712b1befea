"""The filter in a query: checks the names that narrow which stored vectors are meant."""

import re
from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, WithJsonSchema

from daemon.errors import InvalidRequestError
from daemon.jobs import MAX_MEDIA_STORE_ID
from daemon.requests import MAX_REQUEST_ID, MAX_TIME_MS, is_plain_text, parse_json
from daemon.stored_filter import StoredFilter, Values
from daemon.topics import UUID, is_job_id

MAX_LISTED = 200
"""Ids in one filter; more would not fit into a URL that every client and proxy accepts."""
MAX_FIELDS = 10
MAX_FIELD_NAME = 128
MAX_VALUE = 1024
MAX_EXACT = 2**53 - 1
"""Bounds of ids: engines compare numbers as float64."""
_FIELD = re.compile(r"[A-Za-z0-9_-]+(\.[A-Za-z0-9_-]+)*")
# Of ids below 10**18, so that every text of the pattern is one; larger ones are taken as well.
_DIGITS = "[0-9]{1,18}"


def decimal(value: str) -> int:
    """Return the media_store_id that decimal digits stand for."""
    if not (value.isascii() and value.isdigit() and len(value) <= len(str(MAX_MEDIA_STORE_ID))):
        raise ValueError("must be a media_store_id in decimal digits")
    number = int(value)
    if number > MAX_MEDIA_STORE_ID:
        raise ValueError(f"must be at most {MAX_MEDIA_STORE_ID}")
    return number


def _listed(value: str) -> list[str]:
    words = value.split(",")
    if len(words) > MAX_LISTED:
        raise ValueError(f"may hold {MAX_LISTED} at most")
    return words


def _media_store_ids(value: str) -> tuple[int, ...]:
    return tuple(decimal(word) for word in _listed(value))


def _job_ids(value: str) -> tuple[str, ...]:
    words = _listed(value)
    if not all(map(is_job_id, words)):
        raise ValueError("must be UUIDs, separated by commas")
    return tuple(words)


def _plain(value: str) -> str:
    if not is_plain_text(value):
        raise ValueError("must be Unicode text without control characters")
    return value


def _payload(value: str) -> dict[str, Values]:
    try:
        said = parse_json(value.encode(errors="surrogatepass"))
    except InvalidRequestError as error:
        raise ValueError(error.message.replace("the body", "it")) from None
    if len(said) > MAX_FIELDS:
        raise ValueError(f"may name {MAX_FIELDS} fields at most")
    return {_field(name): _values(name, each) for name, each in said.items()}


def _field(name: str) -> str:
    if len(name) > MAX_FIELD_NAME or _FIELD.fullmatch(name) is None:
        raise ValueError("names are of letters, digits, _ and -, joined by dots")
    return name


def _values(name: str, value: Any) -> Values:
    some = value if isinstance(value, list) else [value]
    if not some or len(some) > MAX_LISTED:
        raise ValueError(f"{name} must be a text, a whole number, or a list of 1 to {MAX_LISTED}")
    if all(isinstance(each, str) for each in some):
        if any(len(each) > MAX_VALUE or not is_plain_text(each) for each in some):
            raise ValueError(f"{name} must be plain text of at most {MAX_VALUE} characters")
        return tuple(some)
    if all(isinstance(each, int) and not isinstance(each, bool) for each in some):
        if any(not -(2**63) <= each < 2**63 for each in some):
            raise ValueError(f"{name} must fit 64 bits")
        return tuple(some)
    raise ValueError(f"{name} must be a text, a whole number, or a list of one of these kinds")


class FilterQuery(BaseModel):
    """The names of a filter; what a query holds besides is added by those that inherit."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    stored_after: Annotated[int, Field(ge=0, le=MAX_TIME_MS)] | None = None
    stored_before: Annotated[int, Field(ge=0, le=MAX_TIME_MS)] | None = None
    min_media_store_id: Annotated[int, Field(ge=0, le=MAX_EXACT)] | None = None
    max_media_store_id: Annotated[int, Field(ge=0, le=MAX_EXACT)] | None = None
    media_store_ids: (
        Annotated[
            tuple[int, ...],
            BeforeValidator(_media_store_ids),
            WithJsonSchema(
                {"type": "string", "pattern": f"^{_DIGITS}(,{_DIGITS}){{0,{MAX_LISTED - 1}}}$"}
            ),
        ]
        | None
    ) = None
    job_ids: (
        Annotated[
            tuple[str, ...],
            BeforeValidator(_job_ids),
            WithJsonSchema(
                {"type": "string", "pattern": f"^{UUID}(,{UUID}){{0,{MAX_LISTED - 1}}}$"}
            ),
        ]
        | None
    ) = None
    request_id: Annotated[str, BeforeValidator(_plain), Field(max_length=MAX_REQUEST_ID)] | None = (
        None
    )
    payload: (
        Annotated[
            Mapping[str, tuple[int, ...] | tuple[str, ...]],
            BeforeValidator(_payload),
            WithJsonSchema({"type": "string", "contentMediaType": "application/json"}),
        ]
        | None
    ) = None

    def to_filter(self) -> StoredFilter | None:
        """Return which stored vectors are meant; None where all are.

        Raises:
            InvalidRequestError: two bounds leave nothing between them.
        """
        after, before = self.stored_after, self.stored_before
        if after is not None and before is not None and before <= after:
            raise InvalidRequestError(
                "stored_before must be later than stored_after", field="stored_before"
            )
        least, most = self.min_media_store_id, self.max_media_store_id
        if least is not None and most is not None and most < least:
            raise InvalidRequestError(
                "max_media_store_id must not be below min_media_store_id",
                field="max_media_store_id",
            )
        found = StoredFilter(
            stored_after=after,
            stored_before=before,
            min_media_store_id=least,
            max_media_store_id=most,
            media_store_ids=self.media_store_ids or (),
            job_ids=self.job_ids or (),
            request_id=self.request_id,
            payload=self.payload or {},
        )
        return None if found.is_empty else found


FILTER_TEXTS = {
    "stored_after": "Stored then or later, in epoch milliseconds.",
    "stored_before": "Stored before, in epoch milliseconds. What does not say when it was "
    "stored, as that of older versions, is older than all that does.",
    "min_media_store_id": "The least id.",
    "max_media_store_id": "The greatest id.",
    "media_store_ids": f"One of these ids, separated by commas; {MAX_LISTED} at most.",
    "job_ids": f"Stored by one of these jobs, separated by commas; {MAX_LISTED} at most.",
    "request_id": "Stored by a job whose request had this `request_id`.",
    "payload": "A JSON object: each field that it names must have its value in the vector's "
    'payload, or one of its values: `{"model": "ViT-B-32", "label": ["cat", "dog"]}`. Names inside '
    'objects are joined by dots; values are texts or whole numbers, and 5 is not `"5"`.',
}
"""What each name of a filter means, for the contract."""
