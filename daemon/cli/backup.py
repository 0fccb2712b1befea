"""`backup`: writes all that a daemon knows into one file, while it works or while it rests."""

import argparse
import asyncio
import fcntl
import json
import sys
from collections.abc import Callable, Sequence
from contextlib import ExitStack, suppress
from datetime import UTC, datetime
from pathlib import Path

from daemon.backup.archive import Archive
from daemon.backup.archive_writer import ArchiveWriter
from daemon.backup.destination import part_file, publish, require_room, scratch
from daemon.backup.qdrant_server import QdrantSnapshots
from daemon.backup.queue_copy import PinnedQueue, follow_removals, look_into, release_all
from daemon.backup.settings_copy import settings_to_keep
from daemon.command_line import Parser, settings_for
from daemon.errors import ConfigError, InferdError
from daemon.identity import own_identity, own_version
from daemon.jobs import JsonObject
from daemon.settings import Settings
from demos.client import UnreachableError
from demos.client.exit_codes import COMPLETED, INTERRUPTED, REJECTED, UNREACHABLE
from demos.client.management import Door, RefusedError, add_place
from demos.client.terminal import Meter, print_out
from handlers.model_file import State
from handlers.model_record import MODELS, Record, record_ids, record_of
from handlers.model_sums import engine_version, model_sums
from handlers.records_at_rest import read_records
from handlers.vector_copying import STORED, is_ours
from handlers.vector_snapshots import (
    COPY_SECONDS,
    READER_LOCK,
    collections_of,
    kept_files,
    size_of,
)
from handlers.vectors_at_rest import at_rest

_EPILOG = """\
In the file are the queue, the vectors with their models' names, the settings but for secrets, and
the checksums of the models' files: of those that are configured, and of those that the vectors are
of, the kept and the next model included. A daemon may work meanwhile: the backup is as of its
begin, and each job that it calls completed has its vectors in it. Run it on the daemon's machine,
with the daemon's settings; it asks the daemon, as an admin, to copy the embedded vectors. Vectors
of a Qdrant server come as that server's snapshots.

exit codes:
  0  written, or sound (--check)
  2  usage
  3  the daemon has the vectors, and does not answer or cannot copy them now
  5  refused: the token is no admin's
  78  it cannot be done, or the file is damaged (--check); nothing is left behind
  130  interrupted; nothing is left behind

examples:
  %(prog)s /backups
  %(prog)s /backups/monday.tar --with-models
  %(prog)s --check /backups/monday.tar
"""


def main(argv: Sequence[str], *, prog: str) -> int:
    """Back up, or check a backup; return the exit code.

    Raises:
        ConfigError: the configuration is wrong, or it cannot be done.
    """
    settings = settings_for(argv)
    parser = make_parser(prog, settings)
    options = parser.parse_args(argv)
    if options.check:
        return _check(options.path)
    try:
        return _back_up(_destination(options.path), settings, options, parser)
    except UnreachableError as error:
        sys.stderr.write(f"inferd: {error}\n")
        return UNREACHABLE
    except RefusedError as error:
        sys.stderr.write(f"inferd: {error}\n")
        return REJECTED
    except OSError as error:
        raise ConfigError(f"the backup cannot be written: {error}", code="backup_failed") from error
    except KeyboardInterrupt:
        return INTERRUPTED


def make_parser(prog: str, settings: Settings) -> argparse.ArgumentParser:
    """Return what reads the command line; defaults are the daemon's own settings."""
    parser = Parser(
        prog=prog,
        description="Write all that the daemon knows into one file; `restore` brings it back.",
        epilog=_EPILOG,
    )
    parser.add_argument(
        "path", type=Path, metavar="DEST", help="file to write, or a folder to write one in"
    )
    parser.add_argument(
        "--check", action="store_true", help="write nothing: compare DEST with its checksums"
    )
    parser.add_argument(
        "--with-models", action="store_true", help="the models' files too, not only their checksums"
    )
    parser.add_argument(
        "--vectors-only",
        action="store_true",
        help="leave the queue out: for one in PostgreSQL, which you dump (pg_dump) before this",
    )
    add_place(parser, settings)
    return parser


def _check(path: Path) -> int:
    with Archive(path) as archive, Meter("check", is_bytes=True) as meter:
        meter.expect(archive.size)
        archive.check(meter.add)
        about, count = archive.manifest, len(archive.entries)
    print_out(f"{path}: sound, {count} files, made {about['made_at']} by inferd {about['inferd']}")
    return COMPLETED


def _destination(path: Path) -> Path:
    if path.is_dir():
        path /= f"inferd-{datetime.now(UTC):%Y%m%dT%H%M%SZ}.tar"
    if path.exists():
        raise ConfigError(f"{path} is there already; nothing is overwritten", code="backup_exists")
    if not path.parent.is_dir():
        raise ConfigError(f"there is no folder {path.parent}", code="backup_failed")
    return path


def _back_up(
    dest: Path, settings: Settings, options: argparse.Namespace, parser: argparse.ArgumentParser
) -> int:
    if settings.queue.is_postgresql and not options.vectors_only:
        raise ConfigError(
            "the queue is in PostgreSQL: dump it first (pg_dump), then back up the rest with"
            " --vectors-only; in this order, each completed job has its vector",
            code="queue_not_a_file",
        )
    with ExitStack() as stack:
        part = stack.enter_context(part_file(dest))
        queue_copy = stack.enter_context(scratch(dest, "queue"))
        meter = stack.enter_context(Meter("backup", is_bytes=True))
        pinned: PinnedQueue | None = None
        queue_path = None if options.vectors_only else settings.queue_path
        if queue_path is not None and queue_path.exists():
            # Before the vectors: a job that is completed by now has stored its own.
            pinned = stack.enter_context(PinnedQueue(queue_path))
        vectors = _Vectors(settings, options, parser)
        files = vectors.open(stack)
        models, examined = model_sums(settings, vectors.records)
        if not options.with_models:
            models = []
        if pinned is None and not files and not vectors.server_collections:
            raise ConfigError(
                f"there is nothing to back up: no queue at {queue_path}, no vectors under"
                f" {settings.data_dir}",
                code="backup_failed",
            )
        queue_size = 0 if pinned is None else pinned.size
        sources = [*files, *models, *_notes(settings)]
        require_room(dest.parent, 2 * queue_size + size_of([path for _, path in sources]))
        meter.expect(2 * queue_size + sum(path.stat().st_size for _, path in sources))
        writer = ArchiveWriter(part, meter.add)
        about: JsonObject = {"queue": None}
        # Before the queue's copy is finished: what is removed until then goes from that as well.
        for name in vectors.server_collections:
            with scratch(dest, "snapshot") as fetched:
                vectors.fetch(name, fetched, meter.add)
                writer.add_file(f"qdrant/{name}.snapshot", fetched)
        if pinned is not None:
            pinned.copy_to(queue_copy, meter.add)
            about["queue"] = _finish_queue(queue_copy, pinned, settings)
            writer.add_file("queue.db", queue_copy)
        for name, path in sources:
            writer.add_file(name, path)
        text = json.dumps(settings_to_keep(settings), indent=1, default=str)
        writer.add_bytes("settings.json", f"{text}\n".encode())
        made_at = datetime.now(UTC).isoformat(timespec="seconds")
        writer.close(
            {
                "made_at": made_at,
                "inferd": own_version(),
                **about,
                "vectors": vectors.told,
                "models": [
                    {**each, "is_included": options.with_models and "file" in each}
                    for each in examined
                ],
            }
        )
        publish(part, dest)
    _tell(dest, about["queue"], vectors.told, settings)
    if vectors.unknown:
        sys.stderr.write(f"inferd: which models the vectors are of: {vectors.unknown}\n")
    if options.with_models:
        _tell_left_out(examined)
    return COMPLETED


class _Vectors:
    """Where the vectors are read: at rest, from a copy of the running daemon's, or at a server."""

    def __init__(
        self, settings: Settings, options: argparse.Namespace, parser: argparse.ArgumentParser
    ) -> None:
        self._settings, self._options, self._parser = settings, options, parser
        self._server: QdrantSnapshots | None = None
        self.server_collections: list[str] = []
        self.told: JsonObject = {"engine": None, "collections": []}
        self.records: list[Record] = []
        """Which models they are of."""
        self.unknown = ""
        """Why nobody can tell which models they are of."""

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


def _finish_queue(copy: Path, pinned: PinnedQueue, settings: Settings) -> JsonObject:
    # Since the moment of the copy, and the vectors with it: a daemon may have ended only then.
    follow_removals(copy, settings.queue_path)
    release_all(copy, own_identity())
    found = look_into(copy)
    return {"pinned_at": pinned.pinned_at, "schema": found.schema, "jobs": found.jobs}


def _notes(settings: Settings) -> list[tuple[str, Path]]:
    found = sorted(settings.data_dir.glob("home-assistant-*.json"))
    return [(f"notes/{each.name}", each) for each in found]


def _tell_left_out(examined: Sequence[JsonObject]) -> None:
    for each in examined:
        if "file" not in each and each["state"] == State.ABSENT:
            users = ", ".join(each["used_by"])
            print_out(f"left out, as its file is not here: the model {each['name']} ({users})")


def _tell(dest: Path, queue: JsonObject | None, vectors: JsonObject, settings: Settings) -> None:
    jobs = sum(queue["jobs"].values()) if queue else 0
    names = ", ".join(vectors["collections"]) or "none"
    print_out(f"{dest}: {dest.stat().st_size:,} bytes, {jobs:,} jobs, vectors: {names}")
    left_out = settings_to_keep(settings)["secrets_left_out"]
    if left_out:
        print_out(f"left out, as they are secret: {', '.join(left_out)}")
