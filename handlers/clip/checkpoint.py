"""Reads a CLIP checkpoint into open_clip's model, whatever kind of file it is.

OpenAI's TorchScript archive, or a plain state dict (.pt, .pth, .bin, .safetensors), told apart by
content. OpenAI's keys are open_clip's. No pickled code in a file is ever executed. The libraries
are handed in; handlers/clip/vendors.py imports them.
"""

import contextlib
import importlib
import warnings
import zipfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from daemon.errors import ConfigError

_EXTRA_KEYS = frozenset({"input_resolution", "context_length", "vocab_size", "attn_mask"})
"""Kept beside the weights by OpenAI's archive and by old checkpoints; not weights."""


@dataclass(frozen=True, slots=True)
class Vendors:
    """The imported libraries."""

    torch: Any
    open_clip: Any


def read_model(vendors: Vendors, config: Mapping[str, Any], path: Path) -> Any:
    """Return open_clip's model, both towers, over the tensors of a file.

    The tensors may be half precision and may be mapped from the file.

    Raises:
        ConfigError: the file is no checkpoint, or one of another model.
    """
    state = _strip(read_state(vendors.torch, path))
    with vendors.torch.device("meta"):
        model = vendors.open_clip.CLIP(**config)
    wanted = model.state_dict()
    missing = sorted(wanted.keys() - state.keys())
    unexpected = sorted(state.keys() - wanted.keys() - _EXTRA_KEYS)
    misshapen = [
        f"{name} is {tuple(state[name].shape)}, should be {tuple(wanted[name].shape)}"
        for name in wanted.keys() & state.keys()
        if state[name].shape != wanted[name].shape
    ]
    for problem, names in (
        ("lacks", missing),
        ("has another shape:", sorted(misshapen)),
        ("has besides:", unexpected),
    ):
        if names:
            more = f" and {len(names) - 3} more" if len(names) > 3 else ""  # noqa: PLR2004
            raise ConfigError(
                f"{path} is no checkpoint of this CLIP: it {problem} {', '.join(names[:3])}{more}"
            )
    model.load_state_dict({name: state[name] for name in wanted}, assign=True)
    return model


def read_state(torch: Any, path: Path) -> dict[str, Any]:
    """Return the tensors of a checkpoint, by name; its content tells which kind it is.

    Raises:
        ConfigError: it is none, or holds more than tensors.
    """
    try:
        loaded = _reader(path)(torch, path)
    except Exception as error:
        # Damaged files make the readers raise nearly anything, from KeyError to UnpicklingError.
        raise ConfigError(f"{path} cannot be read as a checkpoint: {_first_line(error)}") from error
    for wrapper in ("state_dict", "model"):
        if isinstance(loaded, dict) and isinstance(loaded.get(wrapper), dict):
            loaded = loaded[wrapper]
    if not isinstance(loaded, dict):
        raise ConfigError(f"{path} is no checkpoint: it holds a {type(loaded).__name__}")
    return {str(name): value for name, value in loaded.items() if isinstance(value, torch.Tensor)}


def _reader(path: Path) -> Callable[[Any, Path], Any]:
    with path.open("rb") as file:
        head = file.read(9)
    if head[8:] == b"{":
        return _read_safetensors
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            if any(name.endswith("/constants.pkl") for name in archive.namelist()):
                return _read_torchscript
        return _read_pickle
    return _read_old_pickle


def _read_safetensors(_torch: Any, path: Path) -> Any:
    return importlib.import_module("safetensors.torch").load_file(path)


def _read_torchscript(torch: Any, path: Path) -> Any:
    with _quiet_torchscript():
        archive = torch.jit.load(str(path), map_location="cpu")
    return dict(archive.state_dict())


def _read_pickle(torch: Any, path: Path) -> Any:
    # weights_only: torch's own unpickler, which builds tensors and plain containers only.
    return torch.load(path, map_location="cpu", weights_only=True, mmap=True)


def _read_old_pickle(torch: Any, path: Path) -> Any:
    return torch.load(path, map_location="cpu", weights_only=True)


@contextlib.contextmanager
def _quiet_torchscript() -> Iterator[None]:
    """Silence torch's advice to stop using TorchScript: OpenAI published nothing else."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=r"`torch\.jit\.", category=DeprecationWarning)
        yield


def _strip(state: dict[str, Any]) -> dict[str, Any]:
    """Remove the prefix that distributed training puts before every name."""
    if state and all(name.startswith("module.") for name in state):
        return {name.removeprefix("module."): tensor for name, tensor in state.items()}
    return state


def _first_line(error: Exception) -> str:
    return f"{type(error).__name__}: {str(error).partition(chr(10))[0]}"
