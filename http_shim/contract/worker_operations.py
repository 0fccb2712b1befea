"""The operation on the daemons, described."""

from typing import Literal

from pydantic import Field

from daemon.jobs import TaskType
from daemon.wire.schema import CREATED, WORKER_ID, Count, Milliseconds, WireModel
from http_shim.contract.operations import Answer, Operation


class WorkerEntry(WireModel):
    """One daemon, by what it says of itself at the broker."""

    worker_id: str = Field(description="Its MQTT client id.")
    is_self: bool = Field(description="Whether it is the daemon that answers.")
    state: Literal["online", "paused", "draining", "offline"]
    reason: str = Field(
        description="Its own word for it; `silent`: it says nothing any more, though it never left;"
        " `unknown`: it never said.",
        examples=["started", "connection_lost", "silent"],
    )
    since: Milliseconds | None = Field(description="When it said so, by its own clock.")
    version: str | None
    task_types: list[TaskType] = Field(description="What it works on.")
    paused: list[TaskType]
    devices: list[str] = Field(description="Where its loaded models run.", examples=[["cuda:0"]])
    shares_queue: bool | None = Field(
        description="Whether it works on the same queue; null where it does not tell."
    )
    images_per_second: float | None = Field(
        ge=0, description="Jobs it completed, over the last minute; null where it is away."
    )
    done: dict[TaskType, Count] = Field(description="Jobs it completed since its start.")
    failed: dict[TaskType, Count] = Field(description="Jobs that ended otherwise.")


class WorkersReport(WireModel):
    """All daemons at the broker, and what the living do together."""

    workers: list[WorkerEntry] = Field(description="In the order of their names.")
    living: Count = Field(description="How many are not offline.")
    images_per_second: float = Field(ge=0, description="The sum over the living.")


WORKER_OPERATIONS = (
    Operation(
        method="get",
        path="/workers",
        name="showWorkers",
        tag="queue",
        summary="Show all daemons at the broker.",
        text="As they tell it on their retained topics. One that died for good and left no last "
        "will is `offline`, `silent` once it has missed three of its stats.",
        access="token",
        answers={
            200: Answer(
                text="The daemons.",
                model=WorkersReport,
                example={
                    "workers": [
                        {
                            "worker_id": WORKER_ID,
                            "is_self": True,
                            "state": "online",
                            "reason": "started",
                            "since": CREATED,
                            "version": "0.1.0",
                            "task_types": ["image_embedding"],
                            "paused": [],
                            "devices": ["cuda:0"],
                            "shares_queue": True,
                            "images_per_second": 7.25,
                            "done": {"image_embedding": 12},
                            "failed": {"image_embedding": 0},
                        }
                    ],
                    "living": 1,
                    "images_per_second": 7.25,
                },
            )
        },
    ),
)
