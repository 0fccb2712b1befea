"""The table of fault points: where a daemon may be killed, and what brings it there."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from enum import IntEnum
from typing import Any, Literal, TypeAlias

When: TypeAlias = Literal["before", "after"]
Match: TypeAlias = Callable[[Mapping[str, Any]], bool]
"""Whether a call counts, by its arguments' names."""


class Phase(IntEnum):
    """When in the script a point is reached; a later phase comes later."""

    START = 0
    PAUSE = 1
    INTAKE = 2
    WORK = 3
    HELD = 4
    STOP = 5
    CANCEL = 6
    RESUME = 7
    FACES = 8
    LATE = 9


@dataclass(frozen=True, slots=True, kw_only=True)
class Statement:
    """A statement of the queue is executed, inside its transaction."""

    name: str
    when: When


@dataclass(frozen=True, slots=True, kw_only=True)
class Commit:
    """A transaction that executed all of these statements is committed."""

    names: frozenset[str]
    when: When


@dataclass(frozen=True, slots=True, kw_only=True)
class Call:
    """A function is called, or has returned; `after` does not count calls that raise."""

    target: str
    """module:Class.method"""
    when: When
    match: Match | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Point:
    """One place where a daemon may be killed."""

    name: str
    phase: Phase
    place: Statement | Commit | Call
    needs_dead: bool = False
    """Only reached where a process died before, with jobs in its hands."""


def _all() -> Iterator[Point]:
    yield from _transactions()
    yield from _start_and_intake()
    yield from _work()
    yield from _events()
    yield from _by_hand()
    yield from _left_behind()
    yield from _stop()


def _transactions() -> Iterator[Point]:
    yield from _transaction(Phase.START, "PRUNE")
    yield from _transaction(Phase.PAUSE, "PAUSE")
    for name in ("INSERT", "SUPERSEDE_SYNC", "COUNT_EVENTS", "DROP"):
        yield from _transaction(Phase.INTAKE, name, "ANNOUNCE")
    yield from _transaction(Phase.WORK, "PROMOTE", "LEASE")
    yield from _transaction(Phase.WORK, "LEASE", "ANNOUNCE")
    yield from _transaction(Phase.WORK, "SETTLE", "ANNOUNCE")
    yield from _transaction(Phase.WORK, "outbox.CONFIRM")
    yield from _transaction(Phase.WORK, "FIND_EXPIRED", "SETTLE")
    yield from _transaction(
        Phase.WORK, "HASTEN_JOBS", "SHORTEN_LEASES", "HASTEN_SYNCS", "HASTEN_EVENTS"
    )
    yield from _transaction(Phase.HELD, "RENEW")
    yield from _transaction(Phase.CANCEL, "CANCEL", "ANNOUNCE")
    yield from _transaction(Phase.RESUME, "RESUME")
    for name in ("HEAL", "REQUEUE", "REQUEUE_ALL", "FORGET_ALL"):
        yield from _transaction(Phase.LATE, name, "ANNOUNCE")
    for name in ("CLAIM_SYNC", "DELAY_SYNC", "FORGET"):
        yield from _transaction(Phase.LATE, name)


def _start_and_intake() -> Iterator[Point]:
    yield from _around(
        Phase.START, "a new collection is moved in place", "pathlib:Path.rename", _is_begun
    )
    yield from _around(
        Phase.START,
        "a collection is claimed",
        "handlers.vectors.model_record:Records.write_claim",
    )
    yield from _around(Phase.START, "models are loaded", "handlers.handler_set:HandlerSet.preload")
    yield from _around(Phase.INTAKE, "a message is taken", "daemon.intake:Intake.on_request")
    yield from _around(
        Phase.INTAKE,
        "a message is acknowledged",
        "gmqtt.mqtt.handler:MqttPackageHandler._send_puback",
    )
    yield from _around(Phase.INTAKE, "a REST request is taken", "daemon.intake:Intake.submit")


def _work() -> Iterator[Point]:
    store = "handlers.media.media_store:MediaStoreClient"
    yield from _around(Phase.WORK, "a picture is fetched", f"{store}.fetch")
    yield Point(
        name="amid the fetch of a picture",
        phase=Phase.WORK,
        place=Call(target="handlers.media.media_store:read_file", when="before"),
    )
    yield from _around(
        Phase.WORK, "a picture is decoded", "handlers.media.decoder_pool:DecoderProcess.decode"
    )
    yield from _around(
        Phase.WORK, "a model has run", "handlers.lanes.device:ModelRunner.infer_and_tell"
    )
    yield from _around(
        Phase.WORK,
        "a picture's vector is stored",
        "handlers.qdrant.qdrant_edge:EdgeEngine.upsert",
        _into("image_embeddings"),
    )
    yield from _around(Phase.WORK, "a job is completed", "daemon.queue.job_queue:JobQueue.complete")
    yield from _around(Phase.WORK, "face results are delivered", f"{store}.post_face_results")
    yield from _around(Phase.WORK, "a job is put back", "daemon.queue.job_queue:JobQueue.retry")
    yield from _around(
        Phase.WORK, "an undelivered result is kept", "daemon.queue.job_queue:JobQueue.keep"
    )
    yield from _around(Phase.WORK, "a job is buried", "daemon.queue.job_queue:JobQueue.bury")
    yield Point(
        name="between the chunks of an upsert",
        phase=Phase.FACES,
        place=Call(
            target="handlers.qdrant.qdrant_edge:EdgeEngine.upsert",
            when="after",
            match=_into("face_embeddings"),
        ),
    )
    yield from _around(
        Phase.FACES,
        "faces of a former run are removed",
        "handlers.qdrant.qdrant_edge:EdgeEngine.delete_where",
        _into("face_embeddings"),
    )
    yield from _around(
        Phase.LATE, "a result is given up for now", "daemon.queue.job_queue:JobQueue.give_up_sync"
    )
    yield from _around(
        Phase.LATE,
        "vectors of a job are forgotten",
        "handlers.handler_set:HandlerSet.forget_vectors",
    )


def _events() -> Iterator[Point]:
    yield Point(
        name="before an event is published",
        phase=Phase.WORK,
        place=Call(target="daemon.mqtt.link:MqttLink.publish_all", when="before", match=_has_event),
    )
    yield Point(
        name="after an event is sent, before its PUBACK",
        phase=Phase.WORK,
        place=Call(target="gmqtt.client:Client.publish", when="after", match=_is_sent_event),
    )
    yield Point(
        name="after an event's PUBACK, before it is ticked off",
        phase=Phase.WORK,
        place=Call(target="daemon.mqtt.link:MqttLink.publish_all", when="after", match=_has_event),
    )


def _by_hand() -> Iterator[Point]:
    yield from _around(
        Phase.CANCEL, "a cancel is taken", "daemon.worker.cancellation:Cancellation.on_cancel"
    )
    yield from _around(
        Phase.CANCEL, "a running job is cancelled", "daemon.worker.worker:Worker.cancel"
    )


def _left_behind() -> Iterator[Point]:
    for point in (
        *_transaction(Phase.WORK, "ADOPT_DELAYED", "ADOPT"),
        *_transaction(Phase.WORK, "FIND_HELD_BY", "SETTLE"),
        *_transaction(Phase.WORK, "LEASE_SUSPECT", "ANNOUNCE"),
        *_around(
            Phase.WORK,
            "what the dead left is taken back",
            "daemon.queue.job_queue:JobQueue.reclaim_dead",
        ),
    ):
        yield Point(name=point.name, phase=point.phase, place=point.place, needs_dead=True)


def _stop() -> Iterator[Point]:
    for what, target in (
        ("the broker is told of the stop", "daemon.mqtt.link:MqttLink.drain"),
        ("the worker drains", "daemon.worker.worker:Worker.drain"),
        ("a running job is given back", "daemon.queue.job_queue:JobQueue.release"),
        ("the last events are sent", "daemon.outbox:Outbox.flush"),
        ("the link says goodbye", "daemon.mqtt.link:disconnect"),
        ("the vectors are closed", "handlers.qdrant.qdrant_edge:EdgeEngine.close"),
        ("the queue is closed", "daemon.queue.job_queue:JobQueue.__aexit__"),
        ("the database is closed", "daemon.queue.database:Database.close"),
    ):
        yield from _around(Phase.STOP, what, target)


def _transaction(phase: Phase, *names: str) -> Iterator[Point]:
    """Give the points of a transaction: after its first statement, and around its commit."""
    told = names[0] if names[1:] in ((), ("ANNOUNCE",)) else f"{names[0]} with {names[1]}"
    # The statement alone does not tell one transaction from another that begins the same.
    inside = names[-1] if len(names) > 1 and names[-1] != "ANNOUNCE" else names[0]
    if inside == names[0] and names[0] != "LEASE":
        yield Point(
            name=f"inside the transaction of {told}",
            phase=phase,
            place=Statement(name=inside, when="after"),
        )
    both: tuple[When, When] = ("before", "after")
    for when in both:
        yield Point(
            name=f"{when} the commit of {told}",
            phase=phase,
            place=Commit(names=frozenset(names), when=when),
        )


def _around(phase: Phase, what: str, target: str, match: Match | None = None) -> Iterator[Point]:
    both: tuple[When, When] = ("before", "after")
    for when in both:
        yield Point(
            name=f"{when} {what}",
            phase=phase,
            place=Call(target=target, when=when, match=match),
        )


def _is_begun(arguments: Mapping[str, Any]) -> bool:
    return str(arguments["self"]).endswith(".begun")


def _into(collection: str) -> Match:
    return lambda arguments: bool(arguments["collection"] == collection)


def _has_event(arguments: Mapping[str, Any]) -> bool:
    return any(each.topic.startswith("inference/job/") for each in arguments["messages"])


def _is_sent_event(arguments: Mapping[str, Any]) -> bool:
    topic = str(arguments["message_or_topic"])
    return topic.startswith("inference/job/") and arguments.get("qos") == 1


POINTS: dict[str, Point] = {point.name: point for point in _all()}
