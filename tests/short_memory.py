"""A model on devices with little memory: takes what its batches take, and fails as torch does."""

from collections.abc import Callable, Sequence
from contextvars import copy_context
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from daemon.errors import ConfigError
from handlers.inference import MLInference, Provenance
from handlers.lanes.memory import memory_watched
from handlers.lanes.memory_ladder import Item, MemoryLadder

GPU = "cuda:0"
WEIGHTS = 10
PLENTY = 1_000
BREAKS = -1
"""The number that the model cannot bear, however much memory there is."""


class Memory:
    """How much room each device has, for one model or for several."""

    def __init__(self, *, gpu: int = PLENTY, cpu: int = PLENTY, **others: int) -> None:
        self.room = {GPU: gpu, "cpu": cpu, **others}
        self.used = dict.fromkeys(self.room, 0)

    def take(self, device: str, size: int) -> None:
        if self.used[device] + size > self.room[device]:
            words = f"CUDA out of memory. Tried to allocate {size} B."
            raise MemoryError if device == "cpu" else torch.OutOfMemoryError(words)
        self.used[device] += size

    def give(self, device: str, size: int) -> None:
        self.used[device] -= size


class ShortModel(MLInference[int]):
    """Gives each buffer's first number; the second says how much memory it takes."""

    def __init__(self, memory: Memory, *, device: str = GPU, kept: int = 0) -> None:
        self.memory = memory
        self.device = device
        self.kept = dict.fromkeys(memory.room, 0)
        """What it keeps only to be faster."""
        self._keeps = kept
        self._on: str | None = None
        self._ran_on = device
        self.sizes: list[int] = []
        """Of every batch that was tried."""
        self.when_freed: Callable[[], None] = lambda: None
        self.loads = 0
        self.absent: set[str] = set()
        """Devices that do not work at all."""

    def resolve(self) -> None: ...

    @property
    def fingerprint(self) -> str:
        return "short"

    @property
    def provenance(self) -> Provenance:
        return Provenance(model="m", weights="w", device=self._ran_on, precision="fp32")

    @property
    def is_loaded(self) -> bool:
        return self._on is not None

    def load(self) -> None:
        if self._on is not None:
            return
        if self.device in self.absent:
            raise ConfigError(f"{self.device} is gone")
        with memory_watched("m", self.device):
            self.memory.take(self.device, WEIGHTS)
        self._on = self._ran_on = self.device
        self.loads += 1

    def unload(self) -> None:
        if self._on is not None:
            self.free_memory()
            self.memory.give(self._on, WEIGHTS)
            self._on = None

    def move_to(self, device: str) -> None:
        before = self._on
        if before is not None and before != device:
            if device in self.absent:
                raise ConfigError(f"{device} is gone")
            with memory_watched("m", device):
                self.memory.take(device, WEIGHTS)
            self.free_memory()
            self.memory.give(before, WEIGHTS)
            self._on = self._ran_on = device
        self.device = device

    def free_memory(self) -> None:
        self.when_freed()
        for device, size in self.kept.items():
            self.memory.give(device, size)
            self.kept[device] = 0

    def infer_batch(self, buffers: Sequence[NDArray[Any]]) -> list[int]:
        assert self._on is not None, "run before load"
        on = self._on
        self.sizes.append(len(buffers))
        size = sum(int(buffer[1]) for buffer in buffers)
        if any(buffer[0] == BREAKS for buffer in buffers):
            raise RuntimeError("it breaks")
        with memory_watched("m", on):
            self.memory.take(on, size)
        self.memory.give(on, size)
        if self._keeps and not self.kept[on]:
            self.memory.take(on, self._keeps)
            self.kept[on] = self._keeps
        return [int(buffer[0]) for buffer in buffers]


class Climber:
    """A ladder over such a model, with a clock that is turned by hand."""

    def __init__(self, model: ShortModel, *, max_batch: int = 8, **options: Any) -> None:
        self.model = model
        self.now = 0.0
        self.others_to_unload: list[ShortModel] = []
        values: dict[str, Any] = {
            "require_gpu": False,
            "retry_seconds": 60,
            "unload_others": self._unload_others,
            "clock": lambda: self.now,
        }
        self.ladder: MemoryLadder[int] = MemoryLadder(
            "m", model, max_batch=max_batch, **{**values, **options}
        )

    def run(self, *pictures: int, size: int = 10) -> list[Any]:
        """Run one batch; return each result with its device, or its error."""
        return self.run_sized(*((number, size) for number in pictures))

    def run_sized(self, *pictures: tuple[int, int]) -> list[Any]:
        found = self.ladder.run([_item(number, size) for number, size in pictures])
        return [
            each if isinstance(each, Exception) else (each[0], each[1].device) for each in found
        ]

    @property
    def steps(self) -> dict[str, int]:
        """Those that were taken."""
        return {str(step): count for step, count in self.ladder.steps.items() if count}

    @property
    def state(self) -> tuple[str, int] | None:
        """Device and batch that it makes do with."""
        state = self.ladder.state
        return None if state is None else (state.device, state.max_batch)

    def _unload_others(self, device: str) -> bool:
        found = [each for each in self.others_to_unload if each.is_loaded]
        for each in found:
            assert each.provenance.device == device
            each.unload()
        return bool(found)


def _item(number: int, size: int) -> Item:
    return np.array([number, size]), copy_context()
