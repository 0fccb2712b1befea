"""What the routes reach through the application: one typed key for each part it was given."""

from collections.abc import Awaitable, Callable, Mapping

from aiohttp import web

from daemon.fleet.workers import Workers
from daemon.health import Health
from daemon.intake import Intake
from daemon.jobs import Job
from daemon.metrics import Metrics
from daemon.queue.job_queue import JobQueue
from daemon.upkeep.audit import Audit
from daemon.upkeep.removal import Removal
from daemon.worker.cancellation import Cancellation
from http_shim.auth import Authenticator
from http_shim.model_changer import ModelChanger
from http_shim.search_door import Listing, SearchDoor
from http_shim.snapshots import Snapshots

INTAKE = web.AppKey("intake", Intake)
QUEUE = web.AppKey("queue", JobQueue)
HEALTH = web.AppKey("health", Health)
METRICS = web.AppKey("metrics", Metrics)
AUTHENTICATOR = web.AppKey("authenticator", Authenticator)
CANCELLATION: web.AppKey[Cancellation | None] = web.AppKey("cancellation")
REMOVAL: web.AppKey[Removal | None] = web.AppKey("removal")
AUDIT: web.AppKey[Audit | None] = web.AppKey("audit")
STORED: web.AppKey[Listing | None] = web.AppKey("stored")
SEARCH = web.AppKey("search", SearchDoor)
SNAPSHOTS: web.AppKey[Snapshots | None] = web.AppKey("snapshots")
MODELS: web.AppKey[Mapping[str, ModelChanger]] = web.AppKey("models")
WORKERS = web.AppKey("workers", Workers)
FORGET_VECTORS: web.AppKey[Callable[[Job], Awaitable[None]]] = web.AppKey("forget_vectors")
