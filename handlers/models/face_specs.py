"""How a face model is configured: what its record keeps, what somebody asks for, and the settings.

`model` is a recogniser: an ONNX file, a pack that has it, or untrained. `detector` is an ONNX file,
a pack, cascade or yunet; where nothing is said of it, it is that of the settings.
"""

import re
from collections.abc import Mapping
from pathlib import Path

from daemon.errors import ConfigError, InvalidRequestError
from daemon.settings import FacesSettings
from handlers.downloads.weights import first_file
from handlers.faces.files import UNTRAINED

_PACK = re.compile(r"[A-Za-z0-9_.-]{1,200}", re.ASCII)


def configured_spec(faces: FacesSettings) -> Mapping[str, str]:
    """Return what the settings name: the recogniser, since theirs is the detector anyway."""
    return {"model": _plain(faces.recogniser or faces.pack)}


def asked_spec(asked: Mapping[str, str]) -> Mapping[str, str]:
    """Return how a model that somebody asked for is configured, a path in full.

    Raises:
        InvalidRequestError: it says what a model of faces has not.
        ConfigError: a name can be neither a file nor a pack.
    """
    if "weights" in asked:
        raise InvalidRequestError("a recogniser's file is its weights", field="weights")
    spec = {name: _plain(value) for name, value in asked.items()}
    for value in spec.values():
        if not _is_file(value) and not _PACK.fullmatch(value):
            raise ConfigError(f"{value} is neither an .onnx file nor a pack's name")
    return spec


def recogniser_settings(faces: FacesSettings, spec: Mapping[str, str]) -> FacesSettings:
    """Return settings whose recogniser is the one of a spec."""
    named = spec["model"]
    if named == UNTRAINED or _is_file(named):
        return faces.model_copy(update={"recogniser": named})
    return faces.model_copy(update={"recogniser": "", "pack": named})


def detector_settings(faces: FacesSettings, spec: Mapping[str, str]) -> FacesSettings:
    """Return settings whose detector is the one of a spec; theirs where it names none."""
    if (named := spec.get("detector")) is None:
        return faces
    if _is_file(named):
        return faces.model_copy(update={"detector": Path(named)})
    return faces.model_copy(update={"detector": None, "pack": named})


def _is_file(named: str) -> bool:
    return named.endswith(".onnx")


def _plain(named: str) -> str:
    """Return a name as it is kept; what lies in the models' folder keeps its short name."""
    here = first_file([Path(named)]) if _is_file(named) else None
    return named if here is None else str(here.absolute())
