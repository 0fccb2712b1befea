"""MLInference, the interface of every model, and Provenance: which model ran, where and how."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Generic, Protocol, TypeAlias, TypeVar

import numpy as np
from numpy.typing import NDArray

from daemon.errors import PermanentError
from daemon.jobs import JsonObject

Result = TypeVar("Result")
Pixels: TypeAlias = NDArray[np.uint8]
"""Upright RGB picture, uint8 [height, width, 3]."""
Vector: TypeAlias = NDArray[np.float32]
Buffers: TypeAlias = Sequence[NDArray[Any]]
"""What a batch is made of; see MLInference.prepare."""
Numbers: TypeAlias = NDArray[np.float64] | NDArray[np.float32]


@dataclass(frozen=True, slots=True, kw_only=True)
class Provenance:
    """Which model, weights, device and precision really ran; goes into every result."""

    model: str
    """Architecture or file name, such as ViT-B-32-quickgelu."""
    weights: str
    """Where they came from: openai, a file name, or UNTRAINED."""
    device: str
    """The device that ran, such as cpu or cuda:0; never the one that was merely asked for."""
    precision: str
    """Arithmetic of the forward pass, such as fp32."""
    runtime: str = ""
    """What ran it where that was chosen, such as OpenVINO 2026.4.1; empty for the usual one."""
    notes: tuple[str, ...] = ()
    """What a person must know of the result, such as estimated landmarks."""

    def to_wire(self) -> JsonObject:
        """Return the `inference` object of a result, still without its timings."""
        wire: JsonObject = {
            "model": self.model,
            "weights": self.weights,
            "device": self.device,
            "precision": self.precision,
        }
        if self.runtime:
            wire["runtime"] = self.runtime
        if self.notes:
            wire["notes"] = list(self.notes)
        return wire


@dataclass(frozen=True, slots=True)
class Batch:
    """How many buffers a model runs at a time where it runs now."""

    size: int
    """Most buffers at a time, in all passes together."""
    why: str
    """A part of a sentence."""
    passes: int = 1
    """How many passes run side by side, on threads of their own."""

    @property
    def per_pass(self) -> int:
        """Most buffers in one pass."""
        return self.size // self.passes

    @property
    def told(self) -> str:
        """All of it, for the log and for health."""
        many = "one" if self.size == 1 else f"up to {self.size}"
        sides = f", {self.passes} passes side by side" if self.passes > 1 else ""
        return f"{many} at a time{sides}: {self.why}"

    def side_by_side(self, passes: int) -> "Batch":
        """Return the same for so many passes side by side."""
        return replace(self, size=self.per_pass * passes, passes=passes)


def combined(ran: Sequence[Provenance]) -> Provenance:
    """Return what ran, of one model, where the parts of a result may have run on several devices.

    Args:
        ran: one for each part, in order; at least one.
    """
    return replace(ran[-1], device="+".join(dict.fromkeys(each.device for each in ran)))


FARTHEST_NORMALISED = 50.0
"""No normalised picture comes near it; bytes turned to floats without normalising do."""


def check_pixels(
    buffer: NDArray[Any], shape: tuple[int, ...], *, normalised: str, label: str = ""
) -> None:
    """Refuse what is neither uint8 nor normalised float32 of the given shape.

    The documented interface is open to untyped callers: a list or None must not get by.

    Args:
        buffer: what the caller gave.
        shape: the one shape that is taken.
        normalised: the formula of normalised float32, for the caller to read.
        label: names the buffer in the error.

    Raises:
        PermanentError: code bad_buffer.
    """
    what = f"buffer {label}" if label else "the buffer"
    if not isinstance(buffer, np.ndarray) or buffer.dtype not in (np.uint8, np.float32):
        kind = getattr(buffer, "dtype", type(buffer).__name__)
        raise PermanentError(f"{what} is {kind}, not uint8 or float32", code="bad_buffer")
    if buffer.shape != shape:
        raise PermanentError(f"{what} is {buffer.shape}, not {shape}", code="bad_buffer")
    if buffer.dtype == np.float32:
        farthest = float(np.abs(buffer).max())
        if not np.isfinite(farthest):
            raise PermanentError(f"{what} holds NaN or infinity", code="bad_buffer")
        if farthest > FARTHEST_NORMALISED:
            raise PermanentError(
                f"{what} is float32 but not normalised: it reaches {farthest:.0f}; "
                f"give uint8, or {normalised}",
                code="bad_buffer",
            )


class MLInference(ABC, Generic[Result]):
    """One model: found, loaded, run, unloaded.

    Every method may block and none is safe to call from two threads at once, unless it says so: in
    the daemon they run on the device lane only.
    """

    @abstractmethod
    def resolve(self) -> None:
        """Find the weights without loading them; does nothing the second time.

        Raises:
            ConfigError: they are absent or not what they should be; the message names the file
                that was looked for and the mend.
        """

    @property
    @abstractmethod
    def fingerprint(self) -> str:
        """What two models must share for their vectors to be comparable; known after `resolve`."""

    @property
    @abstractmethod
    def provenance(self) -> Provenance:
        """What really runs; known after `load`."""

    @abstractmethod
    def load(self) -> None:
        """Load the model and run it once; does nothing while it is loaded.

        Raises:
            ConfigError: the weights are absent, or not what they claim to be.
            OutOfMemoryError: there is no room for it.
        """

    @abstractmethod
    def unload(self) -> None:
        """Give the memory back; the next inference loads again."""

    @property
    @abstractmethod
    def is_loaded(self) -> bool:
        """Whether the next inference needs no loading."""

    def move_to(self, device: str) -> None:
        """Run on `device` from now on; at once where the model is loaded, else when it is.

        Args:
            device: `cpu`, or the one that an OutOfMemoryError named.

        Raises:
            OutOfMemoryError: it does not fit there, and stays where it was.
            ConfigError: it does not run there, and stays where it was.
        """

    def free_memory(self) -> None:
        """Give back what is kept only to be faster; the model stays loaded."""

    @property
    def batch(self) -> Batch | None:
        """How many buffers it runs at a time, where that is its own choice; after `load`."""
        return None

    @property
    def beside(self) -> int:
        """How many threads may be in `infer_batch` of the loaded model at once, where it runs now.

        A load, a move or an unloading beside them waits for them, or makes them fail.
        """
        return 1

    @property
    def prepares(self) -> bool:
        """Whether `prepare` does anything where the model runs now."""
        return False

    def prepare(self, buffers: Buffers) -> Buffers:
        """Return the same for `infer_batch`, with all done that may be done while it runs.

        The one method that is called from another thread, beside any other. What it returns may
        be dropped, and stays good when the model is moved, freed or unloaded meanwhile.
        """
        return buffers

    @abstractmethod
    def infer_batch(self, buffers: Buffers) -> list[Result]:
        """Return one result for each buffer, in order, as `infer` would give it.

        Raises:
            PermanentError: a buffer has the wrong shape or type.
            OutOfMemoryError: so many at a time do not fit.
        """

    def self_test(self) -> Numbers:
        """Return the numbers that a built-in picture gives: equal ones as long as all is well.

        Returns:
            Floats [n]; empty for a model that has no such test.

        Raises:
            HandlerError: it failed, or gave no numbers.
        """
        return np.empty(0)

    def infer(self, buffer: NDArray[Any], label: str = "") -> Result:
        """Return the model's result for one buffer.

        Args:
            buffer: the concrete class says which shape, type and units.
            label: names the picture in logs and errors; changes nothing else.

        Raises:
            PermanentError: the buffer has the wrong shape or type; the message carries the label.
            ConfigError: the model had to be loaded and could not be.
        """
        self.load()
        try:
            return self.infer_batch([buffer])[0]
        except Exception as error:
            if label:
                error.add_note(f"while inferring {label}")
            raise


class Model(Protocol):
    """What an inference class wraps: a vendor's model with its files and its life. Blocks."""

    @property
    def fingerprint(self) -> str:
        """Which file it is; known after `resolve`."""

    @property
    def provenance(self) -> Provenance:
        """What really runs; known after `load`."""

    @property
    def is_loaded(self) -> bool:
        """Whether it may be run without loading."""

    def resolve(self) -> None:
        """Find the file; ConfigError where it is nowhere."""

    def load(self) -> None:
        """Load the file; ConfigError where it is not what it should be."""

    def unload(self) -> None:
        """Give the memory back."""

    def move_to(self, device: str) -> None:
        """Run there from now on; see MLInference."""

    def free_memory(self) -> None:
        """Give back what is kept only to be faster."""


class ModelInference(MLInference[Result]):
    """An inference whose life is that of one model; subclasses say what goes in and comes out."""

    def __init__(self, model: Model) -> None:
        self._life = model

    def resolve(self) -> None:
        """Find the model's weights; see MLInference."""
        self._life.resolve()

    @property
    def fingerprint(self) -> str:
        """Say what the model's vectors may be compared with; see MLInference."""
        return self._life.fingerprint

    @property
    def provenance(self) -> Provenance:
        """Say what really runs; see MLInference."""
        return self._life.provenance

    def load(self) -> None:
        """Load the model; see MLInference."""
        self._life.load()

    def unload(self) -> None:
        """Unload the model; see MLInference."""
        self._life.unload()

    @property
    def is_loaded(self) -> bool:
        """Whether the model is in memory; see MLInference."""
        return self._life.is_loaded

    def move_to(self, device: str) -> None:
        """Move the model; see MLInference."""
        self._life.move_to(device)

    def free_memory(self) -> None:
        """Give back what the model keeps; see MLInference."""
        self._life.free_memory()
