"""ImageModel: a CLIP that pictures and texts are embedded by, and how it is configured."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeAlias

from daemon.errors import InvalidRequestError
from handlers.clip.text_tower import Tokens
from handlers.downloads.weights import first_file
from handlers.inference import Vector
from handlers.lanes.device import ModelRunner
from handlers.models.models_at_hand import ModelsAtHand


@dataclass(frozen=True, slots=True, eq=False)
class TextTower:
    """The other half of a CLIP, which texts are searched with."""

    runner: ModelRunner[Vector]
    """Loaded at the first text."""
    tokenise: Callable[[str], Tokens]
    """Blocks a little; only after the runner was loaded once."""


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class ImageModel:
    """A CLIP whose weights were found."""

    runner: ModelRunner[Vector]
    side: int
    """Pixels of the square that it takes."""
    dimension: int = 512
    """Numbers in a vector."""
    spec: Mapping[str, str] = field(default_factory=dict)
    """How it is configured: `model` and `weights`, as the settings of CLIP have them."""
    text: TextTower | None = None
    """None where nobody searches by it."""

    @property
    def fingerprint(self) -> str:
        """Equal for models whose vectors may be compared, and for no others."""
        return self.runner.fingerprint

    @property
    def needed(self) -> Sequence[ModelRunner[Any]]:
        """What jobs need of it."""
        return (self.runner,)

    @property
    def runners(self) -> Sequence[ModelRunner[Any]]:
        """All that it has in memory."""
        return (self.runner,) if self.text is None else (self.runner, self.text.runner)


ImageModels: TypeAlias = ModelsAtHand[ImageModel]


def plain_spec(model: str, weights: str = "openai") -> Mapping[str, str]:
    """Return how a CLIP is configured, a file here by its whole path: a reader may be elsewhere.

    What lies in the models directory, or in a home, keeps its short name.
    """
    here = None if weights in ("openai", "untrained") else first_file([Path(weights)])
    return {"model": model, "weights": weights if here is None else str(here.absolute())}


def asked_spec(asked: Mapping[str, str]) -> Mapping[str, str]:
    """Return how a CLIP that somebody asked for is configured.

    Raises:
        InvalidRequestError: it says what a CLIP has not.
    """
    if "detector" in asked:
        raise InvalidRequestError("only faces have a detector", field="detector")
    return plain_spec(**asked)
