"""What must be true once everything has ended, however often the daemon died."""

import asyncio
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np

from daemon.jobs import JsonObject
from handlers.inference import Vector
from handlers.qdrant.qdrant_edge import EdgeEngine
from handlers.qdrant.vector_engine import CollectionSpec, Point, PointId
from handlers.qdrant.vector_points import face_point_id
from tests.crash.queues import Queue
from tests.crash.recorder import TERMINAL, Heard
from tests.crash.stand_ins import DIMENSION, colour_of, vector_of

Row: TypeAlias = Mapping[str, Any]
"""Of the queue's jobs, by column."""

MOST_ATTEMPTS = 4
CLOSE_ENOUGH = 1e-5


@dataclass
class Expected:
    """What must become of one request."""

    job_id: str
    task_type: str
    media_id: int
    status: str
    """The last thing that is said of it: a terminal status, or `rejected`."""
    codes: frozenset[str] = frozenset()
    """What its error may be; empty where it must not fail."""
    has_row: bool = True
    faces: int = 0
    first_seq: int = 1
    """Of the first event that we could hear."""

    def becomes(self, status: str, codes: set[str], *, has_row: bool) -> None:
        """Expect something else from now on, since it was replaced or forgotten."""
        self.status, self.codes, self.has_row = status, frozenset(codes), has_row


@dataclass
class Verdict:
    """What was found; all is well where nothing is."""

    lost: list[str] = field(default_factory=list)
    """Acknowledged requests, events or vectors that are not there."""
    extra: list[str] = field(default_factory=list)
    """Rows, events or vectors that nobody asked for."""
    wrong: list[str] = field(default_factory=list)
    """Ends, attempts, orders or files that are not as they must be."""
    jobs: int = 0
    doubles: int = 0
    """Events that came again with their event_id, which is allowed."""

    @property
    def faults(self) -> list[str]:
        """Everything that is wrong, said with its kind."""
        return [
            f"{kind}: {what}"
            for kind, found in (("lost", self.lost), ("extra", self.extra), ("wrong", self.wrong))
            for what in found
        ]


def judge(
    expected: Sequence[Expected],
    heard: Heard,
    *,
    queue: Queue,
    vectors: Iterable[Path],
    delivered: Sequence[tuple[int, str]],
    is_one_sender: bool = True,
) -> Verdict:
    """Hold what is left to the promises; the daemons must have stopped.

    Args:
        expected: every request that was made.
        heard: every event that was received.
        queue: its jobs and events.
        vectors: folders of embedded engines; together they must hold what is expected.
        delivered: picture and job_id of the face results that the media store took.
        is_one_sender: one daemon at a time, so that events of a job come in their order.
    """
    verdict = Verdict(jobs=sum(each.status != "rejected" for each in expected))
    verdict.doubles = heard.doubles
    verdict.wrong += [f"the queue's database: {what}" for what in queue.damage()]
    verdict.lost += [f"event {topic} is still in the outbox" for topic in queue.unsent()]
    rows = queue.jobs()
    check_rows(expected, rows, verdict)
    for each in expected:
        _check_events(
            each, heard.events.get(each.job_id, []), rows, verdict, in_order=is_one_sender
        )
    strangers = heard.events.keys() - {each.job_id for each in expected}
    verdict.extra += [f"events of job {job_id}, which nobody asked for" for job_id in strangers]
    check_delivered(expected, delivered, verdict)
    check_vectors(expected, [point for folder in vectors for point in points(folder)], verdict)
    return verdict


def check_rows(expected: Sequence[Expected], rows: Mapping[str, Row], verdict: Verdict) -> None:
    """Hold the queue's rows, by job_id, to what was asked for."""
    wanted = {each.job_id: each for each in expected if each.has_row}
    verdict.lost += [f"there is no row of {wanted[each]}" for each in wanted.keys() - rows.keys()]
    verdict.extra += [f"row of {dict(rows[each])}" for each in rows.keys() - wanted.keys()]
    for job_id in wanted.keys() & rows.keys():
        row, each = rows[job_id], wanted[job_id]
        if row["status"] not in TERMINAL:
            verdict.lost.append(f"job {job_id} never ended: {row['status']}")
        elif row["status"] != each.status:
            verdict.wrong.append(f"{each} ended in {row['status']}: {row['error_message']}")
        elif (row["error_code"] or "") not in (each.codes or {""}):
            verdict.wrong.append(f"{each} failed with {row['error_message']}")
        if row["attempt"] > MOST_ATTEMPTS:
            verdict.wrong.append(f"{each} had {row['attempt']} attempts")


def _check_events(
    each: Expected,
    events: Sequence[JsonObject],
    rows: Mapping[str, Row],
    verdict: Verdict,
    *,
    in_order: bool,
) -> None:
    by_id: dict[str, JsonObject] = {}
    for event in events:
        known = by_id.setdefault(event["event_id"], event)
        if (known["seq"], known["event"], known["status"]) != (
            event["seq"],
            event["event"],
            event["status"],
        ):
            verdict.wrong.append(f"one event_id, two events: {known} {event}")
    first = list(by_id.values())
    if each.status == "rejected":
        codes = [event["data"]["code"] for event in first if event["event"] == "job_rejected"]
        if not codes or not set(codes) <= each.codes:
            verdict.lost.append(f"{each} was to be rejected, heard {codes}")
        return
    # A request that comes again may be told of a conflict with what took its place.
    first = [event for event in first if event["event"] != "job_rejected"]
    numbers = [event["seq"] for event in first]
    twice = [number for number, count in Counter(numbers).items() if count > 1]
    if twice:
        verdict.extra.append(f"{each}: two events for each seq of {twice}")
    if in_order and numbers != sorted(numbers):
        verdict.wrong.append(f"{each}: events came in the order {numbers}")
    last = rows[each.job_id]["seq"] if each.job_id in rows else max(numbers, default=0)
    missing = set(range(each.first_seq, last + 1)) - set(numbers)
    if missing or not numbers:
        verdict.lost.append(f"{each}: events {sorted(missing)} of {last} were never sent")
    if numbers and max(numbers) > last:
        verdict.extra.append(f"{each}: event {max(numbers)}, where the row knows {last}")
    ends = [event for event in first if event["event"] == "job_completed"]
    end = max(ends, key=lambda event: event["seq"], default=None)
    if end is None or end["status"] != each.status:
        verdict.lost.append(f"{each}: no event told of its end, the latest was {end}")
    elif (end["data"]["error_message"] or "").partition(":")[0] not in (each.codes or {""}):
        verdict.wrong.append(f"{each} said {end['data']['error_message']}")


def check_delivered(
    expected: Sequence[Expected], delivered: Sequence[tuple[int, str]], verdict: Verdict
) -> None:
    """Hold what the media store took to what was asked for."""
    wanted = {
        (each.media_id, each.job_id)
        for each in expected
        if each.task_type == "face_detection" and each.status == "completed"
    }
    verdict.lost += [f"face results of {each}" for each in wanted - set(delivered)]
    verdict.extra += [f"face results of {each}" for each in set(delivered) - wanted]


def check_vectors(
    expected: Sequence[Expected], stored: Sequence[tuple[str, Point]], verdict: Verdict
) -> None:
    """Hold the stored points, with their collection's name, to what was asked for."""
    wanted = _wanted_vectors(expected)
    found = {(collection, point.point_id): point for collection, point in stored}
    for collection, point in stored:
        twin = found[collection, point.point_id]
        if not np.allclose(twin.vector, point.vector, atol=CLOSE_ENOUGH):
            verdict.wrong.append(f"two daemons stored two vectors as {point.point_id}")
    verdict.lost += [f"vector {each}" for each in wanted.keys() - found.keys()]
    verdict.extra += [f"vector {each}" for each in found.keys() - wanted.keys()]
    for key in wanted.keys() & found.keys():
        vector, job_id = wanted[key]
        if not np.allclose(found[key].vector, vector, atol=CLOSE_ENOUGH):
            verdict.wrong.append(f"vector {key} is not that of its picture")
        if found[key].payload.get("job_id") != job_id:
            verdict.wrong.append(f"vector {key} says {found[key].payload}, not {job_id}")


def _wanted_vectors(
    expected: Sequence[Expected],
) -> dict[tuple[str, PointId], tuple[Vector, str]]:
    wanted: dict[tuple[str, PointId], tuple[Vector, str]] = {}
    for each in expected:
        if each.status != "completed" or not each.has_row:
            continue
        colour = colour_of(each.media_id, each.faces)
        if each.task_type == "image_embedding":
            wanted["image_embeddings", each.media_id] = vector_of(colour), each.job_id
        elif each.task_type == "face_embedding":
            for index in range(each.faces):
                key = "face_embeddings", face_point_id(each.media_id, index)
                wanted[key] = vector_of(colour, index), each.job_id
    return wanted


def points(folder: Path) -> list[tuple[str, Point]]:
    """Return everything in an embedded engine's folder, with its collection's name."""

    async def read() -> list[tuple[str, Point]]:
        found: list[tuple[str, Point]] = []
        engine = EdgeEngine(folder)
        await engine.open()
        try:
            for name in ("image_embeddings", "face_embeddings"):
                await engine.ensure_collection(CollectionSpec(name, DIMENSION))
                start: Any = None
                while True:
                    page = await engine.scroll(name, from_id=start)
                    found += [(name, point) for point in page.points]
                    start = page.next_id
                    if start is None:
                        break
        finally:
            await engine.close()
        return found

    return asyncio.run(read())
