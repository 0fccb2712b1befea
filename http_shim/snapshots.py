"""Snapshots: the interface that the routes need to copy the embedded vectors."""

from typing import Protocol

from daemon.jobs import JsonObject


class Snapshots(Protocol):
    """What copies the vectors: the daemon's handlers. Errors are ours, with their codes."""

    async def make_snapshot(self) -> JsonObject:
        """Copy all collections as of one moment; say where the copy is and what it holds."""

    async def remove_snapshot(self, snapshot_id: str) -> bool:
        """Remove a copy; return whether there was one."""
