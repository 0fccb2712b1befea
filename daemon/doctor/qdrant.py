"""A Qdrant server, asked over its HTTP; and what a collection's claim means for a model."""

import socket
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any
from urllib.parse import urlsplit

from daemon.counts import counted
from daemon.doctor.facts import without_user
from daemon.doctor.findings import Finding, fail, ok, warn
from daemon.doctor.web import Answer, AwayError, ask
from daemon.jobs import JsonObject
from daemon.program import program
from daemon.settings import QdrantSettings
from handlers.face_store import QdrantFaceStore
from handlers.vectors.model_record import MODELS, Part, record_ids, record_of

PART = "vectors"
OK = 200
NOT_FOUND = 404
_QUANTIZED = {"none": set[str](), "int8": {"scalar"}, "binary": {"binary"}}
"""The server's words for the setting's."""
_KEY_MEND = "set INFERD_QDRANT__API_KEY to the server's key"


@dataclass(frozen=True, slots=True)
class Claim:
    """Which model a collection belongs to."""

    fingerprint: str
    model: str
    is_told: bool = False
    """The record says how that model is configured: the daemon takes it, whatever is set."""


@dataclass(frozen=True, slots=True)
class Wanted:
    """What the configured model needs of its collection."""

    fingerprint: str | None
    """None where the model's file is absent."""
    dimension: int


def claim_of(part: Part) -> Claim:
    """Return whose a collection is by its record."""
    # What found the faces is told behind a plus; vectors may be compared whoever did.
    recogniser = part.fingerprint.partition("+")[0]
    return Claim(recogniser, part.named, is_told=part.spec is not None)


def claimed(collection: str, count: int, claim: Claim | None, wanted: Wanted) -> Finding:
    """Judge a collection's claim against the configured model.

    Args:
        collection: its name.
        count: how many vectors it holds.
        claim: whose they are; None where nobody said.
        wanted: what the configured model needs.
    """
    said = f"{collection}: {counted(count, 'vector')}"
    if not count:
        return ok(PART, f"{said}; any model may begin")
    if claim is None:
        mend = (
            f"if they are the configured model's, claim them once from Python (claim(...,"
            f" adopt=True), handlers/vectors/qdrant_store.py); else delete the collection "
            f"{collection}"
        )
        return fail(PART, "model_unknown", f"{said}, and nobody said of which model", mend)
    ours = wanted.fingerprint
    is_of_faces = collection.partition(".")[0] == QdrantFaceStore.collection
    use = f"`{program()} models use{' --faces' if is_of_faces else ''}`"
    if ours is not None and claim.fingerprint != ours and claim.is_told:
        names = "FACES__RECOGNISER" if is_of_faces else "CLIP__MODEL and INFERD_CLIP__WEIGHTS"
        mend = f"set INFERD_{names} to that, or change the model by {use} while the daemon runs"
        found = f"{said} of {claim.model}, which is used, while {ours} is configured"
        return warn(PART, "model_mismatch", found, mend)
    if ours is not None and claim.fingerprint != ours:
        mend = (
            f"configure {claim.model} again ({use} then changes it), delete"
            f" the collection {collection}, or keep the new vectors elsewhere (INFERD_DATA_DIR or"
            " INFERD_QDRANT__URL)"
        )
        found = f"{said} of {claim.model}, while {ours} is configured: they cannot be compared"
        return fail(PART, "model_mismatch", found, mend)
    return ok(PART, f"{said} of {claim.model}")


def look(settings: QdrantSettings, wanted: Mapping[str, Wanted]) -> Iterator[Finding]:
    """Look at a server; nothing is created there."""
    where = without_user(settings.url)
    server = _Server(settings)
    try:
        hello = server.get("")
        if hello.status in (401, 403):
            yield _unauthorized(where, hello.status)
            return
        if "version" not in hello.body:
            found = f"{where} answers {hello.status}, but not as Qdrant does"
            mend = "set INFERD_QDRANT__URL to Qdrant's HTTP port (6333)"
            yield fail(PART, "vector_store_error", found, mend)
            return
        yield ok(PART, f"{where}: Qdrant {hello.body['version']}")
        yield from _grpc(settings)
        for collection, fingerprint in wanted.items():
            yield from _collection(server, where, collection, fingerprint)
    except AwayError as error:
        yield fail(
            PART,
            "vector_store_unreachable",
            f"{where}: {error.message}",
            "start Qdrant, set INFERD_QDRANT__URL to where it is, or unset it to keep vectors in"
            " the data folder",
        )


class _Server:
    def __init__(self, settings: QdrantSettings) -> None:
        self.settings = settings
        key = settings.api_key
        self._headers = {"api-key": key.get_secret_value()} if key else {}

    def get(self, path: str, body: JsonObject | None = None) -> Answer:
        return ask(
            f"{self.settings.url}/{path}",
            seconds=self.settings.timeout_seconds,
            headers=self._headers,
            body=body,
        )


def _collection(server: _Server, where: str, name: str, wanted: Wanted) -> Iterator[Finding]:
    ids = record_ids(name)
    body = {"ids": ids, "with_payload": True}
    points = server.get(f"collections/{MODELS.name}/points", body).body.get("result") or []
    record = record_of(name, {point["id"]: point.get("payload") or {} for point in points})
    if record is not None:
        name = record.active.physical
        wanted = replace(wanted, dimension=record.active.dimension or wanted.dimension)
    answer = server.get(f"collections/{name}")
    if answer.status in (401, 403):
        yield _unauthorized(where, answer.status)
        return
    if answer.status == NOT_FOUND:
        yield ok(PART, f"{name} is not there yet; the daemon makes it")
        return
    info = answer.body.get("result") or {}
    if answer.status != OK or not isinstance(info, dict):
        found = f"{name}: the server answers {answer.status}"
        yield fail(PART, "vector_store_error", found, "see the Qdrant server's log")
        return
    dimension = _at(info, "config", "params", "vectors", "size")
    distance = _at(info, "config", "params", "vectors", "distance")
    if (dimension, distance) != (wanted.dimension, "Cosine"):
        found = (
            f"{name} holds vectors of {dimension} numbers compared by {distance}, should be"
            f" {wanted.dimension} by Cosine"
        )
        yield fail(PART, "collection_mismatch", found, f"rename or delete the collection {name}")
        return
    status = info.get("status")
    if status not in ("green", "yellow", "grey"):
        found = f"{name}: the server says it is {status}"
        yield fail(PART, "vector_store_error", found, "see the Qdrant server's log; its disk?")
        return
    claim = None if record is None else claim_of(record.active)
    yield claimed(name, int(info.get("points_count") or 0), claim, wanted)
    yield from layout(name, info, server.settings)


def layout(name: str, info: JsonObject, settings: QdrantSettings) -> Iterator[Finding]:
    """Judge how a server keeps a collection against what the settings ask of new ones."""
    params = _at(info, "config", "params")
    differing = [
        f"{each.upper()} is {_at(params, each)}, not {getattr(settings, each)}"
        for each in ("shard_number", "replication_factor", "write_consistency_factor")
        if getattr(settings, each) not in (0, _at(params, each))
    ]
    quantized = set(_at(info, "config", "quantization_config") or ())
    if quantized != _QUANTIZED[settings.quantization]:
        found = ", ".join(quantized) or "none"
        differing.append(f"QUANTIZATION is {found}, not {settings.quantization}")
    if differing:
        yield warn(
            PART,
            "collection_layout",
            f"{name} was made before the settings INFERD_QDRANT__...: {'; '.join(differing)}",
            f"the number of shards never changes (`migrate vectors` makes a new collection); the"
            f" rest by PATCH /collections/{name}",
        )


def _grpc(settings: QdrantSettings) -> Iterator[Finding]:
    if not settings.grpc_port:
        return
    host = str(urlsplit(settings.url).hostname)
    try:
        socket.create_connection((host, settings.grpc_port), settings.timeout_seconds).close()
    except OSError as error:
        found = f"its gRPC port {settings.grpc_port} is closed: {error}"
        mend = "INFERD_QDRANT__GRPC_PORT=0 to speak HTTP only, or open the port"
        yield fail(PART, "vector_store_unreachable", found, mend)


def _unauthorized(where: str, status: int) -> Finding:
    return fail(PART, "vector_store_unauthorized", f"{where} refuses us ({status})", _KEY_MEND)


def _at(value: Any, *names: str) -> Any:
    for name in names:
        value = value.get(name) if isinstance(value, dict) else None
    return value
