"""Starts the HTTP servers: REST with the console, and the one for Immich; warns of open ones."""

import logging
from contextlib import AsyncExitStack

from daemon.fleet.workers import Workers
from daemon.health import Health
from daemon.intake import Intake
from daemon.live import Live
from daemon.metrics import Metrics
from daemon.queue.job_queue import JobQueue
from daemon.settings import Settings
from daemon.upkeep.audit import Audit
from daemon.upkeep.removal import Removal
from daemon.worker.cancellation import Cancellation
from handlers.handler_set import HandlerSet
from http_shim.app import create_app, create_immich_app, serve
from http_shim.auth import Authenticator
from http_shim.console.parts import Console

log = logging.getLogger(__name__)

LOOPBACK = ("127.0.0.1", "::1", "localhost")


async def open_doors(
    stack: AsyncExitStack,
    settings: Settings,
    *,
    intake: Intake,
    queue: JobQueue,
    health: Health,
    metrics: Metrics,
    handlers: HandlerSet,
    removal: Removal,
    cancellation: Cancellation,
    audit: Audit,
    live: Live,
    workers: Workers,
) -> int | None:
    """Serve what is wanted over HTTP until the stack closes; return REST's port, if it has one."""
    if settings.doors.immich:
        await _open_immich(stack, settings, health=health, handlers=handlers, metrics=metrics)
    if not settings.http.enabled:
        return None
    authenticate = Authenticator(settings.auth)
    stack.push_async_callback(authenticate.close)
    if settings.auth.jwks_url and not authenticate.is_disabled:
        # Jobs asked for over MQTT do not need it.
        health.add("auth", authenticate.check, is_required=False)
    app = create_app(
        intake=intake,
        queue=queue,
        health=health,
        forget_vectors=handlers.forget_vectors,
        authenticate=authenticate,
        max_body_bytes=settings.http.max_body_bytes,
        metrics=metrics,
        search=handlers.search,
        embedder=handlers.direct,
        aliases=settings.doors.running_by_asked,
        max_picture_bytes=settings.media_store.max_bytes,
        removal=removal,
        cancellation=cancellation,
        audit=audit,
        stored=handlers.stored,
        console=_console(settings, handlers, live),
        snapshots=handlers.snapshots,
        models=handlers.model_changes,
        workers=workers,
    )
    _warn_if_open(settings)
    return await stack.enter_async_context(serve(app, settings.http.host, settings.http.port))


async def _open_immich(
    stack: AsyncExitStack,
    settings: Settings,
    *,
    health: Health,
    handlers: HandlerSet,
    metrics: Metrics,
) -> None:
    doors, most = settings.doors, settings.media_store.max_bytes
    app = create_immich_app(handlers.direct, doors, health, max_picture_bytes=most, metrics=metrics)
    serving = serve(
        app,
        doors.immich_host,
        doors.immich_port,
        name="the door for Immich",
        mend="set INFERD_DOORS__IMMICH_HOST and INFERD_DOORS__IMMICH_PORT",
    )
    await stack.enter_async_context(serving)
    if doors.immich_host not in LOOPBACK:
        # Immich shows none.
        log.warning("THE DOOR FOR IMMICH ASKS NOBODY FOR A TOKEN: it listens beyond this machine")


def _console(settings: Settings, handlers: HandlerSet, live: Live) -> Console | None:
    if not settings.http.console or handlers.previews is None:
        return None
    return Console(
        live=live,
        pictures=handlers.previews,
        task_types=[each.task_type for each in handlers.handlers],
        max_picture_bytes=settings.media_store.max_bytes,
    )


def _warn_if_open(settings: Settings) -> None:
    host = settings.http.host
    if settings.auth.disabled and host not in LOOPBACK:
        log.warning("REST IS OPEN TO EVERYBODY WHO REACHES %s: authentication is off", host)
