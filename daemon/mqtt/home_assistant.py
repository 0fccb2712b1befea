"""HomeAssistant: announces this daemon to Home Assistant over MQTT, and obeys its pause switches.

Off unless INFERD_HOME_ASSISTANT__ENABLED. What was announced is noted in the data folder before it
is sent, so that it is taken back once this is switched off, whatever happened in between.
"""

import asyncio
import json
import logging
import os
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Protocol

from daemon import topics
from daemon.bell import Bell
from daemon.errors import PublishError
from daemon.jobs import JsonObject, TaskType, dump_json
from daemon.mqtt.home_discovery import OFF, ON
from daemon.requests import MqttRequest
from daemon.settings import HomeAssistantSettings

log = logging.getLogger(__name__)

LOOK_SECONDS = 1.0
"""How often it is looked whether there is a new connection to announce on."""


class Link(Protocol):
    """What is needed of the link."""

    @property
    def connects(self) -> int:
        """How often it connected."""

    async def wait_up(self) -> None:
        """Return once the link is up."""

    async def publish(
        self,
        topic: str,
        payload: bytes,
        *,
        retain: bool = False,
        correlation_data: str | None = None,
    ) -> int:
        """Return after the PUBACK; raises PublishError."""


class Pauses(Protocol):
    """What is needed of the queue."""

    async def pause(self, task_type: TaskType) -> int | None:
        """Lease no more jobs of a task type; raises StorageError."""

    async def resume(self, task_type: TaskType) -> None:
        """Lease them again; raises StorageError."""


def subscriptions(settings: HomeAssistantSettings, worker_id: str) -> list[str]:
    """Return what must be subscribed to: the switches, and Home Assistant's own start."""
    if not settings.enabled:
        return []
    return [topics.pause_filter(worker_id), _status_topic(settings)]


class HomeAssistant:
    """Announces at each connect, when Home Assistant starts, and takes back what is no more."""

    def __init__(
        self,
        link: Link,
        pauses: Pauses,
        *,
        settings: HomeAssistantSettings,
        worker_id: str,
        task_types: Collection[TaskType],
        discovery: Mapping[str, JsonObject],
        data_dir: Path,
    ) -> None:
        """Wire it up.

        Args:
            link: where it is announced.
            pauses: what the switches turn.
            settings: whether, and under which prefix.
            worker_id: whose switches are obeyed.
            task_types: which switches there are.
            discovery: what is announced, by topic.
            data_dir: where it is noted.
        """
        self._link = link
        self._pauses = pauses
        self._is_on = settings.enabled
        self._status = _status_topic(settings)
        self._worker_id = worker_id
        self._task_types = task_types
        self._wanted = {topic: dump_json(each).encode() for topic, each in discovery.items()}
        self._notes = data_dir / f"home-assistant-{worker_id}.json"
        self._asked = Bell()

    async def run(self) -> None:
        """Announce until cancelled; where it is off, take back what was announced, and return."""
        noted = await asyncio.to_thread(self._read_notes)
        if not self._is_on and not noted:
            return
        wanted = self._wanted if self._is_on else {}
        gone = [topic for topic in noted if topic not in wanted]
        await asyncio.to_thread(self._write_notes, [*wanted, *gone])
        told: tuple[int, int] | None = None
        while True:
            await self._link.wait_up()
            heard = self._asked.rings
            state = self._link.connects, heard
            if state != told:
                try:
                    is_heard = await self._tell({**wanted, **dict.fromkeys(gone, b"")})
                except PublishError as error:
                    # The link was lost; said again on the next one.
                    log.debug("Home Assistant was not told: %s", error.message)
                    is_heard = False
                else:
                    told = state
                if is_heard:
                    await asyncio.to_thread(self._write_notes, list(wanted))
                    gone = []
                    if not wanted:
                        log.info("taken back from Home Assistant")
                        return
            await self._asked.wait(heard, timeout_seconds=LOOK_SECONDS)

    def takes(self, topic: str) -> bool:
        """Whether a message on this topic is for us, also while it is off.

        The broker keeps subscriptions of our session that nobody asks for any more.
        """
        is_foreign = not topic.startswith(f"{topics.ROOT}/")
        return is_foreign or topic.startswith(topics.pause(self._worker_id, ""))

    async def on_message(self, message: MqttRequest) -> None:
        """Obey a switch, or note that Home Assistant has started.

        Raises:
            StorageError: the pause could not be stored, so it must not be acknowledged.
        """
        if not self._is_on:
            return
        if message.topic == self._status:
            if message.payload == b"online":
                self._asked.ring()
            return
        wanted = topics.paused_task(message.topic, self._worker_id)
        task_type = next((each for each in self._task_types if each.value == wanted), None)
        order = message.payload.decode("utf-8", "replace")
        if task_type is None or order not in (ON, OFF) or message.is_retained:
            # Retained, it would come again at every start.
            why = "it is retained" if message.is_retained else f"{wanted!r} {order[:20]!r}"
            log.warning("a pause over MQTT was passed over: %s", why)
        elif order == ON:
            await self._pauses.pause(task_type)
        else:
            await self._pauses.resume(task_type)

    async def _tell(self, payloads: Mapping[str, bytes]) -> bool:
        """Publish all of it; False where the broker refuses us, which only a new one may change."""
        for topic, payload in payloads.items():
            try:
                await self._link.publish(topic, payload, retain=True)
            except PublishError as error:
                if error.reason_code is None:
                    raise
                log.warning("Home Assistant does not find us: %s", error.message)
                return False
        return True

    def _read_notes(self) -> list[str]:
        try:
            noted = json.loads(self._notes.read_text(encoding="utf-8"))
        except FileNotFoundError:
            return []
        except (OSError, ValueError) as error:
            log.warning("%s cannot be read: %s", self._notes, error)
            return []
        return [each for each in noted if isinstance(each, str)] if isinstance(noted, list) else []

    def _write_notes(self, announced: Sequence[str]) -> None:
        try:
            if not announced:
                self._notes.unlink(missing_ok=True)
                return
            part = self._notes.with_suffix(".part")
            part.write_text(json.dumps(announced), encoding="utf-8")
            os.replace(part, self._notes)  # noqa: PTH105 - over what is there, at once
        except OSError as error:
            log.warning("%s cannot be written: %s", self._notes, error)


def _status_topic(settings: HomeAssistantSettings) -> str:
    return f"{settings.prefix}/status"
