"""`audit`: compares completed jobs with stored vectors, and mends what does not fit on request."""

import argparse
import json
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

from daemon.cli.audit_steps import OverFiles, OverRest, Steps
from daemon.command_line import Parser, settings_for
from daemon.counts import counted
from daemon.jobs import JsonObject
from daemon.queue.audit_findings import Kind, Outcome
from daemon.settings import Settings
from demos.client import ClientError
from demos.client.exit_codes import COMPLETED, INTERRUPTED
from demos.client.management import Door, add_place, fail
from demos.client.terminal import Meter

GOOD = frozenset({Outcome.REQUEUED, Outcome.DELETED, Outcome.GONE})
FINDINGS_LEFT = 1
MENDED_AT_A_TIME = 200
MENDS: dict[str, frozenset[Kind]] = {
    "missing": frozenset({Kind.MISSING_VECTOR, Kind.MISSING_FACES}),
    "wrong": frozenset({Kind.SURPLUS_FACE, Kind.OTHER_JOB, Kind.OTHER_MODEL, Kind.BAD_VECTOR}),
    "orphans": frozenset({Kind.ORPHAN_VECTOR}),
}
HARMLESS = ("missing", "wrong")
"""What --mend without a word mends: nothing is deleted."""

_EPILOG = """\
What is found:

  missing_vector  a job completed, and no vector of it is there
  missing_faces   a job completed, and some of its faces have no vector
  surplus_face    a vector of a face that the job's result does not have
  other_job       a vector that another job stored than the one that completed
  other_model     a vector that says that it is of another model than its collection
  bad_vector      of another dimension, or of no length; found with --deep only
  orphan_vector   a vector of a picture of which the queue knows no job
  foreign_vector  a vector that another program stored; never touched

Vectors without a job that are older than INFERD_QUEUE__PRUNE_AFTER_DAYS are only counted: their
jobs were pruned. Jobs that were pruned while that was set otherwise make orphans; look at the list
before you delete any. Daemons that share a queue but keep vectors in folders of their own see the
vectors of the others as missing.

--mend asks for the pictures of missing and wrong vectors anew, by jobs of the lowest priority;
--mend orphans deletes. What somebody does to a picture meanwhile goes before.

exit codes:
  0  all fits, or is mended
  1  something is found, and left
  2  usage
  3  no daemon answers, or it cannot for a minute; what was mended until then is
  5  refused: no permission
  78  wrong configuration
  130  interrupted; another audit begins anew

examples:
  %(prog)s
  %(prog)s --json > findings.jsonl
  %(prog)s --mend
  %(prog)s --mend missing --mend orphans
  %(prog)s --files
"""


def main(argv: Sequence[str], *, prog: str) -> int:
    """Audit; return the exit code.

    Raises:
        ConfigError: the configuration is wrong; with --files, the files cannot be used.
    """
    settings = settings_for(argv)
    parser = make_parser(prog, settings)
    options = parser.parse_args(argv)
    words = {each for word in options.mend or () for each in (HARMLESS if word == "" else (word,))}
    kinds = frozenset[Kind]().union(*(MENDS[word] for word in words))
    try:
        if options.files:
            with OverFiles(settings) as steps:
                return _audit(steps, options, kinds)
        return _audit(OverRest(Door(options, parser)), options, kinds)
    except ClientError as error:
        return fail(error)


@dataclass
class _Tally:
    """What an audit has compared, found and mended so far."""

    looked: Counter[str] = field(default_factory=Counter)
    found: Counter[str] = field(default_factory=Counter)
    """Findings by kind."""
    outcomes: Counter[str] = field(default_factory=Counter)
    """What became of those that were to be mended."""
    left: int = 0
    """Findings that are not mended."""

    def note_step(self, step: JsonObject) -> None:
        """Add what a step compared and found, before any of it is mended."""
        self.looked.update({name: step[name] for name in ("jobs", "vectors", "pruned")})
        self.found.update(each["kind"] for each in step["findings"])

    def note_mended(self, step: JsonObject, done: Sequence[JsonObject]) -> None:
        """Add what became of a step's findings."""
        self.outcomes.update(each["outcome"] for each in done)
        self.left += len(step["findings"]) - sum(each["outcome"] in GOOD for each in done)

    def tell(self, say: Callable[[str], None], *, is_whole: bool) -> None:
        """Say all of it in lines for people."""
        say(
            f"{counted(self.looked['jobs'], 'completed job')} and"
            f" {counted(self.looked['vectors'], 'vector')} compared:"
            f" {_told(self.found) or 'all fits'}"
        )
        if not is_whole:
            say("this is not all: the rest was not looked at")
        if self.looked["pruned"]:
            say(f"{self.looked['pruned']:,} vectors whose jobs were pruned are no findings")
        if self.outcomes:
            say(f"of these: {_told(self.outcomes)}")


def _audit(steps: Steps, options: argparse.Namespace, kinds: frozenset[Kind]) -> int:
    tally = _Tally()
    expected = 0
    is_interrupted = False
    failure: ClientError | None = None
    with Meter("vectors") as meter:
        try:
            for step in _steps(steps, deep=options.deep):
                if step["total_vectors"] is not None:
                    expected += step["total_vectors"]
                    meter.expect(expected)
                meter.add(step["vectors"])
                tally.note_step(step)
                mendable = [each for each in step["findings"] if each["kind"] in kinds]
                done = _mend(steps, mendable)
                tally.note_mended(step, done)
                by_id = {id(each): one for each, one in zip(mendable, done, strict=True)}
                for each in step["findings"]:
                    meter.result(_line(each, by_id.get(id(each)), as_json=options.json))
        except KeyboardInterrupt:
            is_interrupted = True
        except ClientError as error:
            if not tally.looked:
                raise
            failure = error
        tally.tell(meter.say, is_whole=failure is None)
    if failure is not None:
        raise failure
    if is_interrupted:
        return INTERRUPTED
    return FINDINGS_LEFT if tally.left else COMPLETED


def _steps(steps: Steps, *, deep: bool) -> Iterator[JsonObject]:
    after: str | None = None
    while True:
        step = steps.step(after, deep=deep)
        yield step
        after = step["next"]
        if after is None:
            return


def _mend(steps: Steps, findings: Sequence[JsonObject]) -> list[JsonObject]:
    done: list[JsonObject] = []
    for start in range(0, len(findings), MENDED_AT_A_TIME):
        done += steps.mend(findings[start : start + MENDED_AT_A_TIME])
    return done


def _line(finding: JsonObject, done: JsonObject | None, *, as_json: bool) -> str:
    if as_json:
        return json.dumps(finding | {"mended": done})
    became = f"  -> {done['outcome']}" if done is not None else ""
    which = finding["media_store_id"]
    named = which if which is not None else finding["point_id"]
    face = ""
    if finding["point_id"] not in (None, which, named):
        face = f" ({finding['point_id']})"
    kind, task_type = finding["kind"], finding["task_type"]
    return f"{kind:<14}  {task_type:<15}  {named}{face}: {finding['detail']}{became}"


def _told(counts: Counter[str]) -> str:
    return ", ".join(f"{number:,} {name}" for name, number in sorted(counts.items()))


def make_parser(prog: str, settings: Settings) -> argparse.ArgumentParser:
    """Return what reads the command line; defaults are the daemon's own settings."""
    parser = Parser(
        prog=prog,
        description="Compare completed jobs with the vectors that are stored, over the running "
        "daemon, and mend what does not fit if asked to.",
        epilog=_EPILOG,
    )
    parser.add_argument(
        "--mend",
        action="append",
        nargs="?",
        const="",
        choices=[*MENDS, ""],
        metavar="|".join(MENDS),
        help="repeatable; without a word it is missing and wrong, which deletes nothing",
    )
    parser.add_argument(
        "--deep", action="store_true", help="look at the vectors' numbers too, which takes longer"
    )
    parser.add_argument(
        "--files",
        action="store_true",
        help="look at the queue and the vectors of the settings, where no daemon runs",
    )
    parser.add_argument("--json", action="store_true", help="one line of JSON for each finding")
    add_place(parser, settings)
    return parser
