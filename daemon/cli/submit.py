"""`submit`: asks the running daemon for jobs, for any number of pictures, and tells of each."""

import argparse
import contextlib
import itertools
import json
import os
import threading
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import IO

from daemon.jobs import TaskType
from daemon.settings import Settings
from demos.client import ClientError, InferdClient, UnreachableError, configured
from demos.client import arguments as checked
from demos.client import sources as found
from demos.client.exit_codes import COMPLETED, INTERRUPTED, JOB_FAILED
from demos.client.parallel import in_parallel
from demos.client.reports import Report, Wish, report
from demos.client.sources import Subject
from demos.client.terminal import Meter
from demos.client.uploads import Uploads

TOLD_FAILURES = 10
"""So many failures are told on stderr; stdout has all of them."""

_EPILOG = """\
One line of JSON for each request goes to stdout, as soon as it is known what became of it:
job_id, media_store_id, task_type, status, error, and where there are any file and existing_job_id.
status: accepted, or with --wait completed, error, sync_failed; exists (asked for before); rejected;
no_answer (in time); unreachable; unusable (no id, or a file that cannot be read or uploaded).

exit codes:
  0  all is well; what exists already is
  1  a job failed, a file could not be used, or several things went wrong
  2  usage
  3  the broker and the REST door, or the media store, cannot be reached; the rest was not asked for
  4  some requests got no answer in time; asking again does no harm
  5  some requests were rejected
  78  wrong configuration
  130  interrupted; what was accepted goes on

example:
  python -m daemon submit --folder photos --task all --wait
"""


def main(argv: Sequence[str], *, prog: str) -> int:
    """Ask; return the exit code.

    Raises:
        ConfigError: the configuration is wrong.
    """
    settings = Settings.from_env(os.environ)
    parser = _parser(prog, settings)
    options = parser.parse_intermixed_args(argv)
    if not options.media_store_ids and options.ids is None and options.folder is None:
        parser.error("nothing to ask for: give media_store_ids, --ids FILE or --folder DIR")
    if options.folder is not None and not Path(options.folder).is_dir():
        parser.error(f"there is no folder {found.shown(options.folder)}")
    tasks = [task.value for task in TaskType] if "all" in options.task else options.task
    options.task = list(dict.fromkeys(tasks or [TaskType.IMAGE_EMBEDDING.value]))
    try:
        lines = found.open_ids(options.ids) if options.ids is not None else None
    except OSError as error:
        parser.error(f"cannot read {found.shown(options.ids)}: {error.strerror}")
    try:
        client = configured.client(
            settings,
            broker=options.broker,
            inference_url=options.inference,
            rest=options.rest,
            token=options.token or configured.token(settings),
        )
    except ValueError as error:
        parser.error(str(error))
    try:
        with Meter("requests") as meter, client:
            threading.Thread(target=_count, args=(options, meter), daemon=True).start()
            wishes = _wishes(_subjects(settings, options, lines), options.task)
            return _Run(client, options, meter).run(wishes)
    except KeyboardInterrupt:  # once more, while it said goodbye
        return INTERRUPTED


class _Run:
    """One run: wishes in, lines out."""

    def __init__(self, client: InferdClient, options: argparse.Namespace, meter: Meter) -> None:
        self._client, self._options, self._meter = client, options, meter
        self._counts: Counter[str] = Counter()
        self._codes: set[int] = set()
        self._failures = 0

    def run(self, wishes: Iterable[Wish]) -> int:
        """Ask for all; return the exit code."""
        try:
            for done in in_parallel(self._do, wishes, self._options.in_flight):
                self._tell(done)
                if isinstance(done.error, UnreachableError):
                    # Whatever comes after it would wait as long, and fail in the same way.
                    self._meter.say("stopped: what is not on stdout was not asked for, or in vain")
                    return done.exit_code
        except KeyboardInterrupt:
            self._meter.say(
                f"interrupted; {self._summary()}; up to {self._options.in_flight} more may have"
                " been asked for; what was accepted goes on"
            )
            return INTERRUPTED
        self._meter.say(self._summary())
        if not self._codes:
            return COMPLETED
        return self._codes.pop() if len(self._codes) == 1 else JOB_FAILED

    def _do(self, wish: Wish) -> Report:
        """Ask for one; called in threads."""
        try:
            media_store_id = wish.subject.media_store_id()
        except ClientError as error:
            return report(wish, None, error)
        request = {
            "task_type": wish.task_type,
            "media_store_id": media_store_id,
            "priority": self._options.priority,
            "force": self._options.force,
        }
        outcome = self._client.submit_one(
            request, wait=self._options.wait, timeout=self._options.timeout
        )
        return report(wish, media_store_id, outcome)

    def _tell(self, done: Report) -> None:
        self._counts[done.status] += 1
        self._meter.count(is_failed=not done.is_good)
        self._meter.result(json.dumps(done.line))
        if done.is_good:
            return
        self._codes.add(done.exit_code)
        self._failures += 1
        if self._failures <= TOLD_FAILURES:
            self._meter.say(done.sentence)
        if self._failures == TOLD_FAILURES:
            self._meter.say("further failures are told on stdout only")

    def _summary(self) -> str:
        parts = ", ".join(f"{number:,} {status}" for status, number in self._counts.most_common())
        done = f"{self._counts.total():,} requests in {self._meter.seconds:.1f} s"
        return f"{done}: {parts}" if parts else done


def _subjects(
    settings: Settings, options: argparse.Namespace, lines: IO[str] | None
) -> Iterator[Subject]:
    yield from map(found.Known, options.media_store_ids)
    if lines is not None:
        yield from found.ids(lines, options.ids)
    if options.folder is not None:
        token = options.token or configured.media_store_token(settings)
        uploads = Uploads(options.media_store, token)
        yield from found.pictures(options.folder, uploads, settings.media_store.max_bytes)


def _wishes(subjects: Iterable[Subject], tasks: Sequence[str]) -> Iterator[Wish]:
    return itertools.starmap(Wish, ((each, task) for each in subjects for task in tasks))


def _count(options: argparse.Namespace, meter: Meter) -> None:
    """Find out how much there is to do, beside doing it; a stream has no known end."""
    total = len(options.media_store_ids)
    # What cannot be read is told by who asks for it.
    with contextlib.suppress(OSError):
        if options.ids is not None:
            if not Path(options.ids).is_file():
                return
            total += found.count_ids(options.ids)
        if options.folder is not None:
            total += found.count_pictures(options.folder)
    meter.expect(total * len(options.task))


def _parser(prog: str, settings: Settings) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=prog,
        description="Ask the running daemon for jobs. Addresses, certificates and tokens are\n"
        "those of the daemon's own settings where no option says otherwise.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    what = parser.add_argument_group("what to ask for")
    what.add_argument(
        "media_store_ids", nargs="*", type=checked.media_store_id, metavar="media_store_id"
    )
    what.add_argument("--ids", metavar="FILE", help="ids, one a line, # comments; - is stdin")
    what.add_argument(
        "--folder", metavar="DIR", help="upload the pictures in DIR and below, then ask for them"
    )
    what.add_argument(
        "--task",
        action="append",
        default=[],
        choices=[*(task.value for task in TaskType), "all"],
        help="may be repeated (image_embedding)",
    )
    how = parser.add_argument_group("how")
    how.add_argument(
        "--priority", default=5, type=checked.priority, help="0 (last) to 10 (first) (5)"
    )
    how.add_argument("--force", action="store_true", help="again, where it was done already")
    how.add_argument("--wait", action="store_true", help="until the jobs end, not only accepted")
    how.add_argument(
        "--timeout",
        default=300.0,
        type=checked.seconds,
        metavar="SECONDS",
        help="for each request (300)",
    )
    how.add_argument(
        "--in-flight",
        default=64,
        type=checked.between(1, 1000),
        metavar="N",
        help="requests under way at a time (64)",
    )
    how.add_argument("--rest", action="store_true", help="ask over REST instead of MQTT")
    where = parser.add_argument_group("where, other than configured")
    where.add_argument("--broker", type=checked.broker, metavar="URL", help="MQTT broker")
    where.add_argument(
        "--inference",
        default=configured.rest_url(settings),
        type=checked.address,
        metavar="URL",
        help="REST door, used where the broker is away or silent (%(default)s)",
    )
    where.add_argument(
        "--media-store",
        default=settings.media_store.url,
        type=checked.address,
        metavar="URL",
        help="where the pictures of --folder go (%(default)s)",
    )
    where.add_argument(
        "--token",
        help="bearer token for REST and the media store; others can see it in the list"
        " of processes, unlike INFERD_CLIENT__TOKEN and INFERD_CLIENT__TOKEN_FILE",
    )
    return parser
