"""The libraries behind CLIP, imported at the first load, and the device that they run on."""

import importlib
import importlib.util
import logging
import os
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from daemon.errors import ConfigError
from handlers.clip.checkpoint import Vendors
from handlers.lanes.memory import is_out_of_memory

log = logging.getLogger(__name__)

_vendors: list[Vendors] = []
_turn = threading.Lock()

_PARTS_ONLY = ("torchvision", "torchvision.ops")
"""open_clip takes two modules of torchvision. What the packages themselves import takes 2 s (models
and torch's compiler) and fails where their operators are compiled for another torch."""
_OPTIONAL = ("timm", "transformers")
"""For architectures that the catalog refuses; 2 s more where they are installed."""


def load_vendors() -> Vendors:
    """Import torch and open_clip, once.

    Raises:
        ConfigError: one of them, or torchvision, is absent or broken.
    """
    with _turn:
        if not _vendors:
            # Torch's threads spin while they wait for each other: beside decoders, or any other
            # load, one picture then takes ten times as long. Asleep they cost 5 to 15 % of an idle
            # machine.
            os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
            try:
                torch = importlib.import_module("torch")
                with _bare(_PARTS_ONLY), _hidden(_OPTIONAL):
                    _vendors.append(Vendors(torch, importlib.import_module("open_clip")))
            except (ImportError, OSError, RuntimeError) as error:
                raise ConfigError(
                    f"torch, torchvision and open_clip cannot be imported: {error}"
                ) from error
    return _vendors[0]


@contextmanager
def _bare(packages: tuple[str, ...]) -> Iterator[None]:
    """Let modules of packages be imported without running what the packages themselves import."""
    absent = [name for name in packages if name not in sys.modules]
    try:
        for name in absent:
            spec = importlib.util.find_spec(name)
            if spec is None:
                raise ImportError(f"no module named {name}")
            sys.modules[name] = importlib.util.module_from_spec(spec)
        yield
    finally:
        # Whoever imports them after this gets them whole.
        _forget(absent)


@contextmanager
def _hidden(packages: tuple[str, ...]) -> Iterator[None]:
    """Let packages that are not imported yet be as if they were not installed."""
    absent = [name for name in packages if name not in sys.modules]
    hidden: dict[str, Any] = dict.fromkeys(absent)
    try:
        sys.modules.update(hidden)
        yield
    finally:
        _forget(absent)


def _forget(names: list[str]) -> None:
    for name in names:
        sys.modules.pop(name, None)


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
    if torch.cuda.is_available():
        log.warning("CLIP runs on the CPU, slower: %s does not run: %s", name, why)
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
