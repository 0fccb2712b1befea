"""`jobs`: lists, shows, retries and cancels jobs of the running daemon."""

import argparse
import json
from collections.abc import Iterator, Sequence
from datetime import datetime
from urllib.parse import urlencode

from daemon.command_line import Parser, settings_for
from daemon.counts import counted
from daemon.jobs import JobState, JsonObject, TaskType
from daemon.settings import Settings
from daemon.spelling import did_you_mean
from daemon.wire.codes import FAILURES
from demos.client import ClientError
from demos.client import arguments as checked
from demos.client.exit_codes import COMPLETED, REJECTED
from demos.client.management import Door, RefusedError, add_place, fail, say
from demos.client.sources import shown
from demos.client.terminal import print_out

PAGE = 500
RETRIED_AT_A_TIME = 1000
FEW = 50

_EPILOG = """\
Moments are `2h` (that long ago; s, m, h, d) or `2026-11-21T08:00` (local time); --since and --until
go by when a job was accepted.

exit codes:
  0  done
  2  usage
  3  no daemon answers, or it cannot now
  5  refused: no such job, one that cannot be retried or cancelled, or no permission
  78  wrong configuration

examples:
  %(prog)s list --status error --since 1d
  %(prog)s retry --code media_store_unreachable
  %(prog)s show 550e8400-e29b-41d4-a716-446655440000
"""


def main(argv: Sequence[str], *, prog: str) -> int:
    """Do what is asked; return the exit code.

    Raises:
        ConfigError: the configuration is wrong.
    """
    parser = make_parser(prog, settings_for(argv))
    options = parser.parse_args(argv)
    if options.verb == "retry" and bool(options.job_ids) == bool(options.code):
        parser.error("give job_ids, or --code CODE: one of the two")
    door = Door(options, parser)
    try:
        match options.verb:
            case "list":
                _list(door, options)
            case "retry" if options.code:
                _retry_failed(door, options)
            case verb:
                return _each(door, verb, options.job_ids)
    except ClientError as error:
        return fail(error)
    return COMPLETED


def _list(door: Door, options: argparse.Namespace) -> None:
    shown_some = False
    for job in _pages(door, options):
        if options.json:
            print_out(json.dumps(job))
        else:
            if not shown_some:
                print_out(f"{'accepted':<19}  {'job_id':<36}  {'task_type':<15}  id  status")
            print_out(_row(job))
        shown_some = True
    if not shown_some:
        say("no such job")


def _pages(door: Door, options: argparse.Namespace) -> Iterator[JsonObject]:
    """Yield the jobs page by page, as they are needed."""
    asked = {
        "status": options.status,
        "task_type": options.task,
        "code": options.code,
        "media_store_id": options.media,
        "since": options.since,
        "until": options.until,
    }
    left, after = options.limit, None
    while left:
        query = asked | {"limit": min(left, PAGE), "after": after}
        given = {name: value for name, value in query.items() if value is not None}
        page = door.ask("GET", f"/job?{urlencode(given)}")
        yield from page["jobs"]
        left -= len(page["jobs"])
        after = page["next"]
        if after is None:
            return
    say(f"more follow: --limit N shows more than {options.limit:,}")


def _row(job: JsonObject) -> str:
    accepted = datetime.fromtimestamp(job["created_at"] / 1000).astimezone()
    status = job["status"] if job["error_message"] is None else job["error_message"][:100]
    return shown(
        f"{accepted:%Y-%m-%d %H:%M:%S}  {job['job_id']}  {job['task_type']:<15}"
        f"  {job['media_store_id']}  {status}"
    )


def _retry_failed(door: Door, options: argparse.Namespace) -> None:
    retried = left_out = 0
    body: JsonObject = {"code": options.code, "limit": RETRIED_AT_A_TIME}
    if options.task is not None:
        body["task_type"] = options.task
    more = True
    while more:
        done = door.ask("POST", "/job/retry", body)
        retried += done["retried"]
        # Passed over by each round anew.
        left_out = max(left_out, done["left_out"])
        more = done["more"]
        # What fails once more meanwhile has the same code, and is not started a second time.
        body["before"] = done["before"]
        if more:
            say(f"{_waiting(retried)} so far")
    rest = f"; {left_out:,} left out, since newer jobs stand for them" if left_out else ""
    if not retried and options.code not in FAILURES:
        rest = f"; no job fails with {shown(options.code)}{did_you_mean(options.code, FAILURES)}"
    say(f"{_waiting(retried)}{rest}")


def _waiting(number: int) -> str:
    return f"{counted(number, 'job')} {'waits' if number == 1 else 'wait'} again"


def _each(door: Door, verb: str, job_ids: Sequence[str]) -> int:
    code = COMPLETED
    for job_id in job_ids:
        path = f"/job/{job_id}" if verb == "show" else f"/job/{job_id}/{verb}"
        try:
            print_out(json.dumps(door.ask("GET" if verb == "show" else "POST", path)))
        except RefusedError as error:
            say(f"inferd: {job_id}: {error}")
            code = REJECTED
    return code


def make_parser(prog: str, settings: Settings) -> argparse.ArgumentParser:
    """Return what reads the command line; defaults are the daemon's own settings."""
    parser = Parser(
        prog=prog,
        description="List, show, retry and cancel jobs of the running daemon.",
        epilog=_EPILOG,
    )
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="list|show|retry|cancel")
    listing = verbs.add_parser("list", help="jobs, newest first")
    listing.add_argument("--status", choices=[state.value for state in JobState])
    listing.add_argument(
        "--code", type=checked.text, help="what they failed with, such as media_not_found"
    )
    listing.add_argument("--media", type=checked.media_store_id, metavar="ID", help="of a picture")
    listing.add_argument(
        "--since", type=checked.moment, metavar="MOMENT", help="accepted then or later"
    )
    listing.add_argument("--until", type=checked.moment, metavar="MOMENT", help="accepted before")
    listing.add_argument(
        "--limit", default=FEW, type=checked.between(1, 1_000_000_000), metavar="N", help="(50)"
    )
    listing.add_argument("--json", action="store_true", help="one line of JSON for each")
    retry = verbs.add_parser("retry", help="start jobs again that failed")
    retry.add_argument("job_ids", nargs="*", type=checked.job_id, metavar="job_id")
    retry.add_argument("--code", type=checked.text, help="all that failed with it")
    for verb, said in (("show", "all that is known"), ("cancel", "end jobs that wait or run")):
        each = verbs.add_parser(verb, help=said)
        each.add_argument("job_ids", nargs="+", type=checked.job_id, metavar="job_id")
        add_place(each, settings)
    for each in (listing, retry):
        each.add_argument("--task", choices=[task.value for task in TaskType])
        add_place(each, settings)
    return parser
