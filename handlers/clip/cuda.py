"""Passes of CLIP's image tower on a GPU: padded to a few sizes, and replayed as CUDA graphs.

A pass is about two hundred kernels, and a GPU is done with a small batch before all of them are
launched one by one. A graph launches them at once; but it is of one batch size, and reads and
writes the same memory each time. Hence a few sizes, and pictures that are copied to their place.

As torch documents it (CUDA semantics, CUDA graphs): warmed up and captured on a side stream, which
the replays are on as well; in memory of the graphs' own, which they share, since they never run at
the same time and each result is copied away before the next replay.

Written without a GPU at hand and never run on one.
"""

import logging
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from handlers.clip.precision import LEAST_COSINE, least_cosine
from handlers.clip.staging import Ring, Uploaded
from handlers.inference import Buffers, Vector
from handlers.lanes.memory import is_out_of_memory

if TYPE_CHECKING:
    import torch

log = logging.getLogger(__name__)

GPU_BATCH = 128
"""Pictures of a full pass; from 128 on a large GPU is said to be busy. Not measured."""
SIZES = (1, 8, 32, 128, 256, 512)
"""Batches are padded to the next of these; the padding's results are not looked at."""
WARM_UPS = 3
"""Passes before a capture, as torch documents it: libraries make what they need at the first."""

_CAPTURING = threading.Lock()
"""Only one capture may be under way in a process."""


def sizes(batch_size: int) -> list[int]:
    """Return the batch sizes that passes have, smallest first."""
    return [*(size for size in SIZES if size < batch_size), batch_size]


@dataclass(frozen=True, slots=True)
class _Captured:
    """A pass that may be replayed."""

    graph: Any
    found: "torch.Tensor"
    """Where its vectors are after a replay, until the next one."""


class CudaPasses:
    """Turns uint8 crops into vectors on one GPU. `upload` from any thread, all else from one."""

    def __init__(
        self,
        torch: Any,
        vectors_of: "Callable[[torch.Tensor], torch.Tensor]",
        *,
        device: str,
        batch_size: int,
        side: tuple[int, int],
        dimension: int,
        uses_graphs: bool = True,
    ) -> None:
        """Take the memory that batches go through.

        Args:
            torch: the imported library.
            vectors_of: the whole pass, on the device: uint8 [n, height, width, 3] to float32
                [n, dimension]. It must neither wait for the device nor read from the host.
            device: `cuda:n`.
            batch_size: of a full pass.
            side: height and width of the crops.
            dimension: length of the vectors.
            uses_graphs: False runs all passes kernel by kernel.

        Raises:
            RuntimeError: torch's own; there is no room for it.
        """
        self._torch = torch
        self._vectors_of = vectors_of
        self._device = device
        self._sizes = sizes(batch_size)
        self._uses_graphs = uses_graphs
        self._graphs: dict[int, _Captured] = {}
        self._refused: set[int] = set()
        """Sizes that there was no memory to capture."""
        with torch.inference_mode():
            self._ring = Ring(torch, device, (batch_size, *side, 3))
            self._given = torch.zeros((batch_size, *side, 3), dtype=torch.uint8, device=device)
            self._told = torch.empty((batch_size, dimension), dtype=torch.float32, pin_memory=True)
        self._stream: Any = torch.cuda.Stream(device)
        # What is there already was made on the stream of the thread that loaded it.
        self._stream.wait_stream(torch.cuda.current_stream(device))
        # Blocking: this thread sleeps until the device is done, on cores that decoders need.
        self._done: Any = torch.cuda.Event(blocking=True)
        self._pool: Any = None

    @property
    def batch_size(self) -> int:
        """Pictures of a full pass."""
        return self._sizes[-1]

    def upload(self, buffers: Buffers) -> Buffers:
        """Return the same, on their way to the device where there is a place for them."""
        return self._ring.upload(buffers) or buffers

    def run(self, buffers: Buffers) -> Vector:
        """Return float32 [n, dimension] for uint8 RGB of the right height and width; any number.

        Raises:
            RuntimeError: torch's own.
        """
        if len(buffers) <= self.batch_size:
            return self._run(buffers)
        starts = range(0, len(buffers), self.batch_size)
        return np.concatenate([self._run(buffers[at : at + self.batch_size]) for at in starts])

    def free(self) -> None:
        """Let go of the graphs and their memory; the next passes capture them again."""
        for captured in self._graphs.values():
            captured.graph.reset()
        self._graphs.clear()
        self._refused.clear()
        self._pool = None

    def close(self) -> None:
        """Let go of all memory. Safe twice."""
        self.free()
        self._ring.close()

    def _run(self, buffers: Buffers) -> Vector:
        count = len(buffers)
        is_ours = isinstance(buffers, Uploaded) and buffers.ring is self._ring
        uploaded = buffers if is_ours else self._ring.upload(buffers)
        cuda = self._torch.cuda
        with cuda.device(self._device), self._torch.inference_mode(), cuda.stream(self._stream):
            size = next(each for each in self._sizes if each >= count)
            given = self._given[:size]
            if isinstance(uploaded, Uploaded):
                self._stream.wait_event(uploaded.slot.arrived)
                given[:count].copy_(uploaded.slot.there[:count], non_blocking=True)
                uploaded.slot.taken.record(self._stream)
                uploaded.release()
            else:
                given[:count].copy_(self._torch.from_numpy(np.stack(buffers)))
            captured = self._captured(size)
            found = self._replayed(captured) if captured else self._vectors_of(given[:count])
            self._told[:count].copy_(found[:count], non_blocking=True)
            self._done.record(self._stream)
        self._done.synchronize()
        vectors: Vector = self._told[:count].numpy().copy()
        return vectors

    def _replayed(self, captured: _Captured) -> "torch.Tensor":
        captured.graph.replay()
        return captured.found

    def _captured(self, size: int) -> _Captured | None:
        if not self._uses_graphs or size in self._refused:
            return None
        if size not in self._graphs:
            try:
                self._graphs[size] = self._capture(size)
            except RuntimeError as error:
                self._give_up(size, error)
                return None
        return self._graphs[size]

    def _capture(self, size: int) -> _Captured:
        cuda, given = self._torch.cuda, self._given[:size]
        for _ in range(WARM_UPS):
            expected = self._vectors_of(given)
        if self._pool is None:
            self._pool = cuda.graph_pool_handle()
        graph = cuda.CUDAGraph()
        # Other threads may do to their devices what a capture forbids: only this one is watched.
        mode = {"capture_error_mode": "thread_local"}
        with _CAPTURING, cuda.graph(graph, pool=self._pool, stream=self._stream, **mode):
            found = self._vectors_of(given)
        captured = _Captured(graph, found)
        # A graph that lacks a step would say nothing, and its vectors are stored for good.
        cosine = least_cosine(
            *(each.cpu().numpy() for each in (expected, self._replayed(captured)))
        )
        if not cosine >= LEAST_COSINE:
            raise RuntimeError(f"a graph gives other vectors, cosine {cosine:.4f}")
        return captured

    def _give_up(self, size: int, error: RuntimeError) -> None:
        if is_out_of_memory(error):
            log.info("no memory for a graph of %d: kernel by kernel until more is free", size)
            self._refused.add(size)
            return
        log.warning("no CUDA graphs on %s, kernel by kernel, slower: %s", self._device, error)
        self.free()
        self._uses_graphs = False
