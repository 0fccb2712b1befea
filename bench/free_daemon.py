"""`python -m bench.free_daemon`: the real daemon, over handlers whose work costs nothing.

What is left is the machinery: intake, queue, leases, events, outbox. Configured as inferd is.
"""

import asyncio
import os
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

from daemon import app
from daemon.jobs import Job, JsonObject, TaskType
from daemon.logs import set_up_logging
from daemon.settings import Settings
from handlers.handler_set import HandlerSet
from handlers.task_types import configured_task_types
from handlers.timings import Timings

DIMENSION = 512


class FreeHandler:
    """Tells the stages of an image embedding and returns a result of its shape, at once."""

    delivers = False

    def __init__(self, task_type: TaskType) -> None:
        self.task_type = task_type

    async def handle(self, job: Job, report: Callable[[str], None]) -> JsonObject:
        """Return the result."""
        timings = Timings(report)
        for stage in ("fetch", "decode", "infer", "store"):
            with timings.stage(stage):
                pass
        return {
            "embedding_dimension": DIMENSION,
            "stored_in_vector_db": True,
            "collection": "image_embeddings",
            "point_id": job.media_store_id,
            "image": {"width": 4000, "height": 3000},
            "inference": {
                "model": "ViT-B-32",
                "weights": "UNTRAINED",
                "device": "cpu",
                "precision": "fp32",
                "timings_ms": timings.to_wire(),
            },
        }

    async def deliver(self, job: Job, result: JsonObject) -> None:
        """Do nothing."""


@asynccontextmanager
async def open_free(settings: Settings) -> AsyncIterator[HandlerSet]:
    """Give the handlers of the task types that are configured."""
    handlers: list[Any] = [FreeHandler(task_type) for task_type in configured_task_types(settings)]
    yield HandlerSet(handlers=handlers)


def main() -> None:
    """Serve until SIGTERM."""
    settings = Settings.from_env(os.environ)
    set_up_logging(settings.log)
    # The daemon has no switch for this, and should have none.
    vars(app)["open_handlers"] = open_free
    asyncio.run(app.run(settings))


if __name__ == "__main__":
    main()
