"""What the checks share: the settings, and what an earlier check found out for a later one."""

from dataclasses import dataclass, field
from urllib.parse import urlsplit

from daemon.jobs import JsonObject, TaskType
from daemon.settings import Settings
from handlers.task_types import configured_task_types


@dataclass(slots=True, kw_only=True)
class Facts:
    """Begins with what was configured; the checks fill in the rest in their order."""

    settings: Settings
    task_types: list[TaskType]
    """What the daemon is to work on."""
    is_quick: bool = False
    """Whether models are left alone."""
    is_broker_up: bool | None = None
    """Whether the broker let us in; None where that was not found out."""
    workers: dict[str, str] = field(default_factory=dict)
    """What each daemon says of itself at the broker: online, paused, draining or offline."""
    health: JsonObject | None = None
    """The report of the daemon that these settings are for; None where it gave none."""
    has_live_process: bool = False
    """Whether a process of this machine holds jobs of the queue and lives."""
    devices: dict[str, str] = field(default_factory=dict)
    """Where each model really ran, by its name."""

    @property
    def worker_id(self) -> str:
        """The daemon's name at the broker."""
        return self.settings.mqtt.client_id

    @property
    def is_daemon_seen(self) -> bool:
        """Whether anything says that a daemon works on this queue."""
        is_online = self.workers.get(self.worker_id, "offline") != "offline"
        return self.health is not None or is_online or self.has_live_process

    def health_check(self, name: str) -> JsonObject:
        """Return the daemon's word on one of its parts; empty where there is none."""
        checks = (self.health or {}).get("checks")
        found = checks.get(name) if isinstance(checks, dict) else None
        return found if isinstance(found, dict) else {}


def begin(settings: Settings, *, is_quick: bool) -> Facts:
    """Return the facts that are known before any check.

    Raises:
        ConfigError: a task type is unknown, or there is none.
    """
    return Facts(settings=settings, task_types=configured_task_types(settings), is_quick=is_quick)


def without_user(url: str) -> str:
    """Return a URL without the user and password that it may hold."""
    parts = urlsplit(url)
    host = parts.hostname or ""
    host = f"[{host}]" if ":" in host else host
    port = f":{parts.port}" if parts.port else ""
    return f"{parts.scheme}://{host}{port}{parts.path}"
