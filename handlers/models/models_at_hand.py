"""ModelsAtHand: a collection's models by fingerprint: the settings' one, and its record's."""

import asyncio
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from typing import Any, Generic, Protocol, TypeAlias, TypeVar

from daemon.errors import ConfigError, DependencyDownError
from handlers.inference import MLInference
from handlers.lanes.device import ModelRunner
from handlers.vectors.model_record import Part, Record


class VectorModel(Protocol):
    """A model that makes a collection's vectors; its weights were found."""

    @property
    def spec(self) -> Mapping[str, str]:
        """How it is configured: `model`, and what else its kind has."""

    @property
    def fingerprint(self) -> str:
        """Equal for models whose vectors may be compared, and for no others."""

    @property
    def dimension(self) -> int:
        """Numbers in a vector."""

    @property
    def needed(self) -> Sequence[ModelRunner[Any]]:
        """The runners that jobs need."""

    @property
    def runners(self) -> Sequence[ModelRunner[Any]]:
        """All its runners, those that only searches need included."""


M = TypeVar("M", bound=VectorModel)
Open: TypeAlias = Callable[[Mapping[str, str]], Awaitable[M]]
"""Finds the weights of a model by its spec, and puts it on the lanes.

Raises:
    ConfigError: it cannot be.
"""


class ModelsAtHand(Generic[M]):
    """Opens a model when it is first needed, and keeps it until the end."""

    def __init__(
        self,
        configured: M,
        open_model: Open[M] | None = None,
        *,
        plain: Callable[[Mapping[str, str]], Mapping[str, str]] = lambda spec: spec,
        tell_needed: Callable[[M], None] = lambda _model: None,
        shared: Collection[ModelRunner[Any]] = (),
    ) -> None:
        """Take the models.

        Args:
            configured: the one of the settings.
            open_model: opens another one; None where there may be none.
            plain: returns a spec as it is compared and kept.
            tell_needed: called with the one that jobs and searches need from now on.
            shared: what others have in memory anyway; it is never unloaded.
        """
        self.configured = configured
        self._open_model = open_model
        self._plain = plain
        self._tell_needed = tell_needed
        self._shared = shared
        self._opened: list[M] = [configured]
        self._turn = asyncio.Lock()

    async def open(self, spec: Mapping[str, str]) -> M:
        """Return the model that is configured so.

        Raises:
            ConfigError: there is no such model, or its weights cannot be found.
            InvalidRequestError: the spec has a name that such a model does not know.
        """
        spec = self._plain(spec)
        async with self._turn:
            for model in self._opened:
                if model.spec == spec:
                    return model
            if self._open_model is None:
                raise ConfigError("no other model than the configured one can be opened here")
            model = await self._open_model(spec)
            self._opened.append(model)
            return model

    async def wanted(self, record: Record | None) -> list[M]:
        """Return the models that must embed a new picture, by the record as it was last read.

        Raises:
            DependencyDownError: as `of`.
        """
        if record is None:
            return [self.configured]
        return [await self.of(part) for part in record.written]

    async def of(self, part: Part) -> M:
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

    def need(self, needed: M) -> None:
        """Note which model is searched with from now on."""
        self._tell_needed(needed)

    async def unload_others(self, needed: M) -> bool:
        """Free the memory of all but this one; one that is asked later loads again.

        Returns:
            Whether another one was in memory.
        """
        kept = {*self._shared, *needed.runners}
        others = {runner for model in self._opened for runner in model.runners} - kept
        found = False
        for copy in (each for runner in others for each in runner.copies):
            # On the lane, where nothing runs it meanwhile.
            found |= await copy.lane.run(_unload, copy.inference)
        return found


def _unload(inference: MLInference[Any]) -> bool:
    was_loaded = inference.is_loaded
    if was_loaded:
        inference.unload()
    return was_loaded


def _told(spec: Mapping[str, str]) -> str:
    return ", ".join(f"{name} {value}" for name, value in spec.items())
