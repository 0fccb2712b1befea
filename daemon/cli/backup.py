"""`backup`: writes all that a daemon knows into one file, while it works or while it rests."""

import argparse
import json
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from datetime import UTC, datetime
from pathlib import Path

from daemon.backup.archive import Archive
from daemon.backup.archive_writer import ArchiveWriter
from daemon.backup.destination import part_file, publish, require_room, scratch
from daemon.backup.queue_copy import PinnedQueue, follow_removals, look_into, release_all
from daemon.backup.settings_copy import settings_to_keep
from daemon.cli.backup_vectors import VectorSource
from daemon.command_line import Parser, settings_for
from daemon.counts import counted
from daemon.errors import ConfigError
from daemon.identity import own_identity, own_version
from daemon.jobs import JsonObject
from daemon.settings import Settings
from demos.client import UnreachableError
from demos.client.exit_codes import COMPLETED, INTERRUPTED, REJECTED, UNREACHABLE
from demos.client.management import RefusedError, add_place
from demos.client.terminal import Meter, print_out
from handlers.models.model_file import State
from handlers.models.model_sums import model_sums
from handlers.vectors.vector_snapshots import size_of

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
        vectors = VectorSource(settings, options, parser)
        files = vectors.open(stack)
        models, examined = model_sums(settings, vectors.records)
        if not options.with_models:
            models = []
        if pinned is None and not files and not vectors.server_collections:
            raise ConfigError(
                f"there is nothing to back up: no queue at {queue_path}, no vectors under"
                f" {settings.data_dir}; INFERD_DATA_DIR names the daemon's folder",
                code="backup_failed",
            )
        queue_size = 0 if pinned is None else pinned.size
        sources = [*files, *models, *_notes(settings)]
        require_room(dest.parent, 2 * queue_size + size_of([path for _, path in sources]))
        meter.expect(2 * queue_size + sum(path.stat().st_size for _, path in sources))
        writer = ArchiveWriter(part, meter.add)
        queue: JsonObject | None = None
        # Before the queue's copy is finished: what is removed until then goes from that as well.
        _add_server_collections(vectors, writer, dest, meter)
        if pinned is not None:
            pinned.copy_to(queue_copy, meter.add)
            queue = _finish_queue(queue_copy, pinned, settings)
            writer.add_file("queue.db", queue_copy)
        for name, path in sources:
            writer.add_file(name, path)
        text = json.dumps(settings_to_keep(settings), indent=1, default=str)
        writer.add_bytes("settings.json", f"{text}\n".encode())
        writer.close(
            {
                "made_at": datetime.now(UTC).isoformat(timespec="seconds"),
                "inferd": own_version(),
                "queue": queue,
                "vectors": vectors.told,
                "models": [
                    {**each, "is_included": options.with_models and "file" in each}
                    for each in examined
                ],
            }
        )
        publish(part, dest)
    _tell(dest, queue, vectors.told, settings)
    if vectors.unknown:
        sys.stderr.write(f"inferd: which models the vectors are of: {vectors.unknown}\n")
    if options.with_models:
        _tell_left_out(examined)
    return COMPLETED


def _add_server_collections(
    vectors: VectorSource, writer: ArchiveWriter, dest: Path, meter: Meter
) -> None:
    for name in vectors.server_collections:
        with scratch(dest, "snapshot") as fetched:
            vectors.fetch(name, fetched, meter.add)
            writer.add_file(f"qdrant/{name}.snapshot", fetched)


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
    print_out(f"{dest}: {dest.stat().st_size:,} bytes, {counted(jobs, 'job')}, vectors: {names}")
    left_out = settings_to_keep(settings)["secrets_left_out"]
    if left_out:
        print_out(f"left out, as they are secret: {', '.join(left_out)}")
    if queue and not jobs and not vectors["collections"]:
        sys.stderr.write(
            f"inferd: {settings.data_dir} has no job and no vector yet; if that is not the"
            " daemon's folder, name it by INFERD_DATA_DIR\n"
        )
