"""What `submit` takes on its command line."""

import argparse

from daemon.command_line import Parser
from daemon.jobs import TaskType
from daemon.settings import Settings
from demos.client import arguments as checked
from demos.client import configured

MOST_IN_FLIGHT = 10_000

_EPILOG = """\
Requests go out in batch messages of up to 1,000, as fast as the daemon confirms them; where its
queue is full, when it says so. On a terminal a bar shows how far it is, the rate and the time left.

One line of JSON for each request goes to stdout, as soon as it is known what became of it:
job_id, media_store_id, task_type, status, error, and where there are any file and existing_job_id.
status: accepted, or with --wait completed, error, sync_failed; exists (asked for before); rejected;
no_answer (in time); unreachable; unusable (no id, or a file that cannot be read or uploaded).

After Ctrl-C the same command goes on: what was accepted `exists`. With --resume FILE that is not
even asked for again, and no picture is uploaded twice; what failed is. FILE is small, belongs to
one broker, and the same command with it later takes what is new in a folder.

exit codes:
  0  all is well; what exists already is
  1  a job failed, a file could not be used, or several things went wrong
  2  usage
  3  the broker and the REST door, or the media store, cannot be reached; the rest was not asked for
  4  some requests got no answer in time; asking again does no harm
  5  some requests were rejected
  78  wrong configuration
  130  interrupted; what was accepted goes on

examples:
  %(prog)s --folder photos --task all --wait
  %(prog)s --ids million.txt --resume import.state > import.jsonl
"""


def make_parser(prog: str, settings: Settings) -> argparse.ArgumentParser:
    """Return what reads the command line; defaults are the daemon's own settings."""
    found = Parser(
        prog=prog,
        description="Ask the running daemon for jobs. Addresses, certificates and tokens are "
        "those of the daemon's own settings where no option says otherwise.",
        epilog=_EPILOG,
    )
    what = found.add_argument_group("what to ask for")
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
    how = found.add_argument_group("how")
    how.add_argument(
        "--priority", default=5, type=checked.priority, help="0 (last) to 10 (first) (5)"
    )
    how.add_argument("--force", action="store_true", help="again, where it was done already")
    how.add_argument("--wait", action="store_true", help="until the jobs end, not only accepted")
    how.add_argument(
        "--resume", metavar="FILE", help="note there what went well, and leave out what is noted"
    )
    how.add_argument(
        "--timeout",
        default=300.0,
        type=checked.seconds,
        metavar="SECONDS",
        help="how long each request may be without an answer (300)",
    )
    how.add_argument(
        "--in-flight",
        type=checked.between(1, MOST_IN_FLIGHT),
        metavar="N",
        help="requests under way at a time (2000; with --wait or --rest 64)",
    )
    how.add_argument("--rest", action="store_true", help="ask over REST instead of MQTT")
    where = found.add_argument_group("where, other than configured")
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
        type=checked.token,
        help="bearer token for REST and the media store; others can see it in the list"
        " of processes, unlike INFERD_CLIENT__TOKEN and INFERD_CLIENT__TOKEN_FILE",
    )
    return found
