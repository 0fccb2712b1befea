"""Wake-ups over MQTT: a daemon whose workers are all busy tells the others that jobs wait.

Sent with QoS 0 and not kept: whoever misses one finds the job at its next look at the queue.
"""

import asyncio
from collections.abc import Callable, Mapping
from typing import Protocol

from daemon import topics
from daemon.bell import Bell, wait_any
from daemon.jobs import Clock, JsonObject, TaskType, dump_json

REST_SECONDS = 0.1
"""Between two looks: jobs that come together are told together, after our own workers took some."""
IDLE_SECONDS = 60.0


class Link(Protocol):
    """What is needed of the link."""

    def send(self, topic: str, payload: bytes) -> bool:
        """Send with QoS 0; never raises."""


class WakeUps:
    """Sends wake-ups to the other daemons, and receives theirs."""

    def __init__(
        self,
        link: Link,
        bells: Mapping[TaskType, Bell],
        *,
        worker_id: str,
        clock: Clock,
        has_room: Callable[[TaskType], bool],
        is_alone: Callable[[], bool],
    ) -> None:
        """Wire it up.

        Args:
            link: where it is told.
            bells: ring when jobs of a task type may be leased.
            worker_id: who tells.
            clock: epoch milliseconds.
            has_room: whether this daemon can begin a job of a task type at once.
            is_alone: whether no other daemon is known that might.
        """
        self._link = link
        self._bells = bells
        self._worker_id = worker_id
        self._clock = clock
        self._has_room = has_room
        self._is_alone = is_alone
        self._echoes = dict.fromkeys(bells, 0)
        self.roles_changed: Callable[[], None] = lambda: None
        """Called when another daemon gave up an intake role, or came to share them."""

    async def run(self) -> None:
        """Send until cancelled."""
        told = {each: bell.rings for each, bell in self._bells.items()}
        while True:
            heard = {bell: bell.rings for bell in self._bells.values()}
            for task_type, bell in self._bells.items():
                # What another daemon's call rang is no news to the others.
                rings = bell.rings - self._echoes[task_type]
                is_new = rings > told[task_type]
                if is_new and not self._has_room(task_type) and not self._is_alone():
                    self.call(task_type.value)
                told[task_type] = rings
            await wait_any(heard, timeout_seconds=IDLE_SECONDS)
            await asyncio.sleep(REST_SECONDS)

    def call(self, what: str) -> None:
        """Tell the others of a task type, or of `topics.WAKE_INTAKE`."""
        said: JsonObject = {"v": 1, "worker_id": self._worker_id, "timestamp": self._clock()}
        self._link.send(topics.wake(what), dump_json(said).encode())

    def hear(self, topic: str, payload: bytes) -> bool:
        """Take a wake-up; return False for every other topic."""
        what = topics.woken(topic)
        if what is None:
            return False
        if f'"{self._worker_id}"'.encode() in payload:
            # Our own.
            return True
        if what == topics.WAKE_INTAKE:
            self.roles_changed()
        for task_type, bell in self._bells.items():
            if task_type.value == what:
                self._echoes[task_type] += 1
                bell.ring()
        return True
