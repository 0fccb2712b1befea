"""`audit`: compares completed jobs with stored vectors, and mends what does not fit on request."""

import argparse
import asyncio
import json
from collections import Counter
from collections.abc import Coroutine, Iterator, Sequence
from contextlib import AsyncExitStack
from types import TracebackType
from typing import Any, Protocol, Self, TypeVar
from urllib.parse import urlencode

from daemon.audit import Audit
from daemon.audit_findings import Finding, Kind, Outcome
from daemon.command_line import Parser, settings_for
from daemon.errors import ConfigError, InferdError
from daemon.identity import own_identity
from daemon.job_ledger import JobLedger
from daemon.job_queue import JobQueue
from daemon.jobs import JsonObject, TaskType
from daemon.migration import released_migrations
from daemon.program import program
from daemon.queue_engine import queue_database
from daemon.schema import read_schema
from daemon.settings import Settings
from daemon.wall_clock import epoch_ms
from demos.client import ClientError, UnreachableError
from demos.client.exit_codes import COMPLETED, INTERRUPTED, REJECTED, UNREACHABLE
from demos.client.management import PATIENCE, Door, RefusedError, add_place, say
from demos.client.terminal import Meter
from handlers.edge_schedule import IndexBoard
from handlers.engine_choice import make_engine
from handlers.face_embedding import configured_dimension
from handlers.face_store import QdrantFaceStore
from handlers.image_embedding import ImageEmbeddingInference
from handlers.image_store import QdrantImageStore
from handlers.qdrant_store import QdrantStore
from handlers.stored_vectors import StoredVectors
from handlers.task_types import configured_task_types

T = TypeVar("T")

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


class Steps(Protocol):
    """Who does the audit: the running daemon, or this process."""

    def step(self, after: str | None, *, deep: bool) -> JsonObject:
        """Return what one step found.

        Raises:
            ClientError: it cannot be done.
        """

    def mend(self, findings: Sequence[JsonObject]) -> Sequence[JsonObject]:
        """Return what became of findings.

        Raises:
            ClientError: it cannot be done.
        """


class OverRest:
    """The running daemon does it."""

    def __init__(self, door: Door) -> None:
        self._door = door

    def step(self, after: str | None, *, deep: bool) -> JsonObject:
        """Return what one step found."""
        query = {"deep": "true" if deep else "false"} | ({"after": after} if after else {})
        return self._door.ask("GET", f"/audit?{urlencode(query)}", patience=PATIENCE)

    def mend(self, findings: Sequence[JsonObject]) -> Sequence[JsonObject]:
        """Return what became of findings."""
        found: list[JsonObject] = self._door.ask(
            "POST", "/audit/mend", {"findings": list(findings)}, patience=PATIENCE
        )["results"]
        return found


class OverFiles:
    """This process does it, on the files; a context manager that has them open meanwhile.

    Raises:
        ConfigError: entering it: there is no queue, it is of another version, or a daemon has the
            vectors open.
    """

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._runner = asyncio.Runner()
        self._stack = AsyncExitStack()
        self._audit: Audit | None = None

    def __enter__(self) -> Self:
        _check_queue(self._settings)
        try:
            self._runner.run(self._open())
        except BaseException:
            # Ctrl-C too: what was opened by then holds the vectors' lock.
            self._runner.run(self._stack.aclose())
            self._runner.close()
            raise
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._runner.run(self._stack.aclose())
        self._runner.close()

    def step(self, after: str | None, *, deep: bool) -> JsonObject:
        """Return what one step found."""
        return self._run(self._opened.step(after, deep=deep)).to_wire()

    def mend(self, findings: Sequence[JsonObject]) -> Sequence[JsonObject]:
        """Return what became of findings; jobs wait for the next daemon."""
        done = self._run(self._opened.mend([_finding(each) for each in findings]))
        return [{"outcome": outcome.value, "job_id": job_id} for outcome, job_id in done]

    @property
    def _opened(self) -> Audit:
        if self._audit is None:
            raise RuntimeError("enter it first")
        return self._audit

    def _run(self, work: Coroutine[Any, Any, T]) -> T:
        try:
            return self._runner.run(work)
        except InferdError as error:
            raise UnreachableError(f"{error.code}: {error.message}") from error

    async def _open(self) -> None:
        settings, stack = self._settings, self._stack
        database = await stack.enter_async_context(queue_database(settings))
        queue = await stack.enter_async_context(
            JobQueue(
                database,
                settings.queue,
                clock=database.clock or epoch_ms,
                worker=own_identity(),
                worker_id=settings.mqtt.client_id,
            )
        )
        engine = make_engine(settings.qdrant, settings.data_dir, IndexBoard())
        stores: dict[TaskType, QdrantStore] = {}
        for task_type in configured_task_types(settings):
            match task_type:
                case TaskType.IMAGE_EMBEDDING:
                    model = ImageEmbeddingInference(None, None, settings=settings)
                    stores[task_type] = QdrantImageStore(
                        engine=engine, dimension=model.embedding_dim
                    )
                case TaskType.FACE_EMBEDDING:
                    stores[task_type] = QdrantFaceStore(
                        engine=engine, dimension=configured_dimension(settings)
                    )
        for store in stores.values():
            await stack.enter_async_context(store)
        self._audit = Audit(
            queue,
            JobLedger(database),
            StoredVectors(stores),
            clock=database.clock or epoch_ms,
            prune_after_days=settings.queue.prune_after_days,
        )


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
        say(f"inferd: {error}")
        return REJECTED if isinstance(error, RefusedError) else UNREACHABLE


def _audit(steps: Steps, options: argparse.Namespace, kinds: frozenset[Kind]) -> int:
    looked, found, outcomes = Counter[str](), Counter[str](), Counter[str]()
    left = expected = 0
    is_interrupted = False
    failure: ClientError | None = None
    with Meter("vectors") as meter:
        try:
            for step in _steps(steps, deep=options.deep):
                if step["total_vectors"] is not None:
                    expected += step["total_vectors"]
                    meter.expect(expected)
                meter.add(step["vectors"])
                looked.update({name: step[name] for name in ("jobs", "vectors", "pruned")})
                findings = step["findings"]
                found.update(each["kind"] for each in findings)
                mendable = [each for each in findings if each["kind"] in kinds]
                done = _mend(steps, mendable)
                outcomes.update(each["outcome"] for each in done)
                left += len(findings) - sum(each["outcome"] in GOOD for each in done)
                by_id = {id(each): one for each, one in zip(mendable, done, strict=True)}
                for each in findings:
                    meter.result(_line(each, by_id.get(id(each)), as_json=options.json))
        except KeyboardInterrupt:
            is_interrupted = True
        except ClientError as error:
            if not looked:
                raise
            failure = error
        meter.say(
            f"{looked['jobs']:,} completed jobs and {looked['vectors']:,} vectors compared:"
            f" {_told(found) or 'all fits'}"
        )
        if failure is not None:
            meter.say("this is not all: the rest was not looked at")
        if looked["pruned"]:
            meter.say(f"{looked['pruned']:,} vectors whose jobs were pruned are no findings")
        if outcomes:
            meter.say(f"of these: {_told(outcomes)}")
    if failure is not None:
        raise failure
    if is_interrupted:
        return INTERRUPTED
    return FINDINGS_LEFT if left else COMPLETED


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


def _finding(told: JsonObject) -> Finding:
    return Finding(
        kind=Kind(told["kind"]),
        task_type=TaskType(told["task_type"]),
        media_store_id=told["media_store_id"],
        point_id=told["point_id"],
        job_id=told["job_id"],
        detail=told["detail"],
    )


def _check_queue(settings: Settings) -> None:
    """Make sure that opening the queue changes nothing of it."""
    if settings.queue.is_postgresql:
        return
    schema = read_schema(settings.queue_path, released_migrations())
    if schema.refusal:
        raise schema.refusal
    if schema.is_new:
        raise ConfigError(f"there is no queue at {settings.queue_path}", code="queue_absent")
    if schema.pending:
        raise ConfigError(
            f"{settings.queue_path} is of an older version: `{program()} migrate` first",
            code="queue_unusable",
        )


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
