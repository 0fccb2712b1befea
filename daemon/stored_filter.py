"""StoredFilter: which stored vectors are meant, in words that no engine owns."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TypeAlias

Values: TypeAlias = tuple[int, ...] | tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredFilter:
    """Conditions on what is stored with a vector; all of those that are given must hold.

    Where a vector lacks the field, a condition does not hold; but `stored_before` does: what older
    versions stored says nothing of when, and is older than all that does.
    """

    stored_after: int | None = None
    """Stored then or later, in epoch milliseconds."""
    stored_before: int | None = None
    """Stored before, in epoch milliseconds."""
    min_media_store_id: int | None = None
    """Least id; engines compare float64, so that only 2**53-1 and less is exact."""
    max_media_store_id: int | None = None
    """Greatest id; the same."""
    media_store_ids: tuple[int, ...] = ()
    """One of these; empty is no condition."""
    job_ids: tuple[str, ...] = ()
    """Stored by one of these jobs; empty is no condition."""
    request_id: str | None = None
    """Stored by a job whose request had this word."""
    payload: Mapping[str, Values] = field(default_factory=dict)
    """By the field's name, its parts joined by dots: one of these values, or a list with one."""

    @property
    def is_empty(self) -> bool:
        """Whether everything is meant."""
        return self == StoredFilter()
