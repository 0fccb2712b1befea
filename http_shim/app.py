"""Assembles the REST application: routes, limits and headers; `serve` listens for requests."""

import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager

from aiohttp import web
from aiohttp.http_exceptions import HttpProcessingError

from daemon.errors import ConfigError
from daemon.fleet.workers import Workers
from daemon.health import Health
from daemon.intake import Intake
from daemon.jobs import Job
from daemon.metrics import Metrics
from daemon.queue.job_queue import JobQueue
from daemon.settings import DoorsSettings
from daemon.upkeep.audit import Audit
from daemon.upkeep.removal import Removal
from daemon.worker.cancellation import Cancellation
from http_shim import keys
from http_shim.audit_routes import add_audit_routes
from http_shim.auth import Authenticator
from http_shim.console.feed import feeding
from http_shim.console.page_routes import add_page_routes
from http_shim.console.parts import CONSOLE, Console
from http_shim.console.picture_routes import add_picture_routes
from http_shim.console.stream import add_stream_routes
from http_shim.contract_routes import add_contract_routes
from http_shim.doors.embedder import Embedder
from http_shim.doors.immich import ImmichDoor
from http_shim.doors.model_names import ModelNames
from http_shim.doors.openai import OpenAIDoor
from http_shim.errors import answer_errors
from http_shim.face_routes import add_face_routes
from http_shim.foreign_pages import refuse_foreign_pages
from http_shim.health_routes import add_health_routes
from http_shim.job_routes import add_job_routes
from http_shim.media_routes import add_media_routes
from http_shim.metrics_routes import add_metrics_routes, count_refusals
from http_shim.model_changer import ModelChanger
from http_shim.model_routes import add_model_routes
from http_shim.queue_routes import add_queue_routes
from http_shim.search_door import Listing, SearchDoor, Searcher
from http_shim.search_routes import add_search_routes
from http_shim.snapshots import Snapshots
from http_shim.vector_routes import add_vector_routes
from http_shim.worker_routes import add_worker_routes

log = logging.getLogger(__name__)
server_log = logging.getLogger(f"{__name__}.server")
"""What aiohttp has to say."""

SHUTDOWN_SECONDS = 5.0
"""How long requests that are being answered may take once the server stops."""
KEEPALIVE_SECONDS = 75.0
MAX_PICTURE_BYTES = 64 * 1024 * 1024
"""Of a picture to search with, where nothing else is said."""

_HEADERS = {
    "Cache-Control": "no-store",
    "Content-Security-Policy": "default-src 'none'; frame-ancestors 'none'",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}


def create_app(
    *,
    intake: Intake,
    queue: JobQueue,
    health: Health,
    forget_vectors: Callable[[Job], Awaitable[None]],
    authenticate: Authenticator,
    max_body_bytes: int,
    metrics: Metrics | None = None,
    search: Searcher | None = None,
    max_picture_bytes: int = MAX_PICTURE_BYTES,
    embedder: Embedder | None = None,
    aliases: Mapping[str, Sequence[str]] | None = None,
    console: Console | None = None,
    removal: Removal | None = None,
    cancellation: Cancellation | None = None,
    snapshots: Snapshots | None = None,
    workers: Workers | None = None,
    audit: Audit | None = None,
    stored: Listing | None = None,
    models: Mapping[str, ModelChanger] | None = None,
) -> web.Application:
    """Return the application; it opens and closes none of its arguments.

    Args:
        intake: takes new jobs.
        queue: shows, cancels, forgets and restarts jobs.
        health: the daemon's health; while it drains, no job is taken.
        forget_vectors: removes the vectors of a completed job.
        authenticate: tells who may do what.
        max_body_bytes: larger bodies are answered 413.
        metrics: what is counted, and shown at /metrics.
        search: answers searches; None where nothing can be searched.
        max_picture_bytes: larger pictures to search with are answered 413.
        embedder: answers OpenAI's clients; None where nothing can be embedded.
        aliases: further names by which those may ask for the models.
        console: what the page for people shows; None where there is none.
        removal: removes pictures; None where nobody may.
        cancellation: ends jobs that wait or run; None where nobody may.
        audit: compares jobs with stored vectors; None where there are none.
        stored: lists what is stored; None where nothing is.
        snapshots: copies the embedded vectors; None where there are none.
        workers: knows all daemons at the broker; None where nobody listens.
        models: what changes collections' models, by the collections' names.
    """
    app = web.Application(
        middlewares=[count_refusals, answer_errors, refuse_foreign_pages],
        client_max_size=max_body_bytes,
    )
    app[keys.METRICS] = metrics or Metrics()
    app[keys.INTAKE] = intake
    app[keys.QUEUE] = queue
    app[keys.HEALTH] = health
    app[keys.FORGET_VECTORS] = forget_vectors
    app[keys.AUTHENTICATOR] = authenticate
    app[keys.SEARCH] = SearchDoor(search, max_picture_bytes)
    app[CONSOLE] = console
    app[keys.REMOVAL] = removal
    app[keys.CANCELLATION] = cancellation
    app[keys.AUDIT] = audit
    app[keys.STORED] = stored
    app[keys.SNAPSHOTS] = snapshots
    app[keys.MODELS] = models or {}
    app[keys.WORKERS] = workers or Workers("", queue_id="", clock=lambda: 0)
    app.on_response_prepare.append(_add_headers)
    app.cleanup_ctx.append(feeding)
    add_job_routes(app)
    add_media_routes(app)
    add_face_routes(app)
    add_queue_routes(app)
    add_worker_routes(app)
    add_search_routes(app)
    add_audit_routes(app)
    add_vector_routes(app)
    add_model_routes(app)
    add_health_routes(app)
    add_metrics_routes(app)
    add_contract_routes(app)
    names = ModelNames(aliases or {})
    OpenAIDoor(embedder, names, health, authenticate, max_body_bytes=max_picture_bytes).add_routes(
        app
    )
    # The files of the page last: their route takes any name.
    add_stream_routes(app)
    add_picture_routes(app)
    add_page_routes(app)
    return app


def create_immich_app(
    embedder: Embedder,
    settings: DoorsSettings,
    health: Health,
    *,
    max_picture_bytes: int,
    metrics: Metrics | None = None,
) -> web.Application:
    """Return the application of the door that stands in for immich-machine-learning.

    Args:
        embedder: answers what is asked.
        settings: the names that what runs answers to.
        health: while the daemon drains, nothing is answered.
        max_picture_bytes: larger pictures are answered 413.
        metrics: where its answers are counted.
    """
    names = ModelNames(settings.running_by_asked)
    door = ImmichDoor(embedder, names, health, max_picture_bytes=max_picture_bytes)
    app = door.create_app()
    app[keys.METRICS] = metrics or Metrics()
    app.on_response_prepare.append(_add_headers)
    return app


@asynccontextmanager
async def serve(
    app: web.Application,
    host: str,
    port: int,
    *,
    name: str = "REST",
    mend: str = "set INFERD_HTTP__HOST and INFERD_HTTP__PORT, or INFERD_HTTP__ENABLED=false",
) -> AsyncIterator[int]:
    """Listen, and give the port that was taken (0 picks a free one); at exit, answer and close.

    A client that hangs up does not cancel its request: the job it asked for is queued or not,
    never half, and deleting vectors runs to its end.

    Args:
        app: what is served.
        host: the address to listen on.
        port: the port to listen on.
        name: what it is called in the log and in an error.
        mend: what to do where nobody can listen there.

    Raises:
        ConfigError: nobody can listen there.
    """
    server_log.addFilter(_is_ours)
    runner = web.AppRunner(
        app,
        access_log=None,
        logger=server_log,
        handler_cancellation=False,
        auto_decompress=False,
        keepalive_timeout=KEEPALIVE_SECONDS,
        shutdown_timeout=SHUTDOWN_SECONDS,
    )
    await runner.setup()
    try:
        try:
            await web.TCPSite(runner, host, port).start()
        except OSError as error:
            reason = error.strerror or error
            raise ConfigError(
                f"cannot listen on {host} port {port} for {name}: {reason}; {mend}"
            ) from error
        taken: int = runner.addresses[0][1]
        log.info("%s listens on %s port %d", name, host, taken)
        yield taken
    finally:
        await runner.cleanup()


async def _add_headers(_request: web.Request, response: web.StreamResponse) -> None:
    for name, value in _HEADERS.items():
        response.headers.setdefault(name, value)
    # aiohttp has put its own name and version there by now.
    response.headers["Server"] = "inferd"


def _is_ours(record: logging.LogRecord) -> bool:
    """Drop what aiohttp logs as an error of the server where a client sent no proper HTTP."""
    error = record.exc_info[1] if record.exc_info else None
    if isinstance(error, HttpProcessingError):
        log.debug("a request was no HTTP: %s", type(error).__name__)
        return False
    return True
