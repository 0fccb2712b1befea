"""The composition root: opens everything, runs it, and stops it in order.

With http_doors, health_checks and readings the only module that sees the queue and the handlers.
Reading `run` tells how inferd is wired.
"""

import asyncio
import logging
from collections.abc import Callable
from contextlib import AsyncExitStack

from daemon import topics
from daemon.clock_steps import ClockSteps
from daemon.fleet.company import Company
from daemon.health import Health
from daemon.health_checks import add_checks
from daemon.http_doors import open_doors
from daemon.identity import is_dead, own_identity, own_version
from daemon.intake import Intake
from daemon.jobs import Clock, Job, JsonObject
from daemon.live import Live
from daemon.metrics import Metrics
from daemon.mqtt.home_assistant import HomeAssistant, subscriptions
from daemon.mqtt.home_discovery import discovery
from daemon.mqtt.inbox import receiver
from daemon.mqtt.link import MqttLink
from daemon.mqtt.worker_topics import WorkerTopics
from daemon.outbox import Outbox
from daemon.pause_watch import PauseWatch
from daemon.queue.engine import queue_database
from daemon.queue.job_ledger import JobLedger
from daemon.queue.job_queue import JobQueue
from daemon.readings import Readings
from daemon.requests import MAX_BATCH
from daemon.settings import Settings, WorkerSettings
from daemon.stop_signals import first_of, stop_signals
from daemon.upkeep.audit import Audit
from daemon.upkeep.last_life import LastLife
from daemon.upkeep.removal import Removal
from daemon.upkeep.scrub import Scrub
from daemon.upkeep.server_watch import ServerWatch
from daemon.wall_clock import epoch_ms
from daemon.worker.cancellation import Cancellation
from daemon.worker.metered_handler import MeteredHandler
from daemon.worker.progress import Progress
from daemon.worker.watchdog import EXIT_STALLED, LEAVE_SECONDS, Watchdog, leave
from daemon.worker.worker import Worker
from handlers.assembly import open_handlers
from handlers.handler_set import HandlerSet

log = logging.getLogger(__name__)

LAST_EVENTS_SECONDS = 5.0
LAST_REQUESTS_SECONDS = 5.0
"""For those that are being stored: without their confirmation the broker brings them again."""
STALLED_GRACE_SECONDS = 2.0
"""For jobs that run while a model hangs, and do not need it."""


def _tell_nobody(_port: int | None) -> None:
    """Do nothing: whoever wants to know the port reads it in the log."""


async def run(settings: Settings, *, started: Callable[[int | None], None] = _tell_nobody) -> None:
    """Serve until SIGTERM or SIGINT, or until a model hangs, then stop in order.

    Where a thread hangs in a model, this ends the process instead of returning: with exit code 0
    after a stop that was asked for, and else with EXIT_STALLED.

    Args:
        settings: everything that was configured.
        started: called with the REST port (None without REST) once requests are taken.

    Raises:
        ConfigError: the configuration or the machine does not allow a start.
    """
    worker_id = settings.mqtt.client_id
    health = Health(version=own_version(), worker_id=worker_id)
    metrics = Metrics()
    live = Live()
    async with AsyncExitStack() as stack:
        stop = stack.enter_context(stop_signals())
        watchdog = stack.enter_context(Watchdog(stall_seconds=settings.worker.stall_seconds))
        database = await stack.enter_async_context(queue_database(settings))
        clock = database.clock or epoch_ms
        identity = own_identity()
        company = await Company.of(database, settings.mqtt, clock)
        queue = await stack.enter_async_context(
            JobQueue(
                database,
                settings.queue,
                clock=clock,
                worker=identity,
                worker_id=worker_id,
                metrics=metrics,
                listener=live.hear,
            )
        )
        last_life = _last_life(stack, settings, clock)
        handlers = await stack.enter_async_context(open_handlers(settings))
        await _take_back(queue)
        intake = Intake(
            queue,
            clock=clock,
            worker_id=worker_id,
            max_request_bytes=settings.mqtt.max_request_bytes,
            metrics=metrics,
        )
        cancellation = Cancellation(
            queue,
            stop_running=lambda job_id: worker.cancel(job_id),  # noqa: PLW0108 - made below
            clock=clock,
            worker_id=worker_id,
        )
        removal = Removal(
            queue,
            cancellation,
            forget_vectors=handlers.forget_media,
            clock=clock,
            worker_id=worker_id,
        )
        link = MqttLink(
            settings.mqtt,
            subscriptions=[
                *([] if settings.mqtt.intake_roles else [topics.REQUEST_FILTER]),
                topics.CANCEL_FILTER,
            ],
            dispensable=[
                topics.DELETE_FILTER,
                *subscriptions(settings.home_assistant, worker_id),
            ],
            on_request=receiver(intake, cancellation, removal, lambda: home),
            watched=company.watched,
            on_news=company.hear,
        )
        progress = Progress(link, clock=clock, worker_id=worker_id, is_on=settings.mqtt.progress)
        outbox = Outbox(
            database, link, queue.message_ready, owner=identity, clock=clock, metrics=metrics
        )
        worker = Worker(
            queue,
            [MeteredHandler(handler, metrics) for handler in handlers.handlers],
            settings=settings.worker,
            queue_settings=settings.queue,
            clock=clock,
            clock_steps=ClockSteps(wall=clock),
            report=_both(progress, live),
            suspects=lambda: watchdog.stall.job_ids if watchdog.stall else (),
        )
        board = WorkerTopics(
            link,
            queue,
            worker_id=worker_id,
            facts={**_facts(settings, handlers), "queue": company.queue_id},
            models=handlers.tell_models,
            is_busy=lambda: worker.in_flight > 0,
            stats_seconds=settings.mqtt.stats_seconds,
            clock=clock,
            model_changes=handlers.tell_model_changes,
        )
        watch = PauseWatch(
            queue.pauses,
            link,
            task_types=[handler.task_type for handler in handlers.handlers],
            clock=clock,
            poll_seconds=settings.worker.poll_seconds,
        )
        home = _home(settings, link, queue, handlers)
        add_checks(
            health, queue=queue, link=link, worker=worker, handlers=handlers, watchdog=watchdog
        )
        Readings(
            queue=queue,
            database=database,
            link=link,
            worker=worker,
            handlers=handlers,
            watchdog=watchdog,
        ).add_to(metrics)
        audit = Audit(
            queue,
            JobLedger(database),
            handlers.stored,
            clock=clock,
            prune_after_days=settings.queue.prune_after_days,
        )
        port = await open_doors(
            stack,
            settings,
            intake=intake,
            queue=queue,
            health=health,
            metrics=metrics,
            handlers=handlers,
            removal=removal,
            cancellation=cancellation,
            audit=audit,
            live=live,
            workers=company.workers,
        )
        # Before the first connect, which tells it.
        await watch.look()
        watchdog.start(*(lane.busy_with for lane in handlers.lanes))
        async with asyncio.TaskGroup() as group:
            linking = group.create_task(link.run(), name="mqtt-link")
            relaying = group.create_task(outbox.run(), name="outbox-relay")
            telling = [
                *(group.create_task(each.run()) for each in (board, watch, home)),
                group.create_task(
                    _scrub(Scrub(JobLedger(database), audit, last_life), settings, handlers, clock)
                ),
                group.create_task(last_life.keep()),
                group.create_task(handlers.change_models(lambda: worker.in_flight > 0)),
                group.create_task(
                    company.run(
                        link,
                        database,
                        queue,
                        health,
                        identity=identity,
                        on_request=receiver(intake, cancellation, removal, lambda: home),
                        has_room=worker.has_room,
                    )
                ),
            ]
            working = group.create_task(worker.run(), name="worker")
            loading = group.create_task(handlers.preload(), name="preload")
            log.info("inferd is running", extra={"worker_id": worker_id, "port": port})
            started(port)
            await first_of(stop, watchdog.is_over)
            log.info("stopping")
            health.is_draining = True
            # The broker is told first; one that does not answer must not keep us leasing.
            grace = _grace(settings.worker, watchdog, handlers)
            await asyncio.gather(
                link.finish(LAST_REQUESTS_SECONDS), company.leave(), worker.drain(grace)
            )
            _cancel(working, loading, *telling)
            await outbox.flush(timeout_seconds=LAST_EVENTS_SECONDS)
            _cancel(relaying, linking)
    log.info("stopped")
    _leave_if_hung(watchdog, handlers)


def _last_life(stack: AsyncExitStack, settings: Settings, clock: Clock) -> LastLife:
    """Return what tells of the life before; entered before the vectors, it ends after them."""
    path = settings.data_dir / "last-life.json"
    noted = LastLife(path, is_needed=not settings.qdrant.url, clock=clock)
    stack.push_async_callback(asyncio.to_thread, noted.end)
    return noted


async def _scrub(scrub: Scrub, settings: Settings, handlers: HandlerSet, clock: Clock) -> None:
    """Look for what went with this machine; then, until cancelled, with that of their server."""
    await scrub.run()
    if handlers.server_life is not None and handlers.stores:
        noted = settings.data_dir / "vectors-server.json"
        watch = ServerWatch(
            noted,
            server=settings.qdrant.url,
            life=handlers.server_life,
            look=scrub.look,
            clock=clock,
        )
        await watch.run()


def _cancel(*tasks: asyncio.Task[None]) -> None:
    for task in tasks:
        task.cancel()


def _leave_if_hung(watchdog: Watchdog, handlers: HandlerSet) -> None:
    if watchdog.is_over.is_set() or any(lane.is_abandoned for lane in handlers.lanes):
        leave(EXIT_STALLED if watchdog.is_over.is_set() else 0)


async def _take_back(queue: JobQueue) -> None:
    for job in await queue.reclaim_dead(is_dead):
        log.warning("taken back from a process that died", extra={"job_id": job.job_id})


def _grace(settings: WorkerSettings, watchdog: Watchdog, handlers: HandlerSet) -> float:
    """Return how long running jobs may take; from now on the stop itself is watched."""
    grace = settings.shutdown_grace_seconds
    if watchdog.is_over.is_set():
        # Whoever waits for the model waits in vain.
        grace = min(grace, STALLED_GRACE_SECONDS)
        for lane in handlers.lanes:
            lane.close_seconds = 0
    watchdog.expect_end(grace + LEAVE_SECONDS)
    return grace


def _both(progress: Progress, live: Live) -> Callable[[Job, str], None]:
    def report(job: Job, stage: str) -> None:
        progress.report(job, stage)
        live.progress(job, stage)

    return report


def _home(
    settings: Settings, link: MqttLink, queue: JobQueue, handlers: HandlerSet
) -> HomeAssistant:
    worker_id, task_types = settings.mqtt.client_id, [each.task_type for each in handlers.handlers]
    found = discovery(
        prefix=settings.home_assistant.prefix,
        worker_id=worker_id,
        version=own_version(),
        task_types=task_types,
        has_stats=settings.mqtt.stats_seconds > 0,
    )
    return HomeAssistant(
        link,
        queue.pauses,
        settings=settings.home_assistant,
        worker_id=worker_id,
        task_types=task_types,
        discovery=found,
        data_dir=settings.data_dir,
    )


def _facts(settings: Settings, handlers: HandlerSet) -> JsonObject:
    return {
        "version": own_version(),
        "stats_seconds": settings.mqtt.stats_seconds,
        "task_types": [each.task_type.value for each in handlers.handlers],
        "limits": {
            "max_request_bytes": settings.mqtt.max_request_bytes,
            "max_batch": MAX_BATCH,
            "max_pixels": settings.images.max_pixels,
            "max_bytes": settings.media_store.max_bytes,
        },
    }
