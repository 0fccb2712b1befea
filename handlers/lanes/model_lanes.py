"""ModelLanes: the device lanes, and every model that was put on them, a copy on each."""

import asyncio
from contextlib import AsyncExitStack
from typing import Any

from daemon.settings import Settings
from handlers.inference import MLInference
from handlers.lanes.device import ModelRunner
from handlers.lanes.gpus import lane_devices
from handlers.lanes.lane import DeviceLane


class ModelLanes:
    """Opens the lanes, then models on them.

    Attributes:
        lanes: one for each GPU, or one.
        runners: every model, in the order in which they came.
        on_demand: names of models that no job needs: loaded at the first search that does.
    """

    def __init__(self, settings: Settings, stack: AsyncExitStack) -> None:
        """Take the settings of all models, and what closes lanes and models in the end."""
        self._settings = settings
        self._stack = stack
        self.lanes: list[DeviceLane] = []
        self.runners: list[ModelRunner[Any]] = []
        self.on_demand: set[str] = set()

    async def open(self) -> None:
        """Open a lane for each device that the settings mean.

        Raises:
            ConfigError: there is no such device.
        """
        for device in await asyncio.to_thread(lane_devices, self._settings.device):
            self.lanes.append(await self._stack.enter_async_context(DeviceLane(device)))

    def settings(self, **values: Any) -> list[Settings]:
        """Return the settings of each lane's copy, these groups replaced."""
        return [
            self._settings.model_copy(update={"device": lane.name, **values}) for lane in self.lanes
        ]

    async def put(
        self, name: str, *copies: MLInference[Any], max_batch: int = 1
    ) -> ModelRunner[Any]:
        """Put a model on the lanes; its weights are looked for when it is loaded.

        Args:
            name: of the model, for logs, health and metrics.
            copies: one for each lane, or for the first few.
            max_batch: most buffers in one pass.
        """
        (inference, lane), *others = zip(copies, self.lanes, strict=False)
        # Of several lanes each is told its GPU by name, which would not go to the CPU by itself.
        may_fall_back = lane.name != self._settings.device == "auto"
        runner: ModelRunner[Any] = ModelRunner(
            name,
            inference,
            lane,
            others=others,
            max_batch=max_batch,
            require_gpu=self._settings.require_gpu,
            may_fall_back=may_fall_back and not self._settings.require_gpu,
            retry_seconds=self._settings.device_retry_seconds,
            idle_seconds=self._settings.models_idle_seconds,
            self_test_seconds=self._settings.models_self_test_seconds,
        )
        await self._stack.enter_async_context(runner)
        self.runners.append(runner)
        return runner

    async def put_found(
        self, name: str, *copies: MLInference[Any], max_batch: int
    ) -> ModelRunner[Any]:
        """Do as `put`, and find the weights, without loading them.

        Raises:
            ConfigError: they are absent.
        """
        runner = await self.put(name, *copies, max_batch=max_batch)
        await runner.resolve()
        return runner
