"""Decides whether a failing dependency or the item given to it is at fault."""

from collections.abc import Hashable

ENOUGH = 3
"""So many different items that failed in a row are not at fault."""


class Blame:
    """Remembers which items failed since one went well.

    The same item may fail again and again and proves nothing. Different ones, with none that went
    well between, show that what they all need is at fault: then no item must pay for it.
    """

    def __init__(self) -> None:
        self._failed: set[Hashable] = set()

    def failed(self, item: Hashable) -> bool:
        """Note a failure; return whether the dependency is at fault, not the item."""
        if len(self._failed) < ENOUGH:
            self._failed.add(item)
        return len(self._failed) >= ENOUGH

    def worked(self) -> None:
        """Note that an item went well."""
        self._failed.clear()
