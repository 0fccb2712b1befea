"""SearchDoor: bounds how many searches run at a time; Searcher and Listing: what answers them."""

import contextlib
from collections.abc import Collection, Iterator
from typing import Protocol

from daemon.errors import RetryableError
from daemon.jobs import JsonObject
from daemon.stored_filter import StoredFilter

MAX_SEARCHES = 16
"""Searches at a time; further ones are answered 503 with Retry-After."""
MAX_PICTURES = 8
"""Of these, searches by a picture: each holds a whole file in memory."""


class BusyError(RetryableError):
    """Too many searches are under way; HTTP 503 with Retry-After."""

    default_code = "busy"

    def __init__(self, message: str) -> None:
        super().__init__(message, retry_after_seconds=1)


class Searcher(Protocol):
    """What answers searches: the daemon's handlers. They raise InferdErrors with their codes."""

    @property
    def collections(self) -> Collection[str]:
        """The collections that can be searched."""

    async def by_text(
        self,
        text: str,
        *,
        limit: int,
        offset: int,
        min_score: float | None,
        where: StoredFilter | None,
    ) -> JsonObject:
        """Return the pictures that a text describes."""

    async def by_likeness(
        self,
        collection: str,
        media_store_id: int,
        *,
        face_index: int,
        limit: int,
        offset: int,
        min_score: float | None,
        where: StoredFilter | None,
    ) -> JsonObject:
        """Return what is like a stored picture, or like one of its faces."""

    async def duplicates(
        self,
        media_store_id: int,
        *,
        min_score: float,
        limit: int,
        where: StoredFilter | None,
    ) -> JsonObject:
        """Return the cluster of near-duplicates of a stored picture."""

    async def faces_of(self, media_store_id: int) -> list[JsonObject] | None:
        """Return which faces of a picture have a stored vector; None where nobody can tell."""

    async def by_picture(
        self,
        collection: str,
        data: bytes,
        content_type: str | None,
        *,
        face_index: int | None,
        limit: int,
        offset: int,
        min_score: float | None,
        where: StoredFilter | None,
    ) -> JsonObject:
        """Return what is like a picture file, or like one of its faces."""


class Listing(Protocol):
    """What lists the stored vectors: the daemon's handlers. They raise InferdErrors."""

    @property
    def collections(self) -> Collection[str]:
        """The collections that can be listed."""

    async def listing(
        self, collection: str, *, after: str | None, limit: int, where: StoredFilter | None
    ) -> JsonObject:
        """Return one page of what is stored, by the points' ids."""


class SearchDoor:
    """Admits a bounded number of searches."""

    def __init__(self, searcher: Searcher | None, max_picture_bytes: int) -> None:
        """Take what answers (None where nothing can be searched), and the largest file."""
        self.searcher = searcher
        self.max_picture_bytes = max_picture_bytes
        self._under_way = 0
        self._pictures = 0

    @contextlib.contextmanager
    def enter(self, *, with_picture: bool) -> Iterator[None]:
        """Count a search while the block runs.

        Raises:
            BusyError: too many are counted already.
        """
        if self._under_way >= MAX_SEARCHES or (with_picture and self._pictures >= MAX_PICTURES):
            raise BusyError("too many searches are under way")
        self._under_way += 1
        self._pictures += with_picture
        try:
            yield
        finally:
            self._under_way -= 1
            self._pictures -= with_picture
