"""Staging: pictures on their way to a GPU through pinned buffers, while it works on others."""

import threading
import weakref
from collections.abc import Sequence
from typing import Any, overload

import numpy as np
from numpy.typing import NDArray

from handlers.inference import Buffers, Pixels

SLOTS = 3
"""One that is copied from, one that waits, one that is filled."""


class Slot:
    """A place for one batch: pinned memory here, and its copy on the device."""

    def __init__(self, torch: Any, device: str, shape: tuple[int, ...]) -> None:
        # Pinned memory the device fetches by itself, while threads here do something else.
        self.host: torch.Tensor = torch.empty(shape, dtype=torch.uint8, pin_memory=True)
        self.there: torch.Tensor = torch.empty(shape, dtype=torch.uint8, device=device)
        self.arrived: Any = torch.cuda.Event()
        """Recorded behind the copy to the device."""
        self.taken: Any = torch.cuda.Event()
        """Recorded behind whatever last read `there`."""


class Uploaded(Sequence[Pixels]):
    """A batch that is on its way to a device, or there; and the pictures themselves."""

    def __init__(self, buffers: Buffers, ring: "Ring", slot: Slot) -> None:
        self._buffers = buffers
        self.ring = ring
        self.slot = slot
        self.release = weakref.finalize(self, ring.give_back, slot)
        """Lets the slot be used again; of itself where nobody wants the batch any more."""
        self.release.atexit = False

    def __len__(self) -> int:
        return len(self._buffers)

    @overload
    def __getitem__(self, index: int) -> Pixels: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[Pixels]: ...
    def __getitem__(self, index: int | slice) -> Pixels | Sequence[Pixels]:
        return self._buffers[index]


class Ring:
    """Uploads batches on a stream of its own. From any thread, one upload at a time."""

    def __init__(self, torch: Any, device: str, shape: tuple[int, ...]) -> None:
        """Take the memory.

        Args:
            torch: the imported library.
            device: `cuda:n`.
            shape: of the largest batch: [n, height, width, 3].

        Raises:
            RuntimeError: torch's own; there is no room for it.
        """
        self._torch = torch
        self._stream: Any = torch.cuda.Stream(device)
        self._most = shape[0]
        self._free = [Slot(torch, device, shape) for _ in range(SLOTS)]
        # Whatever is collected while it is held may be a batch, which gives its slot back.
        self._lock = threading.RLock()
        self._uploading = threading.Lock()

    def upload(self, buffers: Buffers) -> Uploaded | None:
        """Begin to copy a batch to the device; None where there is no place for it now.

        Args:
            buffers: uint8 RGB, each of the ring's height and width.
        """
        if len(buffers) > self._most:
            return None
        with self._lock:
            slot = self._free.pop(0) if self._free else None
        if slot is None:
            return None
        uploaded = Uploaded(buffers, self, slot)
        with self._uploading:
            self._copy(buffers, slot)
        return uploaded

    def give_back(self, slot: Slot) -> None:
        """Let a slot be filled again, once the device is done with it."""
        with self._lock:
            is_closed = self._most == 0
            if not is_closed:
                self._free.append(slot)
        if is_closed:
            # Its memory goes to others as soon as nobody here holds it.
            slot.arrived.synchronize()

    def close(self) -> None:
        """Give the memory back; what is uploaded stays good until it is dropped. Safe twice."""
        with self._lock:
            self._most = 0
            free, self._free = self._free, []
        for slot in free:
            slot.arrived.synchronize()

    def _copy(self, buffers: Buffers, slot: Slot) -> None:
        count = len(buffers)
        # The device may still be reading what was here before. Nearly always it is not.
        slot.arrived.synchronize()
        host: NDArray[np.uint8] = slot.host[:count].numpy()
        np.stack(buffers, out=host)
        with self._torch.inference_mode(), self._torch.cuda.stream(self._stream):
            self._stream.wait_event(slot.taken)
            slot.there[:count].copy_(slot.host[:count], non_blocking=True)
            slot.arrived.record(self._stream)
