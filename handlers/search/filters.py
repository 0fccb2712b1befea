"""Translates a client's filter into the conditions that every engine knows."""

from daemon.stored_filter import StoredFilter
from handlers.qdrant.vector_engine import AtLeast, Condition, Equals, Filter, Not, OneOf

STORED_AT = "stored_at"
"""Payload field: when the vector was stored, in epoch milliseconds."""


def to_filter(asked: StoredFilter | None) -> Filter | None:
    """Return the filter that engines apply; None where everything is meant."""
    conditions = [] if asked is None else _conditions(asked)
    return Filter.where(*conditions) if conditions else None


def _conditions(asked: StoredFilter) -> list[Condition]:
    found: list[Condition] = []
    if asked.stored_after is not None:
        found.append(AtLeast(STORED_AT, asked.stored_after))
    if asked.stored_before is not None:
        found.append(Not(AtLeast(STORED_AT, asked.stored_before)))
    if asked.min_media_store_id is not None:
        found.append(AtLeast("media_store_id", asked.min_media_store_id))
    if asked.max_media_store_id is not None:
        found.append(Not(AtLeast("media_store_id", asked.max_media_store_id + 1)))
        if asked.min_media_store_id is None:
            # A point of no picture has no id that could be small enough.
            found.append(AtLeast("media_store_id", 0))
    if asked.media_store_ids:
        found.append(OneOf("media_store_id", asked.media_store_ids))
    if asked.job_ids:
        found.append(OneOf("job_id", asked.job_ids))
    if asked.request_id is not None:
        found.append(Equals("request_id", asked.request_id))
    found += [OneOf(name, values) for name, values in asked.payload.items()]
    return found
