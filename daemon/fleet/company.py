"""A daemon's dealings with the others at its broker: who is there, wake-ups, intake roles."""

import asyncio
from collections.abc import Callable, Sequence

from daemon import topics
from daemon.fleet.role_keeper import LEASE_SECONDS, RoleKeeper
from daemon.fleet.wakes import WakeUps
from daemon.fleet.workers import WATCHED, Workers
from daemon.health import Health
from daemon.identity import is_dead
from daemon.jobs import Clock, TaskType
from daemon.mqtt.link import MqttLink
from daemon.mqtt.reception import OnRequest
from daemon.queue.backend import QueueBackend
from daemon.queue.installation import Installation, read_installation
from daemon.queue.job_queue import JobQueue
from daemon.queue.roles import Roles
from daemon.settings import MqttSettings


class Company:
    """Wires workers, wake-ups and roles together; passes the link's messages to them.

    Attributes:
        watched: what the link must watch for it.
        queue_id: names the queue that is shared.
        workers: all daemons at the broker.
    """

    watched: Sequence[str] = (*WATCHED, topics.WAKE_FILTER)

    def __init__(self, settings: MqttSettings, installation: Installation, clock: Clock) -> None:
        self._settings = settings
        self._clock = clock
        self._wakes: WakeUps | None = None
        self._keeper: RoleKeeper | None = None
        self._secret = installation.secret
        self.queue_id = installation.name
        self.workers = Workers(settings.client_id, queue_id=self.queue_id, clock=clock)

    @classmethod
    async def of(cls, database: QueueBackend, settings: MqttSettings, clock: Clock) -> "Company":
        """Return the company of the daemons on a queue.

        Raises:
            StorageError: the queue cannot be read.
        """
        return cls(settings, await read_installation(database), clock)

    async def run(
        self,
        link: MqttLink,
        database: QueueBackend,
        queue: JobQueue,
        health: Health,
        *,
        identity: str,
        on_request: OnRequest,
        has_room: Callable[[TaskType], bool],
    ) -> None:
        """Take part until cancelled.

        Args:
            link: the daemon's own.
            database: where the roles are leased.
            queue: whose bells ring.
            health: is told of the roles, where there are any.
            identity: this process.
            on_request: takes what comes by a role.
            has_room: whether a job of a task type that comes now is begun at once.
        """
        self._wakes = wakes = WakeUps(
            link,
            queue.ready,
            worker_id=self._settings.client_id,
            clock=self._clock,
            has_room=has_room,
            is_alone=lambda: next(self.workers.others(), None) is None,
        )
        roles = Roles(
            database,
            owner=identity,
            count=self._settings.intake_roles,
            lease_seconds=LEASE_SECONDS,
            clock=self._clock,
            is_dead=is_dead,
        )
        self._keeper = keeper = RoleKeeper(
            roles,
            link,
            self._settings,
            secret=self._secret,
            on_request=on_request,
            changed=lambda: wakes.call(topics.WAKE_INTAKE),
        )
        wakes.roles_changed = keeper.ask
        if self._settings.intake_roles:
            health.add("intake", keeper.check, is_required=False)
        async with asyncio.TaskGroup() as group:
            group.create_task(wakes.run(), name="wake-ups")
            group.create_task(keeper.run(), name="intake-roles")

    def hear(self, topic: str, payload: bytes, is_retained: bool) -> bool:
        """Take a message of the other daemons; return False for every other topic."""
        if self._wakes is not None and self._wakes.hear(topic, payload):
            return True
        return self.workers.hear(topic, payload, is_retained=is_retained)

    async def leave(self) -> None:
        """Give up the roles at once, as far as that is possible."""
        if self._keeper is not None:
            await self._keeper.close()
