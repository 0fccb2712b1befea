"""Our points and filters as qdrant_client's models, and back: for qdrant_local, qdrant_server."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from qdrant_client import models

from daemon.errors import ConfigError
from handlers.inference import Vector
from handlers.qdrant.server_layout import Quantization, ServerLayout
from handlers.qdrant.vector_engine import (
    AtLeast,
    CollectionSpec,
    Condition,
    Equals,
    Filter,
    HasId,
    Match,
    Not,
    OneOf,
    Page,
    Point,
    PointId,
)

INDEXES: Mapping[str, models.PayloadSchemaType] = {
    "integer": models.PayloadSchemaType.INTEGER,
    "keyword": models.PayloadSchemaType.KEYWORD,
}


def to_vectors_config(spec: CollectionSpec, *, on_disk: bool = False) -> models.VectorParams:
    """Return how a new collection keeps its vectors."""
    return models.VectorParams(
        size=spec.dimension, distance=models.Distance.COSINE, on_disk=on_disk or None
    )


def to_creation(spec: CollectionSpec, layout: ServerLayout) -> dict[str, Any]:
    """Return what `create_collection` of a server is to be told, beside the name."""
    asked: dict[str, Any] = {
        "replication_factor": layout.replicas or None,
        "write_consistency_factor": layout.consistency or None,
    }
    if spec.dimension == 1:
        # Claims: a few points that are read by their ids.
        return {"vectors_config": to_vectors_config(spec), **asked}
    return {
        "vectors_config": to_vectors_config(spec, on_disk=layout.on_disk),
        "shard_number": layout.shards or None,
        "quantization_config": _to_quantization(layout.quantization),
        **asked,
    }


def _to_quantization(wanted: Quantization) -> models.QuantizationConfig | None:
    match wanted:
        case "none":
            return None
        case "int8":
            # One number in a hundred may lie outside what the 256 steps span.
            scalar = models.ScalarQuantizationConfig(
                type=models.ScalarType.INT8, quantile=0.99, always_ram=True
            )
            return models.ScalarQuantization(scalar=scalar)
        case "binary":
            binary = models.BinaryQuantizationConfig(always_ram=True)
            return models.BinaryQuantization(binary=binary)


def difference(info: models.CollectionInfo, spec: CollectionSpec) -> str | None:
    """Return how an existing collection differs from what it must be, or nothing."""
    found = info.config.params.vectors
    if not isinstance(found, models.VectorParams):
        return "has no plain vectors, or several a point"
    if found.size != spec.dimension:
        return f"holds vectors of {found.size} numbers, not of {spec.dimension}"
    if found.distance != models.Distance.COSINE:
        return f"compares by {found.distance.value}, not by Cosine"
    return None


def dimension_of(info: models.CollectionInfo, collection: str) -> int:
    """Return how many numbers a collection's vectors have.

    Raises:
        ConfigError: it holds none that are compared by cosine, code collection_mismatch.
    """
    found = info.config.params.vectors
    if not isinstance(found, models.VectorParams) or found.distance != models.Distance.COSINE:
        raise ConfigError(
            f"the collection {collection} has no plain vectors that are compared by cosine",
            code="collection_mismatch",
        )
    return found.size


def to_filter(where: Filter) -> models.Filter:
    """Return a filter in the vendor's words."""
    return models.Filter(must=[_to_condition(condition) for condition in where.conditions])


def to_selector(where: Filter) -> models.FilterSelector:
    """Return what to delete, in the vendor's words."""
    return models.FilterSelector(filter=to_filter(where))


def to_struct(point: Point) -> models.PointStruct:
    """Return a point in the vendor's words."""
    return models.PointStruct(
        id=point.point_id, vector=point.vector.tolist(), payload=point.payload
    )


def to_point(record: models.Record) -> Point:
    """Return a stored point."""
    # Nothing where it was not asked for.
    vector: Any = [] if record.vector is None else record.vector
    return Point(_to_id(record.id), np.asarray(vector, dtype=np.float32), record.payload or {})


def to_query(
    vector: Vector, *, limit: int, offset: int, min_score: float | None, where: Filter | None
) -> dict[str, Any]:
    """Return what `query_points` is to be told, beside the collection."""
    return {
        "query": vector.tolist(),
        "limit": limit,
        "offset": offset or None,
        "score_threshold": min_score,
        "query_filter": to_filter(where) if where else None,
    }


def to_matches(response: models.QueryResponse) -> list[Match]:
    """Return the points that were found."""
    return [
        Match(_to_id(found.id), float(found.score), found.payload or {})
        for found in response.points
    ]


def to_scroll(
    *, where: Filter | None, limit: int, from_id: PointId | None, with_vectors: bool
) -> dict[str, Any]:
    """Return what `scroll` is to be told, beside the collection."""
    return {
        "scroll_filter": to_filter(where) if where else None,
        "limit": limit,
        "offset": from_id,
        "with_payload": True,
        "with_vectors": with_vectors,
    }


def to_page(answer: tuple[Sequence[models.Record], Any]) -> Page:
    """Return what `scroll` gave."""
    records, next_id = answer
    points = [to_point(record) for record in records]
    return Page(points, None if next_id is None else _to_id(next_id))


def to_count(where: Filter | None) -> dict[str, Any]:
    """Return what `count` is to be told, beside the collection."""
    return {"count_filter": to_filter(where) if where else None, "exact": True}


def _to_condition(condition: Condition) -> models.Condition:
    match condition:
        case Equals(field, value):
            return models.FieldCondition(key=field, match=models.MatchValue(value=value))
        case OneOf(field, values):
            listed: list[Any] = list(values)
            return models.FieldCondition(key=field, match=models.MatchAny(any=listed))
        case AtLeast(field, value):
            return models.FieldCondition(key=field, range=models.Range(gte=value))
        case HasId(point_ids):
            return models.HasIdCondition(has_id=list(point_ids))
        case Not(negated):
            return models.Filter(must_not=[_to_condition(negated)])


def _to_id(point_id: Any) -> PointId:
    return point_id if isinstance(point_id, int) else str(point_id)


def to_alias(alias: str, collection: str) -> list[models.AliasOperations]:
    """Return what lets an alias lead to a collection, whether it is there already or not."""
    return [
        models.DeleteAliasOperation(delete_alias=models.DeleteAlias(alias_name=alias)),
        models.CreateAliasOperation(
            create_alias=models.CreateAlias(collection_name=collection, alias_name=alias)
        ),
    ]
