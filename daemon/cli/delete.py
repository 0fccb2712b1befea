"""`delete`: removes what the running daemon knows of pictures: vectors and jobs."""

import argparse
import itertools
import json
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence

from daemon.command_line import Parser, settings_for
from daemon.counts import counted
from daemon.settings import Settings
from demos.client import ClientError, UnreachableError
from demos.client import arguments as checked
from demos.client import sources as found
from demos.client.exit_codes import COMPLETED, INTERRUPTED, JOB_FAILED, REJECTED, UNREACHABLE
from demos.client.management import Door, RefusedError, add_place
from demos.client.parallel import in_parallel
from demos.client.sources import SourceError, Subject
from demos.client.terminal import Meter

IN_FLIGHT = 8

_EPILOG = """\
Jobs of a picture that wait or run are cancelled first. The pictures themselves are the media
store's, and stay. Deleting again does no harm. Daemons that share a queue and have folders of
vectors each are reached over MQTT only: publish to inference/delete/ID.

One line of JSON for each picture goes to stdout: media_store_id, jobs, cancelled, vectors by
collection; or media_store_id and error.

exit codes:
  0  deleted, or there was nothing
  1  a line of the list is no id
  2  usage
  3  no daemon answers, or it cannot now; the rest was not tried
  5  refused: no permission, or a job that runs in another daemon
  78  wrong configuration
  130  interrupted; deleting again goes on

examples:
  %(prog)s 12 13
  %(prog)s --ids gone.txt
"""


def main(argv: Sequence[str], *, prog: str) -> int:
    """Delete; return the exit code.

    Raises:
        ConfigError: the configuration is wrong.
    """
    parser = make_parser(prog, settings_for(argv))
    options = parser.parse_intermixed_args(argv)
    if not options.media_store_ids and options.ids is None:
        parser.error("nothing to delete: give media_store_ids, or --ids FILE")
    door = Door(options, parser)
    subjects: Iterator[Subject] = map(found.Known, options.media_store_ids)
    if options.ids is not None:
        try:
            lines = found.open_ids(options.ids)
        except SourceError as error:
            parser.error(str(error))
        subjects = itertools.chain(subjects, found.ids(lines, options.ids))
    return _delete(door, subjects)


def _delete(door: Door, subjects: Iterable[Subject]) -> int:
    def one(subject: Subject) -> tuple[dict[str, object], ClientError | None]:
        media_store_id = None
        try:
            media_store_id = subject.media_store_id()
            return door.ask("DELETE", f"/media/{media_store_id}"), None
        except ClientError as error:
            return {"media_store_id": media_store_id, "error": str(error)}, error

    counts: Counter[str] = Counter()
    code = COMPLETED
    with Meter("pictures") as meter:
        try:
            for line, error in in_parallel(one, subjects, IN_FLIGHT):
                meter.count(is_failed=error is not None)
                meter.result(json.dumps(line))
                if error is None:
                    counts.update(_deleted(line))
                    continue
                about = line["media_store_id"]
                meter.say(f"inferd: {error}" if about is None else f"inferd: {about}: {error}")
                code = code or (REJECTED if isinstance(error, RefusedError) else JOB_FAILED)
                if isinstance(error, UnreachableError):
                    return UNREACHABLE
        except KeyboardInterrupt:
            code = INTERRUPTED
        meter.say(
            f"{counted(counts['pictures'], 'picture')}: {counted(counts['jobs'], 'job')} and"
            f" {counted(counts['vectors'], 'vector')} deleted"
        )
    return code


def _deleted(line: dict[str, object]) -> dict[str, int]:
    """Return the numbers of one picture: jobs and vectors, over all collections."""
    jobs, vectors = line["jobs"], line["vectors"]
    return {
        "pictures": 1,
        "jobs": jobs if isinstance(jobs, int) else 0,
        "vectors": sum(vectors.values()) if isinstance(vectors, dict) else 0,
    }


def make_parser(prog: str, settings: Settings) -> argparse.ArgumentParser:
    """Return what reads the command line; defaults are the daemon's own settings."""
    parser = Parser(
        prog=prog,
        description="Remove what the running daemon knows of pictures: vectors and jobs.",
        epilog=_EPILOG,
    )
    parser.add_argument(
        "media_store_ids", nargs="*", type=checked.media_store_id, metavar="media_store_id"
    )
    parser.add_argument("--ids", metavar="FILE", help="ids, one a line, # comments; - is stdin")
    add_place(parser, settings)
    return parser
