"""What health looks at: broker, database, worker, pauses, and what the handlers need."""

from daemon.errors import InferdError
from daemon.health import Health
from daemon.jobs import JsonObject
from daemon.mqtt.link import MqttLink
from daemon.queue.job_queue import JobQueue
from daemon.worker.watchdog import Watchdog
from daemon.worker.worker import Worker
from handlers.handler_set import HandlerSet


def add_checks(
    health: Health,
    *,
    queue: JobQueue,
    link: MqttLink,
    worker: Worker,
    handlers: HandlerSet,
    watchdog: Watchdog,
) -> None:
    """Have health look at all of these whenever it is asked."""
    health.hangs = lambda: watchdog.stall.message if watchdog.stall else None

    async def broker() -> JsonObject:
        if not link.is_up:
            raise InferdError(link.last_error or "not connected yet", code="broker_unreachable")
        return {"connects": link.connects}

    async def working() -> JsonObject:
        if (hangs := health.hangs()) is not None:
            raise InferdError(hangs, code="model_stalled")
        return {"in_flight": worker.in_flight}

    async def pauses() -> JsonObject:
        found = await queue.pauses.active()
        return {
            "paused": list(found),
            "paused_until": {name: each.until for name, each in found.items()},
        }

    health.add("broker", broker)
    health.add("database", queue.check)
    health.add("worker", working)
    health.add("pauses", pauses, is_required=False)
    for name, (check, is_required) in handlers.checks.items():
        health.add(name, check, is_required=is_required)
