"""The libraries behind CLIP, imported at the first load, and the device that they run on."""

import importlib
import os
import sys
from types import ModuleType

from daemon.errors import ConfigError
from handlers.clip_checkpoint import Vendors
from handlers.memory import is_out_of_memory

_vendors: list[Vendors] = []
_schemas: list[object] = []
"""Keeps the operator schemas of `_import_torchvision` alive as long as the process."""


def load_vendors() -> Vendors:
    """Import torch, torchvision and open_clip, once.

    Raises:
        ConfigError: one of them is absent or broken.
    """
    if not _vendors:
        # Torch's threads spin while they wait for each other: beside decoders, or any other load,
        # one picture then takes ten times as long. Asleep they cost 5 to 15 % of an idle machine.
        os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
        try:
            torch = importlib.import_module("torch")
            _import_torchvision(torch)
            _vendors.append(Vendors(torch, importlib.import_module("open_clip")))
        except (ImportError, OSError, RuntimeError) as error:
            raise ConfigError(
                f"torch, torchvision and open_clip cannot be imported: {error}"
            ) from error
    return _vendors[0]


def _import_torchvision(torch: ModuleType) -> None:
    """Import torchvision also where its compiled part is built for another torch.

    Beside a CPU torch its C operators often cannot load; then its Python part stumbles over two
    operators that nobody here calls, so their bare schemas are enough.
    """
    try:
        importlib.import_module("torchvision")
    except RuntimeError as error:
        if "torchvision::nms" not in str(error):
            raise
        for name in [name for name in sys.modules if name.partition(".")[0] == "torchvision"]:
            del sys.modules[name]
        library = torch.library.Library("torchvision", "DEF")
        for operator in ("nms", "qnms"):
            library.define(f"{operator}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        _schemas.append(library)
        importlib.import_module("torchvision")


def device_name(asked: str) -> str:
    """Return `cpu` or `cuda:n`: what a device setting means where there is a GPU."""
    return "cuda:0" if asked in ("auto", "cuda") else asked


def choose_device(asked: str, *, require_gpu: bool) -> str:
    """Return `cpu` or `cuda:n`; a GPU only after it has calculated something.

    Raises:
        ConfigError: a GPU was demanded, or named, and does not run.
        RuntimeError: torch's own, where the GPU has no memory left even for that.
    """
    if asked == "cpu":
        return "cpu"
    torch = load_vendors().torch
    name = device_name(asked)
    why = "torch sees no GPU"
    if torch.cuda.is_available():
        try:
            ones = torch.ones(8, 8, device=name)
            if float((ones @ ones).sum()) == 512.0:  # noqa: PLR2004 - 8 * 8 * 8
                # Convolutions would round to TF32 and still call themselves fp32.
                torch.backends.cudnn.allow_tf32 = False
                return name
            why = f"{name} calculates wrongly"
        except (RuntimeError, AssertionError) as error:
            if is_out_of_memory(error):
                # It runs, but is full: no reason to stay on the CPU without a word.
                raise
            why = str(error)
    if require_gpu or asked != "auto":
        raise ConfigError(
            f"INFERD_DEVICE={asked}, INFERD_REQUIRE_GPU={str(require_gpu).lower()}: "
            f"no GPU runs here: {why}"
        )
    return "cpu"


def reduced_precision(device: str) -> str | None:
    """Return bf16 or fp16: with how few bits a device multiplies matrices by itself.

    None where it would only pretend to: emulated bf16 takes four times as long as fp32.

    Args:
        device: `cpu` or `cuda:n`, one that runs.
    """
    torch = load_vendors().torch
    if device.startswith("cuda"):
        capability = torch.cuda.get_device_capability(device)
        return "bf16" if capability >= (8, 0) else "fp16" if capability >= (7, 0) else None
    # Private, so they may be gone one day; then there is no AMX that we know of.
    for name in ("_is_amx_tile_supported", "_is_avx512_bf16_supported"):
        is_supported = getattr(torch.cpu, name, None)
        if is_supported is not None and is_supported():
            return "bf16"
    return None
