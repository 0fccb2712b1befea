"""Which models a demo can run with here: the real ones where they are in reach, else stand-ins."""

import os
import socket
from collections.abc import Mapping
from dataclasses import dataclass, field
from urllib.parse import urlsplit

from daemon.errors import ConfigError
from daemon.jobs import TaskType
from daemon.settings import Settings
from handlers.clip.catalog import PUBLISHED, find_weights
from handlers.downloads.weights import PACK_URL, find_pack

PACKS = ("buffalo_l", "antelopev2", "buffalo_m", "buffalo_s", "buffalo_sc")
"""InsightFace's packs that hold a detector and a recogniser, the best first."""
PROBE_SECONDS = 3


@dataclass(frozen=True)
class Choice:
    """Settings for the daemon, and what a person must be told of them."""

    environ: dict[str, str] = field(default_factory=dict)
    told: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)


def choose_models(environ: Mapping[str, str] = os.environ) -> Choice:
    """Return settings under which every task runs; the models that are asked for are kept."""
    settings = Settings.from_env(environ)
    choice = Choice()
    # A daemon of one's own may leave some to others: jobs of those would wait here for ever.
    choice.environ["INFERD_WORKER__TASK_TYPES"] = ",".join(TaskType)
    if "INFERD_CLIP__WEIGHTS" not in environ:
        _choose_clip(settings, choice)
    if not any(name.startswith("INFERD_FACES__") for name in environ):
        _choose_faces(settings, choice)
    return choice


def _choose_clip(settings: Settings, choice: Choice) -> None:
    model = settings.clip.model
    try:
        path = find_weights(model, "openai", settings.models_path, offline=True)
    except ConfigError:
        published = PUBLISHED.get(model)
        if published and not settings.offline and _is_in_reach(published.url):
            choice.told.append(f"CLIP {model}: OpenAI's weights, downloaded now")
            return
        choice.environ["INFERD_CLIP__WEIGHTS"] = "untrained"
        choice.warnings.append(
            f"CLIP IS UNTRAINED: no weights in {settings.models_path} and no hub in reach. "
            "ITS VECTORS ARE RANDOM PROJECTIONS: near copies are found, meaning is not. "
            "`inferd models where` says which file goes where."
        )
    else:
        choice.told.append(f"CLIP {model}: {path.name}")


def _choose_faces(settings: Settings, choice: Choice) -> None:
    for pack in PACKS:
        if find_pack(settings.models_path, pack) is not None:
            choice.environ["INFERD_FACES__PACK"] = pack
            choice.told.append(f"faces: InsightFace {pack} (non-commercial research only)")
            return
    if not settings.offline and _is_in_reach(PACK_URL):
        choice.told.append("faces: InsightFace buffalo_l, downloaded now")
        return
    choice.environ["INFERD_FACES__PACK"] = "cascade"
    choice.environ["INFERD_FACES__RECOGNISER"] = "untrained"
    choice.warnings.append(
        f"FACES ARE FOUND BY SCIKIT-IMAGE'S CASCADE: no InsightFace pack in "
        f"{settings.models_path} and no hub in reach. LANDMARKS ARE ESTIMATED FROM A MEAN FACE."
    )
    choice.warnings.append("ARCFACE IS UNTRAINED: FACE VECTORS DO NOT TELL PEOPLE APART.")


def _is_in_reach(url: str) -> bool:
    parts = urlsplit(url)
    try:
        with socket.create_connection(
            (parts.hostname or "", parts.port or 443), timeout=PROBE_SECONDS
        ):
            return True
    except OSError:
        return False
