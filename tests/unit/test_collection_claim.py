"""Whose a collection is: races and changes in which vectors of two models could have mixed."""

from collections.abc import AsyncIterator
from pathlib import Path

import numpy as np
import pytest

from daemon.errors import ConfigError, DependencyDownError
from handlers.qdrant.qdrant_edge import EdgeEngine
from handlers.qdrant.vector_engine import Point
from handlers.vectors.collection_claim import CollectionClaim
from handlers.vectors.collection_parts import CollectionParts
from handlers.vectors.model_record import Part, Record

NAME = "faces"
OLD, NEW = Part(NAME, "old", "Old"), Part(f"{NAME}.new", "new", "New", 3, {"model": "New"})
POINT = Point(1, np.asarray([1, 0, 0], np.float32), {})


@pytest.fixture
async def parts(tmp_path: Path) -> AsyncIterator[CollectionParts]:
    engine = EdgeEngine(tmp_path)
    await engine.open()
    opened = CollectionParts(engine, NAME, 3, {})
    await opened.open()
    yield opened
    await engine.close()


def claim_of(parts: CollectionParts) -> CollectionClaim:
    return CollectionClaim(parts, NAME, change_by="inferd model")


async def test_a_claim_is_given_back_where_the_former_holder_wrote_meanwhile(
    parts: CollectionParts, monkeypatch: pytest.MonkeyPatch
) -> None:
    await claim_of(parts).make(OLD.fingerprint, OLD.model)
    counted, count = 0, parts.engine.count

    async def count_and_write(collection: str) -> int:
        nonlocal counted
        counted += 1
        found = await count(collection)
        if counted == 1:
            await parts.upsert(OLD, [POINT])
        return found

    monkeypatch.setattr(parts.engine, "count", count_and_write)
    claim = claim_of(parts)

    with pytest.raises(ConfigError, match="holds vectors of Old") as refused:
        await claim.make(NEW.fingerprint, NEW.model)

    assert refused.value.code == "model_mismatch"
    assert not claim.is_made
    record = await parts.record()
    assert record is not None
    assert record.active.fingerprint == OLD.fingerprint


async def test_an_empty_collection_may_have_another_model_until_a_change_said_whose_it_is(
    parts: CollectionParts,
) -> None:
    await claim_of(parts).make(OLD.fingerprint, OLD.model)
    await claim_of(parts).make("third", "Third")
    await parts.records.write(Record(NAME, active=NEW))

    with pytest.raises(ConfigError, match="holds vectors of New"):
        await claim_of(parts).make(OLD.fingerprint, OLD.model)

    record = await parts.record()
    assert record is not None
    assert record.active == NEW


async def test_each_part_that_the_record_names_is_confirmed_and_no_other(
    parts: CollectionParts,
) -> None:
    claim = claim_of(parts)
    await claim.make(OLD.fingerprint, OLD.model)
    await parts.records.write(Record(NAME, active=OLD, shadow=NEW))

    assert await claim.confirm_part(OLD) == OLD
    assert await claim.confirm_part(NEW) == NEW
    for stranger in (Part(NAME, "new", "New"), Part(f"{NAME}.other", "other", "Other")):
        with pytest.raises(DependencyDownError):
            await claim.confirm_part(stranger)
