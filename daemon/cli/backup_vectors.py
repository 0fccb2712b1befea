"""VectorSource: where `backup` reads the vectors, each collection as of one moment."""

import argparse
import asyncio
import fcntl
from collections.abc import Callable
from contextlib import ExitStack, suppress
from pathlib import Path

from daemon.backup.qdrant_server import QdrantSnapshots
from daemon.errors import ConfigError, InferdError
from daemon.jobs import JsonObject
from daemon.settings import Settings
from demos.client import UnreachableError
from demos.client.management import Door, RefusedError
from handlers.models.model_sums import engine_version
from handlers.vector_copying import STORED, is_ours
from handlers.vectors.model_record import MODELS, Record, record_ids, record_of
from handlers.vectors.records_at_rest import read_records
from handlers.vectors.vector_snapshots import COPY_SECONDS, READER_LOCK, collections_of, kept_files
from handlers.vectors.vectors_at_rest import at_rest


class VectorSource:
    """Where the vectors are read: at rest, from a copy of the running daemon's, or at a server.

    Args:
        settings: where they are.
        options: where the running daemon is asked for a copy.
        parser: what read these.

    Attributes:
        server_collections: those of a server, in the order in which they are to be fetched.
        told: the engine and its collections, as the manifest says it.
        records: which models they are of.
        unknown: why nobody can tell which models they are of.
    """

    def __init__(
        self, settings: Settings, options: argparse.Namespace, parser: argparse.ArgumentParser
    ) -> None:
        self._settings, self._options, self._parser = settings, options, parser
        self._server: QdrantSnapshots | None = None
        self.server_collections: list[str] = []
        self.told: JsonObject = {"engine": None, "collections": []}
        self.records: list[Record] = []
        self.unknown = ""

    def open(self, stack: ExitStack) -> list[tuple[str, Path]]:
        """Return the files, by their names in the archive; they stay as they are until it closes.

        Raises:
            ConfigError: the server does not answer, or the folder cannot be used.
            ClientError: the daemon does not answer, or says no.
        """
        if self._settings.qdrant.url:
            key = self._settings.qdrant.api_key
            self._server = QdrantSnapshots(
                self._settings.qdrant.url, key.get_secret_value() if key else None
            )
            # The models' names first: each collection that they call active is whole from then on,
            # while one that they come to call so later may have been copied half filled.
            self.server_collections = sorted(
                filter(is_ours, self._server.collections()), key=lambda each: each != MODELS.name
            )
            self.records = self._server_records()
            self.told = {"engine": "server", "collections": self.server_collections}
            return []
        place = self._settings.data_dir / "vectors"
        try:
            # Before it is kept from every process, this one too.
            self._read_records(place)
            folder = stack.enter_context(at_rest(place))
        except ConfigError as error:
            if error.code != "vector_store_locked":
                raise
            folder = self._have_copied(stack)
            self._read_records(folder.parent)
        if folder is None:
            return []
        self.told = {
            "engine": folder.name,
            "made_by": engine_version(folder.name),
            "collections": collections_of(folder),
        }
        below = folder.parent
        return [(f"vectors/{each.relative_to(below)}", each) for each in kept_files(folder)]

    def fetch(self, collection: str, target: Path, tell: Callable[[int], None]) -> None:
        """Write a server's collection to a file, as of a moment of its own."""
        assert self._server is not None  # noqa: S101 - opened first
        snapshot = self._server.make(collection)
        try:
            self._server.fetch(snapshot, target, tell)
        finally:
            self._server.remove(snapshot)

    def _read_records(self, folder: Path) -> None:
        try:
            self.records = asyncio.run(read_records(folder))
        except InferdError as error:
            if error.code == "vector_store_locked":
                raise
            # Rather a backup without some weights than none.
            self.unknown = error.message

    def _server_records(self) -> list[Record]:
        assert self._server is not None  # noqa: S101 - opened first
        if MODELS.name not in self.server_collections:
            return []
        names = [store.collection for store in STORED]
        found = [
            record_of(name, self._server.points(MODELS.name, record_ids(name))) for name in names
        ]
        return [record for record in found if record is not None]

    def _have_copied(self, stack: ExitStack) -> Path:
        door = Door(self._options, self._parser)
        made = door.ask("POST", "/vectors/snapshots", seconds=COPY_SECONDS + 60)
        stack.callback(_remove_copy, door, str(made["snapshot_id"]))
        folder = Path(str(made["folder"]))
        ours = (self._settings.data_dir / "vectors").resolve()
        if not folder.resolve().is_relative_to(ours):
            raise ConfigError(
                f"the daemon that answers keeps its vectors in {folder.parent.parent}, and not in"
                f" {ours}: name the other daemon with --inference, or set INFERD_DATA_DIR as it is"
                " set for this one",
                code="backup_failed",
            )
        try:
            reader = stack.enter_context((folder / READER_LOCK).open("a"))
        except OSError as error:
            raise ConfigError(
                f"the daemon copied its vectors to {folder}, which cannot be read here ({error}):"
                " run this on its machine, as its user",
                code="backup_failed",
            ) from error
        fcntl.flock(reader, fcntl.LOCK_SH)
        copied = folder / str(made["engine"])
        if collections_of(copied) != made["collections"]:
            raise ConfigError(
                "the daemon removed the copy of its vectors before it was read: back up again",
                code="backup_failed",
            )
        return copied


def _remove_copy(door: Door, snapshot_id: str) -> None:
    # A daemon that is gone by now removes it when it starts.
    with suppress(UnreachableError, RefusedError):
        door.ask("DELETE", f"/vectors/snapshots/{snapshot_id}")
