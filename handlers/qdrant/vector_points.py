"""What may be stored: legal point ids, sound vectors, JSON payloads; checked before sending.

The ids are deterministic, so that doing a job twice changes nothing; their formulas are public:

    image           media_store_id itself
    face            uuid5(NAMESPACE, "face:{media_store_id}:{face_index}")
    other string    uuid5(NAMESPACE, "id:{string}"), the string is kept in the payload
"""

import json
import re
from typing import Any
from uuid import UUID, uuid5

import numpy as np

from daemon.errors import PermanentError
from daemon.jobs import Job, JsonObject, dump_json
from daemon.wall_clock import epoch_ms
from handlers.inference import Vector
from handlers.qdrant.vector_engine import Match, Point, PointId

NAMESPACE = UUID("6f1d2b54-0c7e-5a43-9d0e-6b1f3f0a7c21")
"""Of every uuid5 here. Never change it: stored points would no longer be found."""

ORIGINAL_ID = "original_id"
"""Payload field that keeps a string id which Qdrant does not allow."""

MAX_INT_ID = 2**64 - 1
_INT_DIGITS = len(str(MAX_INT_ID))
MIN_NORM = 1e-6
"""A shorter vector has no direction worth comparing."""

_UUID = re.compile(r"[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}", re.ASCII)


def face_point_id(media_store_id: int, face_index: int) -> str:
    """Return the id of a picture's face."""
    return str(uuid5(NAMESPACE, f"face:{media_store_id}:{face_index}"))


def model_point_id(collection: str) -> str:
    """Return the id of the point that says which model a collection belongs to."""
    return str(uuid5(NAMESPACE, f"model:{collection}"))


def job_payload(job: Job, model: str) -> JsonObject:
    """Return what is stored with every vector of a job, to be found by: as of now.

    Times are epoch milliseconds; `request_id` is absent where the client gave none.
    """
    payload: JsonObject = {
        "job_id": job.job_id,
        "media_store_id": job.media_store_id,
        "model": model,
        "stored_at": epoch_ms(),
    }
    if job.request_id is not None:
        payload["request_id"] = job.request_id
    return payload


def successor(point_id: PointId) -> PointId | None:
    """Return the id that comes next in the order of engines, in which ints come before UUIDs.

    Args:
        point_id: one as `legal_id` returns it.
    """
    if isinstance(point_id, int):
        return point_id + 1 if point_id < MAX_INT_ID else str(UUID(int=0))
    number = UUID(point_id).int + 1
    return str(UUID(int=number)) if number < 2**128 else None


def legal_id(point_id: Any) -> PointId:
    """Return the id a point is stored under: an int, or a UUID in its usual spelling.

    An int and a UUID stay, a decimal string is its int, any other string becomes a uuid5.

    Raises:
        PermanentError: it is none of these, code bad_point_id.
    """
    if isinstance(point_id, UUID):
        return str(point_id)
    if isinstance(point_id, int | np.integer) and not isinstance(point_id, bool):
        if 0 <= point_id <= MAX_INT_ID:
            return int(point_id)
        raise _bad_id(point_id, f"an int must lie between 0 and {MAX_INT_ID}")
    if not isinstance(point_id, str) or not point_id:
        raise _bad_id(point_id, "it must be an int, a UUID or another string")
    if _UUID.fullmatch(point_id):
        return point_id.lower()
    # Longer ones are not read at all: int() refuses thousands of digits.
    if point_id.isascii() and point_id.isdigit() and len(point_id.lstrip("0")) <= _INT_DIGITS:
        number = int(point_id)
        if number <= MAX_INT_ID:
            return number
    try:
        return str(uuid5(NAMESPACE, f"id:{point_id}"))
    except UnicodeEncodeError as error:
        raise _bad_id(point_id, "it is not valid Unicode") from error


def unit_vector(vector: Any, dimension: int, label: str) -> Vector:
    """Return the vector as float32 of length 1: engines compare directions only.

    Args:
        vector: anything numpy can read as one row of numbers.
        dimension: how many numbers it must have.
        label: names the vector in the error.

    Raises:
        PermanentError: it is no sound vector, code bad_vector.
    """
    try:
        array = np.asarray(vector)
    except (TypeError, ValueError, RuntimeError) as error:
        raise _bad_vector(label, "not one row of numbers") from error
    if array.dtype.kind not in "fiu":
        raise _bad_vector(label, f"made of {array.dtype}, not of numbers")
    if array.ndim != 1:
        raise _bad_vector(label, f"an array of shape {array.shape}, not one row")
    if array.size != dimension:
        raise _bad_vector(label, f"{array.size} numbers long, not {dimension}")
    exact = array.astype(np.float64)
    broken = int(np.count_nonzero(~np.isfinite(exact)))
    if broken:
        raise _bad_vector(label, f"NaN or infinite in {broken} of {dimension} places")
    largest = float(np.max(np.abs(exact)))
    # Scaled first: the squares of float64's largest numbers would overflow.
    norm = largest * float(np.linalg.norm(exact / largest)) if largest else 0.0
    if norm <= MIN_NORM:
        raise _bad_vector(label, f"all but zero (length {norm:.1e})")
    if norm == float("inf"):
        raise _bad_vector(label, "too long to be measured")
    return (exact / norm).astype(np.float32)


def stored_point(point: Point, dimension: int) -> Point:
    """Return a caller's point as engines store it.

    Raises:
        PermanentError: its id, vector or payload can't be stored: bad_point_id, bad_vector,
            bad_payload.
    """
    point_id = legal_id(point.point_id)
    vector = unit_vector(point.vector, dimension, f"point {point.point_id}")
    try:
        # Through JSON and back, so that all engines keep and return the same thing.
        text = dump_json(point.payload).encode()
        payload = json.loads(text, parse_int=_stored_int)
        if not isinstance(payload, dict):
            raise TypeError("not an object")
        if ORIGINAL_ID in payload:
            raise ValueError(f"the name {ORIGINAL_ID} is ours")
    except (TypeError, ValueError, RecursionError) as error:
        raise PermanentError(
            f"the payload of point {point.point_id} is no JSON object: {error}", code="bad_payload"
        ) from error
    if isinstance(point_id, str) and point_id != str(point.point_id).lower():
        payload[ORIGINAL_ID] = point.point_id
    return Point(point_id, vector, payload)


def callers_point(stored: Point) -> Point:
    """Return a stored point under the id its caller gave it."""
    point_id, payload = _callers_id(stored.point_id, stored.payload)
    return Point(point_id, stored.vector, payload)


def callers_match(found: Match) -> Match:
    """Return a match under its caller's id, its score within what a cosine can be."""
    point_id, payload = _callers_id(found.point_id, found.payload)
    return Match(point_id, min(1.0, max(-1.0, found.score)), payload)


def _stored_int(digits: str) -> int:
    number = int(digits)
    if not -(2**63) <= number < 2**63:
        # One engine would turn it into a float, another refuse it.
        raise ValueError(f"{number} does not fit 64 bits")
    return number


def _callers_id(point_id: PointId, payload: JsonObject) -> tuple[PointId, JsonObject]:
    if ORIGINAL_ID not in payload:
        return point_id, payload
    rest = dict(payload)
    return rest.pop(ORIGINAL_ID), rest


def _bad_id(point_id: Any, why: str) -> PermanentError:
    return PermanentError(f"{point_id!r} can't be a point id: {why}", code="bad_point_id")


def _bad_vector(label: str, what: str) -> PermanentError:
    return PermanentError(f"the vector of {label} is {what}", code="bad_vector")
