"""The near-duplicates of a picture, and theirs in turn: its cluster, bounded."""

from collections import deque
from dataclasses import dataclass

import numpy as np

from daemon.errors import NotFoundError
from handlers.image_store import QdrantImageStore
from handlers.qdrant.vector_engine import Filter, Match, Point, PointId


@dataclass(frozen=True, slots=True, eq=False)
class Member:
    """One picture of a cluster."""

    point: Point
    score: float
    """Cosine to the picture that was asked for, which may be low at the end of a chain."""
    near: PointId
    """The member that brought it in."""
    near_score: float
    """Cosine to that one."""


@dataclass(frozen=True, slots=True)
class Cluster:
    """All that is linked to a picture, the most alike first."""

    members: list[Member]
    is_complete: bool
    """False where there may be more than was allowed."""


async def cluster_of(
    store: QdrantImageStore,
    media_store_id: int,
    *,
    min_score: float,
    limit: int,
    where: Filter | None = None,
) -> Cluster:
    """Return what is like a picture, what is like that, and so on: the transitive closure.

    Each member costs one search, so that `limit` bounds the work too.

    Args:
        store: where the pictures are.
        media_store_id: whose cluster; it is no member itself.
        min_score: least cosine of a link.
        limit: most members.
        where: what members and all between them must be.

    Raises:
        NotFoundError: code vector_not_found; nothing is stored of the picture.
    """
    origin = await store.fetch(media_store_id)
    if origin is None:
        raise NotFoundError(
            f"no vector is stored of picture {media_store_id}", code="vector_not_found"
        )
    seen: set[PointId] = {origin.point_id}
    members: list[Member] = []
    waiting = deque([origin])
    while waiting:
        point = waiting.popleft()
        # All that are known may come first, and one more tells that there is one.
        found = await store.find(
            point.vector, limit=len(seen) + limit + 1, min_score=min_score, where=where
        )
        for match in found:
            if match.point_id in seen:
                continue
            if len(members) == limit:
                return Cluster(_sorted(members), is_complete=False)
            seen.add(match.point_id)
            member = await _member(store, origin, point, match)
            # Deleted meanwhile.
            if member is not None:
                members.append(member)
                waiting.append(member.point)
    return Cluster(_sorted(members), is_complete=True)


async def _member(
    store: QdrantImageStore, origin: Point, near: Point, match: Match
) -> Member | None:
    point = await store.fetch(match.point_id)
    if point is None:
        return None
    # Both have length 1; rounding must not lead out of what a cosine can be.
    score = float(np.clip(np.dot(origin.vector, point.vector), -1, 1))
    return Member(point, score, near.point_id, match.score)


def _sorted(members: list[Member]) -> list[Member]:
    return sorted(members, key=lambda member: -member.score)
