"""ModelNames: which names of models a client may ask for, so that vectors of two never mix."""

from collections.abc import Mapping, Sequence

from daemon.errors import InvalidRequestError

_AS_IMMICH = str.maketrans(":\\/", "___", ".")
"""How Immich's machine learning turns a model's name into that of a folder."""


class ModelNames:
    """A model may be asked for by its own name, and by the aliases configured for it."""

    def __init__(self, aliases: Mapping[str, Sequence[str]]) -> None:
        """Take by the name that clients ask for the names of what may run then."""
        self._aliases = {
            _clean(asked): [_clean(each) for each in running] for asked, running in aliases.items()
        }
        self._spelt = list(aliases)

    def require(self, asked: str, running: str, *, field: str) -> None:
        """Return if a name means the running model.

        Raises:
            InvalidRequestError: code model_not_found; it means another model.
        """
        if _clean(asked) == _clean(running):
            return
        if _clean(running) in self._aliases.get(_clean(asked), []):
            return
        raise InvalidRequestError(
            f"{asked[:100]!r} does not run here, {running!r} does, and vectors of two models must"
            f" not be mixed: ask for {running!r}, or, where both are truly the same, set"
            f" INFERD_DOORS__ALIASES={asked[:100]}={running}",
            code="model_not_found",
            field=field,
        )

    def of(self, running: str) -> list[str]:
        """Return the names of the running model, its own first."""
        return [running, *(each for each in self._spelt if self._means(each, running))]

    def _means(self, asked: str, running: str) -> bool:
        is_own = _clean(asked) == _clean(running)
        return not is_own and _clean(running) in self._aliases[_clean(asked)]


def _clean(name: str) -> str:
    """Return what of a name tells models apart: without an owner, as Immich's servers see it."""
    return name.rpartition("/")[2].translate(_AS_IMMICH)
