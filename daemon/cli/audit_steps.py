"""Runs an audit's steps: in the running daemon (OverRest), or in this process (OverFiles)."""

import asyncio
from collections.abc import Coroutine, Sequence
from contextlib import AsyncExitStack
from typing import Any, Protocol, Self, TypeVar
from urllib.parse import urlencode

from daemon.errors import ConfigError, InferdError
from daemon.identity import own_identity
from daemon.jobs import JsonObject, TaskType
from daemon.program import program
from daemon.queue.audit_findings import Finding, Kind
from daemon.queue.engine import queue_database
from daemon.queue.job_ledger import JobLedger
from daemon.queue.job_queue import JobQueue
from daemon.queue.migration import released_migrations
from daemon.queue.schema import read_schema
from daemon.settings import Settings
from daemon.upkeep.audit import Audit
from daemon.wall_clock import epoch_ms
from demos.client import UnreachableError
from demos.client.management import PATIENCE, Door
from handlers.face_embedding import configured_dimension
from handlers.face_store import QdrantFaceStore
from handlers.image_embedding import ImageEmbeddingInference
from handlers.image_store import QdrantImageStore
from handlers.qdrant.edge_schedule import IndexBoard
from handlers.search.stored_vectors import StoredVectors
from handlers.task_types import configured_task_types
from handlers.vectors.engine_choice import make_engine
from handlers.vectors.qdrant_store import QdrantStore

T = TypeVar("T")


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

    def __exit__(self, *_: object) -> None:
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
