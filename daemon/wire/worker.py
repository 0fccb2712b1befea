"""What a daemon says of itself on its retained topics: availability, info and stats."""

from typing import Annotated, Literal, TypeAlias

from pydantic import ConfigDict, Field
from pydantic.json_schema import SkipJsonSchema

from daemon.jobs import JsonObject, TaskType
from daemon.wire.results import Provenance
from daemon.wire.schema import CREATED, WORKER_ID, Count, Milliseconds, Uuid, WireModel, WorkerId

_HEAD: JsonObject = {"v": 1, "worker_id": WORKER_ID, "timestamp": CREATED}

ByTask: TypeAlias = Annotated[
    dict[TaskType, Count], Field(examples=[{"image_embedding": 12, "face_detection": 3}])
]


class Header(WireModel):
    """Who says so, and when."""

    v: Literal[1] = Field(description="Version of the payload.")
    worker_id: WorkerId = Field(description="The daemon's MQTT client id.")
    timestamp: Milliseconds = Field(description="When it was written.")


class Availability(Header):
    """Whether a daemon takes and does work; the last will says `offline` for it."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    **_HEAD,
                    "state": "online",
                    "reason": "started",
                    "session_id": "5f0c3a52-5f6d-4b0e-8b0e-3c1d4f6a7b8c",
                }
            ]
        }
    )

    state: Literal["online", "paused", "draining", "offline"] = Field(
        description="online; paused: it takes requests, but all that it works on is paused; "
        "draining: it ends what runs and takes nothing new; offline."
    )
    reason: Literal["started", "paused", "resumed", "shutdown", "connection_lost"] = Field(
        description="Why it is said; `connection_lost` is the last will."
    )
    paused: list[TaskType] | SkipJsonSchema[None] = Field(
        None, min_length=1, description="Task types that are paused; absent where none is."
    )
    paused_until: dict[TaskType, Milliseconds | None] | SkipJsonSchema[None] = Field(
        None, description="When each pause ends by itself; null where it does not."
    )
    session_id: Uuid = Field(description="Another one for each connection to the broker.")


class WakeUp(Header):
    """Jobs wait that this daemon cannot begin at once, or the intake roles changed hands."""

    model_config = ConfigDict(json_schema_extra={"examples": [_HEAD]})


class Shortage(WireModel):
    """A model makes do with less than was configured."""

    device: str = Field(description="Where it runs for now.")
    why: Literal["out_of_memory"]
    max_batch: int = Field(ge=1, description="How many pictures it takes at a time for now.")
    since: Milliseconds = Field(description="When that began.")
    retry_at: Milliseconds = Field(description="When more is tried again, at the earliest.")


class ModelCopy(WireModel):
    """One of several copies of a model, each on a GPU of its own."""

    lane: str = Field(description="The device that it is meant for.", examples=["cuda:1"])
    loaded: bool = Field(description="Whether it is in memory.")
    device: str | SkipJsonSchema[None] = Field(None, description="Where it really runs.")
    precision: str | SkipJsonSchema[None] = Field(None, description="In which it runs there.")
    runtime: str | SkipJsonSchema[None] = Field(
        None, description="What runs it where that was chosen at its load: OpenVINO 2026.4.1, say."
    )
    degraded: Shortage | SkipJsonSchema[None] = Field(None, description="Absent where all is well.")
    error: Literal["model_error"] | SkipJsonSchema[None] = Field(
        None, description="It fails: the other copies do its work. Absent where all is well."
    )


class LoadedModel(Provenance):
    """A model that is in memory."""

    loaded: Literal[True]
    degraded: Shortage | SkipJsonSchema[None] = Field(None, description="Absent where all is well.")
    on_demand: bool = Field(False, description="No job needs it: it is loaded at the first search.")
    copies: list[ModelCopy] | SkipJsonSchema[None] = Field(
        None, description="One for each GPU; absent where there is one copy only."
    )


class UnloadedModel(WireModel):
    """A model that is not in memory."""

    loaded: Literal[False]
    degraded: Shortage | SkipJsonSchema[None] = Field(None, description="Absent where all is well.")
    on_demand: bool = Field(False, description="No job needs it: it is loaded at the first search.")
    copies: list[ModelCopy] | SkipJsonSchema[None] = Field(
        None, description="One for each GPU; absent where there is one copy only."
    )


class ModelsUnknown(WireModel):
    """The models cannot be told of."""

    error: str = Field(description="A stable code; GET /health tells the operator more.")


class Limits(WireModel):
    """What a client may send, and how large a picture may be."""

    max_request_bytes: int = Field(ge=1, description="Bytes of one message.")
    max_batch: int = Field(ge=1, description="Requests in one message.")
    max_pixels: int = Field(ge=1, description="Pixels of a picture.")
    max_bytes: int = Field(ge=1, description="Bytes of a picture's file.")


class Info(Header):
    """What a daemon is; told at each connect, and when its models change."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    **_HEAD,
                    "version": "0.1.0",
                    "queue": "0f3c9a52e1b84d6f8a7b6c5d4e3f2a1b",
                    "stats_seconds": 10.0,
                    "task_types": ["image_embedding"],
                    "limits": {
                        "max_request_bytes": 1_048_576,
                        "max_batch": 1000,
                        "max_pixels": 120_000_000,
                        "max_bytes": 67_108_864,
                    },
                    "models": {
                        "clip": {
                            "loaded": True,
                            "model": "ViT-B-32-quickgelu",
                            "weights": "openai",
                            "device": "cpu",
                            "precision": "fp32",
                        }
                    },
                }
            ]
        }
    )

    version: str = Field(description="Of the daemon.")
    queue: str = Field(
        max_length=64, description="Names the queue; daemons that share one tell the same."
    )
    stats_seconds: float = Field(ge=0, description="How often stats come; 0: never.")
    task_types: list[TaskType] = Field(description="What this daemon does.")
    limits: Limits
    models: dict[str, LoadedModel | UnloadedModel] | ModelsUnknown = Field(
        description="By name: what really runs."
    )


class ModelChangeProgress(WireModel):
    """How far a change of a collection's model is; it is searched by the former one until then."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "collection": "image_embeddings",
                    "from_model": "ViT-B-32-quickgelu (openai)",
                    "to_model": "ViT-L-14-quickgelu (openai)",
                    "done": 4100,
                    "total": 10_000,
                    "failed": 0,
                    "allow_failed": 0,
                    "passes": 1,
                    "seconds_left": 310,
                    "began_at": CREATED,
                    "waits": None,
                }
            ]
        }
    )

    collection: str = Field(description="Its fixed name.")
    from_model: str = Field(description="What is searched.")
    to_model: str = Field(description="What is embedded by.")
    done: Count = Field(description="Pictures that are there, as far as this pass came.")
    total: Count = Field(description="Pictures of the collection when the pass began.")
    failed: Count = Field(description="Pictures that cannot be embedded.")
    allow_failed: Count = Field(description="How many of these the change may do without.")
    passes: Count = Field(description="Looks at all pictures so far; the last finds nothing to do.")
    seconds_left: Count | None = Field(description="At the rate of late; null: nobody knows.")
    began_at: Milliseconds | None
    waits: str | None = Field(description="The code of what it waits for; null: it goes on.")


class Stats(Header):
    """How busy a daemon is; the queue's numbers count for all daemons on one queue."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    **_HEAD,
                    "pending": 3,
                    "delayed": 1,
                    "processing": 2,
                    "outbox": 0,
                    "oldest_pending_ms": 1500,
                    "done": {"image_embedding": 12},
                    "failed": {"image_embedding": 0},
                    "images_per_second": 7.25,
                    "reconnects": 0,
                }
            ]
        }
    )

    pending: Count = Field(description="Jobs that wait, delayed ones included.")
    delayed: Count = Field(description="Jobs that wait for their next try.")
    processing: Count = Field(description="Jobs that a worker holds.")
    outbox: Count = Field(description="Events the broker has not confirmed.")
    oldest_pending_ms: Count = Field(description="Age of the longest waiting job; 0 if none waits.")
    done: ByTask = Field(description="Jobs completed since the daemon started, by task type.")
    failed: ByTask = Field(description="Jobs that ended otherwise, by task type.")
    images_per_second: float = Field(ge=0, description="Completed jobs, over the last minute.")
    reconnects: Count = Field(description="Connections to the broker after the first.")
    model_change: ModelChangeProgress | SkipJsonSchema[None] = Field(
        None, description="Absent where no change of the pictures' model is under way."
    )
    face_model_change: ModelChangeProgress | SkipJsonSchema[None] = Field(
        None, description="The same of the faces' model."
    )
