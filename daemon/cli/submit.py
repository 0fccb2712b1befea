"""`submit`: submits jobs for any number of pictures to the running daemon, and reports on each."""

import argparse
import contextlib
import itertools
import json
import threading
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import IO

from daemon.command_line import settings_for
from daemon.counts import counted
from daemon.jobs import TaskType
from daemon.settings import Settings
from demos.client import ClientError, InferdClient, UnreachableError, configured
from demos.client import sources as found
from demos.client.bulk import Asked, Bulk, Settled
from demos.client.exit_codes import COMPLETED, INTERRUPTED, JOB_FAILED
from demos.client.journal import Journal, JournalError
from demos.client.link import split_address
from demos.client.parallel import in_parallel
from demos.client.reports import Report, Wish, report
from demos.client.sources import SourceError, Subject
from demos.client.submit_options import make_parser
from demos.client.terminal import Meter
from demos.client.uploads import Uploads

TOLD_FAILURES = 10
"""So many failures are told on stderr; stdout has all of them."""
BULK_IN_FLIGHT = 2000
FEW_IN_FLIGHT = 64
"""Where each one waits for its job, or is an HTTP request."""
READERS = 8
"""Files that are read and uploaded at a time."""


def main(argv: Sequence[str], *, prog: str) -> int:
    """Ask; return the exit code.

    Raises:
        ConfigError: the configuration is wrong.
    """
    settings = settings_for(argv)
    parser = make_parser(prog, settings)
    options = parser.parse_intermixed_args(argv)
    if not options.media_store_ids and options.ids is None and options.folder is None:
        parser.error("nothing to ask for: give media_store_ids, --ids FILE or --folder DIR")
    if options.folder is not None and not Path(options.folder).is_dir():
        parser.error(f"there is no folder {found.shown(options.folder)}")
    tasks = [task.value for task in TaskType] if "all" in options.task else options.task
    options.task = list(dict.fromkeys(tasks or [TaskType.IMAGE_EMBEDDING.value]))
    if options.in_flight is None:
        options.in_flight = FEW_IN_FLIGHT if options.wait or options.rest else BULK_IN_FLIGHT
    try:
        lines = found.open_ids(options.ids) if options.ids is not None else None
    except SourceError as error:
        parser.error(str(error))
    try:
        client = configured.client(
            settings,
            broker=options.broker,
            inference_url=options.inference,
            rest=options.rest,
            token=options.token or configured.token(settings),
        )
        journal = _open_journal(settings, options)
    except (ValueError, JournalError) as error:
        parser.error(str(error))
    try:
        with ExitStack() as stack:
            if journal is not None:
                stack.callback(journal.close)
            meter = stack.enter_context(Meter("requests"))
            threading.Thread(target=_count, args=(options, meter), daemon=True).start()
            subjects = _subjects(settings, options, lines, journal)
            return _Run(settings, client, options, meter, journal).run(subjects)
    except KeyboardInterrupt:  # once more, while it said goodbye
        return INTERRUPTED


class _Run:
    """One run: subjects in, lines out."""

    def __init__(
        self,
        settings: Settings,
        client: InferdClient,
        options: argparse.Namespace,
        meter: Meter,
        journal: Journal | None,
    ) -> None:
        self._settings, self._client, self._options = settings, client, options
        self._meter, self._journal = meter, journal
        self._counts: Counter[str] = Counter()
        self._codes: set[int] = set()
        self._failures = self._left_out = 0

    def run(self, subjects: Iterable[Subject]) -> int:
        """Ask for all; return the exit code."""
        try:
            for wish, media_store_id, settled in self._settle(self._wishes(subjects)):
                done = report(wish, media_store_id, settled.outcome)
                self._tell(done)
                if isinstance(done.error, UnreachableError):
                    # Whatever comes after it would wait as long, and fail in the same way.
                    self._meter.say(
                        "stopped: what is not on stdout was not asked for, or in vain;"
                        " `doctor` looks at each address, and --broker, --inference and"
                        " --media-store name others"
                    )
                    return done.exit_code
        except KeyboardInterrupt:
            self._meter.say(
                f"interrupted; {self._summary()}; up to {self._options.in_flight} more may have"
                " been asked for; what was accepted goes on; the same command takes up the rest"
            )
            return INTERRUPTED
        except JournalError as error:
            self._meter.say(f"stopped: {error}; {self._summary()}")
            return JOB_FAILED
        self._meter.say(self._summary())
        if self._options.folder is not None and not (self._counts or self._left_out):
            self._meter.say(
                f"no picture is in {found.shown(self._options.folder)} or below: files are taken"
                " that are named like pictures (.jpg, .png, ...) or have such bytes, hidden ones"
                " are not"
            )
        if not self._codes:
            return COMPLETED
        return self._codes.pop() if len(self._codes) == 1 else JOB_FAILED

    def _wishes(self, subjects: Iterable[Subject]) -> Iterator[Asked[Wish]]:
        wishes = itertools.starmap(
            Wish, ((each, task) for each in subjects for task in self._options.task)
        )
        # Only files take time: they are read and uploaded in threads.
        has_files = self._options.folder is not None
        asked = in_parallel(self._ask, wishes, READERS) if has_files else map(self._ask, wishes)
        for each in asked:
            if each is None:
                self._left_out += 1
                self._meter.skip()
            else:
                yield each

    def _ask(self, wish: Wish) -> Asked[Wish] | None:
        """Return the request for a wish, or nothing where an earlier run did it."""
        try:
            media_store_id = wish.subject.media_store_id()
        except ClientError as error:
            return Asked(wish, error)
        if self._journal is not None and self._journal.is_done(media_store_id, wish.task_type):
            return None
        return Asked(
            wish,
            {
                "task_type": wish.task_type,
                "media_store_id": media_store_id,
                "priority": self._options.priority,
                "force": self._options.force,
            },
        )

    def _settle(
        self, wanted: Iterable[Asked[Wish]]
    ) -> Iterator[tuple[Wish, int | None, Settled[Wish]]]:
        for settled in self._one_by_one(wanted) if self._options.rest else self._in_bulk(wanted):
            media_store_id = None
            if not isinstance(settled.outcome, ClientError):
                media_store_id = settled.outcome.request["media_store_id"]
            yield settled.tag, media_store_id, settled

    def _one_by_one(self, wanted: Iterable[Asked[Wish]]) -> Iterator[Settled[Wish]]:
        def one(asked: Asked[Wish]) -> Settled[Wish]:
            if isinstance(asked.request, ClientError):
                return Settled(asked.tag, asked.request)
            options = self._options
            return Settled(
                asked.tag,
                self._client.submit_one(asked.request, wait=options.wait, timeout=options.timeout),
            )

        with self._client:
            yield from in_parallel(one, wanted, self._options.in_flight)

    def _in_bulk(self, wanted: Iterable[Asked[Wish]]) -> Iterator[Settled[Wish]]:
        options = self._options
        bulk: Bulk[Wish] = Bulk(
            configured.connect(self._settings, options.broker),
            lambda: self._client,
            has_rest=options.inference is not None,
            in_flight=options.in_flight,
            wait=options.wait,
            timeout=options.timeout,
            max_bytes=self._settings.mqtt.max_request_bytes,
            on_hold=self._meter.say,
        )
        return bulk.run(wanted)

    def _tell(self, done: Report) -> None:
        self._counts[done.status] += 1
        self._meter.count(is_failed=not done.is_good)
        self._meter.result(json.dumps(done.line))
        if done.is_good:
            if self._journal is not None:
                self._journal.done(done.line["media_store_id"], done.line["task_type"])
            return
        self._codes.add(done.exit_code)
        self._failures += 1
        if self._failures <= TOLD_FAILURES:
            self._meter.say(done.sentence)
        if self._failures == TOLD_FAILURES:
            self._meter.say("further failures are told on stdout only")

    def _summary(self) -> str:
        parts = [f"{number:,} {status}" for status, number in self._counts.most_common()]
        if self._left_out:
            parts.append(f"{self._left_out:,} asked for in earlier runs")
        done = f"{counted(self._counts.total(), 'request')} in {self._meter.seconds:.1f} s"
        return f"{done}: {', '.join(parts)}" if parts else done


def _open_journal(settings: Settings, options: argparse.Namespace) -> Journal | None:
    if options.resume is None:
        return None
    broker = split_address(options.broker or settings.mqtt.url.get_secret_value())
    places = {"broker": f"{broker.hostname}:{broker.port or broker.scheme}"}
    if options.folder is not None:
        places["media store"] = options.media_store
    return Journal(Path(options.resume), **places)


def _subjects(
    settings: Settings,
    options: argparse.Namespace,
    lines: IO[str] | None,
    journal: Journal | None,
) -> Iterator[Subject]:
    yield from map(found.Known, options.media_store_ids)
    if lines is not None:
        yield from found.ids(lines, options.ids)
    if options.folder is not None:
        token = options.token or configured.media_store_token(settings)
        uploads = Uploads(options.media_store, token)
        max_bytes = settings.media_store.max_bytes
        yield from found.pictures(options.folder, uploads, max_bytes, journal)


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
