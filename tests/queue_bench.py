"""What the queue's tests share: a real queue on a real file, and a clock turned by hand."""

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from daemon.intake import new_job_id
from daemon.jobs import Job, JobState, JsonObject, Lease, TaskType
from daemon.queue.admission import Accepted, Outcome, Refused, Submission
from daemon.queue.backend import Connection, QueueBackend
from daemon.queue.database import Database
from daemon.queue.job_queue import JobQueue
from daemon.queue.postgresql.backend import PostgresDatabase
from daemon.settings import QueueSettings

IMAGE = TaskType.IMAGE_EMBEDDING
FACES = TaskType.FACE_DETECTION
NOON = 1_767_268_800_000
"""Where every test's clock starts: 2026-01-01 12:00 UTC."""
DEADLINE = 60.0
"""Seconds after which a wait for a fact is a failure."""
LEASE = 30.0
"""Seconds that a test's lease lasts, of the test's own clock."""


class ManualClock:
    """Epoch milliseconds that move only when told."""

    def __init__(self) -> None:
        self.now = NOON

    def __call__(self) -> int:
        return self.now

    def advance(self, *, seconds: float) -> None:
        self.now += int(seconds * 1000)


@dataclass(frozen=True)
class Told:
    """One row of the outbox."""

    topic: str
    event: JsonObject
    correlation_data: str | None
    owner: str

    @property
    def name(self) -> str:
        return self.topic.rpartition("/")[2]


@dataclass
class Bench:
    """One daemon's queue."""

    database: QueueBackend
    queue: JobQueue
    clock: ManualClock

    @property
    def file(self) -> Database:
        """The same database, where it is a SQLite file."""
        assert isinstance(self.database, Database)
        return self.database

    async def ask(
        self,
        media_store_id: int = 1,
        task_type: TaskType = IMAGE,
        *,
        job_id: str | None = None,
        priority: int = 5,
        force: bool = False,
        **fields: Any,
    ) -> Outcome:
        """Enqueue one request, as MQTT's intake does for a client that chose its job_id."""
        return await self.queue.enqueue(
            submission(
                self.clock(),
                media_store_id,
                task_type,
                job_id=job_id,
                priority=priority,
                force=force,
                **fields,
            )
        )

    async def accept(self, media_store_id: int = 1, *args: Any, **fields: Any) -> Job:
        outcome = await self.ask(media_store_id, *args, **fields)
        assert isinstance(outcome, Accepted), outcome
        return outcome.job

    async def refuse(self, media_store_id: int = 1, *args: Any, **fields: Any) -> Refused:
        outcome = await self.ask(media_store_id, *args, **fields)
        assert isinstance(outcome, Refused), outcome
        return outcome

    async def lease(self, task_type: TaskType = IMAGE, limit: int = 100) -> list[Lease]:
        return await self.queue.lease(task_type, limit, seconds=LEASE)

    async def lease_one(self, task_type: TaskType = IMAGE) -> Lease:
        (lease,) = await self.lease(task_type, 1)
        return lease

    async def suspect(self) -> Lease:
        """Lease the one job that lost a lease before."""
        lease = await self.queue.lease_suspect(list(TaskType), seconds=LEASE)
        assert lease is not None
        return lease

    async def rows(self, sql: str, *parameters: Any) -> list[tuple[Any, ...]]:
        return [tuple(row) for row in await self.database.read(sql, parameters)]

    async def row(self, job_id: str) -> dict[str, Any]:
        (row,) = await self.database.read("SELECT * FROM jobs WHERE job_id = ?", (job_id,))
        return {name: row[name] for name in row.keys()}  # noqa: SIM118 - a row is no dict

    async def told(self, job_id: str | None = None) -> list[Told]:
        """Return what the outbox holds, in its order."""
        rows = await self.database.read("SELECT * FROM outbox ORDER BY id")
        told = [
            Told(row["topic"], json.loads(row["payload"]), row["correlation_data"], row["owner"])
            for row in rows
        ]
        return [each for each in told if job_id is None or each.event["job_id"] == job_id]

    async def refuse_events(self, why: str) -> None:
        """Let every insert into the outbox fail."""
        if isinstance(self.database, Database):
            await self.execute(
                "CREATE TRIGGER refusal BEFORE INSERT ON outbox"
                f" BEGIN SELECT RAISE(ABORT, '{why}'); END"
            )
        else:
            await self.execute(
                "CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS"
                f" $$ BEGIN RAISE EXCEPTION '{why}'; END $$"
            )
            await self.execute(
                "CREATE TRIGGER refusal BEFORE INSERT ON outbox EXECUTE FUNCTION refuse()"
            )

    async def take_events(self) -> None:
        """Undo `refuse_events`."""
        on = "" if isinstance(self.database, Database) else " ON outbox"
        await self.execute(f"DROP TRIGGER refusal{on}")

    async def execute(self, sql: str, *parameters: Any) -> None:
        """Change the database behind the queue's back."""

        async def work(connection: Connection) -> None:
            await connection.execute(sql, parameters)

        await self.database.write(work)


def submission(
    now: int,
    media_store_id: int = 1,
    task_type: TaskType = IMAGE,
    *,
    job_id: str | None = None,
    priority: int = 5,
    force: bool = False,
    has_client_job_id: bool = True,
    body: bytes | None = b"{}",
    **fields: Any,
) -> Submission:
    job = Job(
        job_id=job_id or new_job_id(),
        task_type=task_type,
        media_store_id=media_store_id,
        priority=priority,
        status=JobState.PENDING,
        created_at=now,
        **fields,
    )
    return Submission(job=job, force=force, body=body, has_client_job_id=has_client_job_id)


def place_of(text: str) -> Path | str:
    """Return where a queue is, from how a command line says it."""
    return text if "://" in text else Path(text)


def database_at(place: Path | str) -> QueueBackend:
    """Return the queue's database in a SQLite file, or at PostgreSQL's URL; not open yet."""
    return Database(place) if isinstance(place, Path) else PostgresDatabase(place)


@asynccontextmanager
async def open_bench(
    path: Path | str,
    *,
    clock: ManualClock | None = None,
    worker: str = "host/boot/ns/1/1",
    worker_id: str = "inferd-test",
    **settings: Any,
) -> AsyncIterator[Bench]:
    """Open one daemon's queue; several may open the same file or URL."""
    clock = clock or ManualClock()
    async with (
        database_at(path) as database,
        JobQueue(
            database, QueueSettings(**settings), clock=clock, worker=worker, worker_id=worker_id
        ) as queue,
    ):
        yield Bench(database, queue, clock)


async def until(is_true: Callable[[], Awaitable[bool]], what: str) -> None:
    """Return once a fact holds; each look is a turn of the loop and a query, not a sleep."""
    try:
        async with asyncio.timeout(DEADLINE):
            while not await is_true():  # noqa: ASYNC110 - the fact is a row; nothing rings for it
                await asyncio.sleep(0.005)
    except TimeoutError:
        raise AssertionError(f"never happened: {what}") from None
