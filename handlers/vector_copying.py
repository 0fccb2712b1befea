"""Copies collections from one engine to another: same ids, vectors, payloads and models' names.

The models' names come last: a target that was only begun has points that nobody claimed, which no
daemon takes for a whole collection. Doing any of it twice changes nothing.
"""

from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field

import numpy as np

from daemon.errors import ConfigError
from daemon.jobs import JsonObject
from handlers.face_store import QdrantFaceStore
from handlers.image_store import QdrantImageStore
from handlers.qdrant.vector_engine import CollectionSpec, Point, PointId, VectorEngine
from handlers.vectors.model_record import MODELS, is_physical_name
from handlers.vectors.qdrant_store import QdrantStore

STORED: tuple[type[QdrantStore], ...] = (QdrantImageStore, QdrantFaceStore)
PAGE = 256
LAST_BITS = 1e-6
"""Of a number in a vector: an engine that makes vectors' length 1 itself may round so much."""

Cursor = dict[str, PointId | None]
"""By collection: where to go on; None once it is done."""


@dataclass(slots=True)
class Difference:
    """How two engines differ in one collection."""

    missing: int = 0
    surplus: int = 0
    """Points that only the target has."""
    changed: int = 0
    """Of another payload, or another vector."""
    rounded: int = 0
    """Vectors that are equal but for their last bits; no fault."""
    compared: int = 0
    examples: list[PointId] = field(default_factory=list)

    @property
    def is_none(self) -> bool:
        """Whether the target has what the source has, and nothing else."""
        return not (self.missing or self.surplus or self.changed)


def is_ours(collection: str) -> bool:
    """Whether a collection is one that inferd made, under its fixed name or a model's."""
    fixed = [store.collection for store in STORED]
    return collection in (*fixed, MODELS.name) or any(
        is_physical_name(name, collection) for name in fixed
    )


async def specs(engine: VectorEngine) -> list[CollectionSpec]:
    """Return our collections of an engine, the models' names last.

    Raises:
        ConfigError: one is of a kind that inferd does not make.
        RetryableError: the engine failed.
    """
    found = []
    for name in await engine.collections():
        if is_ours(name) and name != MODELS.name:
            dimension = await engine.dimension_of(name)
            if dimension is not None:
                found.append(CollectionSpec(name, dimension, QdrantStore.indexes))
    if MODELS.name in await engine.collections():
        found.append(MODELS)
    return found


async def refuse_other_models(
    source: VectorEngine, target: VectorEngine, *, may_adopt: bool
) -> None:
    """Return if the target may get the source's vectors; nothing is written.

    Args:
        source: opened, its collections ensured.
        target: opened.
        may_adopt: points of the target that nobody claimed are from an earlier try of this.

    Raises:
        ConfigError: it holds another model's vectors, code model_mismatch, nobody's, code
            model_unknown, or vectors of another dimension, code collection_mismatch.
        RetryableError: an engine failed.
    """
    theirs = await _models(target)
    ours = await _models(source)
    there = set(await target.collections())
    copied = await specs(source)
    await _refuse_hidden(target, theirs, ours, there - {spec.name for spec in copied})
    for spec in copied:
        if spec.name not in there or spec.name == MODELS.name:
            continue
        await target.ensure_collection(spec)
        if not await target.count(spec.name):
            continue
        changed = [key for key in theirs if _is_record_of(theirs[key], spec.name)]
        if any(ours.get(key) != theirs[key] for key in changed):
            raise ConfigError(
                f"the target's {spec.name} went through changes of its model that the source's did"
                " not: choose another target",
                code="model_mismatch",
            )
        if is_physical_name(_fixed(spec.name), spec.name):
            continue  # it is named after its model
        claims = [(ours.get(key), theirs[key]) for key in theirs if _is_of(theirs[key], spec.name)]
        if not claims and not may_adopt:
            raise ConfigError(
                f"the target's {spec.name} has points, and nobody said of which model: if an"
                " earlier migration left them, --force goes on; else choose another target",
                code="model_unknown",
            )
        for mine, other in claims:
            if mine is None or mine.get("fingerprint") != other.get("fingerprint"):
                raise ConfigError(
                    f"the target's {spec.name} holds vectors of {other.get('model')}, and not of"
                    f" {mine.get('model') if mine else 'a model named here'}: vectors of two models"
                    " never mix; choose another target",
                    code="model_mismatch",
                )


async def _refuse_hidden(
    target: VectorEngine,
    theirs: dict[PointId, JsonObject],
    ours: dict[PointId, JsonObject],
    others: set[str],
) -> None:
    """Return if no vectors of the target go out of sight as the source's models' names come in."""
    fixed = {str(each.get("collection")) for each in ours.values()}
    for key, other in theirs.items():
        mine, name = ours.get(key), other.get("collection")
        is_same = mine == other or (
            mine is not None
            and "active" not in other
            and mine.get("fingerprint") == other.get("fingerprint")
        )
        if is_same or name not in fixed or not {"active", "fingerprint"} & other.keys():
            continue
        for each in sorted(each for each in others if _fixed(each) == name):
            dimension = await target.dimension_of(each)
            if dimension is None:
                continue
            await target.ensure_collection(CollectionSpec(each, dimension, QdrantStore.indexes))
            if await target.count(each):
                raise ConfigError(
                    f"the target's {each} has vectors that the source's models' names know nothing"
                    " of, and nobody would find them afterwards: choose another target",
                    code="model_mismatch",
                )


async def copy_collection(
    source: VectorEngine,
    target: VectorEngine,
    spec: CollectionSpec,
    cursor: Cursor,
    copied: Callable[[int], None],
) -> None:
    """Copy one collection from where the cursor is; it moves once a page is stored.

    Raises:
        ConfigError: the target has such a collection of another dimension.
        RetryableError: an engine failed.
    """
    await target.ensure_collection(spec)
    next_id = cursor.get(spec.name)
    if spec.name in cursor and next_id is None:
        return
    while True:
        page = await source.scroll(spec.name, limit=PAGE, from_id=next_id)
        if page.points:
            await target.upsert(spec.name, page.points)
        next_id = page.next_id
        if next_id is None:
            await target.flush(spec.name)
        cursor[spec.name] = next_id
        copied(len(page.points))
        if next_id is None:
            return


async def compare(
    source: VectorEngine,
    target: VectorEngine,
    spec: CollectionSpec,
    compared: Callable[[int], None],
) -> Difference:
    """Compare every point of a collection: ids, payloads, vectors.

    Raises:
        RetryableError: an engine failed.
    """
    found = Difference()
    theirs = _points(target, spec.name)
    other = await anext(theirs, None)
    async for point in _points(source, spec.name):
        while other is not None and _order(other.point_id) < _order(point.point_id):
            found.surplus += 1
            found.examples.append(other.point_id)
            other = await anext(theirs, None)
        found.compared += 1
        compared(1)
        if other is None or other.point_id != point.point_id:
            found.missing += 1
            found.examples.append(point.point_id)
            continue
        if point.payload != other.payload or not _is_close(point, other):
            found.changed += 1
            found.examples.append(point.point_id)
        elif point.vector.tobytes() != other.vector.tobytes():
            found.rounded += 1
        other = await anext(theirs, None)
    while other is not None:
        found.surplus += 1
        found.examples.append(other.point_id)
        other = await anext(theirs, None)
    return found


async def _points(engine: VectorEngine, collection: str) -> AsyncIterator[Point]:
    next_id = None
    while True:
        page = await engine.scroll(collection, limit=PAGE, from_id=next_id)
        for point in page.points:
            yield point
        if (next_id := page.next_id) is None:
            return


async def _models(engine: VectorEngine) -> dict[PointId, JsonObject]:
    if MODELS.name not in await engine.collections():
        return {}
    await engine.ensure_collection(MODELS)
    return {point.point_id: point.payload async for point in _points(engine, MODELS.name)}


def _is_of(payload: JsonObject, collection: str) -> bool:
    return payload.get("collection") == collection and "fingerprint" in payload


def _is_record_of(payload: JsonObject, collection: str) -> bool:
    return payload.get("collection") == _fixed(collection) and "active" in payload


def _fixed(collection: str) -> str:
    head = collection.rpartition(".")[0]
    return head if is_physical_name(head, collection) else collection


def _is_close(one: Point, other: Point) -> bool:
    return one.vector.shape == other.vector.shape and bool(
        np.allclose(one.vector, other.vector, rtol=0, atol=LAST_BITS)
    )


def _order(point_id: PointId) -> tuple[bool, int | str]:
    return isinstance(point_id, str), point_id
