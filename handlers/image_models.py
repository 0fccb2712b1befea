"""ImageModels: the CLIPs at hand, by fingerprint: that of the settings, and those of records."""

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from daemon.errors import ConfigError, DependencyDownError
from handlers.clip_text import Tokens
from handlers.device import ModelRunner
from handlers.inference import MLInference, Vector
from handlers.model_record import Part


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


def plain_spec(model: str, weights: str) -> Mapping[str, str]:
    """Return how a CLIP is configured, a path in full: whoever reads it may be elsewhere."""
    is_path = weights not in ("openai", "untrained")
    return {"model": model, "weights": str(Path(weights).absolute()) if is_path else weights}


Open = Callable[[Mapping[str, str]], Awaitable[ImageModel]]
"""Finds the weights of a model by its spec, and puts it on the lanes.

Raises:
    ConfigError: it cannot be.
"""


class ImageModels:
    """Opens a model when it is first needed, and keeps it until the end."""

    def __init__(
        self,
        configured: ImageModel,
        open_model: Open | None = None,
        *,
        tell_needed: Callable[[ImageModel], None] = lambda _model: None,
    ) -> None:
        """Take the models.

        Args:
            configured: the one of the settings.
            open_model: opens another one; None where there may be none.
            tell_needed: called with the one that jobs and searches need from now on.
        """
        self.configured = configured
        self._open_model = open_model
        self._tell_needed = tell_needed
        self._opened: list[ImageModel] = [configured]
        self._turn = asyncio.Lock()

    async def open(self, spec: Mapping[str, str]) -> ImageModel:
        """Return the model that is configured so.

        Raises:
            ConfigError: there is no such model, or its weights cannot be found.
        """
        spec = plain_spec(**spec)
        async with self._turn:
            for model in self._opened:
                if model.spec == spec:
                    return model
            if self._open_model is None:
                raise ConfigError("no other model than the configured one can be opened here")
            model = await self._open_model(spec)
            self._opened.append(model)
            return model

    async def of(self, part: Part) -> ImageModel:
        """Return the model whose vectors are in a part of the collection.

        Raises:
            DependencyDownError: code model_mismatch or model_error; it is not to be had here, and
                no picture is at fault.
        """
        for model in self._opened:
            if model.fingerprint == part.fingerprint:
                return model
        if part.spec is None:
            raise DependencyDownError(
                f"the collection {part.physical} is {part.model}'s by now, not of"
                f" {self.configured.fingerprint}: restart with that model",
                code="model_mismatch",
            )
        try:
            model = await self.open(part.spec)
        except ConfigError as error:
            raise DependencyDownError(
                f"the vectors in {part.physical} are of {part.model}, which cannot be opened here:"
                f" {error.message}",
                code="model_error",
            ) from error
        if model.fingerprint != part.fingerprint:
            raise DependencyDownError(
                f"the vectors in {part.physical} are of {part.model}, and what is configured so"
                f" ({_told(part.spec)}) is {model.fingerprint} here: bring that file back",
                code="model_mismatch",
            )
        return model

    def need(self, needed: ImageModel) -> None:
        """Take note of which one is searched with from now on."""
        self._tell_needed(needed)

    async def unload_others(self, *needed: ImageModel) -> None:
        """Free the memory of all but these; one that is asked later loads again."""
        for model in self._opened:
            if model not in needed:
                runners = (
                    [model.runner] if model.text is None else [model.runner, model.text.runner]
                )
                for copy in (each for runner in runners for each in runner.copies):
                    # On the lane, where nothing runs it meanwhile.
                    await copy.lane.run(_unload, copy.inference)


def _unload(inference: MLInference[Vector]) -> None:
    if inference.is_loaded:
        inference.unload()


def _told(spec: Mapping[str, str]) -> str:
    return ", ".join(f"{name} {value}" for name, value in spec.items())
