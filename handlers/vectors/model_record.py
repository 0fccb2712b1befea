"""A collection's record: which model's vectors are searched, and which collection holds them.

Clients know a collection by one fixed name. What is behind the name may change with the model; the
record, a point of `inferd_models` kept with the vectors, says what is there now:

    active      what is searched and written; of an installation that never changed its model it
                has the fixed name itself, so that nothing was copied to begin with
    shadow      what is being filled by another model and is written besides, while a change runs;
                on a way back at once it is searched already, though it lacks what is new
    previous    what was active before; kept to go back to

A record is replaced by one upsert of one call, which is atomic on every engine; so is a change of
the model. Each collection behind a name holds vectors of one fingerprint for ever: its own name is
made of it. The claim, a second point, says whose the collection of the fixed name is: versions that
know no records read it, and find that they may not write while another one is active.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from daemon.jobs import JsonObject
from handlers.qdrant.vector_engine import CollectionSpec, Point, PointId, VectorEngine
from handlers.qdrant.vector_points import model_point_id

MODELS = CollectionSpec("inferd_models", 1)
_RECORD = ":record"
_HASH_DIGITS = 12


@dataclass(frozen=True, slots=True)
class Part:
    """One collection behind a fixed name, and the one model whose vectors are in it."""

    physical: str
    """The collection's name in the engine."""
    fingerprint: str
    """Equal for models whose vectors may be compared, and for no others."""
    model: str
    """The model's name, for people."""
    dimension: int | None = None
    """Numbers in a vector; None where the record does not say: as the settings' model has."""
    spec: Mapping[str, str] | None = None
    """How that model is configured; None where the settings say it."""
    since: int | None = None
    """Epoch milliseconds: when a shadow was begun, or what was active was put aside."""
    allow_failed: int = 0
    """Of a shadow: it may become active without so many pictures that cannot be embedded."""
    is_searched: bool = False
    """Of a shadow: searches are answered from it before it has all."""
    was_active: bool = False
    """It was active before: giving up a change back to it does not drop it."""

    @classmethod
    def of(cls, payload: Mapping[str, Any]) -> "Part":
        """Return what `to_payload` was made of."""
        spec = payload.get("spec")
        return cls(
            physical=str(payload["physical"]),
            fingerprint=str(payload["fingerprint"]),
            model=str(payload["model"]),
            dimension=payload.get("dimension"),
            spec={str(key): str(value) for key, value in spec.items()} if spec else None,
            since=payload.get("since"),
            allow_failed=int(payload.get("allow_failed", 0)),
            is_searched=bool(payload.get("is_searched")),
            was_active=bool(payload.get("was_active")),
        )

    @property
    def named(self) -> str:
        """What the model is called, for people."""
        if self.spec is None:
            return self.model
        beside = [self.spec[key] for key in ("weights", "detector") if key in self.spec]
        return f"{self.spec['model']} ({', '.join(beside)})" if beside else self.spec["model"]

    def to_payload(self) -> JsonObject:
        """Return it as it is stored."""
        payload: JsonObject = {
            "physical": self.physical,
            "fingerprint": self.fingerprint,
            "model": self.model,
            "allow_failed": self.allow_failed,
            "was_active": self.was_active,
        }
        if self.is_searched:
            payload["is_searched"] = True
        if self.dimension is not None:
            payload["dimension"] = self.dimension
        if self.spec is not None:
            payload["spec"] = dict(self.spec)
        if self.since is not None:
            payload["since"] = self.since
        return payload


@dataclass(frozen=True, slots=True)
class Record:
    """What is behind a fixed name; see the top of this file."""

    collection: str
    active: Part
    shadow: Part | None = None
    previous: Part | None = None

    @property
    def written(self) -> tuple[Part, ...]:
        """Every part that a new vector is stored in, in the order in which it must be."""
        # The other way round a pass could take what a job has just stored in the shadow for
        # surplus, and remove it right before the swap.
        return (self.active,) if self.shadow is None else (self.active, self.shadow)

    @property
    def searched(self) -> Part:
        """The part that is searched: the active one, or on an immediate rollback the shadow."""
        return self.shadow if self.shadow is not None and self.shadow.is_searched else self.active

    @property
    def parts(self) -> tuple[Part, ...]:
        """Every part: a delete must remove from all of them."""
        return self.written if self.previous is None else (*self.written, self.previous)

    @property
    def version(self) -> str:
        """A string that differs after each change of the parts, to detect concurrent changes.

        It ignores `allow_failed`, and whether the shadow is searched.
        """
        parts = (self.active, self.shadow, self.previous)
        told = [None if each is None else (each.physical, each.since) for each in parts]
        return hashlib.sha256(json.dumps(told).encode()).hexdigest()[:_HASH_DIGITS]

    def begun(self, shadow: Part) -> "Record":
        """Return the record while `shadow` is being filled; it may be what was put aside."""
        is_back = self.previous is not None and self.previous.physical == shadow.physical
        return replace(self, shadow=shadow, previous=None if is_back else self.previous)

    def swapped(self, now: int) -> "Record":
        """Return the record once the shadow answers."""
        if self.shadow is None:
            raise ValueError("there is no shadow")
        put_aside = replace(self.active, since=now, allow_failed=0, was_active=True)
        active = replace(
            self.shadow, since=None, allow_failed=0, was_active=True, is_searched=False
        )
        return Record(self.collection, active, previous=put_aside)

    def without_shadow(self) -> "Record":
        """Return the record of a change that was given up; what was active before is kept."""
        if self.shadow is not None and self.shadow.was_active:
            return replace(self, shadow=None, previous=replace(self.shadow, is_searched=False))
        return replace(self, shadow=None)

    def without_previous(self) -> "Record":
        """Return the record once there is no way back."""
        return replace(self, previous=None)


def physical_name(collection: str, fingerprint: str) -> str:
    """Return the name of the collection that a model's vectors get behind a fixed name.

    Always the same for the same model: a change that crashed after creating it uses it again.
    """
    digest = hashlib.sha256(fingerprint.encode()).hexdigest()
    return f"{collection}.{digest[:_HASH_DIGITS]}"


def alias_of(collection: str) -> str:
    """Return the name by which other readers of a Qdrant server find what is searched."""
    return f"{collection}.active"


def is_physical_name(collection: str, name: str) -> bool:
    """Whether a collection is one that was made to stand behind a fixed name."""
    head, _, digits = name.rpartition(".")
    return (
        head == collection
        and len(digits) == _HASH_DIGITS
        and set(digits) <= set("0123456789abcdef")
    )


def record_ids(collection: str) -> list[PointId]:
    """Return the ids of the points that a record is read from."""
    return [model_point_id(collection), model_point_id(collection + _RECORD)]


def record_of(collection: str, payloads: Mapping[PointId, JsonObject]) -> Record | None:
    """Return the record that the points hold; None where nobody ever claimed the collection.

    Args:
        collection: the fixed name.
        payloads: of those of `record_ids` that are there.
    """
    claim_id, record_id = record_ids(collection)
    if (payload := payloads.get(record_id)) is not None:
        return Record(
            collection,
            Part.of(payload["active"]),
            _part(payload.get("shadow")),
            _part(payload.get("previous")),
        )
    if (claim := payloads.get(claim_id)) is not None:
        fingerprint, model = str(claim.get("fingerprint")), str(claim.get("model"))
        return Record(collection, Part(collection, fingerprint, model))
    return None


class Records:
    """Reads and writes the record of one collection; `inferd_models` was opened before."""

    def __init__(self, engine: VectorEngine, collection: str) -> None:
        self._engine = engine
        self._collection = collection
        self._claim_id, self._record_id = record_ids(collection)

    async def read(self) -> Record | None:
        """Return the record; None where nobody ever claimed the collection."""
        ids = record_ids(self._collection)
        found = await self._engine.retrieve(MODELS.name, ids, with_vectors=False)
        return record_of(self._collection, {point.point_id: point.payload for point in found})

    async def write_claim(self, fingerprint: str, model: str) -> None:
        """Write which model the collection of the fixed name is of, before any change of it."""
        await self._upsert([self._claim(fingerprint, model)])

    async def write(self, record: Record) -> None:
        """Replace the record; it is on the disk when this returns."""
        payload: JsonObject = {"collection": self._collection, "active": record.active.to_payload()}
        for name, part in (("shadow", record.shadow), ("previous", record.previous)):
            if part is not None:
                payload[name] = part.to_payload()
        active = record.active
        claim = (
            self._claim(active.fingerprint, active.model)
            if active.physical == self._collection
            else self._claim(f"moved:{active.physical}", f"{active.model} in {active.physical}")
        )
        # Behind the record: cut in between, an older version goes on for a while where it may not
        # be searched; the other way round it would be locked out of what is still searched.
        await self._upsert([Point(self._record_id, _NO_VECTOR, payload), claim])
        await self._engine.flush(MODELS.name)

    def _claim(self, fingerprint: str, model: str) -> Point:
        payload = {"collection": self._collection, "fingerprint": fingerprint, "model": model}
        return Point(self._claim_id, _NO_VECTOR, payload)

    async def _upsert(self, points: Sequence[Point]) -> None:
        await self._engine.upsert(MODELS.name, points)


_NO_VECTOR = np.ones(1, np.float32)
"""Engines want one with every point."""


def _part(payload: Mapping[str, Any] | None) -> Part | None:
    return None if payload is None else Part.of(payload)
