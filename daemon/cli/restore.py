"""`restore`: brings back what `backup` wrote, whole or not at all."""

import argparse
import fcntl
import json
import os
import shutil
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from daemon.backup.archive import Archive
from daemon.backup.destination import require_room, scratch, sync_folder
from daemon.backup.qdrant_server import QdrantSnapshots
from daemon.backup.queue_copy import is_in_use, look_into, release_all
from daemon.backup.settings_copy import settings_to_keep
from daemon.command_line import Parser, settings_for
from daemon.errors import ConfigError
from daemon.identity import own_identity
from daemon.queue.migration import released_migrations
from daemon.settings import Settings
from demos.client.exit_codes import COMPLETED, INTERRUPTED
from demos.client.terminal import Meter, print_out
from handlers.models.model_sums import SETTINGS
from handlers.qdrant.edge_copy import sync_tree
from handlers.vectors.model_record import MODELS
from handlers.vectors.vector_snapshots import ENGINES, collections_of
from handlers.vectors.vectors_at_rest import at_rest

STAGING = ".restoring"
_EPILOG = """\
The file is compared with its checksums first. Jobs that ran when it was made wait again; a job that
was completed has its vector. No daemon may work on what is replaced. Secrets are in no backup: set
them again. Then `doctor` says whether all is well.

exit codes:
  0  restored
  2  usage
  78  refused, or it cannot be done; what was there is as it was
  130  interrupted

examples:
  %(prog)s /backups/monday.tar
  %(prog)s /backups/monday.tar --to look-at-it
  %(prog)s /backups/monday.tar --force
"""


@dataclass(frozen=True, slots=True)
class _Place:
    folder: Path
    queue: Path
    models: Path

    @property
    def vectors(self) -> Path:
        return self.folder / "vectors"


def main(argv: Sequence[str], *, prog: str) -> int:
    """Restore; return the exit code.

    Raises:
        ConfigError: the configuration is wrong, the file damaged, or something is in the way.
    """
    settings = settings_for(argv)
    options = make_parser(prog, settings).parse_args(argv)
    if options.to is not None:
        place = _Place(options.to, options.to / "queue.db", options.to / "models")
    else:
        # One in PostgreSQL is restored by its own tools; an archive of vectors only asks for none.
        file = settings.data_dir / "queue.db"
        queue = file if settings.queue.is_postgresql else settings.queue_path
        place = _Place(settings.data_dir, queue, settings.models_path)
    try:
        with Archive(options.path) as archive:
            _restore(archive, place, settings, is_forced=options.force)
            _tell(archive, place, settings)
    except OSError as error:
        raise ConfigError(f"it cannot be restored: {error}", code="restore_failed") from error
    except KeyboardInterrupt:
        return INTERRUPTED
    return COMPLETED


def make_parser(prog: str, settings: Settings) -> argparse.ArgumentParser:
    """Return what reads the command line; defaults are the daemon's own settings."""
    parser = Parser(
        prog=prog,
        description="Bring back what `backup` wrote.",
        epilog=_EPILOG,
    )
    parser.add_argument("path", type=Path, metavar="SRC", help="the backup's file")
    parser.add_argument(
        "--to",
        type=Path,
        metavar="FOLDER",
        help=f"data folder to restore into ({settings.data_dir})",
    )
    parser.add_argument(
        "--force",
        action="store_true",
        help="move what is there aside (*.before-restore-TIME); a Qdrant server's collections"
        " are replaced",
    )
    return parser


def _restore(archive: Archive, place: _Place, settings: Settings, *, is_forced: bool) -> None:
    with ExitStack() as stack:
        meter = stack.enter_context(Meter("restore", is_bytes=True))
        meter.expect(2 * archive.size)
        _check_version(archive)
        if settings.queue.is_postgresql and place.queue.parent == settings.data_dir:
            _refuse_queue(archive)
        server = _server(archive, settings, is_forced=is_forced)
        place.folder.mkdir(parents=True, exist_ok=True)
        stack.enter_context(_alone(place.folder))
        if is_in_use(place.queue):
            raise ConfigError(
                f"a process has the queue {place.queue} open: stop it first", code="restore_in_use"
            )
        stack.enter_context(at_rest(place.vectors))
        there = _there(place)
        if there and not is_forced:
            raise ConfigError(
                f"{' and '.join(map(str, there))} would be replaced: choose another folder (--to),"
                " or have it moved aside (--force)",
                code="restore_exists",
            )
        archive.check(meter.add)
        require_room(place.folder, archive.path.stat().st_size)
        staged = stack.enter_context(_staging(place.folder))
        queue = stack.enter_context(scratch(place.queue, "restoring"))
        _extract(archive, staged, queue, meter.add)
        if server is not None:
            # The models' names last: cut short, no record names what is not there.
            models = f"qdrant/{MODELS.name}.snapshot"
            for name in sorted(archive.names_below("qdrant"), key=lambda each: each == models):
                collection = name.removeprefix("qdrant/").removesuffix(".snapshot")
                server.put_back(collection, staged / name, lambda _: None)
        _put_in_place(place, staged, queue)


def _check_version(archive: Archive) -> None:
    told = archive.manifest.get("queue") or {}
    newest = max(step.version for step in released_migrations())
    if told.get("schema", 0) > newest:
        raise ConfigError(
            f"its queue has schema {told['schema']}, this version knows {newest}: use a newer"
            " inferd",
            code="schema_newer",
        )


def _refuse_queue(archive: Archive) -> None:
    if archive.manifest.get("queue"):
        raise ConfigError(
            "it holds a SQLite queue, and PostgreSQL is configured: restore it --to another"
            " folder, and take it over with `migrate queue`",
            code="queue_not_a_file",
        )


def _server(archive: Archive, settings: Settings, *, is_forced: bool) -> QdrantSnapshots | None:
    wanted = [
        name.removeprefix("qdrant/").removesuffix(".snapshot")
        for name in archive.names_below("qdrant")
    ]
    if not wanted:
        return None
    if not settings.qdrant.url:
        raise ConfigError(
            "its vectors are snapshots of a Qdrant server: set INFERD_QDRANT__URL to the one that"
            " shall have them",
            code="restore_no_server",
        )
    key = settings.qdrant.api_key
    server = QdrantSnapshots(settings.qdrant.url, key.get_secret_value() if key else None)
    there = sorted(set(server.collections()) & set(wanted))
    if there and not is_forced:
        raise ConfigError(
            f"the server has {', '.join(there)} already; --force replaces what is in them",
            code="restore_exists",
        )
    return server


def _there(place: _Place) -> list[Path]:
    has_vectors = any(collections_of(place.vectors / name) for name in ENGINES)
    return [
        path
        for path, is_there in ((place.queue, place.queue.exists()), (place.vectors, has_vectors))
        if is_there
    ]


def _extract(archive: Archive, staged: Path, queue: Path, tell: Callable[[int], None]) -> None:
    for entry in archive.entries:
        target = queue if entry.name == "queue.db" else staged / entry.name
        archive.extract(entry.name, target, tell)
    if queue.exists():
        release_all(queue, own_identity())
        look_into(queue)
    sync_tree(staged)


def _put_in_place(place: _Place, staged: Path, queue: Path) -> None:
    """Move aside what is there, and what was restored to its place; the queue last.

    A vector without its job harms nobody, unlike a job without its vector.
    """
    # First what may lie on another disk, full or read-only, and replaces nothing.
    _move_files(staged / "models", place.models, may_replace=False)
    stamp = f"before-restore-{datetime.now(UTC):%Y%m%dT%H%M%SZ}"
    there = _there(place)
    if place.queue in there:
        for end in ("-wal", "-shm", ""):
            path = place.queue.with_name(f"{place.queue.name}{end}")
            if path.exists():
                path.rename(place.queue.with_name(f"{place.queue.name}.{stamp}{end}"))
    if place.vectors in there:
        place.vectors.rename(place.vectors.with_name(f"{place.vectors.name}.{stamp}"))
    if (staged / "vectors").is_dir():
        # What is left has locks in it, and no vectors.
        shutil.rmtree(place.vectors, ignore_errors=True)
        (staged / "vectors").rename(place.vectors)
    _move_files(staged / "notes", place.folder, may_replace=True)
    if queue.exists():
        sync_folder(place.folder)
        if place.queue.exists():
            raise ConfigError(
                f"a daemon was started meanwhile, and made {place.queue}: stop it, and restore with"
                " --force",
                code="restore_in_use",
            )
        queue.rename(place.queue)
        sync_folder(place.queue.parent)


def _move_files(source: Path, home: Path, *, may_replace: bool) -> None:
    for path in sorted(source.rglob("*")):
        target = home / path.relative_to(source)
        if path.is_file() and (may_replace or not target.exists()):
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.move(path, target)


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise ConfigError(
                f"another process restores into {folder} at this moment", code="restore_in_use"
            ) from error
        yield
    finally:
        os.close(descriptor)


@contextmanager
def _staging(folder: Path) -> Iterator[Path]:
    staged = folder / STAGING
    shutil.rmtree(staged, ignore_errors=True)
    staged.mkdir()
    try:
        yield staged
    finally:
        shutil.rmtree(staged, ignore_errors=True)


def _tell(archive: Archive, place: _Place, settings: Settings) -> None:
    about = archive.manifest
    jobs = sum((about.get("queue") or {}).get("jobs", {}).values())
    names = ", ".join(about["vectors"]["collections"]) or "none"
    to = f"{jobs:,} jobs to {place.queue}" if about["queue"] else "no queue"
    print_out(f"restored {to}; vectors: {names}")
    for model in about.get("models", ()):
        # Path.exists raises where a folder of another user's may not be entered.
        is_there = os.path.exists(model.get("path", ""))  # noqa: PTH110 - as said
        is_here = model["is_included"] or is_there
        if "sha256" in model and not is_here:
            print_out(f"its weights are not here: {model['name']}, sha256 {model['sha256']}")
        # A record names a file in full, so that each daemon at one server means the same one.
        of_vectors = [each for each in model.get("used_by", ()) if each != SETTINGS]
        if of_vectors and model["is_included"] and not is_there:
            lies = place.models / Path(model["file"]).relative_to("models")
            print_out(f"put {lies} where {', '.join(of_vectors)} looks for it: {model['path']}")
    kept = json.loads(archive.read("settings.json"))
    now = settings_to_keep(settings)["settings"]
    other = {name: value for name, value in kept["settings"].items() if now.get(name) != value}
    for name, value in other.items():
        print_out(f"was set then, and is not so now: {name}={value}")
    if kept["secrets_left_out"]:
        print_out(f"set again, as no backup has them: {', '.join(kept['secrets_left_out'])}")
    if about["vectors"]["engine"] in ENGINES and settings.qdrant.url:
        sys.stderr.write(
            "inferd: the daemon is configured for a Qdrant server, and the vectors lie in"
            f" {place.vectors}: `migrate vectors --from {place.folder} --to"
            f" {settings.qdrant.url}` takes them there\n"
        )
