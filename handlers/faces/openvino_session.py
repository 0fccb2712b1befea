"""OpenVinoSession: an ONNX file run by OpenVINO on the CPU, with the surface of ONNX Runtime's.

The only file with openvino, which loads with the first session and may be absent: it is an extra.
"""

import importlib
import importlib.util
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from daemon.cores import usable_cores
from daemon.errors import ConfigError

NAME = "OpenVINO"
_HINTS = {"bf16": "bf16", "fp16": "f16", "fp32": "f32", "int8": "f32"}
"""OpenVINO's word for what a graph of floats calculates in; int8 is in the file itself."""


@dataclass(frozen=True, slots=True)
class Value:
    """An input or output, as ONNX Runtime tells of one."""

    name: str
    shape: list[int | str]


def is_installed() -> bool:
    """Return whether the extra is here; says nothing of whether it works."""
    return importlib.util.find_spec("openvino") is not None


def require() -> None:
    """Refuse to go on without it.

    Raises:
        ConfigError: it is not installed.
    """
    # Not by `is_installed`, which answers what may be taken where nobody asked for it.
    if importlib.util.find_spec("openvino") is None:
        raise ConfigError(
            "INFERD_FACES__RUNTIME=openvino: OpenVINO is not installed; install inferd's extra "
            "(OPENVINO=1 make setup, or pip install openvino), or set INFERD_FACES__RUNTIME=auto"
        )


def told() -> str:
    """Return its name and version, for provenance and log."""
    try:
        return f"{NAME} {version('openvino')}"
    except PackageNotFoundError:
        return NAME


def precisions() -> list[str]:
    """Return what this processor calculates in by instructions of its own, the shortest first.

    Raises:
        ConfigError: OpenVINO is broken.
    """
    core = _core()
    try:
        # Its plugin for processors is loaded only now.
        offered = core.get_property("CPU", "OPTIMIZATION_CAPABILITIES")
    except RuntimeError as error:
        raise ConfigError(f"openvino cannot be used: {' '.join(str(error).split())}") from error
    short = [name for name in ("bf16", "fp16") if name.upper() in offered]
    return [*short, "fp32"]


class OpenVinoSession:
    """A model of one input, on all cores that this process may use.

    `run` may be called from several threads at once: each has a request of its own.
    """

    def __init__(
        self, path: Path, *, precision: str, side: tuple[int, int], count: int | None, passes: int
    ) -> None:
        """Read and compile the file.

        Args:
            path: an ONNX file.
            precision: bf16, fp16 or fp32; int8 for a file that is quantised itself.
            side: height and width of its input.
            count: pictures or faces in a run; None for any number.
            passes: runs side by side that it is made for; they share the cores.

        Raises:
            ConfigError: OpenVINO is absent or broken.
            Exception: OpenVINO's; it cannot run this file so.
        """
        core = _core()
        model = core.read_model(str(path))
        (takes,) = model.inputs
        model.reshape({takes: [count or -1, 3, *side]})
        cores = usable_cores()
        self._compiled = core.compile_model(
            model,
            "CPU",
            {
                "INFERENCE_PRECISION_HINT": _HINTS[precision],
                "INFERENCE_NUM_THREADS": max(cores, passes),
                "NUM_STREAMS": passes,
                # Pinned, its threads would wait for a core that a decoder has while another idles.
                "ENABLE_CPU_PINNING": False,
            },
        )
        self._inputs = [_told(value) for value in self._compiled.inputs]
        self._outputs = [_told(value) for value in self._compiled.outputs]
        # Each may have several names: what stood between them and is gone has left its own.
        self._places = {
            name: place
            for place, value in enumerate(self._compiled.outputs)
            for name in value.names
        }
        self._own = threading.local()

    def get_inputs(self) -> list[Value]:
        """Return the one input."""
        return self._inputs

    def get_outputs(self) -> list[Value]:
        """Return the outputs, in the file's order."""
        return self._outputs

    def get_providers(self) -> list[str]:
        """Return what runs it, named as ONNX Runtime names its own."""
        return ["CPUExecutionProvider"]

    def disable_fallback(self) -> None:
        """Do nothing: there is nothing else that it would go to."""

    def run(
        self, names: Sequence[str] | None, feeds: Mapping[str, NDArray[Any]]
    ) -> list[NDArray[Any]]:
        """Return these outputs, or all, for one input of float32 [n, 3, height, width].

        Raises:
            Exception: OpenVINO's; the run failed.
        """
        if not hasattr(self._own, "request"):
            self._own.request = self._compiled.create_infer_request()
        request = self._own.request
        (blob,) = feeds.values()
        request.infer({0: np.ascontiguousarray(blob, np.float32)}, share_inputs=True)
        places = (
            range(len(self._outputs)) if names is None else [self._places[name] for name in names]
        )
        # Copied: the next run of this thread writes over them.
        return [np.array(request.get_output_tensor(place).data) for place in places]


def _told(value: Any) -> Value:
    shape = [
        dimension.get_length() if dimension.is_static else "?" for dimension in value.partial_shape
    ]
    return Value(value.get_any_name(), shape)


@cache
def _core() -> Any:
    try:
        return importlib.import_module("openvino").Core()
    except (ImportError, OSError, RuntimeError) as error:
        raise ConfigError(f"openvino cannot be used: {error}") from error
