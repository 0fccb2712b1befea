"""What must hold after every fault, whatever it was; one function for all cases."""

import asyncio
import sqlite3
from collections import defaultdict
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from handlers.inference import Vector
from handlers.qdrant.vector_engine import CollectionSpec, VectorEngine
from handlers.qdrant.vector_points import face_point_id, legal_id
from handlers.vectors.engine_choice import embedded_engine
from tests.broker import Message
from tests.faults.rig import Promise
from tests.faults.stand_ins import colour, vector_of

TERMINAL = {"completed", "error", "sync_failed"}
MOST_ATTEMPTS = 4

Points = dict[str, dict[int | str, Vector]]
"""By collection, by point id."""


def check_all(
    data: Path,
    promises: Mapping[str, Promise],
    messages: Iterable[Message],
    points: Points | None = None,
    *,
    lossy: bool = False,
) -> None:
    """Hold a stopped daemon to everything that it promises.

    Args:
        data: its data folder.
        promises: all that it was asked, by job_id.
        messages: all that a client heard.
        points: what the vector database holds; read from the folder where none are given.
        lossy: the broker was killed, which may have cost events that it had confirmed; the
            answer to a repeated request tells the end as well.
    """
    rows = check_rows(data / "queue.db", promises)
    check_events(rows, messages, lossy=lossy)
    check_points(asyncio.run(stored(data / "vectors")) if points is None else points, promises)


def check_rows(file: Path, promises: Mapping[str, Promise]) -> dict[str, dict[str, Any]]:
    """Hold the queue's file to its promises; return its jobs by job_id."""
    with sqlite3.connect(file) as connection:
        connection.row_factory = sqlite3.Row
        found = [dict(row) for row in connection.execute("SELECT * FROM jobs")]
        unsent = connection.execute("SELECT topic FROM outbox").fetchall()
        (verdict,) = connection.execute("PRAGMA integrity_check").fetchone()
    connection.close()
    rows = {row["job_id"]: row for row in found}
    assert verdict == "ok"
    assert len(rows) == len(found), "a job_id has two rows"
    assert rows.keys() == promises.keys(), "requests were lost, or jobs nobody asked for"
    assert not unsent, f"{len(unsent)} events were not sent: {[row[0] for row in unsent[:5]]}"
    for job_id, row in rows.items():
        told = {name: row[name] for name in ("status", "error_message", "attempt", "lost")}
        assert row["status"] in TERMINAL, told
        assert row["attempt"] <= MOST_ATTEMPTS, told
        code = promises[job_id].code
        if code is None:
            assert row["status"] == "completed", f"an innocent ended so: {told}"
        else:
            assert row["error_code"] == code, told
    return rows


def check_events(
    rows: Mapping[str, Mapping[str, Any]], messages: Iterable[Message], *, lossy: bool = False
) -> None:
    """Hold what was told to the rows: an end each, `seq` rising, doubles only of one event_id."""
    heard: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for message in messages:
        if message.topic.startswith("inference/job/") and message.event != "progress":
            event = message.json()
            if event["event"] != "job_rejected":
                heard[event["job_id"]].append(event)
    for job_id, row in rows.items():
        ends = [
            each
            for each in heard[job_id]
            if each["event"] == "job_completed" or (lossy and each["status"] in TERMINAL)
        ]
        assert ends, f"nobody was told of the end of {job_id}"
        assert max(ends, key=lambda each: each["seq"])["status"] == row["status"]
        by_seq: dict[int, str] = {}
        for event in heard[job_id]:
            first = by_seq.setdefault(event["seq"], event["event_id"])
            assert first == event["event_id"], f"two events of {job_id} with seq {event['seq']}"
        # Two daemons that share a queue each send their own events, over a connection each.
        for worker_id in {event["worker_id"] for event in heard[job_id]}:
            said = [each["seq"] for each in heard[job_id] if each["worker_id"] == worker_id]
            order = list(dict.fromkeys(said))
            assert order == sorted(order), f"seq of {job_id} does not rise: {order}"


def check_points(points: Points, promises: Mapping[str, Promise]) -> None:
    """Hold the vectors to what completed: exactly these ids, exactly these vectors."""
    images: dict[int | str, Vector] = {
        each.media_id: vector_of(_pixels(each))
        for each in promises.values()
        if each.task == "image_embedding" and each.code is None
    }
    faces: dict[int | str, Vector] = {
        legal_id(face_point_id(each.media_id, index)): vector_of(_face(each))
        for each in promises.values()
        if each.task == "face_embedding" and each.code is None
        for index in range(each.faces)
    }
    for name, expected in (("image_embeddings", images), ("face_embeddings", faces)):
        found = points.get(name, {})
        assert found.keys() == expected.keys(), f"{name}: {found.keys() ^ expected.keys()}"
        for point_id, vector in found.items():
            assert float(np.dot(vector, expected[point_id])) > 0.999, f"{name}: {point_id}"


async def stored(folder: Path) -> Points:
    """Return all points of an embedded engine whose daemon has stopped."""
    shared = embedded_engine(folder)
    engine = await shared.open()
    try:
        return {
            name: await _scrolled(engine, name) for name in ("image_embeddings", "face_embeddings")
        }
    finally:
        await shared.close()


async def _scrolled(engine: VectorEngine, name: str) -> dict[int | str, Vector]:
    await engine.ensure_collection(CollectionSpec(name, 512))
    page = await engine.scroll(name)
    points = list(page.points)
    while page.next_id is not None:
        page = await engine.scroll(name, from_id=page.next_id)
        points += page.points
    return {point.point_id: point.vector for point in points}


def _pixels(promise: Promise) -> Any:
    return np.full((3, 3, 3), colour(promise.media_id, promise.faces), np.uint8)


def _face(promise: Promise) -> Any:
    return _pixels(promise)
