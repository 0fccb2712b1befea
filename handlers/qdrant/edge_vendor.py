"""Translates qdrant_edge's failures, filters and points into ours, and back.

Every failure there is a bare Exception, a ValueError or a TypeError, or a panic, which is not even
an Exception; all are told apart by their text alone.
"""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import qdrant_edge as edge

from daemon.errors import ConfigError, DependencyDownError, InferdError, RetryableError
from handlers.qdrant.vector_engine import (
    AtLeast,
    Condition,
    Equals,
    Filter,
    HasId,
    Not,
    OneOf,
    Point,
    PointId,
)

T = TypeVar("T")


def translated(call: Callable[[], T]) -> T:
    """Return what a call returned; nothing that the vendor raises comes through.

    Raises:
        RetryableError: a point that it cannot take, code vector_store_error.
        DependencyDownError: all else, of which no point is at fault; the same code.
    """
    try:
        return call()
    except InferdError:
        raise
    except BaseException as error:
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        is_refusal = isinstance(error, (ValueError, TypeError))
        raise (RetryableError if is_refusal else DependencyDownError)(
            f"the embedded vector engine failed: {error}", code="vector_store_error"
        ) from error


def dimension_in(folder: Path) -> int | None:
    """Return how many numbers the vectors of a shard's folder have; None where there is none.

    Raises:
        ConfigError: it holds no plain vectors compared by cosine, code collection_mismatch.
    """
    try:
        config = json.loads((folder / "edge_config.json").read_text(encoding="utf-8"))
        plain = config["vectors"][""]
        if plain["distance"] == "Cosine":
            return int(plain["size"])
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ConfigError(
            f"the collection in {folder} cannot be read: {error}", code="vector_store_unusable"
        ) from error
    raise ConfigError(
        f"the collection in {folder} is not compared by cosine", code="collection_mismatch"
    )


def upserting(points: Sequence[Point]) -> Any:
    """Return the operation that stores points."""
    return edge.UpdateOperation.upsert_points(
        [edge.Point(p.point_id, p.vector.tolist(), p.payload) for p in points]
    )


def to_filter(where: Filter | None) -> Any:
    """Return a filter in the vendor's words."""
    if where is None:
        return None
    return edge.Filter(must=[_to_condition(condition) for condition in where.conditions])


def _to_condition(condition: Condition) -> Any:
    match condition:
        case Equals(field, value):
            return edge.FieldCondition(field, match=edge.MatchValue(value))
        case OneOf(field, values):
            listed: list[Any] = list(values)
            return edge.FieldCondition(field, match=edge.MatchAny(listed))
        case AtLeast(field, value):
            return edge.FieldCondition(field, range=edge.RangeFloat(gte=value))
        case HasId(point_ids):
            return edge.HasIdCondition(set(point_ids))
        case Not(negated):
            return edge.Filter(must_not=[_to_condition(negated)])


def to_id(point_id: Any) -> PointId:
    """Return an id in our words."""
    return point_id if isinstance(point_id, int) else str(point_id)


def to_point(record: Any) -> Point:
    """Return a stored point in our words."""
    # Nothing where it was not asked for.
    vector = [] if record.vector is None else record.vector
    return Point(to_id(record.id), np.asarray(vector, dtype=np.float32), record.payload or {})
