"""A filter on stored vectors, and what is known of one vector, in no engine's own terms."""

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


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredVector:
    """What is known of one stored vector, without its numbers."""

    point_id: int | str
    media_store_id: int | None
    """The picture it is of; None where it does not say."""
    job_id: str | None
    """The job that stored it; None where it does not say."""
    face_index: int = 0
    """Which face of the picture; of pictures always 0."""
    stored_at: int | None = None
    """When it was stored, in epoch milliseconds; None where it does not say."""
    is_ours: bool
    """Its id is the one that a job for this picture, and face, stores under."""
    found_by: str | None = None
    """Of a face: what looked for it; None where it does not say."""
    has_face: bool = True
    """False where it stands for a picture in which no face was found, and has no vector."""
    has_other_model: bool = False
    """It says that it is of another model than its collection."""
    fault: str | None = None
    """What is wrong with the vector itself; None where nothing is, or it was not looked at."""
