"""The REST door over a real queue and real HTTP, with time turned by hand."""

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp

from daemon.fleet.workers import Workers
from daemon.health import Health
from daemon.intake import Intake
from daemon.jobs import Job, JsonObject, Lease, TaskType
from daemon.metrics import Metrics
from daemon.queue.database import Database
from daemon.queue.job_ledger import JobLedger
from daemon.queue.job_queue import JobQueue
from daemon.settings import AuthSettings, DoorsSettings, QueueSettings
from daemon.upkeep.audit import Audit
from daemon.upkeep.audit_examination import Vectors as AuditedVectors
from daemon.upkeep.removal import Removal
from daemon.worker.cancellation import Cancellation
from http_shim.app import create_app, serve
from http_shim.auth import Authenticator
from http_shim.console.parts import Console
from http_shim.doors.embedder import Embedder
from http_shim.model_changer import ModelChanger
from http_shim.search_door import Listing, Searcher
from http_shim.snapshots import Snapshots
from tests.documents import Rest

NOW = 1_732_000_000_000
DEADLINE = 30.0
MAX_BODY = 1_048_576
CONTRACT = Rest()
RAN = {
    "image": {"width": 640, "height": 480},
    "inference": {
        "model": "m",
        "weights": "w",
        "device": "cpu",
        "precision": "fp32",
        "timings_ms": {"fetch": 4.1},
    },
}
RESULT = {
    "embedding_dimension": 512,
    "stored_in_vector_db": True,
    "collection": "image_embeddings",
    "point_id": 12345,
    **RAN,
}


@dataclass
class Clock:
    """Epoch milliseconds that only a test moves."""

    now: int = NOW

    def __call__(self) -> int:
        return self.now


@dataclass(frozen=True)
class Answer:
    """A response, read to its end."""

    status: int
    body: Any
    headers: dict[str, str]


@dataclass
class Vectors:
    """Notes whose vectors were to be forgotten, as a store with an outage at will."""

    forgotten: list[Job] = field(default_factory=list)
    error: Exception | None = None
    by_media: dict[int, int] = field(default_factory=dict)
    """How many vectors a picture has."""

    async def forget(self, job: Job) -> None:
        if self.error is not None:
            raise self.error
        self.forgotten.append(job)

    async def forget_media(self, media_store_id: int) -> dict[str, int]:
        if self.error is not None:
            raise self.error
        found = self.by_media.pop(media_store_id, 0)
        return {"image_embeddings": found, "face_embeddings": 0}


@dataclass
class Rig:
    """Everything a test asks or turns."""

    session: aiohttp.ClientSession
    port: int
    database: Database
    path: Path
    queue: JobQueue
    health: Health
    clock: Clock
    vectors: Vectors
    metrics: Metrics

    async def ask(self, method: str, path: str, **kwargs: Any) -> Answer:
        """Send one request; whatever has a body must be JSON."""
        url = f"http://127.0.0.1:{self.port}{path}"
        async with (
            asyncio.timeout(DEADLINE),
            self.session.request(method, url, **kwargs) as response,
        ):
            raw = await response.read()
            if raw and response.content_type in ("image/jpeg", "text/javascript"):
                CONTRACT.check(method, path, response.status, None, response.headers)
                return Answer(response.status, raw, dict(response.headers))
            if raw:
                assert response.content_type == "application/json", raw
            assert response.headers["X-Content-Type-Options"] == "nosniff"
            assert "aiohttp" not in response.headers["Server"]
            body = await response.json() if raw else None
            # Whatever any test asks for, the answer must be as the contract says.
            CONTRACT.check(method, path, response.status, body, response.headers)
            return Answer(response.status, body, dict(response.headers))

    async def post(self, media_store_id: int = 12345, **body: Any) -> JsonObject:
        """Create an image_embedding job and return its body."""
        answer = await self.ask(
            "POST", "/job/image_embedding", json={"media_store_id": media_store_id, **body}
        )
        assert answer.status == 201, answer.body
        created: JsonObject = answer.body
        return created

    async def lease(self, task_type: TaskType = TaskType.IMAGE_EMBEDDING) -> Lease:
        """Take the next job as a worker would."""
        (lease,) = await self.queue.lease(task_type, 1, seconds=30)
        return lease

    async def raw(self, data: bytes, *, hang_up: bool = False) -> bytes:
        """Send bytes as they are; return what comes until the server closes."""
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        try:
            writer.write(data)
            await writer.drain()
            if hang_up:
                return b""
            async with asyncio.timeout(DEADLINE):
                return await reader.read()
        finally:
            writer.close()
            with contextlib.suppress(ConnectionError):
                await writer.wait_closed()


async def _runs_elsewhere(_job_id: str) -> bool:
    return False


@contextlib.asynccontextmanager
async def rest(
    path: Path,
    *,
    auth: AuthSettings | None = None,
    max_pending: int = 0,
    search: Searcher | None = None,
    max_picture_bytes: int = MAX_BODY,
    embedder: Embedder | None = None,
    console: Console | None = None,
    snapshots: Snapshots | None = None,
    models: Mapping[str, ModelChanger] | None = None,
    workers: Workers | None = None,
    audited: AuditedVectors | None = None,
    stored: Listing | None = None,
) -> AsyncIterator[Rig]:
    """Serve REST over a queue at `path`; authentication is off unless told otherwise."""
    clock, vectors, metrics = Clock(), Vectors(), Metrics()
    health = Health(version="test", worker_id="rig")
    async with (
        Database(path) as database,
        JobQueue(
            database,
            QueueSettings(max_pending=max_pending),
            clock=clock,
            worker="w",
            worker_id="w",
            metrics=metrics,
        ) as queue,
    ):
        # No worker is here: whoever holds a job is taken to be another daemon's.
        cancellation = Cancellation(queue, stop_running=_runs_elsewhere, clock=clock, worker_id="w")
        app = create_app(
            intake=Intake(queue, clock=clock, worker_id="w", max_request_bytes=MAX_BODY),
            queue=queue,
            health=health,
            forget_vectors=vectors.forget,
            authenticate=Authenticator(auth or AuthSettings(disabled=True)),
            max_body_bytes=MAX_BODY,
            metrics=metrics,
            search=search,
            max_picture_bytes=max_picture_bytes,
            embedder=embedder,
            aliases=DoorsSettings().running_by_asked,
            removal=Removal(
                queue,
                cancellation,
                forget_vectors=vectors.forget_media,
                clock=clock,
                worker_id="w",
            ),
            cancellation=cancellation,
            console=console,
            audit=Audit(queue, JobLedger(database), audited, clock=clock) if audited else None,
            stored=stored,
            snapshots=snapshots,
            models=models,
            workers=workers,
        )
        async with (
            aiohttp.ClientSession() as session,
            serve(app, "127.0.0.1", 0) as port,
        ):
            yield Rig(session, port, database, path, queue, health, clock, vectors, metrics)


def errors(records: list[logging.LogRecord]) -> list[str]:
    """Return what was logged as an error: what a client does must never be one."""
    return [record.getMessage() for record in records if record.levelno >= logging.ERROR]
