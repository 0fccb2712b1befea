"""A handler that is measured: how long each stage of its jobs took goes to the metrics."""

import asyncio
import time
from collections.abc import Callable, Mapping
from typing import Any

from daemon.handler import Handler, Report
from daemon.jobs import Job, JsonObject
from daemon.metrics import Metrics


class MeteredHandler:
    """A handler, and how long its stages took.

    A job that went well says so itself (`timings_ms`); of one that failed the reports tell which
    stages began, and the last of them is the one that it failed in.
    """

    def __init__(
        self, handler: Handler, metrics: Metrics, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._handler = handler
        self._metrics = metrics
        self._clock = clock
        self.task_type = handler.task_type
        self.delivers = handler.delivers

    async def handle(self, job: Job, report: Report) -> JsonObject:
        """Do as the handler does."""
        began: list[tuple[str, float]] = []

        def note(stage: str) -> None:
            began.append((stage, self._clock()))
            report(stage)

        try:
            result = await self._handler.handle(job, note)
        except Exception:
            # Whatever it is, the worker judges it: here only the stage's time is noted.
            self._note_reported(began)
            raise
        except asyncio.CancelledError:
            # Stopped or timed out from outside: what it was busy with took at least so long.
            self._note_reported(began)
            raise
        for stage, milliseconds in _timings(result).items():
            self._metrics.stage_took(self.task_type, stage, milliseconds / 1000)
        return result

    async def deliver(self, job: Job, result: JsonObject) -> None:
        """Do as the handler does."""
        began = self._clock()
        try:
            await self._handler.deliver(job, result)
        finally:
            self._metrics.stage_took(self.task_type, "deliver", self._clock() - began)

    def _note_reported(self, began: list[tuple[str, float]]) -> None:
        ends = [moment for _, moment in began[1:]] + [self._clock()]
        for (stage, moment), end in zip(began, ends, strict=True):
            self._metrics.stage_took(self.task_type, stage, end - moment)


def _timings(result: JsonObject) -> Mapping[str, float]:
    inference: Any = result.get("inference")
    timings = inference.get("timings_ms") if isinstance(inference, dict) else None
    return timings if isinstance(timings, dict) else {}
