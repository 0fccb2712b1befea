"""ModelChanger: the interface that the routes need to change a collection's model."""

from collections.abc import Mapping
from typing import Protocol

from daemon.jobs import JsonObject


class ModelChanger(Protocol):
    """What changes a collection's model: the daemon's handlers. Errors are ours.

    `seen` is the version that the asker was told; where it is another by now nothing is done.
    """

    async def told(self) -> JsonObject:
        """Return what is behind the collection's name, and how far a change is."""

    async def use(self, spec: Mapping[str, str], *, allow_failed: int = 0) -> JsonObject:
        """Begin to change to a model: `model`, and what else its kind has."""

    async def rollback(self, *, now: bool = False, seen: str | None = None) -> JsonObject:
        """Begin to change back; `now`: answer searches by the former model at once."""

    async def abort(self, *, seen: str | None = None) -> JsonObject:
        """Give up what is under way."""

    async def drop(self, *, seen: str | None = None) -> JsonObject:
        """Remove what there was before."""
